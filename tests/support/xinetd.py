"""The real xinetd on loopback, in the foreground, with a configuration of its own.

Needs root and the files of its Debian package. It may run as the system's daemon at the same time.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from tests.support.harness import EVENT_TIMEOUT, Address, until
from tests.support.ports import free_ports

SERVICE = """
service {name}
{{
    type = UNLISTED
    flags = NOLIBWRAP
    socket_type = stream
    protocol = tcp
    wait = no
    user = nobody
    bind = 127.0.0.1
    port = {port}
    server = {program}
    log_type = FILE {log}
    log_on_success = PID EXIT DURATION
    {passenv}
}}
"""


class Xinetd:
    """A running xinetd; `ports` maps its services to their ports."""

    def __init__(self, log: Path, ports: Mapping[str, int]) -> None:
        self.log = log
        self.ports = ports

    @classmethod
    @contextlib.contextmanager
    def running(
        cls,
        directory: Path,
        programs: Mapping[str, Path],
        env: Mapping[str, str],
        pass_all: Collection[str] = (),
    ) -> Iterator[Xinetd]:
        """Run xinetd with a service for each program. `env` is added to its environment. Only the
        services in `pass_all` pass this environment on.
        """
        file, log = directory / "xinetd.conf", directory / "xinetd.log"
        self = cls(log, dict(zip(programs, free_ports(len(programs)), strict=True)))
        parts = []
        for name, program in programs.items():
            own = "" if name in pass_all else "passenv ="
            port = self.ports[name]
            parts.append(
                SERVICE.format(name=name, port=port, program=program, log=log, passenv=own)
            )
        file.write_text("".join(parts))
        command = ["xinetd", "-dontfork", "-f", str(file), "-filelog", str(log)]
        command += ["-pidfile", str(directory / "xinetd.pid")]
        with subprocess.Popen(command, env={**os.environ, **env}) as process:
            try:
                self.wait_for_log(rf"Started working: {len(programs)} available")
                yield self
            finally:
                process.terminate()
                process.wait(EVENT_TIMEOUT)
                print(f"--- log of xinetd\n{self.text()}")

    def address(self, service: str) -> Address:
        return "127.0.0.1", self.ports[service]

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_for_log(self, pattern: str) -> re.Match[str]:
        """Wait until the log matches `pattern`."""
        return until(lambda: re.search(pattern, self.text()), f"{pattern!r} in the log of xinetd")
