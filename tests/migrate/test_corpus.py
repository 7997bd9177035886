"""Whole files of inetd and xinetd, each with the TOML and the notes that a migration prints.

For `NAME.conf`, or a directory NAME, the corpus has the standard output of `superd migrate` in
`NAME.toml`, which is empty if superd can serve nothing, and its standard error in `NAME.notes`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from superd.cli import check
from superd.cli.migrate import migrate
from superd.errors import ConfigurationError, SuperdError
from superd.migrate import inetd, xinetd
from superd.migrate.entries import Note, as_toml
from superd.migrate.proving import comment_out_rejected
from tests.config.configurations import written

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Case:
    """A file or a directory of the corpus, and the expected output of its migration."""

    dialect: str
    name: str
    directory: Path | None = None

    @property
    def home(self) -> Path:
        return self.directory or CORPUS / self.dialect

    @property
    def path(self) -> Path:
        """The path to migrate, relative to `home`."""
        found = (Path(f"{self.name}.conf"), Path(self.name, "xinetd.conf"), Path(self.name))
        return next(path for path in found if (self.home / path).exists())

    @property
    def files(self) -> list[Path]:
        if self.path == Path(f"{self.name}.conf"):
            return [self.path]
        found = (self.home / self.name).rglob("*")
        return sorted(path.relative_to(self.home) for path in found if path.is_file())

    def expected(self, what: str) -> str:
        return (self.home / f"{self.name}.{what}").read_bytes().decode()


CASES = [
    Case(path.parent.name, path.name.removesuffix(".notes"))
    for path in sorted(CORPUS.glob("*/*.notes"))
]
INETD = [case for case in CASES if case.dialect == "inetd"]
XINETD = [case for case in CASES if case.dialect == "xinetd"]
SERVED = [case for case in CASES if case.expected("toml")]


def case_id(case: Case) -> str:
    return f"{case.dialect}-{case.name}"


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.file("/etc/services")
def test_migrating_a_file_prints_its_expected_toml_and_notes(
    case: Case, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(case.home)
    error = ""
    try:
        migrate(case.dialect, case.path)
    except SuperdError as raised:
        error = f"superd: {raised}\n"
    printed = capsys.readouterr()
    assert printed.out == case.expected("toml")
    assert printed.err + error == case.expected("notes")
    assert bool(error) is not bool(printed.out)


@pytest.mark.parametrize("case", SERVED, ids=case_id)
@pytest.mark.file("/etc/services")
def test_check_accepts_the_migrated_configuration(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # as root, check looks for programs, and few machines have tcpd
    toml = re.sub(r'"(/usr/sbin/)?tcpd"', '"/bin/cat"', case.expected("toml"))
    file = written(tmp_path, toml)
    if "no service is enabled" in case.expected("notes"):
        with pytest.raises(ConfigurationError, match="no service is enabled"):
            check.check([file])
        file = written(tmp_path, toml.replace("enabled = false\n", "", 1))
    check.check([file])
    assert capsys.readouterr().out == "configuration OK\n"


def test_every_file_of_the_corpus_belongs_to_a_case() -> None:
    known = {case.home / path for case in CASES for path in case.files}
    known |= {case.home / f"{case.name}.{what}" for case in CASES for what in ("toml", "notes")}
    assert known == {path for path in CORPUS.rglob("*") if path.is_file()}
    assert len(INETD) >= 25
    assert len(XINETD) >= 35


# every attribute in attr.h of xinetd 2.3.15, and `interface`, another name of bind
ATTRIBUTES = [
    "wait", "socket_type", "protocol", "user", "group", "server", "server_args", "instances",
    "id", "only_from", "access_times", "rpc_version", "log_type", "no_access", "type",
    "log_on_failure", "log_on_success", "env", "port", "passenv", "flags", "rpc_number", "nice",
    "redirect", "bind", "interface", "banner", "per_source", "groups", "banner_success",
    "banner_fail", "max_load", "cps", "disable", "rlimit_as", "rlimit_cpu", "rlimit_data",
    "rlimit_rss", "rlimit_stack", "v6only", "deny_time", "umask", "enabled", "disabled", "mdns",
    "libwrap", "rlimit_files",
]  # fmt: skip
DIRECTIVES = ["include", "includedir", "service", "defaults"]
ASSIGNMENT = re.compile(r"\s*(\w+)\s+([+-]?=)\s*(.*?)\s*")
WITH_OPERATORS = ("only_from", "no_access", "log_on_success", "log_on_failure", "passenv")


def lines_of(case: Case) -> Iterator[tuple[Path, int, str]]:
    for path in case.files:
        text = (case.home / path).read_bytes().decode(errors="backslashreplace")
        for number, line in enumerate(text.split("\n"), 1):
            yield path, number, line


def test_every_attribute_of_xinetd_is_in_the_corpus() -> None:
    lines = [line for case in XINETD for _, _, line in lines_of(case)]
    found = [match.groups() for line in lines if (match := ASSIGNMENT.fullmatch(line))]
    assert len(ATTRIBUTES) == 47
    assert set(ATTRIBUTES) <= {name for name, _, _ in found}
    for name in WITH_OPERATORS:
        assert {"+=", "-="} <= {operator for one, operator, _ in found if one == name}, name
    assert set(DIRECTIVES) <= {line.split()[0] for line in lines if line.split()}


# lines that are the default of superd, so that the TOML is the same without them
DEFAULT_OF_SUPERD = re.compile(
    r"disable = no|groups = no|(instances|per_source|rlimit_\w+) = unlimited|cps = 0 0"
    r"|protocol = (tcp|udp)|socket_type = (stream|dgram)"  # each follows from the other
    r"|flags = (ipv4 )?ipv6|bind = ::"  # as for every service without an address
    r"|type = internal"  # a sensor is internal with any type
    r"|user = root"  # of an internal service; one note is on all of them
)


def result(case: Case, home: Path) -> tuple[str, list[Note]]:
    """Return the TOML and the notes of a case in `home`, with file names relative to it."""
    if case.dialect == "inetd":
        text = (home / case.path).read_bytes().decode(errors="surrogateescape")
        entries, notes = inetd.read(text, str(case.path))
    else:
        entries, notes = xinetd.read(home / case.path)
    for entry in entries:
        entry.file = entry.file.removeprefix(f"{home}/")
    return as_toml(entries), [
        Note(note.file.removeprefix(f"{home}/"), note.line, note.text) for note in notes
    ]


@pytest.fixture
def home(case: Case, tmp_path: Path) -> Path:
    """Return a directory with a copy of the files of a case, which the test may change."""
    for path in case.files:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(case.home / path, tmp_path / path)
    return tmp_path


def replace_line(file: Path, number: int, line: bytes) -> bytes:
    """Replace a line of a file; return the content before."""
    before = file.read_bytes()
    lines = before.split(b"\n")
    lines[number - 1] = line
    file.write_bytes(b"\n".join(lines))
    return before


def covered_lines(notes: list[Note]) -> dict[tuple[str, int], Note]:
    """Return the lines that the notes cover, with the ranges that they name."""
    found = {}
    for note in notes:
        more = re.search(r"with the lines up to (\d+)", note.text)
        start = re.search(r"from line (\d+):", note.text)
        first = int(start[1]) if start else note.line
        for number in range(first, int(more[1]) + 1 if more else note.line + 1):
            found[note.file, number] = note
    return found


@pytest.mark.parametrize("case", XINETD, ids=case_id)
@pytest.mark.file("/etc/services")
def test_every_attribute_of_xinetd_has_an_effect_or_a_note(case: Case, home: Path) -> None:
    """Without a line that has no note the result differs, or the line is a default of superd.

    Even then another value of the line changes the result, so the line was read.
    """
    toml, notes = result(case, home)
    noted = covered_lines(notes)
    for section in sections_left_out(case, toml, notes):
        noted |= section
    for path, number, line in lines_of(case):
        match = ASSIGNMENT.fullmatch(line)
        if match is None or is_never_read(path) or (str(path), number) in noted:
            continue
        before = replace_line(home / path, number, b"")
        if result(case, home) == (toml, notes):
            assert DEFAULT_OF_SUPERD.fullmatch(" ".join(match.groups()).lower()), (
                f"{path}:{number}: {line}"
            )
            replace_line(home / path, number, f"{match[1]} {match[2]} other".encode())
            assert result(case, home) != (toml, notes), f"{path}:{number}: {line}"
        (home / path).write_bytes(before)


def is_never_read(path: Path) -> bool:
    """Tell whether `includedir` skips a file."""
    return path.name.endswith((".rpmsave", "~", "beta.conf")) or path.parent.name == "sub"


def sections_left_out(
    case: Case, toml: str, notes: list[Note]
) -> Iterator[dict[tuple[str, int], Note]]:
    """Yield the lines of each service that is not in the TOML, with the note that explains it."""
    lines = list(lines_of(case))
    for path, start, line in lines:
        if not re.match(r"\s*service\s", line, re.IGNORECASE):
            continue
        if re.search(rf"^# {re.escape(str(path))}:{start}$", toml, re.MULTILINE):
            continue
        end = next((n for p, n, one in lines if p == path and n > start and one.strip() == "}"), 0)
        for note in notes:
            if note.file == str(path) and start <= note.line <= end and "left out" in note.text:
                yield {(str(path), number): note for number in range(start, end + 1)}
                break


@pytest.mark.parametrize("case", INETD, ids=case_id)
def test_every_word_of_inetd_has_an_effect_or_a_note(case: Case, home: Path) -> None:
    """With another word in its place, the TOML or a note differs."""
    toml, notes = result(case, home)
    noted = covered_lines(notes)
    for path, number, line in lines_of(case):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        is_there = f"# {path}:{number}\n" in toml
        if not is_there and (str(path), number) in noted:
            continue  # a note explains the whole line
        for match in re.finditer(r"\S+", line.split(" #")[0]):
            other = line[: match.start()] + "other" + line[match.end() :]
            before = replace_line(home / path, number, other.encode())
            assert result(case, home) != (toml, notes), f"{path}:{number}: {match[0]}"
            (home / path).write_bytes(before)


LINES = sorted({line for case in CASES for _, _, line in lines_of(case)})


@given(st.lists(st.sampled_from(LINES), max_size=30), st.sampled_from(["inetd", "xinetd"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_lines_of_the_corpus_in_any_order_become_valid_toml(
    tmp_path: Path, lines: list[str], dialect: str
) -> None:
    (tmp_path / "some.conf").write_text("\n".join(lines))
    toml, _ = result(Case(dialect, "some", tmp_path), tmp_path)
    assert set(tomli.loads(toml)) <= {"service"}


@pytest.mark.parametrize("digits", [20, 200, 5000])
def test_numbers_of_any_length_are_migrated_without_an_error(tmp_path: Path, digits: int) -> None:
    number = "9" * digits
    names = [*ATTRIBUTES, "rate"]
    file = tmp_path / "long.conf"
    body = "".join(f"{name} = {number}\n" for name in names if name not in ("disable", "id"))
    file.write_text(f"service finger\n{{\n{body}access_times = {number}:0-{number}:1\n}}\n")
    entries, _ = xinetd.read(file)
    comment_out_rejected(entries)
    words = f"{number} stream tcp nowait/{number}/{number} {number} /bin/cat {number}"
    more = f"finger stream tcp nowait.{number} {number}:{number} /bin/cat"
    entries, _ = inetd.read(f"{words}\n{more}\n", "inetd.conf")
    comment_out_rejected(entries)
