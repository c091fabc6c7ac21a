"""Tools for the notebook's tests: a namespace like a notebook's, and a real kernel without a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.kernel.kernels import Kernel


@pytest.fixture
def notebook() -> Callable[[str], dict[str, Any]]:
    """Runs cells in a namespace of their own, as a notebook's `__main__`; returns the namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__"}

    def run(source: str) -> dict[str, Any]:
        exec(compile(source, "<notebook>", "exec", dont_inherit=True), namespace)
        return namespace

    return run


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    """A kernel with the extension loaded and no cluster."""
    started = Kernel({})
    try:
        assert not started.run("%load_ext kos_kernel").error
        yield started
    finally:
        started.stop()
