"""Sudden ends: whoever is killed, in whichever order, no memory stays that nobody can use."""

from __future__ import annotations

import gc
import itertools
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mesh.conftest import Mesh, until
from tests.mesh.errands import last, made, memory_of
from tests.mesh.memory import named, shared_files

WAIT_S = 60.0
BLOCK_BYTES = 16 << 20

CLIENT = """
    import os, pathlib, time, numpy as np, kos_cluster as kos
    from kos_cluster.dmem import attached
    def write_half(fd, pieces):
        write_all(fd, [memoryview(piece).cast("B")[: memoryview(piece).nbytes // 2] for piece in pieces])
        print(ref.node_name, flush=True)
        time.sleep(600)
    def hold(block, mark):
        pathlib.Path(mark + ".part").write_text(str(os.getpid()))
        os.rename(mark + ".part", mark)
        time.sleep(600)
    cluster = kos.connect()
    ref = cluster.put(np.zeros({size}, dtype=np.uint8))
    view = ref.get()
    future = cluster.submit(np.ones, {size}, dtype=np.uint8, on=ref.node_name)
    stayed = future.result()
    other = next(node for node in cluster.memory() if node != ref.node_name)
    assert cluster.submit(len, ref, on=other).result() == {size}  # which makes a copy there
    running = cluster.submit(hold, ref, {mark!r}, on=ref.node_name)
    write_all, attached.write_all = attached.write_all, write_half
    cluster.put(np.zeros({size}, dtype=np.uint8))
"""


def shared_bytes(mesh: Mesh) -> int:
    """The memory of all blocks, each counted once."""
    return sum(size_bytes for _, size_bytes in shared_files(mesh, "/memfd:kos-block").values())


@pytest.mark.parametrize("order", list(itertools.permutations(("client", "worker", "daemon"))), ids="-".join)
def test_memory_comes_back_whoever_is_killed_in_whichever_order(
    mesh: Mesh, tmp_path: Path, order: tuple[str, ...]
) -> None:
    """The client is in the middle of a put; of its other block a second node has a copy."""
    gc.collect()  # what tests before this one have left in this process
    until(lambda: shared_bytes(mesh) == 0, "no block is there before", WAIT_S)
    mark = tmp_path / "pid"
    client = mesh.program(CLIENT.format(size=BLOCK_BYTES, mark=str(mark)))
    assert client.stdout is not None
    node = client.stdout.readline().strip()
    until(mark.exists, "a worker holds the block", WAIT_S)
    assert shared_bytes(mesh) >= 4 * BLOCK_BYTES
    assert named(mesh) == []
    pids = {"client": client.pid, "worker": int(mark.read_text()), "daemon": mesh.pid(node)}
    for who in order:
        with suppress(ProcessLookupError):  # a worker ends with its daemon
            os.kill(pids[who], signal.SIGKILL)
    until(lambda: shared_bytes(mesh) == 0, "the memory is free, that of the other node too", WAIT_S)
    mesh.heal()


@pytest.mark.parametrize(("killed", "other"), [("node1", "node2"), ("node2", "node1")])
def test_who_reads_goes_on_whichever_of_the_nodes_that_share_the_memory_is_killed(
    mesh: Mesh, killed: str, other: str
) -> None:
    until(lambda: shared_bytes(mesh) == 0, "no block is there before", WAIT_S)
    future = mesh.cluster.submit(made, BLOCK_BYTES, on="node2")
    memory = {mesh.cluster.submit(memory_of, future, on=node).result(WAIT_S)[1] for node in (other, killed)}
    value = future.result(WAIT_S)
    assert memory == {memory_of(value)[1]}, "both nodes and this process have the same"
    os.kill(mesh.pid(killed), signal.SIGKILL)
    assert mesh.cluster.submit(last, future, on=other).result(WAIT_S) == 7
    assert value.sum() == 7 * BLOCK_BYTES
    del value, future
    gc.collect()
    until(lambda: shared_bytes(mesh) == 0 and not maps(*memory), "the memory is free", WAIT_S)
    mesh.heal()


def maps(inode: int) -> bool:
    """Whether this process has this memory mapped."""
    return any(line.split()[4] == str(inode) for line in Path("/proc/self/maps").read_text().splitlines())
