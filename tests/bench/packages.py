"""Programs of Debian packages, unpacked under the cache folder and run from there, not installed.

Each package has a folder of its own, and is downloaded the first time. Libraries that a machine
may lack are unpacked too, and only the program that asked for them is told where they are.
Raises BenchError when a package cannot be had; the benchmark then goes on without the program.
"""

import os
import subprocess
from pathlib import Path
from typing import BinaryIO

from tests.bench.workspace import CACHE, BenchError, last_line

PACKAGES = CACHE / "peers"
TIME_LIMIT = 60.0  # for one command


def program(package: str, member: str, libraries: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the words that start a program of a package, with the libraries it needs."""
    path = unpacked(package) / member
    if not path.exists():
        raise BenchError(f"{package}: there is no {member} in it")
    found = [file for library in libraries for file in unpacked(library).rglob("lib*.so*")]
    folders = dict.fromkeys(str(file.parent) for file in found)
    if not folders:
        return (str(path),)
    return ("env", f"LD_LIBRARY_PATH={':'.join(folders)}", str(path))


def unpacked(package: str) -> Path:
    """Return the folder that holds a package's files."""
    folder = PACKAGES / package
    done = folder / ".unpacked"  # a copy that was interrupted is made again
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
    """Refuse, as anybody else, a program that only root can run."""
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
        timeout=TIME_LIMIT,
        check=True,
    )
