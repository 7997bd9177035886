"""Users and groups that the system cannot look up now, by a name service that is down."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.harness import Superd, command
from tests.support.namespaces import need

# fails like a directory service that does not answer (nsswitch.conf(5))
NAME_SERVICE = """
#include <errno.h>
#include <nss.h>
static enum nss_status fail(int *number) { *number = EAGAIN; return NSS_STATUS_TRYAGAIN; }
enum nss_status _nss_down_getpwnam_r(const char *n, void *r, char *b, size_t s, int *e)
{ return fail(e); }
enum nss_status _nss_down_getgrnam_r(const char *n, void *r, char *b, size_t s, int *e)
{ return fail(e); }
"""
ENTRY = '[service.echo]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\n'
UNIX = ENTRY.replace("tcp://127.0.0.1:0", "unix://@accounts?group=alice")
SCRIPT = 'mount --bind nsswitch.conf /etc/nsswitch.conf && exec "$@"'


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a name service that is down, and the file that names it."""
    need("unshare", "--mount", "true")
    made = tmp_path_factory.mktemp("nss")
    (made / "nss.c").write_text(f"#include <stddef.h>\n{NAME_SERVICE}")
    library = str(made / "libnss_down.so.2")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, str(made / "nss.c")], check=True)
    (made / "nsswitch.conf").write_text("passwd: files down\ngroup: files down\nhosts: files\n")
    return made


@pytest.mark.root
@pytest.mark.tool("cc", "unshare", "mount")
@pytest.mark.file("/etc/nsswitch.conf")
@pytest.mark.parametrize(
    ("toml", "place"),
    [
        (f'{ENTRY}user = "alice"\n', ':9:8: service.echo.user: cannot look up user "alice" now'),
        (f'{ENTRY}groups = ["alice"]\n', ":9:11: service.echo.groups[0]: cannot look up group"),
        (f'{ENTRY}deny = "user:alice"\n', ':9:8: service.echo.deny: cannot look up user "alice"'),
        (UNIX, ':8:10: service.echo.listen: cannot look up group "alice" now'),
    ],
    ids=["user", "group", "rule", "socket file"],
)
def test_a_name_service_that_is_down_is_no_mistake_in_the_file(
    directory: Path, tmp_path: Path, toml: str, place: str
) -> None:
    daemon = Superd(tmp_path, toml)
    done = run_with(directory, daemon)
    assert done.returncode == 75
    assert f"{daemon.file}{place}" in done.stderr
    daemon.toml += 'mode = "loop"\n'
    assert run_with(directory, daemon).returncode == 78, "a mistake does not pass by itself"


def run_with(directory: Path, daemon: Superd) -> subprocess.CompletedProcess[str]:
    program = command("run", "-c", str(daemon.write()))
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", SCRIPT, "sh", "env", f"LD_LIBRARY_PATH={directory}",
         *program],
        capture_output=True,
        text=True,
        cwd=directory,
        check=False,
    )  # fmt: skip
