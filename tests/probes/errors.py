"""Probes of error reports, and of time."""

from __future__ import annotations

import asyncio
import calendar
import contextlib
import datetime
import inspect
import io
import json
import linecache
import locale
import logging
import time
import traceback
import warnings
import zoneinfo

from tests.probes.probe import expect, probe

ZONE_BEFORE = time.strftime("%Z")


@probe
def log_an_exception() -> None:
    logger = logging.Logger("probe")
    stream = io.StringIO()
    logger.addHandler(logging.StreamHandler(stream))
    try:
        raise ValueError("probe")
    except ValueError:
        logger.exception("seen")
    expect('raise ValueError("probe")' in stream.getvalue(), "no source line")


@probe
def traceback_with_a_suggestion() -> None:
    try:
        json.dumpz  # type: ignore[attr-defined]  # noqa: B018
    except AttributeError as error:
        traceback.format_exception(error)


@probe
def traceback_of_a_group() -> None:
    group = ExceptionGroup("group", [ValueError(1), KeyError(2)])
    traceback.format_exception(group)


@probe
def traceback_of_bad_syntax() -> None:
    try:
        compile("a b", "sent", "exec")
    except SyntaxError as error:
        traceback.format_exception(error)


@probe
def stack_of_now() -> None:
    expect("stack_of_now" in "".join(traceback.format_stack()), "no stack")
    inspect.stack()


@probe
def source_of_a_function() -> None:
    inspect.getsource(probe)
    linecache.getline(__file__, 1)


@probe
def warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with contextlib.redirect_stderr(io.StringIO()):
            warnings.warn("probe", DeprecationWarning, stacklevel=2)
            warnings.warn("probe", ResourceWarning, stacklevel=2, source=io.BytesIO())


@probe
async def error_of_a_task() -> None:
    async def fail() -> None:
        raise ValueError("probe")

    await asyncio.gather(fail(), return_exceptions=True)


@probe
def parse_a_date() -> None:
    time.strptime("22 Nov 2026", "%d %b %Y")
    datetime.datetime.strptime("2026-11-22", "%Y-%m-%d")
    datetime.datetime.fromisoformat("2026-11-22T12:00:00+01:00")


@probe
def local_time() -> None:
    datetime.datetime.now().astimezone()
    calendar.month(2026, 11)
    expect(time.strftime("%Z") == ZONE_BEFORE, "another time zone")


@probe
def time_zone_by_name() -> None:
    zoneinfo.ZoneInfo("Europe/Berlin")


@probe
def locale_of_another_country() -> None:
    locale.getlocale()
    locale.setlocale(locale.LC_TIME, "C.UTF-8")
