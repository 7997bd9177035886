"""The service: one program for each connection, or one that has the listening socket for a time.

What it runs has inetd's place in the world: the socket is its standard input and output.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from superd.plugin import (
    Connection,
    Duration,
    Options,
    Service,
    Strings,
    Unavailable,
    Waiting,
    inherited_environment,
)
from superd_exec.environment import PATH, environment
from superd_exec.program import NEEDED, Program, start

FAILURES = 5  # in a row, and then a pause
PAUSE = 10.0  # seconds
RETRY = 0.25  # seconds until a program is tried again for which too little was left

# no program is to blame for it
SHORTAGE = frozenset((errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM))

# sd_listen_fds(3) wants to know that it is the one who is meant, and by its number; only a shell
# knows that in time, and it would tell PWD, too
LISTEN_FD = 3
WITH_ITS_PID = 'unset PWD; LISTEN_PID=$$ exec "$0" "$@"'

# what a shell would exit with: found but not to be run, or not found
CANNOT_RUN = {errno.ENOENT: 127, errno.ENOTDIR: 127}


def _no_nul(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if any("\0" in text for text in value):
        raise ValueError("no program can be given a NUL")
    return value


def _variables(env: dict[str, str]) -> dict[str, str]:
    for name, value in env.items():
        if not name or "=" in name:
            raise ValueError('the name of a variable is not empty and has no "="')
        _no_nul((name, value))
    return env


def _without_argv0(listen_fds: bool, info: ValidationInfo) -> bool:
    if listen_fds and info.data.get("argv0"):
        raise ValueError("with listen-fds a shell starts the program, which has no argv0 then")
    return listen_fds


class ExecOptions(Options):
    command: Annotated[
        Strings,
        AfterValidator(_no_nul),
        Field(min_length=1, description="the program and its arguments, for no shell"),
    ]
    argv0: Annotated[
        str,
        AfterValidator(_no_nul),
        Field(description="the name it is called by; the default is the program's own"),
    ] = ""
    env: Annotated[
        dict[str, str],
        AfterValidator(_variables),
        Field(description="variables of its environment"),
    ] = Field(default_factory=dict)
    pass_env: Annotated[
        Strings, Field(description="variables that it has from superd's environment")
    ] = ()
    directory: Annotated[
        str, AfterValidator(_no_nul), Field(pattern="^/", description="where it starts")
    ] = "/"
    stderr: Annotated[
        Literal["log", "client", "discard"],
        Field(description="where its standard error goes"),
    ] = "log"
    listen_fds: Annotated[
        bool,
        AfterValidator(_without_argv0),
        Field(description="it has the socket as descriptor 3, too, as systemd does it"),
    ] = False
    max_run_time: Annotated[
        Duration, Field(description="then it is ended, with all that it has started; 0 for none")
    ] = 0.0


class Exec(Service):
    """Runs a program with the connection as its standard input and output, as inetd does.

    With `wait = true` the program has the listening or datagram socket instead, and superd polls no
    more until it ends. The environment is PATH, `pass-env`, `env` and what is told of the client.
    """

    name = "exec"
    options_model = ExecOptions
    options: ExecOptions
    descriptors = NEEDED

    def prepare(self) -> None:
        program = self.options.command[0]
        found = shutil.which(program, path=PATH)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such program", program)
        self.executable = os.path.abspath(found)
        self.argv = [self.options.argv0 or program, *self.options.command[1:]]
        if self.options.listen_fds:
            self.argv = ["sh", "-c", WITH_ITS_PID, self.executable, *self.argv[1:]]
            self.executable = "/bin/sh"
        passed = inherited_environment(self.options.pass_env)
        self.base = {**passed, **self.options.env}
        self.programs: set[Program] = set()
        self.failures = 0
        self.is_short = False

    async def takeover(self, sock: socket.socket, conn: Connection) -> None:
        sock.setblocking(True)
        env = environment(self.base, conn.local, conn.peer)
        program = await self._started(sock, env, partial(conn.log, "warning"))
        sock.close()  # the client is to see the end as soon as the program has closed it
        try:
            await self._ended(program)
        finally:
            conn.note(program.outcome)

    async def listener(self, sock: socket.socket, waiting: Waiting) -> str:
        env = environment(self.base, waiting.local, waiting.peer)
        sock.setblocking(True)
        try:
            program = await self._started(sock, env, partial(waiting.log, "warning"))
            await self._ended(program)
            return program.outcome
        finally:
            if waiting.peer is None:  # others may have the socket of a datagram, too
                sock.setblocking(False)

    async def _started(
        self, sock: socket.socket, env: dict[str, str], log: Callable[[str], None]
    ) -> Program:
        """Start the program for a client, which waits where that takes more than is left."""
        descriptors = dict.fromkeys((0, 1), sock.fileno())
        if self.options.listen_fds:
            descriptors[LISTEN_FD] = sock.fileno()
            env |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "connection"}
        directory, stderr = self.options.directory, self.options.stderr
        while True:
            try:
                program = start(
                    self.executable, self.argv, env, descriptors, directory, stderr, log
                )
            except OSError as error:
                if error.errno not in SHORTAGE:
                    raise self._cannot_run(error) from None
                if not self.is_short:
                    self.is_short = True
                    log(f"clients wait for {self.executable}: {os.strerror(error.errno)}")
                await asyncio.sleep(RETRY)
            else:
                self.failures = 0
                self.is_short = False
                self.programs.add(program)
                return program

    def _cannot_run(self, error: OSError) -> Unavailable:
        self.failures += 1
        code = CANNOT_RUN.get(error.errno or 0, 126)
        what = error.filename or self.executable  # or the directory to start in
        text = f"cannot run {what}: {os.strerror(error.errno or 0)} (exit {code})"
        return Unavailable(text, PAUSE if self.failures >= FAILURES else 0.0)

    async def _ended(self, program: Program) -> None:
        try:
            await program.ended(self.options.max_run_time)
        finally:
            self.programs.discard(program)

    def close(self) -> None:
        for program in self.programs:
            program.signal(signal.SIGKILL)
