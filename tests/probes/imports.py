"""Probes of late imports, and of installed packages."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.resources
import pkgutil
import types

from tests.probes.probe import expect, probe


@probe
def late_import() -> None:
    import colorsys  # noqa: F401


@probe
def late_import_of_a_loaded_module() -> None:
    import json.decoder  # noqa: F401


@probe
def late_import_that_is_optional() -> None:
    with contextlib.suppress(ImportError):
        import colorsys  # noqa: F401


@probe
def new_module() -> None:
    types.ModuleType("made")


@probe
def installed_plugins() -> None:
    expect(importlib.metadata.entry_points(group="superd"), "none")


@probe
def installed_version() -> None:
    importlib.metadata.version("superd")


@probe
def resource_of_a_package() -> None:
    importlib.resources.files("superd").joinpath("py.typed").read_bytes()


@probe
def data_of_a_package() -> None:
    pkgutil.get_data("superd", "py.typed")


@probe
def library_by_name() -> None:
    import ctypes.util

    expect(ctypes.util.find_library("c"), "none")
