"""Makes Python ready for an empty root directory: what it would import or open late comes early.

`warm_up` runs in the master before it forks, so that all workers share the memory; the rest runs
in the worker, around confinement. A late import in a jail would run whatever somebody put there,
so it is refused by name. Raises ImportError where a plugin names a module that is not there.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import grp
import importlib
import importlib.abc
import io
import linecache
import pwd
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from encodings.aliases import aliases
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

# What ordinary handlers come upon without knowing. Not every codec and module that there is: each
# costs start-up time and memory, and for the others there is `preload` in the service's class.
CODECS = (
    "ascii", "latin-1", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252",
    "unicode_escape", "hex", "base64", "idna", "punycode",
)  # fmt: skip

# imported by the standard library itself at the first use of something harmless
MODULES = (
    "_strptime",  # time.strptime, datetime.strptime
    "concurrent.futures.thread",  # asyncio: to_thread, run_in_executor, getaddrinfo
    "_colorize", "_suggestions", "ast", "linecache", "tokenize", "traceback",  # tracebacks
    "uvloop",
)  # fmt: skip

# a plugin's traceback leads through them
OWN_MODULES = ("superd.worker.", "superd.process.", "superd.plugin.")

NO_NAME = "x" * 64  # longer than any label of the domain name system: no server is asked for it


def warm_up() -> None:
    """Import what is imported late, look up codecs, and let C libraries load what they need."""
    with contextlib.suppress(OSError):
        # glibc opens it to end a thread, and aborts the process if it cannot
        ctypes.CDLL("libgcc_s.so.1")
    for name in MODULES:
        with contextlib.suppress(ImportError):  # not every Python has them all
            importlib.import_module(name)
    for codec in CODECS:
        codecs.lookup(codec)
    time.tzset()
    keep_sources([name for name in sys.modules if name.startswith(OWN_MODULES)])


def load(modules: Iterable[str]) -> None:
    """Import the modules that a service's class names."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f"preload: {error}") from error


def keep_sources(modules: Iterable[str]) -> None:
    """Read the source of the named modules, so that a traceback in the jail has its lines."""
    for name in modules:
        file = getattr(sys.modules.get(name), "__file__", None)
        if isinstance(file, str) and file.endswith(".py"):
            with contextlib.suppress(OSError):
                _sources[file] = Path(file).read_text("utf-8", "replace")
    linecache.updatecache = _lines_of
    linecache.checkcache = _keep  # it would look for the files, and drop them all


_sources: dict[str, str] = {}
_lines_of_file = linecache.updatecache


def _lines_of(filename: str, module_globals: dict[str, Any] | None = None) -> list[str]:
    """Take the place of linecache.updatecache, which would take lines from a file of the jail."""
    source = _sources.get(filename)
    if source is None:
        return [] if _is_sealed() else _lines_of_file(filename, module_globals)
    lines = io.StringIO(source).readlines()
    linecache.cache[filename] = (len(source), None, lines, filename)
    return lines


def _keep(filename: str | None = None) -> None:
    """Take the place of linecache.checkcache."""


class LateImportError(ModuleNotFoundError):
    """A module was imported after the worker had been locked in."""


class Refusing(importlib.abc.MetaPathFinder):
    """Refuses late imports in a jail.

    The error has no `name`, as `from package import module` would hide one that has.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        raise LateImportError(
            f"late import of {fullname!r} after chroot; import it at the top of the plugin,"
            f' or name it in the class: preload = ("{fullname}",)'
        )


class Telling(importlib.abc.MetaPathFinder):
    """Tells, where there is no jail, of imports that a jail would refuse."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.told: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.told:
            self.told.add(fullname)
            self.tell(fullname)
        return None


def load_name_services() -> None:
    """Have the C library load what its nsswitch.conf(5) names, as a jail may have another one.

    It loads each at its first use. Nothing is found under this name, so all of them are used.
    """
    for look_up in (pwd.getpwnam, grp.getgrnam, socket.getservbyname, socket.getprotobyname):
        with contextlib.suppress(KeyError, OSError):
            look_up(NO_NAME)
    with contextlib.suppress(OSError):
        socket.getaddrinfo(NO_NAME.encode(), None)  # as bytes, since Python's idna refuses it


def seal() -> None:
    """Let nothing be imported any more but what is part of the interpreter."""
    sys.path[:] = []
    sys.path_hooks[:] = []
    sys.path_importer_cache.clear()
    finders: list[object] = [BuiltinImporter, FrozenImporter, Refusing()]
    sys.meta_path[:] = finders  # type: ignore[assignment]  # classes serve as finders, too
    codecs.register(_refuse_codec)  # asked last: `encodings` does not tell of a refused import


def _is_sealed() -> bool:
    return any(isinstance(finder, Refusing) for finder in sys.meta_path)


def _refuse_codec(name: str) -> codecs.CodecInfo | None:
    module = f"encodings.{aliases.get(name, name)}"
    raise LookupError(
        f"unknown encoding: {name}; one that Python has needs to be loaded before chroot:"
        f' name it in the class: preload = ("{module}",)'
    )
