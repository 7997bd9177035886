"""Queries of a worker to the master: metrics and readiness of superd as a whole.

Runs in the worker, on the loop. Callers that ask within a moment of each other share one query and
its answer. Raises TimeoutError if the master does not answer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

QUERY_TIMEOUT = 2.0  # seconds
ANSWER_LIFETIME = 0.02  # seconds that an answer is reused, to keep the channel free


class MasterQueries:
    """One for a worker. `send` sends a query to the master; it returns False if it cannot."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        send: Callable[[str], bool],
        timeout: float = QUERY_TIMEOUT,
    ) -> None:
        self._loop = loop
        self._send = send
        self._timeout = timeout
        self._answers: dict[str, asyncio.Future[bytes | None]] = {}

    async def observe(self, what: str) -> bytes:
        """Return the master's answer to a query."""
        answer = self._answers.get(what)
        if answer is None:
            answer = self._answers[what] = self._loop.create_future()
            if self._send(what):
                self._loop.call_later(self._timeout, self._settle, what, answer, None)
            else:
                self._settle(what, answer, None)
        text = await asyncio.shield(answer)
        if text is None:
            raise TimeoutError("the master does not answer")
        return text

    def take_answer(self, what: str, text: str | None = None, files: Sequence[int] = ()) -> None:
        """Take an answer. A long one is a file, whose position all workers share; it does not
        arrive where no descriptor is free.
        """
        answer = None if text is None else text.encode()
        for file in files:
            answer = os.pread(file, os.fstat(file).st_size, 0)
            os.close(file)
        if answer is not None and what in self._answers:
            self._settle(what, self._answers[what], answer)

    def _settle(self, what: str, answer: asyncio.Future[bytes | None], text: bytes | None) -> None:
        if not answer.done():
            answer.set_result(text)
            self._loop.call_later(ANSWER_LIFETIME, self._answers.pop, what, None)
