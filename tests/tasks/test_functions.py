"""What travels with a function: the local modules and the packages that it and its calls' arguments refer to."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kos_cluster.tasks import serialise
from kos_cluster.tasks.functions import Shipped, ship, with_arguments

SHAPES = (
    "class Circle:\n    def __init__(self, r):\n        self.r = r\n    def __len__(self):\n        return self.r\n"
)


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], ModuleType]]:
    """Make a module that is not installed, and import it."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(name: str, source: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        made.append(name)
        return importlib.import_module(name)

    yield make
    for name in made:
        del sys.modules[name]


def with_calls(*calls: tuple[Any, ...]) -> Shipped:
    return with_arguments(ship(serialise.dumps_callable(len)), [serialise.dumps_args(call, {}) for call in calls])


def test_an_arguments_class_brings_its_local_module(local: Callable[[str, str], ModuleType]) -> None:
    first, second = local("shapes_here", SHAPES), local("shapes_there", SHAPES)
    assert with_calls((1,), ("shapes",)).local_modules == {}
    shipped = with_calls((1,), (first.Circle(1),), (first.Circle(2),), ([second.Circle],))
    assert set(shipped.local_modules) == {"shapes_here", "shapes_there"}
    assert all(shipped.parts[part] for part in shipped.local_modules.values())


def test_what_a_function_among_the_arguments_imports_need_not_be_loaded(
    local: Callable[[str, str], ModuleType],
) -> None:
    local("shapes_later", SHAPES)
    saved = sys.modules.pop("shapes_later")

    def late() -> Any:
        import shapes_later

        return shapes_later

    late.__module__ = "__main__"
    shipped = with_calls((late,))
    sys.modules["shapes_later"] = saved
    assert "shapes_later" in shipped.local_modules


def test_packages_that_arguments_name_are_told() -> None:
    assert with_calls((1,)).modules == ()
    assert with_calls((1,), (np.arange(3),)).modules == ("numpy",)
