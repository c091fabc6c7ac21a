"""CPython's own tests, from wherever a Python on this machine has them; not a line of them is kept here.

Rules. The running interpreter's `test` package is taken if it has what is wanted, else that of another version (the
nearest below or above that can be imported), under its own name `test`. What cannot apply is skipped with its reason.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import sys
import sysconfig
import types
import unittest
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

LOAD = """
import importlib.util, sys
def _load_test(folder):
    spec = importlib.util.spec_from_file_location("test", folder + "/__init__.py", submodule_search_locations=[folder])
    sys.modules["test"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["test"])
_load_test({folder!r})
"""


def test_folders() -> Iterator[Path]:
    """The folders of `test` packages, the best first."""
    own = Path(sysconfig.get_paths()["stdlib"])
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    others = [*pyenv.glob("versions/*/lib/python3.*"), *Path(sys.base_prefix).glob("lib/python3.*")]
    others += Path("/usr/lib").glob("python3.*")
    for library in [own, *sorted(set(others) - {own}, key=_distance)]:
        if (library / "test" / "__init__.py").is_file():
            yield library / "test"


def _distance(library: Path) -> tuple[int, str]:
    """How far away its Python is from the running one, newer ones first."""
    match = re.search(r"python3\.(\d+)$", str(library))
    minor = int(match[1]) if match else 0
    return 2 * abs(minor - sys.version_info.minor) - (minor > sys.version_info.minor), str(library)


class Package:
    """A `test` package, of which `modules` are loaded. Only one can be `test` at a time: see `installed`."""

    def __init__(self, folder: Path, modules: dict[str, types.ModuleType]) -> None:
        self.folder = folder
        self.modules = modules

    def find(self, name: str) -> Any:
        """What is called so in any of its modules."""
        return next(found[name] for found in map(vars, self.modules.values()) if name in found)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """It is `test` meanwhile, so that what is defined in it can be pickled."""
        before = _taken_out()
        sys.modules.update(self.modules)
        try:
            yield
        finally:
            self.modules.update(_taken_out())
            sys.modules.update(before)


def load(*names: str) -> Package | None:
    """The first package that has all these modules; None where there is none."""
    before = _taken_out()
    try:
        for folder in test_folders():
            try:
                for name in names:
                    _import(folder, f"test.{name}")
                return Package(folder, _taken_out())
            except (ImportError, SyntaxError, AttributeError):
                _taken_out()
        return None
    finally:
        sys.modules.update(before)


def _import(folder: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "test" not in sys.modules:
            exec(LOAD.format(folder=str(folder)), {})
        importlib.import_module(name)


def _taken_out() -> dict[str, types.ModuleType]:
    """Every module of the package `test` that is loaded; they are so no longer."""
    names = [name for name in sys.modules if name == "test" or name.startswith("test.")]
    return {name: sys.modules.pop(name) for name in names}


def adapted(bases: tuple[type, ...], not_applicable: Mapping[str, str], slow: Iterable[str]) -> type:
    """A test case of these bases. Tests that cannot apply are skipped with the reason; slow ones are marked `whole`."""
    own: dict[str, Any] = {}
    for base in bases:
        own |= {name: _skipped(reason) for name, reason in not_applicable.items() if hasattr(base, name)}
        own |= {name: pytest.mark.whole(_copied(getattr(base, name))) for name in slow if hasattr(base, name)}
    return type("Adapted", (*bases, unittest.TestCase), own)


def _skipped(reason: str) -> types.FunctionType:
    def skipped(self: unittest.TestCase) -> None:
        raise unittest.SkipTest(reason)

    return skipped


def _copied(function: types.FunctionType) -> types.FunctionType:
    """A function that can be marked without marking the original."""
    return functools.wraps(function)(types.FunctionType(function.__code__, function.__globals__, function.__name__))
