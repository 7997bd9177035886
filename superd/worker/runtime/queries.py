"""How superd is as a whole, for a service that tells of it: the master is asked, and answers.

Runs in the worker, on the loop. All who ask in a moment share a question and its answer. Raises
TimeoutError where the master does not answer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

PATIENCE = 2.0  # seconds
SHARED = 0.02  # seconds that an answer is good for: the line to the master has other uses


class Observer:
    """One for a worker; `ask` puts a question to the master, or tells that it cannot be put."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ask: Callable[[str], bool],
        patience: float = PATIENCE,
    ) -> None:
        self._loop = loop
        self._ask = ask
        self._patience = patience
        self._answers: dict[str, asyncio.Future[bytes | None]] = {}

    async def observe(self, what: str) -> bytes:
        """Return what the master says."""
        answer = self._answers.get(what)
        if answer is None:
            answer = self._answers[what] = self._loop.create_future()
            if self._ask(what):
                self._loop.call_later(self._patience, self._settle, what, answer, None)
            else:
                self._settle(what, answer, None)
        text = await asyncio.shield(answer)
        if text is None:
            raise TimeoutError("the master does not answer")
        return text

    def answered(self, what: str, text: str | None = None, file: int | None = None) -> None:
        """Take an answer. A long one is a file, which all workers share, and so its position; it
        does not come where there is no free descriptor.
        """
        told = None if text is None else text.encode()
        if file is not None:
            told = os.pread(file, os.fstat(file).st_size, 0)
            os.close(file)
        if told is not None and what in self._answers:
            self._settle(what, self._answers[what], told)

    def _settle(self, what: str, answer: asyncio.Future[bytes | None], text: bytes | None) -> None:
        if not answer.done():
            answer.set_result(text)
            self._loop.call_later(SHARED, self._answers.pop, what, None)
