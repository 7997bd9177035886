"""Which classes are valid services, and the errors for those that are not."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from superd.plugin.methods import kinds_of, mistake_in, models_of
from superd.plugin.service import Options, Service


def sync(*_: object) -> None: ...


async def asynchronous(*_: object) -> None: ...


def without(self: object) -> None: ...


def with_two(self: object, one: object, two: object) -> None: ...


async def with_none(self: object) -> None: ...


async def generator(*_: object) -> Any:
    yield


def made(name: str = "made", /, **methods: object) -> type[Service]:
    return type("Made", (Service,), {"name": name, **methods})


@pytest.mark.parametrize(
    ("methods", "kinds"),
    [
        ({"respond": sync}, ("stream", "datagram")),
        ({"datagram": sync}, ("datagram",)),
        ({"protocol": sync}, ("stream",)),
        ({"stream": asynchronous}, ("stream",)),
        ({"stream": sync}, ("stream",)),
        ({"takeover": asynchronous, "datagram": sync}, ("stream", "datagram")),
    ],
)
def test_the_methods_of_a_class_decide_what_it_serves(
    methods: dict[str, object], kinds: tuple[str, ...]
) -> None:
    assert kinds_of(made(**methods)) == kinds
    assert mistake_in(made(**methods)) is None


@pytest.mark.parametrize(
    ("methods", "models"),
    [
        ({"respond": sync}, ("loop",)),
        ({"datagram": sync}, ("loop",)),
        ({"stream": asynchronous}, ("loop",)),
        ({"stream": sync}, ("thread", "fork", "prefork")),
        ({"stream": sync, "datagram": sync}, ("thread", "fork", "prefork")),
        ({"stream": sync, "protocol": sync}, ("loop", "thread", "fork", "prefork")),
    ],
)
def test_the_methods_of_a_class_decide_its_models(
    methods: dict[str, object], models: tuple[str, ...]
) -> None:
    assert models_of(made(**methods)) == models


@pytest.mark.parametrize(
    ("service", "mistake"),
    [
        (None, "None, which is not a subclass of Service"),
        (made(respond=sync)(None), "which is not a subclass of Service"),  # type: ignore[arg-type]
        (object, "which is not a subclass of Service"),
        (made("", respond=sync), "Made.name: expected the name of the plugin, found ''"),
        (made(respond=sync, options_model=BaseModel), "Made.options_model: expected a subclass"),
        (made(respond=sync, options_model=Options()), "Made.options_model: expected a subclass"),
        (made(respond=sync, preload="xml"), "Made.preload: expected names of modules"),
        (made(respond=sync, preload=(1,)), "Made.preload: expected names of modules"),
        (made(respond=sync, descriptors="3"), "Made.descriptors: expected a number"),
        (made(respond=sync, looks_up="yes"), "Made.looks_up: expected True or False"),
        (made(respond=sync, start=asynchronous), "Made.start is async or a generator"),
        (made(respond=sync, prepare=with_none), "Made.prepare is async or a generator"),
        (made(respond=sync, close=asynchronous), "Made.close is async or a generator"),
        (made(respond=sync, status=generator), "Made.status is async or a generator"),
        (made(), "Made has none of the methods relay, protocol, stream, takeover, respond"),
        (made(stream=generator), "Made.stream is a generator"),
        (made(takeover=sync), "Made.takeover is not async"),
        (made(respond=asynchronous), "Made.respond is async"),
        (made(protocol=asynchronous), "Made.protocol is async"),
        (made(datagram=asynchronous), "Made.datagram is async"),
        (made(stream=with_none), "Made.stream cannot be called as stream(conn)"),
        (made(respond=without), "Made.respond cannot be called as respond(request)"),
        (made(datagram=with_two), "Made.datagram cannot be called as datagram(request)"),
        (made(takeover=with_none), "Made.takeover cannot be called as takeover(sock, conn)"),
    ],
)
def test_an_invalid_service_is_reported_by_name(service: object, mistake: str) -> None:
    assert mistake in (mistake_in(service) or "")
