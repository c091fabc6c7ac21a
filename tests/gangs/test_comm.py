"""What ranks of a real gang say to each other, within a node and between two."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import kos_cluster as kos
from kos_cluster.errors import CollectiveTimeoutError, GangError, UsageError
from tests.gangs.solver import problem, solve
from tests.mesh.conftest import Mesh

WAIT_S = 90.0
RANKS = 5


def every_call() -> dict[str, Any]:
    import sys

    import numpy as np

    import kos_cluster as kos

    unpickled: list[str] = []
    sys.addaudithook(lambda event, args: unpickled.append(args[1]) if event == "pickle.find_class" else None)
    comm = kos.comm()
    rank, size = comm.rank, comm.size
    comm.barrier()
    big = np.arange(200_003, dtype=np.float32) * (rank + 1)
    told = {
        "sum": comm.allreduce(rank + 1),
        "text": comm.allreduce(str(rank)),
        "most": comm.allreduce(np.array([rank, -rank]), "max"),
        "ring": comm.allreduce(big),
        "in_place": comm.allreduce(big, "max", out=big) is big,
        "strided": comm.broadcast(np.arange(12.0).reshape(3, 4).T if rank == 1 else None, root=1),
        "empty": comm.broadcast(np.empty((0, 3)) if rank == 0 else None),
        "scalar": comm.broadcast(np.array(7, dtype="M8[s]") if rank == 0 else None),
        "named": comm.broadcast({"rank": rank}, root=size - 1),
        "mine": comm.scatter(np.arange(size * 2).reshape(size, 2) if rank == 0 else None),
        "all": comm.gather(rank, root=2),
        "around": comm.allgather(np.full(50_000, rank, dtype=np.int64)),
        "ordered": comm.reduce([rank], lambda one, other: one + other, root=3),
        "exchanged": comm.alltoall([f"{rank}>{to}" for to in range(size)]),
    }
    if rank == 0:
        comm.send(np.ones((2, 3)), 4, tag=1)
        comm.send("later", 4, tag=2)
    if rank == 4:
        told["first"], told["second"] = comm.recv(0, tag=2), comm.recv(0, tag=1)
    told["unpickled"] = list(unpickled)
    told["shared_kib"] = shared_kib()
    return told


def shared_kib() -> int:
    """Of the memory that this rank has used together with others of its node."""
    from pathlib import Path

    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = "/memfd:kos-rank" in line
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


def test_every_call_gives_what_it_says_on_all_ranks(mesh: Mesh):
    told = mesh.cluster.gang(every_call, RANKS, spread=True).result(WAIT_S)
    total = sum(range(1, RANKS + 1))
    for rank, mine in enumerate(told):
        assert mine["sum"] == total and mine["text"] == "01234" and mine["in_place"]
        assert mine["most"].tolist() == [RANKS - 1, 0]
        expected = np.arange(200_003, dtype=np.float32) * total
        np.testing.assert_allclose(mine["ring"], expected, rtol=1e-5)
        assert mine["ring"].tobytes() == told[0]["ring"].tobytes()
        assert (mine["strided"] == np.arange(12.0).reshape(3, 4).T).all()
        assert mine["empty"].shape == (0, 3) and mine["scalar"] == np.datetime64(7, "s")
        assert mine["named"] == {"rank": RANKS - 1}
        assert mine["mine"].tolist() == [2 * rank, 2 * rank + 1]
        assert mine["all"] == (list(range(RANKS)) if rank == 2 else None)
        assert [int(array[-1]) for array in mine["around"]] == list(range(RANKS))
        assert mine["ordered"] == (list(range(RANKS)) if rank == 3 else None)
        assert mine["exchanged"] == [f"{source}>{rank}" for source in range(RANKS)]
    assert [mine["unpickled"] for mine in told] == [[]] * RANKS, "an array has moved as a pickle"
    assert all(mine["shared_kib"] >= 256 for mine in told), [mine["shared_kib"] for mine in told]
    assert told[4]["first"] == "later" and told[4]["second"].shape == (2, 3)


def test_conjugate_gradients_on_a_gang_solve_what_numpy_solves(mesh: Mesh):
    size = 120
    matrix, right = problem(size)
    expected = np.linalg.solve(matrix, right)
    for solution in mesh.cluster.gang(solve, 4, size, spread=True).result(WAIT_S):
        np.testing.assert_allclose(solution, expected, rtol=1e-8)


def test_ranks_have_the_variables_that_launchers_set_and_a_free_port(mesh: Mesh):
    def rank_variables() -> dict[str, str]:
        import os
        import socket

        import kos_cluster as kos

        if kos.comm().rank == 0:
            with socket.create_server((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))):
                kos.comm().barrier()
        else:
            kos.comm().barrier()
        names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return {name: os.environ[name] for name in names} | {"node": kos.comm().node}

    told = mesh.cluster.gang(rank_variables, 4, spread=True).result(WAIT_S)
    assert [(t["RANK"], t["LOCAL_RANK"]) for t in told] == [("0", "0"), ("1", "1"), ("2", "0"), ("3", "1")]
    assert {(t["WORLD_SIZE"], t["LOCAL_WORLD_SIZE"]) for t in told} == {("4", "2")}
    assert len({(t["MASTER_ADDR"], t["MASTER_PORT"]) for t in told}) == 1
    assert len({t["node"] for t in told}) == 2
    assert "RANK" not in os.environ


def test_a_collective_that_some_do_not_call_names_them(mesh: Mesh):
    def missing() -> None:
        import time

        import kos_cluster as kos

        comm = kos.comm()
        comm.barrier()
        comm.patience_s = 1.0
        if comm.rank == 2:
            time.sleep(60)
        comm.allreduce(1)

    gang = mesh.cluster.gang(missing, 3)
    with pytest.raises(CollectiveTimeoutError) as caught:
        gang.result(WAIT_S)
    assert "not called by 1 of the ranks: rank 2 (node" in str(caught.value)
    assert "has ended collective 1, barrier" in str(caught.value)


def test_ranks_in_different_collectives_are_told_of_both(mesh: Mesh):
    def different() -> None:
        import kos_cluster as kos

        comm = kos.comm()
        if comm.rank == 0:
            comm.broadcast(1)
        else:
            comm.alltoall([1, 2])

    with pytest.raises(GangError, match=r"rank 0 \(node .*broadcast, while rank 1 is in its collective 1, alltoall"):
        mesh.cluster.gang(different, 2).result(WAIT_S)


def test_outside_of_a_gang_there_is_no_communicator():
    named = []
    for call in (kos.comm, kos.restored, lambda: kos.checkpoint(1)):
        with pytest.raises(UsageError, match=r"outside of a gang.*cluster\.gang") as refused:
            call()
        named.append(refused.value.message.partition("(")[0])
    assert named == ["kos.comm", "kos.restored", "kos.checkpoint"]
