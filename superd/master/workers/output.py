"""What a worker and the programs that it starts write to standard output and error, as log lines.

Runs in the master, which reads a pipe for each worker: the last words of a worker that crashes are
in it. The worker's end does not block, so what it writes while the pipe is full is lost. Raises
nothing.
"""

from __future__ import annotations

import os

from superd.observe.records import LONGEST_TEXT

READ_SIZE = 16 * 1024  # bytes
ALLOWANCE = 100  # lines between two checks: a worker cannot keep the master busy by printing


class Output:
    """The master's end of a pipe. `is_closed` is set once every process has closed the other."""

    def __init__(self, reader: int) -> None:
        self.reader = reader
        self.allowance = ALLOWANCE
        self.is_closed = False
        self._part = b""
        self._dropped = 0

    def fileno(self) -> int:
        return self.reader

    def lines(self) -> list[str]:
        """Return the lines that can be read now and are within the allowance; a line that is too
        long in parts.
        """
        try:
            data = os.read(self.reader, READ_SIZE)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self.is_closed = not data
        *lines, self._part = (self._part + data).split(b"\n")
        if self.is_closed or len(self._part) > LONGEST_TEXT:
            lines, self._part = [*lines, self._part], b""
        lines = [line for line in lines if line.strip()]
        texts = [line.decode(errors="backslashreplace") for line in lines[: self.allowance]]
        self._dropped += len(lines) - len(texts)
        self.allowance -= max(1, len(texts))  # empty lines cost the master time as well
        return texts

    def renew(self) -> list[str]:
        """Start another allowance; return a line about those that were dropped, if any were."""
        dropped, self._dropped = self._dropped, 0
        self.allowance = ALLOWANCE
        return [f"{dropped} lines of output were dropped"] if dropped else []

    def close(self) -> list[str]:
        """Return the last lines, and close the pipe; other processes may still have the end."""
        last = self.renew()
        while self.allowance and not self.is_closed:
            if not (lines := self.lines()):
                break
            last += lines
        os.close(self.reader)
        rest, self._part = self._part.decode(errors="backslashreplace"), b""
        return [*last, rest] if rest.strip() else last
