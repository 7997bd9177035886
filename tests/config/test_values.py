"""Durations, sizes, rates, users and paths: accepted values, their meaning, and the errors."""

from __future__ import annotations

import grp
import os
import pwd
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from superd.config.values import (
    LARGEST_SIZE,
    Addresses,
    FilePath,
    Group,
    Groups,
    ReadableFile,
    Strings,
    Umask,
    User,
    did_you_mean,
    duration_text,
    parse_duration,
    parse_rate,
    parse_size,
)
from superd.net.addresses import MAX_ADDRESSES, MAX_ID
from superd.process.isolated import run_isolated

ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()),
    st.from_regex(r"[0-9.]{0,20}(ms|s|m|h|d|B|kB|KiB|MiB|/s|/min|)[0-9]*(s|d|)", fullmatch=True),
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30), ("5m", 300), ("1h30m", 5400), ("2d", 172_800), ("250ms", 0.25),
        ("0.5s", 0.5), ("1m0.5s", 60.5), ("0s", 0), (0, 0), (0.0, 0), ("366d", 366 * 86400),
    ],
)  # fmt: skip
def test_a_duration_is_a_number_with_a_unit(text: object, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "30", 30, 1.5, True, False, "s", "-1s", "1 s", "1S", "1.s", "٣s", "1s\n", [], None]
)
def test_nothing_else_is_a_duration(text: object) -> None:
    with pytest.raises(ValueError, match="expected a duration such as"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["367d", "9" * 400 + "s", "9" * 100_000 + "d"])
def test_a_duration_above_a_year_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="at most a year"):
        parse_duration(text)


@given(st.integers(0, 366 * 86_400_000))
def test_a_duration_is_parsed_as_it_is_shown(milliseconds: int) -> None:
    text = duration_text(milliseconds / 1000)
    assert round(parse_duration(text) * 1000) == milliseconds


@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["ms", "s", "m", "h", "d"]))))
def test_the_parts_of_a_duration_are_added(parts: list[tuple[int, str]]) -> None:
    if parts:
        together = parse_duration("".join(f"{n}{unit}" for n, unit in parts[:10]))
        assert together == pytest.approx(sum(parse_duration(f"{n}{u}") for n, u in parts[:10]))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0), (4096, 4096), ("4096", 4096), ("1B", 1), ("64KiB", 65536), ("64 KiB", 65536),
        ("1K", 1024), ("1kB", 1000), ("10MiB", 10 << 20), ("1GB", 10**9), (LARGEST_SIZE,) * 2,
    ],
)  # fmt: skip
def test_a_size_is_a_number_of_bytes_with_or_without_a_unit(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "KiB", "1kb", "1 TB", "1.5MB", "-1", -1, True, 1.0, "1e3", "٣", "1  KB", []]
)
def test_nothing_else_is_a_size(text: object) -> None:
    with pytest.raises(ValueError, match="expected a size such as"):
        parse_size(text)


@pytest.mark.parametrize("text", [LARGEST_SIZE + 1, 10**100, "999999999999999GiB"])
def test_a_size_above_the_kernels_maximum_is_rejected(text: object) -> None:
    with pytest.raises(ValueError, match="less than 2"):
        parse_size(text)


@given(st.integers(0, 999_999), st.sampled_from(["KiB", "MiB", "GiB", "kB", "MB", "GB"]))
def test_a_size_is_the_number_times_the_unit(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number * parse_size(f"1{unit}")


@pytest.mark.parametrize(
    ("text", "rate"), [("50/s", 50), ("50/sec", 50), ("120/min", 2), ("3600/h", 1), ("0/s", 0)]
)
def test_a_rate_is_a_number_of_times_per_unit(text: str, rate: float) -> None:
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["", "50", 50, "50/", "/s", "50/d", "-1/s", "1.5/s", "50 / s"])
def test_nothing_else_is_a_rate(text: object) -> None:
    with pytest.raises(ValueError, match="expected a rate such as"):
        parse_rate(text)


@given(ANYTHING)
def test_any_value_is_accepted_or_rejected_with_the_expected_form(value: Any) -> None:
    for parse in (parse_duration, parse_size, parse_rate):
        try:
            is_right = parse(value) >= 0
        except ValueError as error:
            is_right = str(error).startswith("expected a ")
        assert is_right


def validated(kind: Any, value: object, directory: object = "/") -> Any:
    return TypeAdapter(kind).validate_python(value, context={"directory": directory})


def rejection(kind: Any, value: object) -> str:
    """Return the error of a value, which must be rejected."""
    with pytest.raises(ValidationError) as caught:
        validated(kind, value)
    return str(caught.value.errors()[0]["msg"]).removeprefix("Value error, ")


def test_users_and_groups_are_names_or_numbers() -> None:
    user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(0)
    assert validated(User, user.pw_name) == user.pw_uid
    assert validated(Group, group.gr_name) == 0
    assert validated(User, 12345) == 12345
    assert validated(Groups, [group.gr_name, 7]) == (0, 7)
    assert validated(Groups, group.gr_name) == (0,)


def test_an_unknown_user_is_rejected_with_the_most_similar_known_user() -> None:
    assert rejection(User, "rooot") == 'there is no user "rooot" (did you mean "root"?)'
    assert rejection(Group, "rot") == 'there is no group "rot" (did you mean "root"?)'
    assert rejection(User, "a\0b") == r'there is no user "a\x00b"'
    assert rejection(User, "0") == 'there is no user "0"'


@pytest.mark.parametrize("value", [-1, MAX_ID + 1, 10**30, 1.5, True, [], None])
def test_a_number_that_is_no_user_id_is_rejected(value: object) -> None:
    assert rejection(User, value) == f"expected a user's name, or a number from 0 to {MAX_ID}"


@pytest.mark.parametrize(("text", "mask"), [("077", 0o77), ("0022", 0o22), ("777", 0o777)])
def test_a_umask_is_octal(text: str, mask: int) -> None:
    assert validated(Umask, text) == mask


@pytest.mark.parametrize("value", [77, "77", "078", "0o77", "1077", "", None])
def test_nothing_else_is_a_umask(value: object) -> None:
    assert rejection(Umask, value).startswith("expected a umask")


def test_a_string_is_accepted_as_an_array_of_one_element() -> None:
    assert validated(Strings, "a") == validated(Strings, ["a"]) == ("a",)
    assert validated(Addresses, "tcp://[::1]:7") == validated(Addresses, ["tcp://[::1]:7"])


def test_a_service_has_at_least_one_address_and_at_most_the_maximum() -> None:
    assert len(validated(Addresses, "tcp://[::1]:1-65535")) == 65535
    too_many = ["tcp://[::1]:1-65535"] * 20
    assert (
        rejection(Addresses, too_many) == f"a service listens on at most {MAX_ADDRESSES} addresses"
    )
    assert rejection(Addresses, []) == "expected at least one address"


def test_a_relative_path_is_relative_to_the_directory_of_the_configuration(tmp_path: Any) -> None:
    (tmp_path / "quotes").write_text("one")
    assert validated(FilePath, "a/b", tmp_path) == tmp_path / "a/b"
    assert validated(FilePath, "/a/b", tmp_path).as_posix() == "/a/b"
    assert validated(FilePath, "~/b", tmp_path).is_absolute()
    assert validated(ReadableFile, "quotes", tmp_path) == tmp_path / "quotes"


@pytest.mark.parametrize("value", ["", "a\0b", 5, [], None])
def test_an_impossible_path_is_rejected(value: object) -> None:
    assert rejection(FilePath, value) == "expected a path"


def test_the_home_directory_of_an_unknown_user_is_rejected() -> None:
    assert rejection(FilePath, "~no-such-user/file") == "there is no such home directory"


def test_a_readable_file_must_exist_and_be_regular(tmp_path: Any) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, words in [
        (tmp_path, "is not a regular file"),
        (tmp_path / "fifo", "is not a regular file"),
        ("/dev/zero", "is not a regular file"),
        (tmp_path / "missing", "No such file or directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ]:
        assert words in rejection(ReadableFile, str(path))


@pytest.mark.root
def test_a_file_that_superd_may_not_read_is_rejected(tmp_path: Any) -> None:
    (tmp_path / "secret").touch(mode=0o600)
    validated(ReadableFile, "secret", tmp_path)  # imports its modules before the user changes

    def job() -> str:
        os.setresuid(65534, 65534, 65534)
        return rejection(ReadableFile, str(tmp_path / "secret"))

    message = run_isolated({"job": job})["job"].result
    assert message == f'cannot read "{tmp_path}/secret": Permission denied'


@given(st.text(), st.lists(st.text(), max_size=5))
def test_a_suggestion_is_one_of_the_known_words(word: str, known: list[str]) -> None:
    hint = did_you_mean(word, known)
    assert hint == "" or hint.startswith(' (did you mean "')
    assert hint.isprintable()
