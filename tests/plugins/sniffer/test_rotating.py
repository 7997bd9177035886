"""A rotating file: bounded size, no piece split between files, losses counted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from superd_sniffer.rotating import RotatingFile, check_writable

from tests.support.harness import until
from tests.support.proc import descriptors


def contents(path: Path) -> list[bytes]:
    """Return the contents of the file and its older files, in the order of their names."""
    return [p.read_bytes() for p in sorted(path.parent.glob(f"{path.name}*"))]


def wait_for_a_tick(path: Path) -> None:
    """Wait until a file written now is younger than `path`: clocks of file systems are coarse."""
    probe = path.parent / "probe"

    def is_younger() -> bool:
        probe.write_bytes(b"")
        return probe.stat().st_mtime_ns > path.stat().st_mtime_ns

    until(is_younger, "the clock of the file system")


def test_pieces_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text in (b"one\n", b"two\n"):
        file = RotatingFile(path, 1000, 1)
        file.write([text, text])
        file.close()
    assert contents(path) == [b"one\none\ntwo\ntwo\n"]


def test_the_oldest_file_is_overwritten_next(tmp_path: Path) -> None:
    path = tmp_path / "file"
    file = RotatingFile(path, 10, 4, b"h")
    pieces = [bytes([number]) * 9 for number in range(10)]
    for number, piece in enumerate(pieces, 1):
        wait_for_a_tick(path)
        file.write([piece])
        kept = pieces[max(0, number - 4) : number]
        assert sorted(filter(None, contents(path))) == [b"h" + one for one in kept]
        assert contents(path)[0] == b"h" + piece
    file.close()


def test_without_older_files_it_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "file"
    file = RotatingFile(path, 10, 1)
    file.write([b"12345678", b"abcdefgh"])
    file.close()
    assert contents(path) == [b"abcdefgh"]


def test_rotation_keeps_the_inode_and_copies_the_content(tmp_path: Path) -> None:
    """As `tail -F` and other readers expect."""
    path = tmp_path / "file"
    file = RotatingFile(path, 10, 2)
    inode = path.stat().st_ino
    file.write([b"12345678"])
    file.write([b"abcdefgh"])
    file.close()
    assert path.stat().st_ino == inode
    assert contents(path) == [b"abcdefgh", b"12345678"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.binary(min_size=1, max_size=40), max_size=6), max_size=20),
    st.integers(1, 3),
    st.binary(max_size=4),
)
def test_no_file_is_too_large_and_no_piece_is_split(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[list[bytes]],
    files: int,
    head: bytes,
) -> None:
    path = tmp_path_factory.mktemp("rotating") / "file"
    file = RotatingFile(path, 64, files, head)
    for batch in batches:
        file.write(batch)
        assert all(len(content) <= 64 for content in contents(path))
    file.close()
    left = [piece for batch in batches for piece in batch]
    newest, *older = contents(path)
    rest = newest.removeprefix(head)
    while rest:
        assert rest.endswith(left[-1])
        rest = rest.removesuffix(left.pop())
    whole = b"".join(left)
    assert all(content.removeprefix(head) in whole for content in older)


def test_failed_writes_are_counted_and_leave_no_partial_piece(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from superd_sniffer.rotating import RotatingFile\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "file = RotatingFile(Path(sys.argv[1]), 10_000, 1)\n"
        "file.write([b'a' * 90])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))\n"
        "file.write([b'b' * 20, b'c' * 20, b'd' * 20])\n"
        "print(file.lost)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))\n"
        "file.write([b'e' * 20])\n"
        "print(file.lost)\n"
    )
    path = tmp_path / "file"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["3", "3"], done.stderr
    assert path.read_bytes() == b"a" * 90 + b"e" * 20


WRITER = """
import sys
from pathlib import Path
from superd_sniffer.rotating import RotatingFile
file = RotatingFile(Path(sys.argv[1]), 4000, 50)
for number in range(300):
    file.write([b"%s %d %s\\n" % (sys.argv[2].encode(), number, b"x" * (number % 50))] * 2)
file.close()
"""


def test_writers_in_several_processes_lose_and_split_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "abcd"]
    assert [writer.wait(30) for writer in writers] == [0] * 4
    files = contents(path)
    assert all(len(content) <= 4000 for content in files)
    found = sorted(line for content in files for line in content.splitlines())
    wanted = [f"{w} {n} {'x' * (n % 50)}".encode() for w in "abcd" for n in range(300)] * 2
    assert len([content for content in files if content]) > 10
    assert found == sorted(wanted)


def test_all_files_are_opened_in_advance_and_closed(tmp_path: Path) -> None:
    before = {one.number for one in descriptors(os.getpid())}
    file = RotatingFile(tmp_path / "file", 100, 3)
    new = [one for one in descriptors(os.getpid()) if one.number not in before]
    names = {Path(one.target).name for one in new if one.target.startswith(str(tmp_path))}
    assert names == {"file", "file.1", "file.2"}
    assert not any(one.is_inherited for one in new)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    file.close()
    assert {one.number for one in descriptors(os.getpid())} == before


def test_the_check_of_writable_files_creates_none(tmp_path: Path) -> None:
    check_writable(tmp_path / "file", 3)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_bytes(b"kept")
    check_writable(tmp_path / "file", 3)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"kept"]


def test_the_check_reports_files_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check_writable(tmp_path / "missing" / "file", 1)
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path / "directory", 1)
    (tmp_path / "link.1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        check_writable(tmp_path / "link", 2)
    assert not (tmp_path / "link").exists()


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "file.1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        RotatingFile(tmp_path / "file", 100, 2)
    assert not (tmp_path / "elsewhere").exists()
