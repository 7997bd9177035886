"""The stack of a blocked worker, as faulthandler wrote it, and the plugin that it belongs to.

Runs in the worker, and in the master for a worker that hangs. The text is not trusted, since a
hostile plugin may have written it. Opens files only if `with_source` asks for source lines. Never
imports a module that a stack names. Never raises.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MAX_STACK_SIZE = 64 * 1024  # bytes
MAX_FRAMES = 28  # the innermost ones; a record shows each with two lines

_HEAD = b"Stack (most recent call first):"
_FRAME = re.compile(rb'  File "([^"\n]{1,600})", line ([0-9]{1,7}) in ([^\n]{1,600})')
_RUN = ("superd/worker/engine.py", "run")  # frames outside of it are the same in every stack
# where asyncio waits, without or with relays; uvloop has no frames
_AT_REST = ("asyncio/base_events.py", "selectors.py", "superd/worker/runtime/polling.py")

Owners = Mapping[str, Sequence[str]]  # the services of a plugin, by its module's first name


class Frame(NamedTuple):
    file: str
    line: int
    function: str


class Stack(NamedTuple):
    """The frames of a handler and of the functions that it has called, innermost last. `is_known`
    is whether a stack was written at all.
    """

    frames: tuple[Frame, ...]
    is_known: bool

    @property
    def is_at_rest(self) -> bool:
        """Whether only the code of the loop was running."""
        return self.is_known and all(frame.file.endswith(_AT_REST) for frame in self.frames)

    def place(self, owners: Owners) -> tuple[str, str]:
        """Return the service whose plugin has the innermost frame, and a text for the place. The
        service is "" if several share the plugin, or if no frame belongs to a plugin.
        """
        for frame in reversed(self.frames):
            parts = frame.file.split("/")
            for number, part in enumerate(parts):
                services = owners.get(part.removesuffix(".py"))
                if services:
                    text = f"in plugin {_shown(frame, parts[number:])}"
                    if len(services) == 1:
                        return services[0], text
                    return "", f"{text}, of services {', '.join(services)}"
        if self.frames:
            frame = self.frames[-1]
            parts = frame.file.split("/")
            return "", f"in {_shown(frame, parts[-3:])}"
        return "", "at an unknown place"

    def lines(self, *, with_source: bool) -> tuple[str, ...]:
        """Return the stack in the form of a traceback, for a record's detail."""
        lines = []
        for file, line, function in self.frames[-MAX_FRAMES:]:
            lines.append(f'  File "{file}", line {line}, in {function}')
            if with_source and (source := linecache.getline(file, line).strip()):
                lines.append(f"    {source}")
        return ("Stack (most recent call last):", *lines) if lines else ()


def stack_of(written: bytes) -> Stack:
    """Return the last stack in the output of faulthandler."""
    _, head, text = written.rpartition(_HEAD)
    if not head:
        return Stack((), is_known=False)
    frames = []
    for file, line, function in _FRAME.findall(text):
        frame = Frame(_decoded(file), int(line), _decoded(function))
        if frame.file.endswith(_RUN[0]) and frame.function == _RUN[1]:
            break
        frames.append(frame)
    return Stack(tuple(reversed(frames)), is_known=True)


def _shown(frame: Frame, parts: Sequence[str]) -> str:
    return f"{'/'.join(parts)}:{frame.line}, {frame.function}"


def _decoded(text: bytes) -> str:
    return text.decode("ascii", "backslashreplace")
