"""Lines that a user edits at a terminal, as an input for a poll(2) loop.

Runs in the command line. Readline runs in a child process, which sends finished lines through a
pipe: a thread could not be stopped before it changes the terminal once more. Always restores the
terminal. Raises nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
from collections.abc import Iterator

from superd.client.standard import Input
from superd.process.forking import signals_blocked


@contextlib.contextmanager
def edited_lines() -> Iterator[Input]:
    """Yield an input of edited lines; without a terminal on both sides, plain standard input."""
    if not (os.isatty(0) and os.isatty(1)):
        yield Input()
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # and restore the terminal
    before = termios.tcgetattr(0)
    reader, writer = os.pipe()
    with contextlib.ExitStack() as undo:
        with signals_blocked():
            editor = os.fork()
            if not editor:
                try:
                    os.close(reader)
                    _edit(writer)
                finally:
                    os._exit(0)
            undo.callback(termios.tcsetattr, 0, termios.TCSADRAIN, before)
            undo.callback(os.close, reader)
            undo.callback(os.waitpid, editor, 0)
            undo.callback(os.kill, editor, signal.SIGKILL)
        os.close(writer)
        yield Input(reader, is_terminal=True)


def _edit(writer: int) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    with contextlib.suppress(ImportError):  # the terminal itself can delete a character
        import readline

        readline.set_auto_history(True)
    encoding = sys.stdin.encoding
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            os.write(writer, f"{input()}\n".encode(encoding, "surrogateescape"))
