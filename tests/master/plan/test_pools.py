"""Pools: which services share workers, and the confinement that only root can apply."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from superd.config.loading import load
from superd.master.plan.pools import Pool, pools_of
from tests.conftest import Start
from tests.support import proc
from tests.support.harness import Superd, exchange, failed_start
from tests.support.proc import NOBODY, assert_no_descriptor_leaks

USER, GROUP = 4321, 4322  # numbers without a name

ECHO = """
[service.echo]
plugin = "echo"
listen = "tcp://127.0.0.1:0"
"""


def pools(directory: Path, toml: str) -> list[Pool]:
    """Return the pools of a configuration."""
    file = directory / "superd.toml"
    file.write_text(toml)
    file.chmod(0o600)
    settings = load(file).settings
    return pools_of(settings, settings.enabled)[0]


def two_services(first: str = "", second: str = "") -> str:
    """Return a configuration of services `a` and `b` with these keys."""
    parts = [
        f'[service.{name}]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\n{keys}\n'
        for name, keys in (("a", first), ("b", second))
    ]
    return "\n".join(parts)


@pytest.mark.root
@pytest.mark.parametrize(
    "keys",
    ["", f"user = {USER}", 'umask = "077"', "rlimits = { core = 0 }", 'chroot = ""', 'pool = "x"'],
)
def test_services_of_the_same_confinement_share_a_pool(tmp_path: Path, keys: str) -> None:
    [pool] = pools(tmp_path, two_services(keys, keys))
    assert list(pool.services) == ["a", "b"]


@pytest.mark.root
@pytest.mark.parametrize(
    "keys",
    [
        f"user = {USER}",
        f"group = {GROUP}",
        f"groups = [{GROUP}]",
        'chroot = "/"',
        'umask = "022"',
        "nice = 1",
        "rlimits = { nofile = 100 }",
        "no-new-privs = false",
        'pool = "x"',
    ],
)
def test_services_that_differ_in_any_part_of_confinement_never_share_a_pool(
    tmp_path: Path, keys: str
) -> None:
    first, second = pools(tmp_path, two_services(second=keys))
    assert (list(first.services), list(second.services)) == (["a"], ["b"])
    assert first.name != second.name


@pytest.mark.root
def test_a_default_that_is_set_explicitly_is_the_same_confinement(
    tmp_path: Path,
) -> None:
    nobody = pwd.getpwnam("nobody")
    explicit = f'user = "nobody"\ngroup = {nobody.pw_gid}'
    [pool] = pools(tmp_path, two_services(second=explicit))
    assert pool.name == "nobody"
    assert (pool.confinement.user, pool.confinement.group) == (nobody.pw_uid, nobody.pw_gid)


@pytest.mark.root
def test_a_user_without_a_name_has_the_group_of_the_same_number(tmp_path: Path) -> None:
    [pool] = pools(tmp_path, two_services(f"user = {USER}", f"user = {USER}"))
    assert (pool.name, pool.confinement.group) == (str(USER), USER)


@pytest.mark.root
def test_pools_have_different_names(tmp_path: Path) -> None:
    made = pools(
        tmp_path,
        two_services('pool = "nobody-2"', 'umask = "022"').replace("service.", "service.x")
        + two_services('umask = "002"'),
    )
    assert len({pool.name for pool in made}) == len(made) == 4


def test_auto_is_one_worker_for_each_usable_core(tmp_path: Path) -> None:
    [pool] = pools(tmp_path, f'[daemon]\nworkers = "auto"\n{ECHO}')
    assert pool.workers == len(os.sched_getaffinity(0))


@pytest.mark.root
def test_each_pool_has_as_many_workers_as_configured(start_superd: Start) -> None:
    superd = start_superd(
        f"""
        [daemon]
        workers = 3
        {two_services(second=f"user = {USER}")}
        [service.c]
        plugin = "echo"
        listen = "tcp://127.0.0.1:0"
        pool = "apart"
        [service.d]
        plugin = "time"
        listen = "tcp://127.0.0.1:0"
        """
    )
    pool_of = {one["name"]: one["pool"] for one in superd.status()["services"]}
    assert pool_of == {"a": "nobody", "b": str(USER), "c": "apart", "d": "nobody"}
    workers = {pool: set(superd.workers(pool)) for pool in set(pool_of.values())}
    assert [len(pids) for pids in workers.values()] == [3, 3, 3]
    assert set.union(*workers.values()) == set(proc.children(superd.pid))
    for name in pool_of:
        sock = proc.inode_link(superd.address(name)[1])
        holders = {
            pid
            for pid in proc.children(superd.pid)
            if sock in {one.target for one in proc.descriptors(pid)}
        }
        assert holders == workers[pool_of[name]]


# An ordinary user


@pytest.fixture
def users_superd(tmp_path: Path) -> Iterator[Superd]:
    """A superd whose files belong to the user nobody."""
    directory = tmp_path / "user"
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    superd = Superd(directory, "")
    yield superd
    superd.stop()
    print(superd.log())


def as_nobody() -> list[str]:
    """Return a prefix that runs a command as nobody, with the right to read files of root.

    The interpreter and the tests' directories may be in root's home. Reading them takes a
    capability, as by systemd's AmbientCapabilities; workers must drop it.
    """
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    for capability in ("dac_read_search", "dac_override"):
        wrapper = [*user, f"--inh-caps=+{capability}", f"--ambient-caps=+{capability}"]
        if subprocess.run([*wrapper, "true"], check=False).returncode == 0:
            return wrapper
    pytest.skip("needs CAP_DAC_READ_SEARCH or CAP_DAC_OVERRIDE")


OF_ROOT = f"""
[defaults]
user = {USER}
chroot = "/"
[service.echo]
plugin = "echo"
listen = ["tcp://127.0.0.1:0", "udp://127.0.0.1:0"]
umask = "027"
nice = 3
rlimits = {{ nofile = 500 }}
[service.time]
plugin = "time"
listen = "tcp://127.0.0.1:0"
nice = -5
groups = [{GROUP}]
"""


@pytest.mark.root
@pytest.mark.tool("setpriv")
def test_an_ordinary_user_serves_the_same_file_and_one_warning_names_the_keys_that_are_ignored(
    users_superd: Superd,
) -> None:
    users_superd.toml = OF_ROOT
    users_superd.start(*as_nobody())
    assert exchange(users_superd.connect("echo"), b"hello") == b"hello"
    assert len(exchange(users_superd.connect("time"), b"")) == 4
    [notice] = [line for line in users_superd.log().splitlines() if "does not apply" in line]
    assert notice.endswith(
        "superd is not root, so it does not apply this confinement: user, chroot, groups, nice"
    )
    echo_pool, time_pool = (
        next(s["pool"] for s in users_superd.status()["services"] if s["name"] == name)
        for name in ("echo", "time")
    )
    [worker] = users_superd.workers(echo_pool)
    for thread in proc.threads(worker):
        assert thread["Uid"].split() == [str(NOBODY)] * 4
        assert thread["NoNewPrivs"] == "1"
        assert {thread[name] for name in proc.CAPABILITY_SETS if name != "CapBnd"} == {
            proc.NO_CAPABILITY
        }
        assert thread["Umask"] == "0027"
    assert os.stat(f"/proc/{worker}/fd").st_uid == 0, "it is dumpable"
    assert proc.niceness(worker) == 3
    assert proc.niceness(users_superd.workers(time_pool)[0]) == 0
    assert proc.limits(worker)["Max open files"] == ("500", "500")
    assert os.readlink(f"/proc/{worker}/cwd") == "/"
    assert_no_descriptor_leaks(worker, set())


@pytest.mark.root
@pytest.mark.tool("setpriv")
def test_required_confinement_without_root_exits_with_77_and_names_the_keys(
    users_superd: Superd,
) -> None:
    toml = f'[daemon]\nconfinement = "require"\n{OF_ROOT}'
    code, line = failed_start(users_superd.directory, toml, *as_nobody())
    assert code == 77
    assert line.endswith("cannot apply user, chroot, groups, nice")


@pytest.mark.root
@pytest.mark.tool("setpriv")
def test_required_confinement_that_an_ordinary_user_can_apply_is_accepted(
    users_superd: Superd,
) -> None:
    users_superd.toml = f'[daemon]\nconfinement = "require"\n{ECHO}nice = 5\nuser = {NOBODY}\n'
    users_superd.start("nice", "-n", "2", *as_nobody())
    assert exchange(users_superd.connect("echo"), b"hello") == b"hello"
    assert "left out" not in users_superd.log()
    assert proc.niceness(users_superd.workers()[0]) == 5
