"""Steps of confinement that fail: each is fatal and named in the error."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support import proc
from tests.support.harness import exchange, failed_start, make_plugin
from tests.support.proc import NOBODY

ECHO = """
[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
"""


@pytest.mark.root
@pytest.mark.tool("setpriv")
@pytest.mark.parametrize(
    ("capability", "what"),
    [
        ("sys_chroot", "cannot change the root directory to"),
        ("setuid", f"cannot become user {NOBODY}"),
        ("setgid", "cannot set the groups"),
        ("setpcap", "cannot empty the capability bounding set"),
    ],
)
def test_a_step_that_is_not_permitted_fails_the_start_with_77_and_is_named(
    tmp_path: Path, jail: Path, capability: str, what: str
) -> None:
    toml = f'{ECHO}chroot = "{jail}"\n'
    code, line = failed_start(tmp_path, toml, "setpriv", f"--bounding-set=-{capability}")
    assert code == 77
    assert what in line
    assert "Operation not permitted" in line
    assert f"CAP_{capability.upper()}" in line


@pytest.mark.root
@pytest.mark.tool("setpriv", "prlimit")
def test_a_limit_that_is_not_permitted_fails_the_start_with_77_and_is_named(
    tmp_path: Path,
) -> None:
    toml = f"{ECHO}rlimits = {{ nofile = 2000 }}\n"
    wrapper = ("setpriv", "--bounding-set=-sys_resource", "prlimit", "--nofile=1000:1000")
    code, line = failed_start(tmp_path, toml, *wrapper)
    assert code == 77
    assert "cannot set rlimits.nofile to 2000: the limit is 1000" in line


@pytest.mark.root
@pytest.mark.tool("unshare")
def test_a_user_namespace_without_the_user_nobody_fails_the_start(tmp_path: Path) -> None:
    """In a user namespace that maps only root, root cannot change to another user."""
    code, line = failed_start(tmp_path, ECHO, "unshare", "--user", "--map-root-user")
    assert code != 0
    assert "cannot " in line


MEDDLING = """
    import os
    from superd.plugin import Options, Service, hookimpl

    class MeddlingOptions(Options):
        do: str
        where: str

    class Meddling(Service):
        name = "meddling"
        options_model = MeddlingOptions

        def prepare(self):
            if self.options.do == "remove":
                if os.path.isdir(self.options.where):
                    os.rmdir(self.options.where)
            else:
                self.left = os.open(self.options.where, os.O_RDONLY)
                os.set_inheritable(self.left, True)

        def respond(self, request):
            return os.pread(self.left, 100, 0)

    @hookimpl
    def superd_services():
        return [Meddling]
"""


def meddling(do: str, where: Path, more: str = "") -> str:
    return f"""
        [service.meddling]
        plugin = "meddling"
        listen = "tcp://127.0.0.1:0"
        options = {{ do = "{do}", where = "{where}" }}
        {more}
        """


@pytest.mark.root
def test_a_jail_that_was_removed_since_the_preflight_is_fatal(tmp_path: Path, jail: Path) -> None:
    env = make_plugin(tmp_path / "plugins", "meddling", MEDDLING)
    toml = meddling("remove", jail, f'chroot = "{jail}"')
    code, line = failed_start(tmp_path, toml, env=env)
    assert code == 1
    assert f"cannot change the root directory to {jail}: No such file or directory" in line


@pytest.mark.root
def test_a_directory_that_a_plugin_left_open_is_fatal_and_named(tmp_path: Path) -> None:
    env = make_plugin(tmp_path / "plugins", "meddling", MEDDLING)
    code, line = failed_start(tmp_path, meddling("open", Path("/etc")), env=env)
    assert code == 1
    assert "service.meddling: plugin meddling left the directory /etc open in prepare" in line


@pytest.mark.root
def test_a_file_that_a_plugin_left_open_is_kept_and_not_inherited(
    start_superd: Start, tmp_path: Path, jail: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("for root's eyes")
    secret.chmod(0o600)
    env = make_plugin(tmp_path / "plugins", "meddling", MEDDLING)
    superd = start_superd(meddling("open", secret, f'chroot = "{jail}"'), env=env)
    assert exchange(superd.connect("meddling"), b"") == b"for root's eyes"
    [worker] = superd.workers()
    [left] = [one for one in proc.descriptors(worker) if one.target == str(secret)]
    assert not left.is_inherited
