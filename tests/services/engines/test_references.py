"""What Dask holds becomes blocks, all of it or none. Dask's workers are threads; who keeps blocks is a stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import distributed
import pytest

from kos_cluster import Cluster
from kos_cluster.errors import UnreachableError, UsageError
from kos_cluster.services.engines import control, references
from kos_cluster.tasks.blocks import BlockRef

held: list[str] = []
taken: list[str] = []


def laid(value: str) -> BlockRef:
    if value == "bad":
        raise UsageError("It cannot be pickled.")
    held.append(value)
    return BlockRef(value, 1, "id", "node1")


def let_go(blocks: list[str]) -> None:
    for block in blocks:
        held.remove(block)


@pytest.fixture(scope="module")
def client() -> Iterator[distributed.Client]:
    with (
        distributed.LocalCluster(2, processes=False, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    held.clear()
    taken.clear()
    monkeypatch.setattr(references, "laid", laid)
    monkeypatch.setattr(references, "let_go", let_go)
    blocks = SimpleNamespace(take_over=lambda ref: taken.append(ref.id))
    return cast(Cluster, SimpleNamespace(_mesh=SimpleNamespace(blocks=blocks)))


def values(client: distributed.Client, *words: str) -> list[distributed.Future]:
    futures: list[distributed.Future] = client.map(str, words, pure=False)
    return futures


def test_when_one_cannot_be_laid_nothing_stays_held(client: distributed.Client, cluster: Cluster) -> None:
    with pytest.raises(UsageError, match="cannot be pickled"):
        references._blocks_of(client, values(client, "one", "bad", "two"), cluster)
    assert (held, taken) == ([], [])
    assert [ref.id for ref in references._blocks_of(client, values(client, "one", "two"), cluster)] == ["one", "two"]
    assert (held, taken) == ([], ["one", "two"])


def test_one_whose_worker_has_gone_is_not_waited_for_without_an_end(
    client: distributed.Client, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "LAY_TIMEOUT_S", 0.5)
    one, two = values(client, "one", "two")
    who_has = client.who_has

    def holders(futures: list[Any]) -> dict[str, Any]:
        return {**who_has(futures), two.key: ["tcp://127.0.0.1:1"]}

    monkeypatch.setattr(client, "who_has", holders)
    with pytest.raises(UnreachableError, match="a worker that has it is gone, or busy"):
        references._blocks_of(client, [one, two], cluster)
    assert (held, taken) == ([], [])


OTHER: Any = "x"


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: references.block_of_result(OTHER), r"block_of_result\(\) takes the future of a task, not str"),
        (lambda: references.dask_future(OTHER, OTHER), r"dask_future\(\) takes the reference of a block"),
        (lambda: references.dask_array(OTHER, OTHER), r"dask_array\(\) takes the reference of a block"),
        (lambda: references.block_of(OTHER), r"block_of\(\) takes a future of Dask's, not str"),
        (lambda: references.blocks_of(OTHER), r"blocks_of\(\) takes an array of Dask's, not str"),
        (lambda: control.find(OTHER, cast(Any, None)), "The name of an engine is text, not None"),
    ],
)
def test_what_is_of_another_kind_is_refused_by_its_name(call: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        call()
