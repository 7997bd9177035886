"""The service: one program for each connection, or one program at a time for the listening socket.

Runs in a worker, on the loop. The socket is the program's standard input and output, as with inetd.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
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
    Entry,
    Options,
    Service,
    Strings,
    Unavailable,
    Waiting,
    WrongOption,
    did_you_mean,
    inherited_environment,
    shown,
)
from superd_exec.checking import mistake_in, names_in
from superd_exec.environment import PATH, environment
from superd_exec.program import DESCRIPTORS_TO_START, Program, start

MAX_FAILURES = 5  # in a row, before the service pauses
PAUSE_SECONDS = 10.0
START_RETRY_SECONDS = 0.25  # after a shortage of descriptors, processes or memory

# errors of the system, not of the program
SHORTAGE_ERRNOS = frozenset((errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM))

# sd_listen_fds(3) compares LISTEN_PID with its own process id. Only a shell can set that before it
# executes the program; it would also export PWD.
LISTEN_FD = 3
SET_LISTEN_PID = 'unset PWD; LISTEN_PID=$$ exec "$0" "$@"'

# exit codes of a shell: 127 if not found; 126 otherwise
EXIT_CODE_OF_ERRNO = {errno.ENOENT: 127, errno.ENOTDIR: 127}


def _no_nul(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if any("\0" in text for text in value):
        raise ValueError("expected a text without NUL")
    return value


def _variables(env: dict[str, str]) -> dict[str, str]:
    for name, value in env.items():
        if not name or "=" in name:
            raise ValueError(f'expected the name of a variable, without "=", found {name!r}')
        _no_nul((name, value))
    return env


def _without_argv0(listen_fds: bool, info: ValidationInfo) -> bool:
    if listen_fds and info.data.get("argv0"):
        raise ValueError("listen-fds and argv0 exclude each other: a shell starts the program")
    return listen_fds


class ExecOptions(Options):
    command: Annotated[
        Strings,
        AfterValidator(_no_nul),
        Field(min_length=1, description="the program and its arguments; no shell splits them"),
    ]
    argv0: Annotated[
        str,
        AfterValidator(_no_nul),
        Field(description="the program's argv[0]; the default is its name in command"),
    ] = ""
    env: Annotated[
        dict[str, str],
        AfterValidator(_variables),
        Field(description="variables of the program's environment"),
    ] = Field(default_factory=dict)
    pass_env: Annotated[
        Strings, Field(description="names of variables passed on from superd's environment")
    ] = ()
    directory: Annotated[
        str, AfterValidator(_no_nul), Field(pattern="^/", description="working directory")
    ] = "/"
    stderr: Annotated[
        Literal["log", "client", "discard"],
        Field(description="where the program's standard error goes"),
    ] = "log"
    listen_fds: Annotated[
        bool,
        AfterValidator(_without_argv0),
        Field(description="pass the socket as descriptor 3, too, as systemd does"),
    ] = False
    max_run_time: Annotated[
        Duration,
        Field(description="then its process group is ended; 0 for no limit"),
    ] = 0.0


class Exec(Service):
    """Runs a program with the connection as its standard input and output, as inetd does.

    With `wait = true` the program has the listening or datagram socket instead, and superd does not
    poll that until the program ends. The environment is PATH, `pass-env`, `env` and the addresses.
    """

    name = "exec"
    options_model = ExecOptions
    options: ExecOptions
    descriptors = DESCRIPTORS_TO_START
    runs_programs = True

    def prepare(self) -> None:
        program = self.options.command[0]
        self.program = self.executable = self._found(program)
        self.argv = [self.options.argv0 or program, *self.options.command[1:]]
        if self.options.listen_fds:
            self.argv = ["sh", "-c", SET_LISTEN_PID, self.executable, *self.argv[1:]]
            self.executable = "/bin/sh"
        passed = inherited_environment(self.options.pass_env)
        self.base = {**passed, **self.options.env}
        self.programs: set[Program] = set()
        self.failures = 0
        self.is_short = False

    def check(self, entry: Entry) -> None:
        self.root = entry.chroot

    def preflight_as_user(self) -> None:
        try:
            os.chdir(self.options.directory)
        except OSError as error:
            text = f"{os.strerror(error.errno or 0)}: {self.options.directory}"
            raise WrongOption("directory", text) from None
        for program in (self.program, self.executable):
            if mistake := mistake_in(program, PATH):
                raise WrongOption("command", mistake)

    def _found(self, program: str) -> str:
        """Return the path of a program, in the jail if there is one. A name without a slash is
        searched for in PATH.
        """
        path = [program.rpartition("/")[0]] if "/" in program else PATH.split(":")
        places = [f"{self.root}{directory}" for directory in path]
        name = program.rpartition("/")[2]
        if "/" in program and os.path.lexists(f"{self.root}{program}"):
            return os.path.abspath(program)
        if found := shutil.which(name, path=":".join(places)):
            return found.removeprefix(self.root)
        words = program.split()
        hint = did_you_mean(name, names_in(places))
        if len(words) > 1:
            hint = f"; a program and its arguments are an array: {json.dumps(words)}"
        place = f" in {self.root}" if self.root else ""
        raise WrongOption("command", f"there is no program {shown(program)}{place}{hint}")

    async def takeover(self, sock: socket.socket, conn: Connection) -> None:
        sock.setblocking(True)
        env = environment(self.base, conn.local, conn.peer)
        program = await self._start(sock, env, partial(conn.log, "warning"))
        conn.given_to(program.pid)
        try:
            await self._wait_for(program)
        finally:
            conn.note(program.outcome)

    async def listener(self, sock: socket.socket, waiting: Waiting) -> str:
        env = {**environment(self.base, waiting.local, waiting.peer), **waiting.environment}
        sock.setblocking(True)
        try:
            program = await self._start(sock, env, partial(waiting.log, "warning"))
            with contextlib.suppress(asyncio.CancelledError):  # superd records the outcome, too
                await self._wait_for(program)
            return program.outcome
        finally:
            if waiting.peer is None:  # programs may share a datagram socket
                sock.setblocking(False)

    async def _start(
        self, sock: socket.socket, env: dict[str, str], log: Callable[[str], None]
    ) -> Program:
        """Start the program; retry while descriptors, processes or memory are short."""
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
                if error.errno not in SHORTAGE_ERRNOS:
                    raise self._cannot_run(error) from None
                if not self.is_short:
                    self.is_short = True
                    log(f"retrying to start {self.executable}: {os.strerror(error.errno)}")
                await asyncio.sleep(START_RETRY_SECONDS)
            else:
                self.failures = 0
                self.is_short = False
                self.programs.add(program)
                return program

    def _cannot_run(self, error: OSError) -> Unavailable:
        self.failures += 1
        code = EXIT_CODE_OF_ERRNO.get(error.errno or 0, 126)
        what = error.filename or self.executable  # or the working directory
        text = f"cannot run {what}: {os.strerror(error.errno or 0)} (exit {code})"
        return Unavailable(text, PAUSE_SECONDS if self.failures >= MAX_FAILURES else 0.0)

    async def _wait_for(self, program: Program) -> None:
        try:
            await program.ended(self.options.max_run_time)
        finally:
            self.programs.discard(program)

    def close(self) -> None:
        for program in self.programs:
            program.signal(signal.SIGKILL)
