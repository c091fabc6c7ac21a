"""Gangs on a real cluster: all ranks or none, and what becomes of them when something ends."""

from __future__ import annotations

import gc
import io
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from kos_cluster.cli.main import run
from kos_cluster.core.records import TaskState
from kos_cluster.errors import BlockLostError, GangError, PlacementError, TaskLostError, UsageError
from kos_cluster.net import wire
from tests.gangs import solver
from tests.gangs.conftest import SLOTS
from tests.mesh.conftest import Mesh, until
from tests.mesh.errands import made
from tests.mesh.memory import named, shared_files

WAIT_S = 90.0
LARGE_BYTES = 8 << 20  # of a result: it stays where it was made
LEFT_WITHIN_S = 12.0  # a loaded machine gets more than the few seconds that it takes; the lease is 26 s


def where() -> tuple[int, str]:
    import kos_cluster as kos

    return kos.comm().rank, kos.comm().node


def hold(folder: str) -> int:
    """Say that this rank runs, and go on until the file `go` is there."""
    import os
    from pathlib import Path

    import kos_cluster as kos

    comm = kos.comm()
    (Path(folder) / f"rank{comm.rank}.epoch{comm.epoch}").write_text(str(os.getpid()))
    while not (Path(folder) / "go").exists():
        time.sleep(0.01)
    comm.barrier()
    return comm.epoch


def hold_apart(folder: str) -> int:
    """As `hold`, without waiting for the others."""
    import os
    from pathlib import Path

    import kos_cluster as kos

    rank = kos.comm().rank
    (Path(folder) / f"rank{rank}.epoch{kos.comm().epoch}").write_text(str(os.getpid()))
    while not (Path(folder) / "go").exists():
        time.sleep(0.01)
    return rank


def running(folder: Path, ranks: int, epoch: int = 1) -> list[int]:
    """The ranks' processes, once all of an epoch run."""
    files = [folder / f"rank{rank}.epoch{epoch}" for rank in range(ranks)]
    until(lambda: all(file.exists() and file.read_text() for file in files), f"{ranks} ranks run", WAIT_S)
    return [int(file.read_text()) for file in files]


def test_what_ranks_need_is_held_in_memory_from_the_first_gang_on(mesh: Mesh):
    until(lambda: all("numpy" in held for held in preloaded(mesh)), "the nodes are warm", WAIT_S)
    assert not any("cryptography" in held for held in preloaded(mesh))
    mesh.cluster.gang(where, 2, spread=True).result(WAIT_S)
    until(lambda: all("cryptography" in held for held in preloaded(mesh)), "they are warm for gangs", WAIT_S)


def preloaded(mesh: Mesh) -> list[str]:
    """What each node's fork server has mapped."""
    servers = [server for node in ("node1", "node2") for server in psutil.Process(mesh.pid(node)).children()]
    assert len(servers) == 2
    return [Path(f"/proc/{server.pid}/maps").read_text() for server in servers]


def test_the_shape_that_is_asked_for_is_kept(mesh: Mesh):
    spread = [node for _, node in mesh.cluster.gang(where, 4, spread=True).result(WAIT_S)]
    assert sorted(spread.count(node) for node in set(spread)) == [2, 2]
    packed = [node for _, node in mesh.cluster.gang(where, SLOTS, pack=True).result(WAIT_S)]
    assert len(set(packed)) == 1
    whole = mesh.cluster.gang(where, 2 * SLOTS).result(WAIT_S)
    assert [rank for rank, _ in whole] == list(range(2 * SLOTS))


@contextmanager
def held(mesh: Mesh, folder: Path, node: str, count: int) -> Iterator[Callable[[], None]]:
    """Tasks take this many slots of a node until what is given is called, or the end."""

    def wait() -> None:
        while not (folder / node).exists():
            time.sleep(0.01)

    tasks = [mesh.cluster.submit(wait, on=node, name=f"on {node}", retries=0) for _ in range(count)]
    try:
        until(lambda: all(has_begun(task) for task in tasks), f"tasks run on {node}", WAIT_S)
        yield (folder / node).touch
    finally:
        (folder / node).touch()


def has_begun(task: Any) -> bool:
    story = task.story()
    return story is not None and story.state is TaskState.RUNNING


def in_use(mesh: Mesh, slots: int) -> None:
    """Wait until the coordinator, who plans by what it has heard, takes no more and no less to be in use."""

    def seen() -> int:
        loads = mesh.cluster._mesh.request(wire.Nodes(), wire.SyncData).loads
        return sum(load.running for load, _ in loads.values())

    until(lambda: seen() == slots, f"{slots} slots are in use")


def nodes_of(gang: Any) -> list[str]:
    return [node for _, node in gang.result(WAIT_S)]


def waits_for(mesh: Mesh, gang: Any, told: str) -> None:
    def waits() -> bool:
        assert not gang.done()
        return told in why(mesh, gang.id)

    until(waits, f"gang {gang.id} waits: {told}", WAIT_S)


class Command:
    """`kos run` with these words, in a thread."""

    def __init__(self, mesh: Mesh, *words: str) -> None:
        before = {job.job for job in mesh.cluster.own_jobs()}
        self._out = io.StringIO()
        self._thread = threading.Thread(target=run, args=(["run", *words], self._out, io.StringIO()))
        self._thread.start()
        until(lambda: {job.job for job in mesh.cluster.own_jobs()} - before, "its job is there")
        (self.id,) = {job.job for job in mesh.cluster.own_jobs()} - before

    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> str:
        """What it has printed."""
        self._thread.join(WAIT_S)
        return self._out.getvalue()


def test_pack_and_spread_wait_for_their_shape_while_another_gang_takes_what_is_free(mesh: Mesh, tmp_path: Path):
    with held(mesh, tmp_path, "node1", 1) as free_one, held(mesh, tmp_path, "node2", 3) as free_other:
        assert sorted(nodes_of(mesh.cluster.gang(where, 4))) == [*["node1"] * 3, "node2"]
        in_use(mesh, 4)
        packed = mesh.cluster.gang(where, 4, pack=True)
        waits_for(mesh, packed, "now in the shape asked for (pack)")
        command = Command(mesh, "--gang", "4", "--pack", "sh", "-c", "echo $KOS_NODE")
        waits_for(mesh, command, "now in the shape asked for (pack)")
        free_one()
        assert nodes_of(packed) == ["node1"] * 4
        assert command.result().split() == ["node1"] * 4
        in_use(mesh, 3)
        spread = mesh.cluster.gang(where, 4, spread=True)
        waits_for(mesh, spread, "now in the shape asked for (spread)")
        free_other()
        assert sorted(nodes_of(spread)) == ["node1", "node1", "node2", "node2"]


def test_a_gang_is_apart_from_a_job_wherever_that_is_now_and_near_to_one(mesh: Mesh, tmp_path: Path):
    web = mesh.program(WEB.format(folder=str(tmp_path)))  # of another process
    assert web.stdout is not None and web.stdout.readline() == "runs\n"
    until(lambda: "web" in {job.name for job in mesh.cluster.jobs_told(WAIT_S)}, "web is told of")
    with held(mesh, tmp_path, "node2", 1):
        assert set(nodes_of(mesh.cluster.gang(where, 3, apart="web"))) == {"node2"}
        assert set(nodes_of(mesh.cluster.gang(where, 3, near="web"))) == {"node1"}
        assert set(nodes_of(mesh.cluster.gang(where, 3, apart="on node2"))) == {"node1"}
    waits = mesh.cluster.gang(where, 6, apart="web")
    waits_for(mesh, waits, "node1: 0, it has tasks of web, and the two are to be apart")
    (tmp_path / "web").touch()
    assert len(nodes_of(waits)) == 6


WEB = """
    import time
    from pathlib import Path
    import kos_cluster as kos

    def web(folder):
        (Path(folder) / "runs").touch()
        while not (Path(folder) / "web").exists():
            time.sleep(0.01)

    task = kos.connect().submit(web, {folder!r}, on="node1", retries=0)
    while not (Path({folder!r}) / "runs").exists():
        time.sleep(0.01)
    print("runs", flush=True)
    task.result()
"""


def test_a_killed_owner_leaves_no_slot_reserved(mesh: Mesh):
    owner = mesh.program(OWNER)
    assert owner.stdout is not None and owner.stdout.readline() == "waits\n"
    owner.kill()
    killed_s = time.monotonic()
    in_use(mesh, 0)
    assert len(mesh.cluster.gang(where, 2 * SLOTS).result(WAIT_S)) == 2 * SLOTS
    assert time.monotonic() - killed_s < LEFT_WITHIN_S


OWNER = """
    import time
    import kos_cluster as kos

    def stay():
        time.sleep(600)

    cluster = kos.connect()
    runs = cluster.gang(stay, 6)
    while sum(node["running"] for node in cluster.nodes()) < 6:
        time.sleep(0.01)
    waits = cluster.gang(stay, 4)
    while not any("do not fit" in row.why for row in cluster.why(waits.id)):
        time.sleep(0.01)
    print("waits", flush=True)
    time.sleep(600)
"""


def test_gangs_of_two_programs_that_each_need_more_than_half_all_end(mesh: Mesh):
    programs = [mesh.program(COMPETITOR) for _ in range(2)]
    for program in programs:
        told, errors = program.communicate(timeout=WAIT_S)
        assert told == "[5, 6, 7, 5]\n", errors


COMPETITOR = """
    import kos_cluster as kos

    def rank():
        kos.comm().barrier()

    gangs = [kos.connect().gang(rank, ranks) for ranks in (5, 6, 7, 5)]
    print([len(gang.result(80)) for gang in gangs])
"""


def test_a_gang_that_never_fits_is_refused_at_once_with_the_arithmetic(mesh: Mesh):
    with pytest.raises(PlacementError, match=r"3 ranks of 3 slots each do not fit: .* 2 of them .*node1: 1; node2: 1"):
        mesh.cluster.gang(where, 3, cpus=3).result(WAIT_S)
    with pytest.raises(UsageError, match="n=0 is not a whole number from 1"):
        mesh.cluster.gang(where, 0)
    with pytest.raises(PlacementError, match="be spread and packed"):
        mesh.cluster.gang(where, 2, spread=True, pack=True)


def test_what_no_gang_can_do_is_refused_before_it_starts(mesh: Mesh):
    with pytest.raises(UsageError, match=r"not tried again one by one.*restarts=N"):
        mesh.cluster.gang(where, 2, retries=3)
    for no_function in (5, (lambda: (yield 1))):
        with pytest.raises(UsageError, match="that is no function which returns"):
            mesh.cluster.gang(no_function, 2)  # type: ignore[arg-type]


def test_a_gang_waits_for_all_of_its_slots_and_says_so(mesh: Mesh, tmp_path: Path):
    first = mesh.cluster.gang(hold, 6, str(tmp_path))
    running(tmp_path, 6)
    second = mesh.cluster.gang(where, 4)
    until(lambda: "do not fit now; there is room for 2" in why(mesh, second.id), "the reason", WAIT_S)
    assert next(job for job in mesh.cluster.jobs() if job.job == second.id).running == 0
    (tmp_path / "go").touch()
    assert first.result(WAIT_S) == [1] * 6
    assert len(second.result(WAIT_S)) == 4


def why(mesh: Mesh, id_: str) -> str:
    return " ".join(row.why for row in mesh.cluster.why(id_))


def test_competing_gangs_all_have_their_turn(mesh: Mesh):
    gangs = [mesh.cluster.gang(where, ranks) for ranks in (5, 6, 7, 5, 8)]
    assert [len(gang.result(WAIT_S)) for gang in gangs] == [5, 6, 7, 5, 8]
    in_use(mesh, 0)


def test_what_never_fits_is_refused_while_all_is_taken_and_a_cancelled_gang_gives_its_slots_back(
    mesh: Mesh, tmp_path: Path
):
    gang = mesh.cluster.gang(hold, 8, str(tmp_path))
    running(tmp_path, 8)
    never = mesh.cluster.gang(where, 9).exception(5)  # which waits for no slot
    assert isinstance(never, PlacementError) and "the cluster holds 8 of them at most" in str(never)
    assert gang.cancel()
    assert len(mesh.cluster.gang(where, 8).result(WAIT_S)) == 8


def test_what_a_rank_raises_ends_the_gang_and_names_rank_and_node(mesh: Mesh):
    def failing() -> None:
        import kos_cluster as kos

        if kos.comm().rank == 1:
            raise ValueError("no such grid")
        kos.comm().barrier()

    gang = mesh.cluster.gang(failing, 3, restarts=5)
    with pytest.raises(GangError, match=r"Rank 1 on node\d ended gang .*ValueError: no such grid") as caught:
        gang.result(WAIT_S)
    assert isinstance(caught.value.__cause__, ValueError)
    assert gang.epoch == 1


def test_a_rank_that_returns_early_is_named_by_those_that_wait_for_it(mesh: Mesh):
    def early() -> None:
        import kos_cluster as kos

        if kos.comm().rank != 1:
            kos.comm().barrier()

    how = r"waited for|cannot reach|cannot speak with|link of rank \d to"  # by how far they had come with it
    with pytest.raises(GangError, match=rf"({how}) rank 1 \(node node\d\)"):
        mesh.cluster.gang(early, 3).result(WAIT_S)

    def earlier() -> None:
        import os

        import kos_cluster as kos

        if kos.comm().rank == 1:
            os._exit(0)
        kos.comm().barrier()

    with pytest.raises(GangError, match=r"Rank 1 on node\d ended gang .*exit code 0") as caught:
        mesh.cluster.gang(earlier, 3).result(WAIT_S)
    assert isinstance(caught.value.__cause__, TaskLostError)


def test_a_killed_rank_ends_the_gang_without_restarts(mesh: Mesh, tmp_path: Path):
    gang = mesh.cluster.gang(hold, 4, str(tmp_path), spread=True)
    os.kill(running(tmp_path, 4)[2], signal.SIGKILL)
    with pytest.raises(GangError, match=r"Rank 2 on node\d ended gang .*SIGKILL") as caught:
        gang.result(WAIT_S)
    assert isinstance(caught.value.__cause__, TaskLostError)


def test_a_killed_rank_that_is_not_vital_is_gone_and_the_others_finish(mesh: Mesh, tmp_path: Path):
    gang = mesh.cluster.gang(hold_apart, 4, str(tmp_path), spread=True, vital=1)
    os.kill(running(tmp_path, 4)[2], signal.SIGKILL)
    until(lambda: 2 in gang.gone, "rank 2 is gone", WAIT_S)
    assert not gang.done()
    (tmp_path / "go").touch()
    assert gang.result(WAIT_S) == [0, 1, None, 3]
    assert list(gang.gone) == [2] and isinstance(gang.gone[2], TaskLostError)
    assert "SIGKILL" in str(gang.gone[2])
    with pytest.raises(UsageError, match="vital=5 is not a whole number from 0 to 4"):
        mesh.cluster.gang(where, 4, vital=5)


def test_a_killed_vital_rank_ends_the_gang(mesh: Mesh, tmp_path: Path):
    gang = mesh.cluster.gang(hold_apart, 3, str(tmp_path), vital=1)
    pids = running(tmp_path, 3)
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(GangError, match=r"Rank 0 on node\d ended gang .*SIGKILL"):
        gang.result(WAIT_S)
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the others are ended", WAIT_S)


def test_a_killed_rank_starts_the_whole_gang_anew_in_another_epoch(mesh: Mesh, tmp_path: Path):
    gang = mesh.cluster.gang(hold, 4, str(tmp_path), spread=True, restarts=1)
    first = running(tmp_path, 4)
    os.kill(first[1], signal.SIGKILL)
    second = running(tmp_path, 4, epoch=2)
    assert not set(first) & set(second)
    (tmp_path / "go").touch()
    assert gang.result(WAIT_S) == [2] * 4
    assert len(gang.jobs) == 2


def test_a_gang_that_starts_anew_keeps_its_name_and_needs_no_neighbour_that_has_ended(mesh: Mesh, tmp_path: Path):
    with held(mesh, tmp_path, "node1", 1):
        gang = mesh.cluster.gang(hold, 2, str(tmp_path), name="model", near="on node1", pack=True, restarts=1)
        first = running(tmp_path, 2)
        assert set(gang.nodes) == {"node1"}
    until(lambda: all(job.done for job in mesh.cluster.own_jobs() if job.name == "on node1"), "its neighbour has ended")
    os.kill(first[1], signal.SIGKILL)
    running(tmp_path, 2, epoch=2)
    (here,) = set(gang.nodes)
    assert set(nodes_of(mesh.cluster.gang(where, 2, apart="model"))) == {"node1", "node2"} - {here}
    (tmp_path / "go").touch()
    assert gang.result(WAIT_S) == [2] * 2


def test_what_ranks_of_an_epoch_that_is_over_say_changes_nothing(mesh: Mesh, tmp_path: Path):
    """A node stands still while the gang starts anew on the other one; then its ranks and its daemon go on."""

    def kept(folder: str) -> tuple[int, Any]:
        import kos_cluster as kos

        comm, before = kos.comm(), kos.restored()
        if comm.epoch == 3:
            return comm.rank, before
        hold(folder)
        kos.checkpoint((comm.epoch, comm.rank))
        (Path(folder) / f"kept{comm.rank}.epoch{comm.epoch}").touch()
        time.sleep(600)
        return comm.rank, None

    with held(mesh, tmp_path, "node1", 2) as free, held(mesh, tmp_path, "node2", 2):
        gang = mesh.cluster.gang(kept, 4, str(tmp_path), restarts=2)
        first = running(tmp_path, 4)
        assert gang.nodes == ["node1", "node1", "node2", "node2"]
        free()
        in_use(mesh, 6)
        silent = [mesh.pid("node2"), *first[2:]]
        for pid in silent:
            os.kill(pid, signal.SIGSTOP)
        try:
            os.kill(first[0], signal.SIGKILL)
            second = running(tmp_path, 4, epoch=2)
            assert gang.nodes == ["node1"] * 4
            (tmp_path / "go").touch()
        finally:
            for pid in reversed(silent):
                os.kill(pid, signal.SIGCONT)
        until(lambda: not any(psutil.pid_exists(pid) for pid in first), "the ranks of the first epoch have ended")
        until(lambda: len(list(tmp_path.glob("kept*"))) == 4, "those of the second have made a checkpoint", WAIT_S)
        os.kill(second[3], signal.SIGKILL)
        assert gang.result(WAIT_S) == [(rank, (2, rank)) for rank in range(4)]
        assert gang.epoch == 3 and not list(tmp_path.glob("kept*.epoch1"))


def test_a_killed_node_starts_the_gang_anew_on_the_others_from_its_last_checkpoint(mesh: Mesh, tmp_path: Path):
    """What ranks of a gang before have returned is lost with it, if it was large enough to stay there."""
    before = mesh.cluster.gang(made, 2, LARGE_BYTES, spread=True)
    wait([before], WAIT_S)
    assert all(usage.blocks for usage in mesh.cluster.memory().values()), "each is where its rank was"
    size = 120
    gang = mesh.cluster.gang(solver.solve, 4, size, pause=str(tmp_path), spread=True, restarts=1)
    until(lambda: len(list(tmp_path.glob("*.paused"))) == 4, "two checkpoints were made", WAIT_S)
    lost = gang.nodes[-1]
    os.kill(mesh.pid(lost), signal.SIGKILL)
    try:
        answers = gang.result(WAIT_S)
        assert (gang.epoch, len(gang.jobs)) == (2, 2)
        assert lost not in gang.nodes
        assert [(tmp_path / f"rank{rank}.epoch2").read_text() for rank in range(4)] == ["10"] * 4
        matrix, right = solver.problem(size)
        for answer in answers:
            np.testing.assert_allclose(matrix @ answer, right, atol=1e-8)
        with pytest.raises(BlockLostError, match=rf"task {before.id}\.1 is lost .*gang's rank has made is not made"):
            before.result(WAIT_S)
    finally:
        mesh.heal()


def test_a_checkpoint_is_refused_by_all_ranks_when_it_is_too_large_and_restored_comes_first(mesh: Mesh):
    def refused() -> tuple[int, str, str, int]:
        import kos_cluster as kos
        from kos_cluster.errors import KosError
        from kos_cluster.tasks.comm import checkpoints

        comm = kos.comm()
        first = kos.checkpoint(b"x" * (5 << 20))  # in two pieces
        checkpoints.CHECKPOINT_LIMIT_BYTES = 2 << 20
        told = []
        for call in (kos.restored, lambda: kos.checkpoint(bytes((comm.rank + 1) << 20))):
            try:
                call()
            except KosError as error:
                told.append(error.message)
        late, large = told
        return first, late, large, kos.checkpoint("small")

    for first, late, large, last in mesh.cluster.gang(refused, 2, spread=True).result(WAIT_S):
        assert (first, last) == (1, 2)
        assert late == "kos.restored() was called after kos.checkpoint()."
        assert large == "A checkpoint of 3 MiB is over the limit of 2; rank 1 has the most of it, 2 MiB."


def test_ranks_leave_nothing_in_shared_memory(mesh: Mesh, tmp_path: Path):
    def share(folder: str) -> int:
        import numpy as np

        import kos_cluster as kos

        assert int(kos.comm().allreduce(np.ones(1 << 20)).sum()) == 4 << 20
        return hold(folder)

    def rings() -> dict[int, tuple[str, int]]:
        return shared_files(mesh, "/memfd:kos-rank")

    until(lambda: not rings(), "those of the gangs before have gone")
    for killed in (False, True):
        folder = tmp_path / str(killed)
        folder.mkdir()
        gang = mesh.cluster.gang(share, 4, str(folder), spread=True)
        pids = running(folder, 4)
        assert rings() and not named(mesh)
        if killed:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            assert isinstance(gang.exception(WAIT_S), GangError)
        else:
            (folder / "go").touch()
            assert gang.result(WAIT_S) == [1] * 4
        until(lambda: not rings(), "the ranks' shared memory has gone with them")


@pytest.mark.parametrize("read", [True, False])
def test_nothing_of_a_gang_is_kept_when_nobody_needs_it(mesh: Mesh, read: bool):
    """Neither large results in the arenas nor checkpoints in this process, though its job is listed."""
    gang = mesh.cluster.gang(large, 2, spread=True)
    wait([gang], WAIT_S)
    id_, kept = gang.id, weakref.ref(gang)
    assert sum(usage.blocks for usage in mesh.cluster.memory().values()) >= 2
    if read:
        assert [len(result) for result in gang.result()] == [2 << 20] * 2
    del gang

    def is_gone() -> bool:
        gc.collect()
        return kept() is None and not any(usage.blocks for usage in mesh.cluster.memory().values())

    until(is_gone, "it is gone", WAIT_S)
    assert id_ in {job.job for job in mesh.cluster.own_jobs()}


def large() -> bytes:
    import kos_cluster as kos

    kos.checkpoint(bytes(1 << 20))
    return bytes(2 << 20)
