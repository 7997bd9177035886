"""Lines that somebody edits at a terminal, as an input that a poll(2) loop can wait for.

Runs in the command line. Readline waits in a process of its own, from which finished lines come by
a pipe: a thread could not be stopped before it has changed the terminal once more. Never leaves the
terminal as readline has set it. Never raises.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
from collections.abc import Iterator

from superd.client.standard import Input


@contextlib.contextmanager
def edited_lines() -> Iterator[Input]:
    """Yield an input of lines; without a terminal on both sides it is standard input as it is."""
    if not (os.isatty(0) and os.isatty(1)):
        yield Input()
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # and tidy up
    before = termios.tcgetattr(0)
    reader, writer = os.pipe()
    editor = os.fork()
    if not editor:
        try:
            os.close(reader)
            _edit(writer)
        finally:
            os._exit(0)
    os.close(writer)
    try:
        yield Input(reader, is_terminal=True)
    finally:
        os.kill(editor, signal.SIGKILL)
        os.waitpid(editor, 0)
        os.close(reader)
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _edit(writer: int) -> None:
    with contextlib.suppress(ImportError):  # the terminal itself can delete a character
        import readline

        readline.set_auto_history(True)
    encoding = sys.stdin.encoding
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            os.write(writer, f"{input()}\n".encode(encoding, "surrogateescape"))
