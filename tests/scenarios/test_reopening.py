"""`superd reopen`: files that plugins append to continue under their names after a rotation."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.plugins.sniffer.knocking import knock, lines
from tests.support.harness import Superd, exchange, make_plugin, until, whole_lines

# One file by os.open, another by a handler of logging, and one that is no log.
DIARY = """
    import logging, os
    from superd.plugin import BlockingConnection, Connection, FilePath, Options, Service, hookimpl

    class DiaryOptions(Options):
        directory: FilePath

    class Diary(Service):
        name = "diary"
        options_model = DiaryOptions

        def prepare(self):
            where = self.options.directory
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self.plain = os.open(where / "plain", flags, 0o600)
            self.handler = logging.FileHandler(where / "handled")
            self.table = open(where / "table", "r+")

        def write(self, line):
            os.write(self.plain, line)
            text = line.decode().strip()
            self.handler.emit(logging.LogRecord("diary", 20, "", 0, text, (), None))
            self.table.write(text + "\\n")
            self.table.flush()

        def stream(self, conn: BlockingConnection):
            for line in conn:
                self.write(line)
                conn.send(b"written\\n")

    class Prompt(Diary):
        name = "prompt"
        async def stream(self, conn: Connection):
            async for line in conn:
                self.write(line)
                await conn.send(b"written\\n")

    @hookimpl
    def superd_services():
        return [Diary, Prompt]
"""

TOML = """
[daemon]
workers = 2

[service.diary]
plugin = "diary"
listen = "tcp://127.0.0.1:0"
options = { directory = "DIRECTORY" }
"""

LOGS = ("plain", "handled")


def start(start_superd: Start, tmp_path: Path, entry: str = "") -> tuple[Superd, Path]:
    """Serve diary with its files in a directory; return the directory."""
    logs = tmp_path / "logs"
    logs.mkdir()
    logs.chmod(0o755)
    (logs / "table").touch()
    env = make_plugin(tmp_path / "plugins", "diary", DIARY)
    plugins = tmp_path / "plugins" / "superd_diary-1.0.dist-info" / "entry_points.txt"
    plugins.write_text("[superd]\ndiary = superd_diary\nprompt = superd_diary\n")
    text = TOML.replace("DIRECTORY", str(logs)) + entry
    if "prompt" in entry:
        text = text.replace('plugin = "diary"\n', "")
    return start_superd(text, env=env), logs


def write(superd: Superd, word: bytes, number: int = 8) -> None:
    """Have several workers or processes write."""
    for _ in range(number):
        assert exchange(superd.connect("diary"), word + b"\n") == b"written\n"


def rotate(logs: Path) -> None:
    for name in LOGS:
        (logs / name).rename(logs / f"{name}.1")


def count(file: Path, word: str) -> int:
    return whole_lines(file).splitlines().count(word)


@pytest.mark.parametrize(
    "entry",
    ['plugin = "prompt"', 'model = "thread"', 'model = "fork"', 'model = "prefork"\nprocesses = 3'],
    ids=["loop", "thread", "fork", "prefork"],
)
def test_files_of_plugins_continue_under_their_names(
    start_superd: Start, tmp_path: Path, entry: str
) -> None:
    superd, logs = start(start_superd, tmp_path, entry)
    write(superd, b"before")
    rotate(logs)
    done = superd.run("reopen")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    write(superd, b"after")
    for name in LOGS:
        assert (count(logs / name, "before"), count(logs / name, "after")) == (0, 8)
        assert (count(logs / f"{name}.1", "before"), count(logs / f"{name}.1", "after")) == (8, 0)
        assert (logs / name).stat().st_mode == (logs / f"{name}.1").stat().st_mode


@pytest.mark.root
def test_files_of_a_plugin_in_a_jail_are_reopened(start_superd: Start, tmp_path: Path) -> None:
    jail = tmp_path / "jail"
    jail.mkdir()
    superd, logs = start(start_superd, tmp_path, f'chroot = "{jail}"\nplugin = "prompt"')
    write(superd, b"before")
    rotate(logs)
    superd.signal(signal.SIGUSR1)
    until(lambda: all((logs / name).exists() for name in LOGS), "the new files")
    assert superd.run("reopen").returncode == 0  # returns once all workers have the new files
    write(superd, b"after")
    assert [count(logs / name, "after") for name in LOGS] == [8, 8]


def test_a_connection_of_an_old_generation_writes_to_the_new_file(
    start_superd: Start, tmp_path: Path
) -> None:
    superd, logs = start(start_superd, tmp_path, 'plugin = "prompt"')
    with superd.connect("diary") as old, old.makefile("rwb", buffering=0) as stream:
        stream.write(b"before\n")
        assert stream.readline() == b"written\n"
        assert superd.run("reload").returncode == 0
        superd.toml += '\n[service.other]\nplugin = "echo"\nlisten = "tcp://127.0.0.1:0"\n'
        superd.write()
        assert superd.run("reload").returncode == 0
        assert superd.run("disable", "diary").returncode == 0
        rotate(logs)
        assert superd.run("reopen").returncode == 0
        stream.write(b"after\n")
        assert stream.readline() == b"written\n"
    assert [count(logs / name, "after") for name in LOGS] == [1, 1]


def test_files_are_reopened_after_an_upgrade(start_superd: Start, tmp_path: Path) -> None:
    superd, logs = start(start_superd, tmp_path, 'plugin = "prompt"')
    with superd.connect("diary") as old, old.makefile("rwb", buffering=0) as stream:
        stream.write(b"before\n")
        assert stream.readline() == b"written\n"
        assert superd.run("upgrade").returncode == 0
        rotate(logs)
        assert superd.run("reopen").returncode == 0
        stream.write(b"after\n")
        assert stream.readline() == b"written\n"
    assert [count(logs / name, "after") for name in LOGS] == [1, 1]


def test_a_file_that_was_not_renamed_and_one_that_is_no_log_stay(
    start_superd: Start, tmp_path: Path
) -> None:
    superd, logs = start(start_superd, tmp_path, 'plugin = "prompt"')
    write(superd, b"before")
    (logs / "table").rename(logs / "table.1")
    assert superd.run("reopen").returncode == 0
    write(superd, b"after")
    assert not (logs / "table").exists()
    assert "after" in (logs / "table.1").read_text()
    assert [count(logs / name, "before") for name in LOGS] == [8, 8]


def moved(logs: Path, _: Path) -> None:
    logs.rename(logs.parent / "elsewhere")


def linked_directory(logs: Path, secret: Path) -> None:
    logs.rename(logs.parent / "elsewhere")
    (logs.parent / "target").mkdir()
    (logs.parent / "target" / "plain").hardlink_to(secret)
    logs.symlink_to(logs.parent / "target")


def linked_file(logs: Path, secret: Path) -> None:
    (logs / "plain").unlink()
    (logs / "plain").symlink_to(secret)


def hard_link(logs: Path, secret: Path) -> None:
    (logs / "plain").unlink()
    (logs / "plain").hardlink_to(secret)


def pipe(logs: Path, _: Path) -> None:
    (logs / "plain").unlink()
    os.mkfifo(logs / "plain")


@pytest.mark.parametrize("spoil", [moved, linked_directory, linked_file, hard_link, pipe])
def test_what_cannot_be_reopened_is_named_and_stays_in_use(
    start_superd: Start, tmp_path: Path, spoil: object
) -> None:
    superd, logs = start(start_superd, tmp_path, 'plugin = "prompt"')
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    assert callable(spoil)
    spoil(logs, secret)
    done = superd.run("reopen")
    assert done.returncode == 1
    assert "service.diary: file not reopened, the old one stays in use: " in done.stderr
    assert done.stderr.count(f": {logs}/plain") == 1  # once for all workers
    assert superd.log().count(f": {logs}/plain service=diary\n") == 1
    write(superd, b"after")
    assert secret.read_text() == "secret\n"


def test_knocks_continue_in_the_files_that_logrotate_made(
    start_superd: Start, tmp_path: Path
) -> None:
    superd = start_superd(
        f"""
        [daemon]
        workers = 2
        [service.knocks]
        plugin = "sniffer"
        listen = "tcp://127.0.0.1:0"
        options = {{ capture = {{}}, output = "{tmp_path}/out", pcap = "{tmp_path}/pcap" }}
        """
    )
    for _ in range(4):
        knock(superd.address("knocks"), b"first")
    lines(tmp_path / "out", 4)
    until(lambda: (tmp_path / "pcap").stat().st_size > 4 * 100, "packets")
    for name in ("out", "pcap"):
        (tmp_path / name).rename(tmp_path / f"{name}.rotated")
    shutil.copyfile("/dev/null", tmp_path / "out")
    assert superd.run("reopen").returncode == 0
    for _ in range(4):
        knock(superd.address("knocks"), b"second")
    assert [line["text"] for line in lines(tmp_path / "out", 4)] == ["second"] * 4
    rotated = tmp_path / "pcap.rotated"
    until(lambda: (tmp_path / "pcap").stat().st_size > 4 * 100, "packets in the new file")
    assert (tmp_path / "pcap").read_bytes()[:24] == rotated.read_bytes()[:24]
    assert "second" not in rotated.read_bytes().decode("latin-1")
