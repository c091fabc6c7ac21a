"""Tools for the notebook's tests: a namespace like a notebook's, real kernels without a cluster and with one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.kernel.clusters import cluster_of
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


@pytest.fixture(scope="module")
def home() -> Iterator[str]:
    """Of a cluster of two nodes."""
    with cluster_of(2) as folder:
        yield folder


@pytest.fixture(scope="module")
def connected(home: str) -> Iterator[Kernel]:
    """A kernel with the extension loaded, in that cluster."""
    started = Kernel({"KOS_HOME": home, "KOS_NOTE": "taken along"})
    try:
        assert not started.run("%load_ext kos_kernel").error
        yield started
    finally:
        started.stop()
