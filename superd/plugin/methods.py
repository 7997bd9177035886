"""What a service's class can serve, by the methods that it has, and why a class cannot be used.

Used in the worker, and where a configuration is checked. Calls no method. Never raises.
"""

from __future__ import annotations

import inspect

from superd.config.model import BLOCKING_MODELS
from superd.config.model import Service as Entry
from superd.plugin.service import Options, Service

STREAM_METHODS = ("relay", "protocol", "stream", "takeover", "respond")
DATAGRAM_METHODS = ("relay_datagrams", "datagram", "respond", "listener")
ASYNC_METHODS = ("takeover", "listener")
STEPS = ("prepare", "preflight", "close", "check", "start", "status", "__init__")
LAZY = (
    inspect.iscoroutinefunction,
    inspect.isgeneratorfunction,
    inspect.isasyncgenfunction,
)
ARGUMENTS = {
    "relay": "sock, conn",
    "protocol": "conn",
    "stream": "conn",
    "takeover": "sock, conn",
    "respond": "request",
    "relay_datagrams": "conn",
    "datagram": "request",
    "listener": "sock, waiting",
}


def kinds_of(service: type[Service]) -> tuple[str, ...]:
    """Return for which of "stream" and "datagram" the class has methods."""
    kinds = {"stream": STREAM_METHODS, "datagram": DATAGRAM_METHODS}
    return tuple(k for k, names in kinds.items() if any(hasattr(service, n) for n in names))


def only_relays(service: type[Service]) -> bool:
    """Return whether the class relays everything that it serves."""
    relays = {"stream": "relay", "datagram": "relay_datagrams"}
    return all(hasattr(service, relays[kind]) for kind in kinds_of(service))


def models_of(service: type[Service]) -> tuple[str, ...]:
    """Return the values of `model` that the class supports, the default first."""
    blocks = hasattr(service, "stream") and not inspect.iscoroutinefunction(service.stream)
    others = STREAM_METHODS if not blocks else [n for n in STREAM_METHODS if n != "stream"]
    loop = ("loop",) if any(hasattr(service, name) for name in others) else ()
    return (*loop, *(BLOCKING_MODELS if blocks else ())) or ("loop",)


def model_of(entry: Entry, service: type[Service]) -> str:
    """Return the model with which the class serves an entry."""
    return entry.model or models_of(service)[0]


def mistake_in(service: object) -> str | None:
    """Return why `service`, which a plugin's hook returned, cannot be used; None if it can."""
    if not (isinstance(service, type) and issubclass(service, Service)):
        return f"superd_services returned {service!r}, which is not a subclass of Service"
    if mistake := _wrong_attribute(service):
        return f"{service.__qualname__}.{mistake}"
    for name in STEPS:
        method = getattr(service, name)
        if any(is_lazy(method) for is_lazy in LAZY):
            return f"{service.__qualname__}.{name} is async or a generator, so it would never run"
    if not kinds_of(service):
        return f"{service.__qualname__} has none of the methods {', '.join(STREAM_METHODS)}"
    for name in (*STREAM_METHODS, *DATAGRAM_METHODS):
        method = getattr(service, name, None)
        is_async = inspect.iscoroutinefunction(method)
        if inspect.isasyncgenfunction(method) or inspect.isgeneratorfunction(method):
            return f"{service.__qualname__}.{name} is a generator, which would never run"
        if name in ASYNC_METHODS and method is not None and not is_async:
            return f"{service.__qualname__}.{name} is not async, so it would block the loop"
        if name not in (*ASYNC_METHODS, "stream") and is_async:
            return f"{service.__qualname__}.{name} is async, but it must return without waiting"
        if not _takes(service, name, ARGUMENTS[name].count(",") + 1):
            return f"{service.__qualname__}.{name} cannot be called as {name}({ARGUMENTS[name]})"
    return None


def _wrong_attribute(service: type[Service]) -> str:
    """Return which attribute of the class has a value that would have no effect, or another than
    meant; "" if none has.
    """
    model, preload = service.options_model, service.preload
    if not isinstance(service.name, str) or not service.name:
        return f"name: expected the name of the plugin, found {service.name!r}"
    if not (isinstance(model, type) and issubclass(model, Options)):
        return f"options_model: expected a subclass of Options, found {model!r}"
    if isinstance(preload, str) or not all(isinstance(one, str) for one in preload):
        return f'preload: expected names of modules, such as ("xml",), found {preload!r}'
    if type(service.descriptors) is not int or service.descriptors < 0:
        return f"descriptors: expected a number, found {service.descriptors!r}"
    if not isinstance(service.looks_up, (bool, property)):
        return f"looks_up: expected True or False, found {service.looks_up!r}"
    return ""


def _takes(service: type[Service], name: str, number: int) -> bool:
    """Return whether a method accepts `number` arguments; True if only a call can show it."""
    method = inspect.getattr_static(service, name, None)
    if not inspect.isfunction(method):
        return True
    try:
        inspect.signature(method, follow_wrapped=False).bind(service, *[None] * number)
    except TypeError:
        return False
    return True
