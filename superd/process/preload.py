"""Prepares Python for an empty root directory: loads early what it would import or open late.

`warm_up` runs in the master before it forks, so that all workers share the memory. The rest runs in
workers, around confinement. A late import in a jail could run a file that an attacker put there,
so it is refused, with an error that names the module. Raises ImportError if a plugin names a module
that does not exist.
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

# Codecs and modules that plugins use without importing them. Each costs start-up time and memory;
# a service's class names others in `preload`.
CODECS = (
    "ascii", "latin-1", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252",
    "unicode_escape", "hex", "base64", "idna", "punycode",
)  # fmt: skip

# imported by the standard library at the first use of common functions
MODULES = (
    "_strptime",  # time.strptime, datetime.strptime
    "concurrent.futures.thread",  # asyncio: to_thread, run_in_executor, getaddrinfo
    "_colorize", "_suggestions", "ast", "linecache", "tokenize", "traceback",  # tracebacks
    "uvloop",
)  # fmt: skip

# the packages in a plugin's traceback
OWN_MODULES = ("superd.worker.", "superd.process.", "superd.plugin.")

UNKNOWN_NAME = "x" * 64  # too long for a DNS label (63), so no server is asked


def warm_up() -> None:
    """Import modules, look up codecs, and have C libraries load their files."""
    with contextlib.suppress(OSError):
        # glibc loads it to end a thread, and aborts the process if that fails
        ctypes.CDLL("libgcc_s.so.1")
    for name in MODULES:
        with contextlib.suppress(ImportError):  # missing in some versions of Python
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
    linecache.checkcache = _keep  # the original drops the lines of files that it cannot find


_sources: dict[str, str] = {}
_lines_of_file = linecache.updatecache


def _lines_of(filename: str, module_globals: dict[str, Any] | None = None) -> list[str]:
    """Replace linecache.updatecache, which would read lines from a file in the jail."""
    source = _sources.get(filename)
    if source is None:
        return [] if _is_sealed() else _lines_of_file(filename, module_globals)
    lines = io.StringIO(source).readlines()
    linecache.cache[filename] = (len(source), None, lines, filename)
    return lines


def _keep(filename: str | None = None) -> None:
    """Replace linecache.checkcache: keep all lines."""


class LateImportError(ModuleNotFoundError):
    """A module was imported after the worker had entered its jail."""


class LateImportRefuser(importlib.abc.MetaPathFinder):
    """Refuses late imports in a jail.

    Its error has no `name`, as `from package import module` hides errors that have one.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        raise LateImportError(
            f"late import of {fullname!r} after chroot; import it at the top of the plugin,"
            f' or name it in the class: preload = ("{fullname}",)'
        )


class LateImportReporter(importlib.abc.MetaPathFinder):
    """Reports, outside a jail, each module whose import a jail would refuse."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.report = report
        self.reported: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.reported:
            self.reported.add(fullname)
            self.report(fullname)
        return None


def load_name_services() -> None:
    """Have the C library load the services of its nsswitch.conf(5), which a jail may lack.

    It loads a service at first use. No service finds the unknown name, so each of them is used.
    """
    for look_up in (pwd.getpwnam, grp.getgrnam, socket.getservbyname, socket.getprotobyname):
        with contextlib.suppress(KeyError, OSError):
            look_up(UNKNOWN_NAME)
    with contextlib.suppress(OSError):
        socket.getaddrinfo(UNKNOWN_NAME.encode(), None)  # bytes, as Python's idna codec refuses it


def seal() -> None:
    """Refuse every further import but of modules that are part of the interpreter."""
    sys.path[:] = []
    sys.path_hooks[:] = []
    sys.path_importer_cache.clear()
    finders: list[object] = [BuiltinImporter, FrozenImporter, LateImportRefuser()]
    sys.meta_path[:] = finders  # type: ignore[assignment]  # classes serve as finders, too
    codecs.register(_refuse_codec)  # searched last; `encodings` hides the error of a refused import


def _is_sealed() -> bool:
    return any(isinstance(finder, LateImportRefuser) for finder in sys.meta_path)


def _refuse_codec(name: str) -> codecs.CodecInfo | None:
    module = f"encodings.{aliases.get(name, name)}"
    raise LookupError(
        f"unknown encoding: {name}; one that Python has needs to be loaded before chroot:"
        f' name it in the class: preload = ("{module}",)'
    )
