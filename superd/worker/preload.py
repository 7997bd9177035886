"""Makes Python ready for an empty root directory: what it would import or open late comes early.

`warm_up` runs in the master before it forks, so that all workers share the memory; `seal` runs in
the worker after confinement. A late import in a jail would run whatever somebody put there, so it
is refused by name. Never raises for what is missing from this Python.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import importlib
import importlib.abc
import linecache
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec
from types import ModuleType

CODECS = (
    "ascii", "latin-1", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32",
    "utf-32-le", "utf-32-be", "utf-7", "idna", "punycode", "cp1252", "cp437", "iso8859-15",
    "unicode_escape", "raw_unicode_escape", "charmap", "hex_codec", "base64_codec", "rot13",
    "shift_jis", "undefined",
)  # fmt: skip

# imported by the standard library itself at the first use of something harmless
MODULES = (
    "_colorize", "_csv", "_strptime", "_suggestions", "ast", "asyncio", "calendar",
    "concurrent.futures.thread", "difflib", "email.message", "email.parser", "encodings.aliases",
    "getpass", "gettext", "grp", "importlib.resources", "importlib.resources._adapters",
    "importlib.resources.readers", "inspect", "linecache", "locale", "logging.handlers", "pickle",
    "pwd", "queue", "random", "socket", "ssl", "stringprep", "subprocess", "tempfile", "tokenize",
    "traceback", "unicodedata", "uvloop", "zoneinfo",
)  # fmt: skip


def warm_up(modules: Iterable[str] = ()) -> None:
    """Import what is imported late, look up codecs, and let C libraries load what they need."""
    with contextlib.suppress(OSError):
        # glibc opens it to end a thread, and aborts the process if it cannot
        ctypes.CDLL("libgcc_s.so.1")
    for name in (*MODULES, *modules):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for codec in CODECS:
        with contextlib.suppress(LookupError):
            codecs.lookup(codec)
    time.tzset()
    time.localtime()


def keep_source_lines(modules: Iterable[str]) -> None:
    """Read the source of the named modules, so that a traceback in the jail has its lines."""
    for name in modules:
        file = getattr(sys.modules.get(name), "__file__", None)
        if isinstance(file, str) and file.endswith(".py"):
            linecache.getlines(file)
    linecache.checkcache = _keep  # it would look for the files, and drop them all


def _keep(filename: str | None = None) -> None:
    """Take the place of linecache.checkcache."""


class LateImportError(ModuleNotFoundError):
    """A module was imported after the worker had been locked in."""


class Refusing(importlib.abc.MetaPathFinder):
    """Refuses late imports in a jail."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        raise LateImportError(
            f"late import of {fullname!r} after chroot; import it at the top of the plugin,"
            f' or name it in the class: preload = ("{fullname}",)',
            name=fullname,
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


def seal() -> None:
    """Let nothing be imported any more but what is part of the interpreter."""
    sys.path[:] = []
    sys.path_hooks[:] = []
    sys.path_importer_cache.clear()
    finders: list[object] = [BuiltinImporter, FrozenImporter, Refusing()]
    sys.meta_path[:] = finders  # type: ignore[assignment]  # classes serve as finders, too
