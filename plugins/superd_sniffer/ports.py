"""The names of ports by services(5). The file is read once, before confinement."""

from __future__ import annotations

from pathlib import Path

FILE = Path("/etc/services")


def port_names(file: Path = FILE) -> dict[tuple[str, int], str]:
    """Return names by transport and port: the first of several; none without the file."""
    try:
        lines = file.read_text("utf-8", "replace").splitlines()
    except OSError:
        return {}
    names: dict[tuple[str, int], str] = {}
    for line in lines:
        words = line.partition("#")[0].split()
        if len(words) >= 2:
            port, _, transport = words[1].partition("/")
            if port.isascii() and port.isdigit():
                names.setdefault((transport, int(port)), words[0])
    return names
