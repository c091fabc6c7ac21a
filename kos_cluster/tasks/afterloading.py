"""What is done to a module as soon as it is loaded, without loading it."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Sequence


def after_loading(name: str, then: Callable[[], None]) -> None:
    """Call `then` when the module of this name has been loaded; now, if it is."""
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _AfterLoading(name, then))


class _AfterLoading(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name = name
        self._then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_then(module: types.ModuleType) -> None:
                load(module)
                self._then()

            spec.loader.exec_module = load_then  # type: ignore[method-assign]
        return spec
