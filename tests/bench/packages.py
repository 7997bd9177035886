"""Programs of Debian packages, unpacked under the cache folder and run from there, not installed.

Each package has its own folder, and is downloaded once. Libraries that a machine may lack are
unpacked, too, and only the program that needs them gets their path.
Raises BenchError if a package cannot be downloaded; the benchmark then skips the program.
"""

import os
import subprocess
from pathlib import Path
from typing import BinaryIO

from tests.bench.workspace import CACHE, BenchError, last_line

PACKAGES = CACHE / "peers"
COMMAND_TIMEOUT = 60.0  # seconds


def program(package: str, member: str, libraries: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the command that starts a program of a package, with the libraries that it needs."""
    path = unpacked(package) / member
    if not path.exists():
        raise BenchError(f"{package}: it contains no {member}")
    found = [file for library in libraries for file in unpacked(library).rglob("lib*.so*")]
    folders = dict.fromkeys(str(file.parent) for file in found)
    if not folders:
        return (str(path),)
    return ("env", f"LD_LIBRARY_PATH={':'.join(folders)}", str(path))


def unpacked(package: str) -> Path:
    """Return the folder that holds a package's files."""
    folder = PACKAGES / package
    done = folder / ".unpacked"  # without it, an interrupted copy is unpacked again
    if done.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    log = PACKAGES / f"{package}.apt.log"
    try:
        with log.open("wb") as output:
            _run(["apt-get", "-o", "APT::Sandbox::User=root", "download", package], folder, output)
            archive = next(folder.glob(f"{package}_*.deb"))
            _run(["dpkg", "-x", str(archive), str(folder)], folder, output)
    except (OSError, subprocess.SubprocessError, StopIteration) as error:
        raise BenchError(f"{package}: {error} ({last_line(log)})") from error
    done.touch()
    return folder


def need_root(name: str) -> None:
    """Raise BenchError unless this process runs as root."""
    if os.geteuid() != 0:
        raise BenchError(f"{name}: it needs root")


def write(name: str, text: str) -> Path:
    """Write a configuration file beside the packages."""
    PACKAGES.mkdir(parents=True, exist_ok=True)
    path = PACKAGES / name
    path.write_text(text)
    return path


def _run(command: list[str], folder: Path, output: BinaryIO) -> None:
    subprocess.run(
        command,
        cwd=folder,
        stdout=output,
        stderr=subprocess.STDOUT,
        timeout=COMMAND_TIMEOUT,
        check=True,
    )
