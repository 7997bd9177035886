"""An sshd and its client, with their own keys and configuration.

Runs in the test's process. The server has to run as root, and admits root with the user's key.
"""

from __future__ import annotations

import os
import shutil
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


# sshd needs the empty directory /run/sshd, which usually Debian's init script makes
SCRIPT = """#!/bin/sh
mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && exec {program} "$@"
"""


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
        script = keys / "sshd"
        script.write_text(SCRIPT.format(program=program))
        script.chmod(0o755)
        self.server = ["unshare", "--mount", str(script), "-e", "-f", str(configuration)]
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": str(keys / "known"),
            "IdentitiesOnly": "yes",
            "IdentityFile": str(keys / "user"),
            "LogLevel": "ERROR",
        }
        self.client = ["ssh", "-F", os.devnull, *(f"-o{k}={v}" for k, v in options.items())]
