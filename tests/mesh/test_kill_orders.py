"""Sudden ends one after the other: what each kill sets free at once, in every order, and that nothing is left at last.

Theory of operation. A cluster of one node, new for each order, so that nobody but those who are killed can keep
anything. A client has put a block, has a result that stays, and is in the middle of a put; its task reads the block,
has let one of its own stay, and has a semaphore under a name and a child in a session of its own. All blocks differ
in size, so the arena's figures tell which of them are there. `kos down` is not typed before the test is over.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mesh.conftest import Mesh, until
from tests.mesh.memory import NAMED, all_processes, files_of, named, processes, shared_files

MIB = 1 << 20
WAIT_S = 60.0
NODE = "node1"
SIZES_MIB = PUT, RESULT, KEPT, HALF = 16, 8, 4, 2  # of the array in each block
SETS = [some for count in range(len(SIZES_MIB) + 1) for some in itertools.combinations(SIZES_MIB, count)]
HEADS_LIMIT_MIB = 0.5  # what blocks take beside their arrays: what else is pickled, and the rest of a page

CLIENT = f"""
    import concurrent.futures, multiprocessing, os, pathlib, signal, subprocess, sys, time
    import numpy as np, kos_cluster as kos
    from kos_cluster.dmem import attached
    def array(mib):
        return np.ones(mib << 20, dtype=np.uint8)
    def write_half(fd, pieces):
        write_all(fd, [memoryview(piece).cast("B")[: memoryview(piece).nbytes // 2] for piece in pieces])
        print("half of it is written", flush=True)
        signal.pause()
    def hold(block, mark):
        kept = kos.stay(array({KEPT}))
        semaphore = multiprocessing.get_context("spawn").Lock()
        tracker = multiprocessing.resource_tracker._resource_tracker
        os.kill(tracker._pid, signal.SIGKILL)  # else it may remove the semaphore in KOS's place
        sleeper = [sys.executable, "-c", "import signal; signal.pause()"]
        child = subprocess.Popen(sleeper, start_new_session=True)
        pathlib.Path(mark + ".part").write_text(str(os.getpid()))
        os.rename(mark + ".part", mark)
        signal.pause()
    cluster = kos.connect()
    ref = cluster.put(array({PUT}))
    stays = cluster.submit(array, {RESULT})
    concurrent.futures.wait([stays])
    running = cluster.submit(hold, ref, {{mark!r}}, retries=0)
    while not os.path.exists({{mark!r}}):
        time.sleep(0.01)
    write_all, attached.write_all = attached.write_all, write_half
    cluster.put(array({HALF}))
"""


class Scene:
    """The three that are killed, and what is seen of the others meanwhile."""

    def __init__(self, mesh: Mesh, mark: Path, named_before: set[str]) -> None:
        self.mesh = mesh
        self.named_before = named_before
        self.client = mesh.program(CLIENT.format(mark=str(mark)))
        assert self.client.stdout is not None
        said = self.client.stdout.readline()
        assert said == "half of it is written\n", self.client.stderr and self.client.stderr.read()
        self.worker = int(mark.read_text())
        self.daemon = mesh.pid(NODE)
        self.alive = {"client", "worker", "daemon"}
        self.files = shared_files(mesh, "/memfd:kos-").keys()

    def kill(self, who: str) -> None:
        """Kill one of them; it may have ended with another one."""
        with suppress(ProcessLookupError):
            os.kill({"client": self.client.pid, "worker": self.worker, "daemon": self.daemon}[who], signal.SIGKILL)
        self.alive.remove(who)
        if who == "client":
            self.client.wait()  # it is this process's child

    def blocks(self) -> tuple[set[int], set[int]]:
        """The sizes of the blocks that the arena has, and of those of them that somebody holds."""
        now = self.mesh.cluster.memory()[NODE]
        found = [set(some) for some in SETS if abs(now.used_bytes / MIB - sum(some)) <= HEADS_LIMIT_MIB]
        held = [set(some) for some in SETS if abs(now.held_bytes / MIB - sum(some)) <= HEADS_LIMIT_MIB]
        assert len(found) == len(held) == 1 and now.blocks == len(found[0]), now
        return found[0], held[0]

    def running(self) -> int:
        """Slots in use."""
        return int(next(row["running"] for row in self.mesh.cluster.nodes() if row["name"] == NODE))

    def exists(self, pid: int) -> bool:
        return any(path.name == str(pid) for path in processes(self.mesh))

    def others(self) -> list[str]:
        """The processes of the cluster, but for the client."""
        return [path.name for path in processes(self.mesh) if int(path.name) != self.client.pid]

    def semaphores(self) -> set[str]:
        """What the worker has under a name."""
        return {name for name in os.listdir(NAMED) if f"-{self.worker}-" in name}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    named_before = set(os.listdir(NAMED))  # also by other programs
    mesh = Mesh(1)
    try:
        yield Scene(mesh, tmp_path / "pid", named_before)
    finally:
        mesh.down()


def wait_for_effect(scene: Scene, who: str) -> None:
    """What the end of this one sets free; of the arena only a daemon that is alive can tell."""
    if who == "daemon":
        until(lambda: scene.others() == [], "its fork server, its workers and their children are gone", WAIT_S)
        return
    if who == "worker":
        until(lambda: not scene.exists(scene.worker), "it is gone", WAIT_S)
    if "daemon" in scene.alive:
        wait_for_memory(scene)
        until(lambda: scene.running() == 0, "its slot is free", WAIT_S)


def wait_for_memory(scene: Scene) -> None:
    """What the dead one had put or held is freed at a daemon that is alive."""
    if "client" in scene.alive:
        until(lambda: scene.blocks() == ({PUT, RESULT, HALF}, {HALF}), "what the worker had is released", WAIT_S)
    else:
        until(lambda: scene.blocks() == (set(), set()), "all of it is free", WAIT_S)
    if "worker" not in scene.alive:
        until(lambda: scene.semaphores() == set(), "what it had under a name is gone", WAIT_S)


def nothing_is_left(scene: Scene) -> None:
    """Of the node, of its memory, and of what had a name."""
    until(lambda: list(processes(scene.mesh)) == [], "no process of it is left", WAIT_S)
    until(lambda: not scene.files & files_of(all_processes(), "/memfd:kos-").keys(), "nobody has its memory", WAIT_S)
    new = set(os.listdir(NAMED)) - scene.named_before  # also of other programs, which remove theirs
    until(lambda: not new & set(os.listdir(NAMED)), f"none of these names is left: {sorted(new)}", WAIT_S)


@pytest.mark.parametrize("order", list(itertools.permutations(("client", "worker", "daemon"))), ids="-".join)
def test_each_kill_sets_free_what_was_held_for_it_and_in_the_end_nothing_is_left(
    scene: Scene, order: tuple[str, ...]
) -> None:
    until(lambda: scene.blocks() == ({PUT, RESULT, KEPT, HALF}, {PUT, KEPT, HALF}), "all is in use", WAIT_S)
    until(lambda: scene.running() == 1, "its slot is in use", WAIT_S)
    assert scene.semaphores() and named(scene.mesh) == []
    assert len(scene.files) > len(SIZES_MIB), "blocks and scoreboards"
    for who in order:
        scene.kill(who)
        wait_for_effect(scene, who)
    nothing_is_left(scene)
