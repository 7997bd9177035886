"""Programs that were written for inetd, each with a real client."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.support.harness import Superd, until
from tests.support.ports import own_host
from tests.support.proc import children
from tests.support.programs import (
    CLIENT_TIMEOUT,
    NOBODY,
    OWN_GIT,
    digest,
    git,
    output,
    public_directory,
    random_bytes,
    run,
)
from tests.support.ssh import Ssh

pytestmark = pytest.mark.slow

PARALLEL_CLONES = 8

SERVICE = """
[service.{name}]
plugin = "exec"
listen = "{listen}"
{more}
[service.{name}.options]
command = {command}
"""


def entry(name: str, listen: str, command: list[str], more: str = "") -> str:
    words = ", ".join(f'"{word}"' for word in command)
    return SERVICE.format(name=name, listen=listen, command=f"[{words}]", more=more)


def has_no_children(pid: int) -> bool:
    return not children(pid)


def assert_all_ended(served: Superd, service: str) -> None:
    """Wait until all programs have ended, and check that nothing failed."""
    served.wait_until_idle(service)
    for worker in served.workers():
        until(partial(has_no_children, worker), "the last program to be reaped")
    assert served.counts(service)["errors"] == 0


@pytest.fixture
def public() -> Iterator[Path]:
    with public_directory() as directory:
        yield directory


@pytest.fixture
def files(public: Path) -> Path:
    """A directory of files that every user may read."""
    directory = public / "files"
    directory.mkdir(mode=0o755)
    for name, data in {"small": b"hello\n", "large": random_bytes(3_000_000), "empty": b""}.items():
        (directory / name).write_bytes(data)
        (directory / name).chmod(0o644)
    return directory


# git daemon --inetd


@pytest.fixture
def repository(public: Path) -> Path:
    """A repository with two commits, which the user who runs the tests owns."""
    directory = public / "repositories" / "project"
    directory.mkdir(parents=True)
    git(directory, "init", "-q", "-b", "main")
    for name, size in (("first", 100), ("second", 2_000_000)):
        (directory / name).write_bytes(random_bytes(size))
        git(directory, "add", name)
        git(directory, "commit", "-q", "-m", name)
    for path in (directory.parent, *directory.parent.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return directory


@pytest.fixture
def git_daemon(start_superd: Start, repository: Path) -> Superd:
    command = ["git", "daemon", "--inetd", "--export-all", "--verbose"]
    command += ["--log-destination=stderr", f"--base-path={repository.parent}"]
    # git serves another user's repository only if safe.directory allows it
    env = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    words = ", ".join(f'{name} = "{value}"' for name, value in env.items())
    return start_superd(
        entry("git", "tcp://127.0.0.1:0", command) + f"env = {{ {words}, HOME = '/nonexistent' }}\n"
    )


def clone(served: Superd, name: str, directory: Path) -> tuple[str, ...]:
    host, port = served.address("git")
    return ("git", "clone", "-q", f"git://{host}:{port}/{name}", str(directory))


@pytest.mark.tool("git")
def test_git_daemon_serves_one_clone_and_many_parallel_clones(
    git_daemon: Superd, repository: Path, tmp_path: Path
) -> None:
    head = git(repository, "rev-parse", "HEAD")
    first = tmp_path / "first"
    output(*clone(git_daemon, "project", first), env=OWN_GIT)
    others = [tmp_path / f"clone-{number}" for number in range(PARALLEL_CLONES)]
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(
                subprocess.Popen(
                    clone(git_daemon, "project", other),
                    env={**os.environ, **OWN_GIT},
                    stderr=subprocess.PIPE,
                )
            )
            for other in others
        ]
        for client in clients:
            _, errors = client.communicate(timeout=CLIENT_TIMEOUT)
            assert client.returncode == 0, errors.decode()
    for one in (first, *others):
        assert git(one, "rev-parse", "HEAD") == head
        assert digest((one / "second").read_bytes()) == digest(random_bytes(2_000_000))
        assert git(one, "fsck", "--strict") == ""
    assert_all_ended(git_daemon, "git")
    assert git_daemon.counts("git")["accepted"] == PARALLEL_CLONES + 1


@pytest.mark.tool("git")
def test_git_daemon_logs_the_client_and_its_refusal_reaches_the_client(
    git_daemon: Superd, tmp_path: Path
) -> None:
    done = run(*clone(git_daemon, "nothing", tmp_path / "clone"), env=OWN_GIT)
    assert done.returncode == 128
    assert b"access denied or repository not exported: /nothing" in done.stderr
    git_daemon.wait_for_log(r"\] Connection from (127\.0\.0\.1:\d+) service=git conn=\S+ peer=\1\b")


# busybox httpd -i


@pytest.fixture
def httpd(start_superd: Start, files: Path) -> Superd:
    if b"httpd" not in output("busybox", "--list").split():
        pytest.skip("needs a busybox with httpd, such as that of busybox-static")
    command = ["busybox", "httpd", "-i", "-h", str(files)]
    return start_superd(entry("http", "tcp://127.0.0.1:0", command))


def url(served: Superd, service: str, path: str, transport: str = "tcp") -> str:
    host, port = served.address(service, transport)
    scheme = service if transport == "tcp" else "tftp"
    return f"{scheme}://{host}:{port}/{path}"


@pytest.mark.tool("busybox", "curl")
def test_busybox_httpd_serves_files_of_every_size(httpd: Superd, files: Path) -> None:
    for name in ("small", "large", "empty"):
        fetched = output("curl", "-sS", "-f", "--http1.0", url(httpd, "http", name))
        assert digest(fetched) == digest((files / name).read_bytes())
    both = [url(httpd, "http", "small"), url(httpd, "http", "small")]
    assert output("curl", "-sS", "-f", *both) == b"hello\n" * 2  # one connection each
    assert_all_ended(httpd, "http")
    assert httpd.counts("http")["accepted"] == 5


@pytest.mark.tool("busybox", "curl")
def test_busybox_httpd_answers_404_for_a_missing_file(httpd: Superd) -> None:
    answer = output("curl", "-sS", "-w", "\n%{http_code}", url(httpd, "http", "missing"))
    assert answer.endswith(b"\n404")
    assert b"The requested URL was not found" in answer
    assert_all_ended(httpd, "http")


# vsftpd with listen=NO

VSFTPD = """
listen=NO
listen_ipv6=NO
anonymous_enable=YES
no_anon_password=YES
anon_root={files}
run_as_launching_user=YES
connect_from_port_20=NO
xferlog_enable=NO
"""


@pytest.mark.tool("vsftpd", "curl")
def test_vsftpd_lists_and_sends_files_in_passive_and_active_mode(
    start_superd: Start, files: Path, public: Path
) -> None:
    configuration = public / "vsftpd.conf"
    configuration.write_text(VSFTPD.format(files=files))
    if os.geteuid() == 0:
        os.chown(configuration, NOBODY, NOBODY)  # vsftpd requires that its own user owns the file
    command = ["vsftpd", str(configuration)]
    served = start_superd(entry("ftp", "tcp://127.0.0.1:0", command))
    listed = output("curl", "-sS", url(served, "ftp", "")).decode()
    assert {line.split()[-1] for line in listed.splitlines()} == {"small", "large", "empty"}
    for mode in ((), ("--ftp-port", "127.0.0.1")):
        for name in ("small", "large"):
            fetched = output("curl", "-sS", *mode, url(served, "ftp", name))
            assert digest(fetched) == digest((files / name).read_bytes())
    assert run("curl", "-sS", url(served, "ftp", "missing")).returncode == 78  # no such file
    assert_all_ended(served, "ftp")


# in.tftpd, which gets the listening socket (wait = true)


@pytest.mark.root
@pytest.mark.tool("in.tftpd", "curl", "tftp")
def test_in_tftpd_serves_several_clients_and_is_started_again_after_its_end(
    start_superd: Start, files: Path, tmp_path: Path
) -> None:
    command = ["in.tftpd", "--timeout", "60", "--user", "nobody", "--secure", str(files)]
    more = 'wait = true\nuser = "root"'  # it calls chroot(2) and becomes nobody
    served = start_superd(entry("tftp", "udp://127.0.0.1:0", command, more))
    host, port = served.address("tftp", "udp")
    assert output("curl", "-sS", url(served, "tftp", "small", "udp")) == b"hello\n"
    fetched = output("curl", "-sS", "--tftp-blksize", "1400", url(served, "tftp", "large", "udp"))
    assert digest(fetched) == digest(random_bytes(3_000_000))
    got = tmp_path / "got"
    output("tftp", "-m", "binary", host, str(port), "-c", "get", "small", str(got))
    assert got.read_bytes() == b"hello\n"
    assert served.counts("tftp")["datagrams"] == 1, "more than one program was started"
    (worker,) = served.workers()
    (program,) = children(worker)
    os.kill(program, signal.SIGTERM)
    until(lambda: not children(worker), "the program to end")
    assert output("curl", "-sS", url(served, "tftp", "small", "udp")) == b"hello\n"
    assert served.counts("tftp")["datagrams"] == 2
    done = run("curl", "-sS", url(served, "tftp", "missing", "udp"))
    assert done.returncode == 68, "expected curl's exit code for a missing file"


# fingerd, as in the README


@pytest.mark.root
@pytest.mark.tool("in.fingerd", "finger")
def test_fingerd_describes_a_user(start_superd: Start) -> None:
    host = own_host()  # the client knows no port but the usual one
    command = ["in.fingerd"]
    # for an unknown user, it writes to standard error
    served = start_superd(entry("finger", f"tcp://{host}:79", command) + 'stderr = "client"')
    answer = output("finger", f"nobody@{host}").decode()
    assert "Login: nobody" in answer
    assert "Directory: /nonexistent" in answer
    assert "no such user" in output("finger", f"not-there@{host}").decode()
    assert_all_ended(served, "finger")


# sshd -i


@pytest.mark.root
@pytest.mark.tool("sshd", "ssh", "ssh-keygen", "unshare")
def test_sshd_runs_a_command_and_passes_its_input_output_and_status(
    start_superd: Start, tmp_path: Path
) -> None:
    ssh = Ssh(tmp_path)
    more = 'user = "root"\nno-new-privs = false'
    served = start_superd(entry("ssh", "tcp://127.0.0.1:0", [*ssh.server, "-i"], more))
    host, port = served.address("ssh")
    done = subprocess.run(
        [*ssh.client, "-p", str(port), f"root@{host}", "sha256sum; echo $SSH_CLIENT; exit 3"],
        input=random_bytes(1_000_000), capture_output=True, timeout=CLIENT_TIMEOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr.decode()
    summed, ssh_client = done.stdout.decode().splitlines()
    assert summed.split()[0] == digest(random_bytes(1_000_000))
    assert ssh_client.split()[0] == host
    assert ssh_client.split()[2] == str(port)
    assert_all_ended(served, "ssh")
