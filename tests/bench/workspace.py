"""The benchmark's folder for generated files: `.cache/bench/` in the project's root.

It holds compiled programs, unpacked peers, configuration files and logs. Nothing outside this
folder is changed, and it may be deleted at any time.
Raises BenchError if a program cannot be compiled.
"""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "bench"
SOURCES = Path(__file__).parent


class BenchError(Exception):
    """A measurement that is impossible; its text is the reason, in one line."""


def build(name: str) -> Path:
    """Compile tests/bench/NAME.c, unless the program is newer than the source."""
    source = SOURCES / f"{name}.c"
    program = CACHE / name
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    CACHE.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CC", "gcc")
    command = [compiler, "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)]
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"cannot compile {source.name}: {error}") from error
    return program


def last_line(path: Path) -> str:
    """Return the last line of a log, to say why something failed."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return lines[-1] if lines else "no message"
