"""An sshd and its client, with their own keys and configuration.

Runs in the test's process. The server has to run as root, and admits root with the user's key.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.support.programs import output

SSHD = """
HostKey {keys}/host
AuthorizedKeysFile {keys}/user.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PrintMotd no
PidFile none
"""


@contextlib.contextmanager
def separation() -> Iterator[None]:
    """Make the empty directory that sshd needs; usually Debian's init script makes it."""
    directory = Path("/run/sshd")
    made = not directory.exists()
    if made:
        directory.mkdir(mode=0o755)
    try:
        yield
    finally:
        if made:
            directory.rmdir()


class Ssh:
    """The command lines of server and client; the client's lacks port and host."""

    def __init__(self, directory: Path) -> None:
        keys = directory / "keys"
        keys.mkdir()
        for name in ("host", "user"):
            output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name))
        configuration = keys / "sshd_config"
        configuration.write_text(SSHD.format(keys=keys))
        program = shutil.which("sshd") or "sshd"  # sshd requires an absolute path
        self.server = [program, "-e", "-f", str(configuration)]
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": str(keys / "known"),
            "IdentitiesOnly": "yes",
            "IdentityFile": str(keys / "user"),
            "LogLevel": "ERROR",
        }
        self.client = ["ssh", "-F", os.devnull, *(f"-o{k}={v}" for k, v in options.items())]
