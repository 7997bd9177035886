"""Daemons for a test: configured like any superd of the harness, but started by `superd start`.

Runs in the test's process. Finds a daemon by the lock on its pid file, and stops it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from superd.master.pidfile import holder
from tests.support.harness import Superd, command, is_alive, until

ECHO = """
[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:{port}"
"""

Configure = Callable[..., Superd]


def stop_daemon(superd: Superd) -> None:
    """Stop a daemon in any state; its pid is that of the lock holder."""
    path = superd.directory / "pid"
    if path.is_file() and not path.is_symlink() and (pid := holder(path)):
        os.kill(pid, signal.SIGQUIT)
        until(lambda: not is_alive(pid), "the end of the daemon")


def echo_with_log(port: int, more: str = "") -> str:
    """Return a configuration with echo on a port and a log file beside it."""
    return f'[daemon]\nlog = "./log"\n{more}{ECHO.format(port=port)}'


def run_in_own_mounts(script: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script in its own mount namespace; `"$@"` in it is superd.

    superd uses the machine's default paths, so the script mounts over /run and /var/lib first.
    """
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *command()],
        capture_output=True,
        text=True,
        cwd=directory,
        env=without_own_directories(),
        check=False,
    )


def without_own_directories() -> dict[str, str]:
    """Return an environment in which superd uses the machine's default paths. Namespaces only."""
    own = {"RUNTIME_DIRECTORY", "STATE_DIRECTORY", "XDG_RUNTIME_DIR", "SUPERD_CONFIG"}
    return {name: value for name, value in os.environ.items() if name not in own}
