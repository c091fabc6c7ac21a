"""References between KOS's blocks and the real Dask, for the module that has an engine of it: see `test_dask`."""

from __future__ import annotations

import os
from typing import Any

import numpy
import pytest

from kos_cluster.errors import UsageError
from kos_cluster.services.engines import references
from tests.engines.calls import seen
from tests.engines.conftest import EngineMesh
from tests.mesh.conftest import until

KIND = "dask"
SIDE = 512  # of an array of 2 MiB


class References:
    """For a module that has the fixtures `mesh` and `engine`."""

    def test_a_block_is_opened_by_the_worker_of_its_node_without_a_copy(self, mesh: EngineMesh, engine: Any) -> None:
        client = mesh.cluster.engine(KIND)
        put = mesh.cluster.put(numpy.arange(SIDE * SIDE))
        opened = references.dask_future(client, put)
        assert client.submit(seen, opened).result(30) == (put.node_name, False, True)
        assert client.submit(lambda ref: seen(ref.get())[1:], put).result(30) == (False, True)
        assert client.submit(numpy.sum, opened).result(30) == SIDE * SIDE * (SIDE * SIDE - 1) // 2

    def test_an_array_of_a_block_has_slices_of_it_for_chunks(self, mesh: EngineMesh, engine: Any) -> None:
        client = mesh.cluster.engine(KIND)
        rows = numpy.random.default_rng(0).normal(size=(SIDE, SIDE))
        put = mesh.cluster.put(rows)
        array = references.dask_array(client, put, chunks=(SIDE // 4, SIDE))
        assert numpy.array_equal((array + 1).compute(scheduler=client), rows + 1)
        chunks = client.gather([client.submit(seen, chunk) for chunk in client.futures_of(client.persist(array))])
        assert [chunk[1:] for chunk in chunks] == [(False, True)] * 4
        with pytest.raises(UsageError, match="holds no array"):
            references.dask_array(client, mesh.cluster.put("a text"))

    def test_what_dask_holds_becomes_blocks_of_the_nodes_where_it_is(self, mesh: EngineMesh, engine: Any) -> None:
        client = mesh.cluster.engine(KIND)
        nodes = client.run(lambda: os.environ["KOS_NODE"])
        futures = client.map(lambda n: numpy.full(SIDE, n), range(4), pure=False)
        blocks = [references.block_of(future, mesh.cluster) for future in futures]
        holders = client.who_has(futures)
        assert [block.node_name for block in blocks] == [nodes[holders[future.key][0]] for future in futures]
        del futures  # the blocks are KOS's now
        assert [int(block.get()[0]) for block in blocks] == [0, 1, 2, 3]
        assert list(mesh.cluster.map(numpy.sum, blocks)) == [0, SIDE, 2 * SIDE, 3 * SIDE]

    def test_the_chunks_of_a_persisted_array_become_blocks(self, mesh: EngineMesh, engine: Any) -> None:
        import dask.array

        client = mesh.cluster.engine(KIND)
        array = dask.array.arange(16, chunks=4).reshape(4, 4)
        with pytest.raises(UsageError, match="Persist it first"):
            references.blocks_of(array, mesh.cluster)
        blocks = references.blocks_of(client.persist(array), mesh.cluster)
        assert numpy.array_equal(numpy.block([[ref.get() for ref in row] for row in blocks]), array.compute())

    def test_a_large_result_of_a_task_goes_to_dask_by_reference(self, mesh: EngineMesh, engine: Any) -> None:
        client = mesh.cluster.engine(KIND)
        made = mesh.cluster.submit(numpy.ones, SIDE * SIDE)
        block = references.block_of_result(made)
        assert client.submit(seen, references.dask_future(client, block)).result(30)[1:] == (False, True)
        with pytest.raises(UsageError, match="is small, so it is in no block"):
            references.block_of_result(mesh.cluster.submit(abs, -1))

    def test_the_memory_of_what_crossed_is_given_back(self, mesh: EngineMesh, engine: Any) -> None:
        client = mesh.cluster.engine(KIND)
        future = client.submit(numpy.ones, SIDE * SIDE, pure=False)
        block = references.block_of(future, mesh.cluster)
        there = block.node_name
        before = mesh.cluster.memory()[there].blocks
        assert before >= 1
        del block
        until(lambda: mesh.cluster.memory()[there].blocks < before, "it is dropped with its last reference")
