"""Asks a real resolver process for the addresses of names, from inside a jail as a worker does.

`JailedAsker` runs in the test's process. The process that it starts first plays the master and
starts a resolver. Then it plays a worker: it confines itself to a directory with chroot(2) and
asks the resolver for each name that it reads.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import partial
from typing import Any


class JailedAsker:
    """Starts and asks the process; `startup` is the first line that it writes."""

    def __init__(self, jail: str, wrapper: Iterable[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "tests.support.asking", jail],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.startup = self._read()
        self.resolver = int(self.startup["resolver"])

    def ask(self, *names: str) -> dict[str, str]:
        """Ask for several names at once; return their addresses in the order of the answers."""
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{name}\n" for name in names))
        self.process.stdin.flush()
        answers = [self._read() for _ in names]
        return {answer["name"]: " ".join(answer["found"]) for answer in answers}

    def addresses(self, name: str) -> str:
        return self.ask(name)[name]

    def _read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate(timeout=30)
        assert self.process.returncode == 0


def main(jail: str) -> None:
    from superd.master.logs.log import Log
    from superd.master.resolver import Resolver
    from superd.worker.runtime.names import Names

    resolver = Resolver(Log(["stderr"], "text"))
    resolver.keep_running(time.monotonic())
    modules = [name for name in ("aiodns", "pycares") if name in sys.modules]
    write_line({"resolver": resolver.pid, "modules": modules})
    os.chroot(jail)
    os.chdir("/")
    loop = asyncio.SelectorEventLoop()
    names = Names(loop, resolver.address)

    def read() -> None:
        data = os.read(0, 65536).decode()
        for name in data.split():
            names.look_up_addresses(name, partial(answer, name))
        if not data:
            loop.stop()

    loop.add_reader(0, read)
    loop.run_forever()
    loop.close()
    resolver.close()


def answer(name: str, found: tuple[str, ...]) -> None:
    write_line({"name": name, "found": found})


def write_line(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
