"""Imports before a jail, refused imports in it, and their errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from superd.process import preload

SEALED = """
import sys
from superd.process import preload
preload.warm_up()
preload.seal()
"""


def run(code: str) -> str:
    """Run code in another Python, as a seal cannot be undone; return its output."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


LATE = {
    "import colorsys": "colorsys",
    "import multiprocessing.queues": "multiprocessing",
    "from email import generator": "email.generator",
    "import no_such_module": "no_such_module",
    "import importlib; importlib.import_module('colorsys')": "colorsys",
}
UNKNOWN = {"shift-jis": "shift_jis", "Latin9": "iso8859_15", "no such": "no_such"}


@pytest.fixture(scope="module")
def refusals() -> dict[str, str]:
    """The error of each late import and of each codec, from one process."""
    code = f"""
import email
{SEALED}
for statement in {[*LATE, *(f"b'x'.decode({name!r})" for name in UNKNOWN)]}:
    try:
        exec(statement)
    except (ModuleNotFoundError, LookupError) as error:
        print(type(error).__name__, error)
"""
    message = run(code).splitlines()
    return dict(zip((*LATE, *UNKNOWN), message, strict=True))


@pytest.mark.parametrize(("statement", "module"), LATE.items())
def test_a_late_import_is_refused_and_the_error_names_module_and_remedy(
    refusals: dict[str, str], statement: str, module: str
) -> None:
    message = refusals[statement]
    assert message.startswith(f"LateImportError late import of '{module}' after chroot")
    assert f'preload = ("{module}",)' in message


@pytest.mark.parametrize(("name", "remedy"), UNKNOWN.items())
def test_a_codec_that_was_not_loaded_is_unknown_and_the_error_names_the_remedy(
    refusals: dict[str, str], name: str, remedy: str
) -> None:
    message = refusals[name]
    assert message.startswith("LookupError unknown encoding: ")
    assert f'preload = ("encodings.{remedy}",)' in message


def test_loaded_modules_and_those_of_the_interpreter_can_still_be_imported() -> None:
    code = "import gc, json.decoder, __hello__; print(gc.__name__, json.decoder.__name__)"
    assert run(f"import json\n{SEALED}\n{code}") == "gc json.decoder"


def test_a_seal_leaves_no_finder_of_files() -> None:
    shown = "print(sys.path, sys.path_hooks, sys.path_importer_cache, len(sys.meta_path))"
    assert run(f"{SEALED}\n{shown}") == "[] [] {} 3"


def test_loaded_codecs_remain() -> None:
    use = f"print([__import__('codecs').lookup(name).name for name in {preload.CODECS}])"
    assert run(f"{SEALED}\n{use}").count("'") == 2 * len(preload.CODECS)
    load = f"{SEALED.replace('preload.seal()', '')}\npreload.load(['encodings.shift_jis'])"
    assert run(f"{load}\npreload.seal()\nprint('\\u3042'.encode('shift_jis'))") == r"b'\x82\xa0'"


def test_an_unknown_module_in_preload_is_an_error() -> None:
    with pytest.raises(ImportError, match="preload: No module named 'no_such_module'"):
        preload.load(["json", "no_such_module"])


def test_source_lines_are_kept_when_their_file_is_removed(tmp_path: Path) -> None:
    (tmp_path / "gone.py").write_text("def fail():\n    raise ValueError  # this very line\n")
    code = f"""
import os, sys, traceback
sys.path.insert(0, {str(tmp_path)!r})
import gone
from superd.process import preload
preload.keep_sources(["gone", "sys", "no_such_module"])
os.unlink(gone.__file__)
try:
    gone.fail()
except ValueError:
    traceback.print_exc(file=sys.stdout)
"""
    assert "    raise ValueError  # this very line" in run(code)


def test_outside_a_jail_each_late_import_is_reported_once_and_works() -> None:
    message = run(
        "import sys\nfrom superd.process import preload\n"
        "sys.meta_path.insert(0, preload.LateImportReporter(print))\n"
        "import colorsys, colorsys\nsys.modules.pop('colorsys')\nimport colorsys"
    )
    assert message == "colorsys"
