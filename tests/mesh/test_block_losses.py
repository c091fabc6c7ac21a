"""Sudden ends: whoever is killed, in whichever order, no memory stays that nobody can use."""

from __future__ import annotations

import gc
import itertools
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mesh.conftest import Mesh, until
from tests.mesh.errands import last, made, memory_of

WAIT_S = 60.0
BLOCK_BYTES = 16 << 20

CLIENT = """
    import os, pathlib, time, numpy as np, kos_cluster as kos
    def hold(block, mark):
        pathlib.Path(mark + ".part").write_text(str(os.getpid()))
        os.rename(mark + ".part", mark)
        time.sleep(600)
    cluster = kos.connect()
    ref = cluster.put(np.zeros({size}, dtype=np.uint8))
    view = ref.get()
    future = cluster.submit(np.ones, {size}, dtype=np.uint8, on=ref.node_name)
    stayed = future.result()
    running = cluster.submit(hold, ref, {mark!r}, on=ref.node_name)
    print(ref.node_name, flush=True)
    time.sleep(600)
"""


def processes(mesh: Mesh) -> Iterator[Path]:
    """The processes of this cluster, as /proc shows them."""
    ours = f"KOS_HOME={mesh.home.path}".encode()
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            with suppress(OSError):
                if ours in (path / "environ").read_bytes().split(b"\0"):
                    yield path


def shared_bytes(mesh: Mesh) -> int:
    """The memory of all blocks that some process of the cluster has open or mapped, each counted once."""
    found: dict[int, int] = {}
    for process in processes(mesh):
        with suppress(OSError):
            for fd in (process / "fd").iterdir():
                if os.readlink(fd).startswith("/memfd:kos-block"):
                    found[fd.stat().st_ino] = fd.stat().st_blocks * 512
            for line in (process / "maps").read_text().splitlines():
                words = line.split()
                if len(words) > 5 and words[5].startswith("/memfd:kos-block"):
                    found.setdefault(int(words[4]), BLOCK_BYTES)
    return sum(found.values())


@pytest.mark.parametrize("order", list(itertools.permutations(("client", "worker", "daemon"))), ids="-".join)
def test_memory_comes_back_whoever_is_killed_in_whichever_order(
    mesh: Mesh, tmp_path: Path, order: tuple[str, ...]
) -> None:
    named_before = set(os.listdir("/dev/shm"))
    gc.collect()  # what tests before this one have left in this process
    until(lambda: shared_bytes(mesh) == 0, "no block is there before", WAIT_S)
    mark = tmp_path / "pid"
    client = mesh.program(CLIENT.format(size=BLOCK_BYTES, mark=str(mark)))
    assert client.stdout is not None
    node = client.stdout.readline().strip()
    until(mark.exists, "a worker holds the block", WAIT_S)
    assert shared_bytes(mesh) >= 2 * BLOCK_BYTES
    pids = {"client": client.pid, "worker": int(mark.read_text()), "daemon": mesh.pid(node)}
    for who in order:
        with suppress(ProcessLookupError):  # a worker ends with its daemon
            os.kill(pids[who], signal.SIGKILL)
    until(lambda: shared_bytes(mesh) == 0, "the memory is free", WAIT_S)
    assert not [name for name in set(os.listdir("/dev/shm")) - named_before if "kos" in name]
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
