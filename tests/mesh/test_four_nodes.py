"""Four nodes that differ: where tasks are drawn, and how large blocks move when memory is scarce or a node dies.

Theory of operation. Each node has three slots, labels of its own and an arena of `ARENA_MIB`. What this machine may
lack is pretended in the daemons: two GPUs, how full the memory is, which a test writes into a file, that each node
is on a machine of its own, so that blocks are sent, unless a test puts them together, and how slow its links are. Each
daemon also notes which node sent it a block.
"""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kos_cluster as kos
from kos_cluster import errors
from kos_cluster.cli.main import run
from kos_cluster.core.capacity import Declared
from kos_cluster.core.placement import UNMEASURED_S
from kos_cluster.core.records import TaskState
from kos_cluster.home import EMBEDDED_NAME, ClusterHome
from kos_cluster.services import embedded
from tests.mesh.conftest import Mesh, until
from tests.mesh.errands import hold, last, made, made_to_stay, memory_of, stay_a_while, total, where, with_gpus
from tests.mesh.pretending import pretend

MIB = 1 << 20
WAIT_S = 60.0
NODES = ("node1", "node2", "node3", "node4")
SLOTS = 3
ARENA_MIB = 120
LARGE_BYTES = 48 * MIB  # two of them fit into an arena
TREES_LIMIT = 8  # blocks that are handed out until two nodes have asked while others were served
KILLS_LIMIT = 8  # likewise, until a node dies in the middle of a transfer
FREE_MIB = 4  # of an arena that is full otherwise
SLOW_BYTES_S = 1e6  # of a link that is pretended to be slow

PRETENDED = """
import msgspec
from kos_cluster.core.linkrates import LinkRates
from kos_cluster.dmem import sharing
from kos_cluster.errors import UnreachableError

node = sys.orig_argv[sys.orig_argv.index("--node") + 1]
sample, measured, shared = machine.LoadMeter.sample, LinkRates.measured, sharing.shared
told = LinkRates.told

def pretended(self, **how):
    full = folder / f"full-{node}"
    percent = float(full.read_text()) if full.exists() else 50.0
    return msgspec.structs.replace(sample(self, **how), memory_percent=percent)

def noted(self, sender, size_bytes, elapsed_s):
    with open(folder / f"came-{node}", "a") as file:
        file.write(f"{sender} {size_bytes}\\n")
    measured(self, sender, size_bytes, elapsed_s)

def together(folder_, block):
    if not (folder / "together").exists():
        raise UnreachableError("It is pretended to be on another machine.")
    return shared(folder_, block)

def slow(self):
    file = folder / "slow"
    return told(self) | ({file.read_text(): SLOW_BYTES_S} if file.exists() else {})

LinkRates.told = slow
sharing.shared = together
machine.LoadMeter.sample, LinkRates.measured = pretended, noted
"""


class FourNodes(Mesh):
    """node1 and node2 are in zone a, node3 and node4 in zone b; each has a label with its name."""

    def _up(self) -> None:
        self.pretended = self.folder / "pretended"
        write = embedded.write_start

        def differing(cluster: object, node: str, start: object) -> None:
            labels = {"called": node, "zone": "a" if node in NODES[:2] else "b"}
            own = {"declared": Declared(labels, {"licence": 1}), "share": (1, 1)}  # each is taken for a machine
            write(cluster, node, embedded.msgspec.structs.replace(start, **own))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(embedded, "write_start", differing)
            patch.setenv("KOS_ARENA", f"{ARENA_MIB}M")
            patch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
            pretend(patch, self.pretended, 4, PRETENDED.replace("SLOW_BYTES_S", str(SLOW_BYTES_S)))
            embedded.up(self.home, self.count, slots=SLOTS)

    def fill(self, node: str, percent: float) -> None:
        """How full the memory of this node's machine is from now on."""
        part = self.pretended / f"part-{node}"
        part.write_text(str(percent))
        part.rename(self.pretended / f"full-{node}")

    @contextmanager
    def together(self, really: bool) -> Iterator[None]:
        """All nodes are on one machine meanwhile, as they are in truth."""
        mark = self.pretended / "together"
        if really:
            mark.touch()
        yield
        mark.unlink(missing_ok=True)

    @contextmanager
    def slow_from(self, node: str) -> Iterator[None]:
        """What comes from this node takes long meanwhile, as far as the others tell and this process has heard."""
        (id_,) = [member.id for member in self.cluster.heard().members or () if member.name == node]
        file, mesh = self.pretended / "slow", self.cluster._mesh

        def slow() -> list[str]:
            known = mesh.ask(lambda: list(mesh._core._nodes.values()))
            return sorted(each.view.name for each in known if each.view.links.get(id_) == SLOW_BYTES_S)

        part = file.with_name("part-slow")
        part.write_text(id_)
        part.rename(file)
        try:
            until(lambda: slow() == sorted(NODES), f"it is heard that the links from {node} are slow")
            yield
        finally:
            file.unlink()
        until(lambda: slow() == [], f"it is heard that the links from {node} are as before")

    def spool(self, node: str) -> list[str]:
        """The files of outcomes that this node has on its disk."""
        folder = ClusterHome(self.home, EMBEDDED_NAME).run(node) / "spool"
        return [path.name for path in folder.iterdir() if path.is_file()]

    def came(self, node: str) -> list[str]:
        """From which nodes blocks have come to this one, in turn."""
        file = self.pretended / f"came-{node}"
        names = {member.id: member.name for member in self.cluster.heard().members or ()}
        return [names[line.split()[0]] for line in file.read_text().splitlines()] if file.exists() else []

    def spilled(self, node: str) -> dict[str, bytes]:
        """The first MiB of each file that this node's arena has on the disk; they have no names any more."""
        found: dict[str, bytes] = {}
        for fd in Path(f"/proc/{self.pid(node)}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                if "/arena/spill/" in (name := os.readlink(fd)):
                    with fd.open("rb") as file:
                        found[name] = file.read(MIB)
        return found

    def heard_running(self, **wanted: int) -> bool:
        """Whether this process has heard that just so many slots are in use."""
        heard = self.cluster.heard()
        loads = {member.name: heard.loads[member.id][0] for member in heard.members or () if member.id in heard.loads}
        return {name: load.running + load.queued for name, load in loads.items()} == dict.fromkeys(NODES, 0) | wanted

    def quiet(self, **running: int) -> None:
        """Wait until nothing else runs and no block is anywhere, as far as this process knows."""
        gc.collect()
        until(lambda: all(usage.blocks == 0 for usage in self.cluster.memory().values()), "the arenas are empty")
        until(lambda: self.heard_running(**running), f"it is heard that these slots alone are used: {running}")


@pytest.fixture(scope="module")
def four() -> Iterator[FourNodes]:
    mesh = FourNodes(len(NODES))
    until(lambda: len(mesh.cluster.memory()) == len(NODES), "there is a link to each")
    yield mesh
    mesh.down()


# ---- affinity


def test_labels_and_names_lead_to_each_node_and_away_from_all_others(four: FourNodes) -> None:
    def asked(how: Callable[[str], dict[str, object]]) -> dict[str, str]:
        return {node: four.cluster.submit(where, **how(node)).result(WAIT_S) for node in NODES}

    def others(node: str) -> list[str]:
        return [other for other in NODES if other != node]

    each = {node: node for node in NODES}
    assert asked(lambda node: {"on": node}) == each
    assert asked(lambda node: {"labels": f"called={node}"}) == each
    assert asked(lambda node: {"labels": [f"called!={other}" for other in others(node)]}) == each
    assert asked(lambda node: {"away_from": others(node)}) == each


WISHES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["node3", "node3"]),  # where more is free, and then where the job's last batch went
    ({"spread": True}, ["node3", "node4"]),
    ({"pack": True}, ["node4", "node3"]),  # of node4 one slot is free
    ({"near": "right"}, ["node4", "node3"]),
    ({"apart": "left"}, ["node4"]),
]


def test_each_wish_takes_tasks_elsewhere_than_they_would_go(four: FourNodes, tmp_path: Path) -> None:
    """In zone b a job "left" has a slot of node3, and a job "right" two of node4."""
    go = str(tmp_path / "go")
    jobs = [
        four.cluster.submit(hold, str(tmp_path / "left"), go, name="left", on="node3"),
        four.cluster.submit(hold, str(tmp_path / "right"), go, name="right", on="node4", cpus=2),
    ]
    until(lambda: {"left", "right"} <= set(os.listdir(tmp_path)), "both run")
    for wish, nodes in WISHES:
        four.quiet(node3=1, node4=2)
        assert list(four.cluster.map(stay_a_while, range(len(nodes)), labels="zone=b", **wish)) == nodes, wish
    Path(go).touch()
    assert [job.result(WAIT_S) for job in jobs] == ["node3", "node4"]


def test_why_tells_the_arithmetic_of_what_fits_the_machine_and_not_what_is_free_of_it(
    four: FourNodes, capsys: pytest.CaptureFixture[str]
) -> None:
    total_bytes = min(member.memory_bytes for member in four.cluster.heard().members or ())
    future = four.cluster.submit(where, memory=total_bytes, name="greedy")
    told = r"needs ([\d.]+) GiB, the largest free is ([\d.]+) GiB on node[1-4]; node1: "
    (job,) = [job.job for job in four.cluster.own_jobs() if job.name == "greedy"]

    def why() -> str:
        assert run(["why", job], sys.stdout, sys.stderr) == 0
        return " ".join(capsys.readouterr().out.split())

    until(lambda: re.search(told, why()), "it is told what is short")
    found = re.search(told, why())
    assert found is not None and float(found[1]) > float(found[2]) > 0
    assert not future.done()
    four.cluster.cancel(job)


# ---- what a node has to give


def test_a_task_sees_the_gpu_that_it_was_given_and_shares_it_with_nobody(four: FourNodes) -> None:
    assert {row["gpus"] for row in four.cluster.nodes()} == {2}, "of the four those that CUDA_VISIBLE_DEVICES names"
    futures = [four.cluster.submit(with_gpus, 0.05, gpus=1, on="node2") for _ in range(12)]
    told = sorted((future.result(WAIT_S) for future in futures), key=lambda use: use[1])
    assert {gpu for gpu, _, _ in told} == {"0", "1"}
    for gpu in "01":
        uses = [(began, ended) for given, began, ended in told if given == gpu]
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(uses)), uses
    assert set(four.cluster.submit(with_gpus, 0, gpus=2, on="node2").result(WAIT_S)[0].split(",")) == {"0", "1"}


def test_a_node_whose_memory_is_full_takes_no_more_work_until_it_has_room(four: FourNodes, tmp_path: Path) -> None:
    def over() -> list[str]:
        heard = four.cluster.heard()
        full = {id_ for id_, (load, _) in heard.loads.items() if load.over_memory}
        return sorted(member.name for member in heard.members or () if member.id in full)

    go = str(tmp_path / "go")
    runs = four.cluster.submit(hold, str(tmp_path / "runs"), go, on="node4")
    until(lambda: (tmp_path / "runs").exists(), "it runs")
    four.fill("node4", 97.0)
    until(lambda: over() == ["node4"], "it is heard that node4 is full")
    waits = four.cluster.submit(where, on="node4")
    gang = four.cluster.gang(where, 2, labels="zone=b", spread=True)
    assert set(four.cluster.map(stay_a_while, range(4), labels="zone=b")) == {"node3"}
    assert "past its high-water mark" in four.cluster.would_go(labels="zone=b").nodes["node4"]
    Path(go).touch()
    assert runs.result(WAIT_S) == "node4", "what ran there goes on"
    assert not waits.done() and not gang.done()
    four.fill("node4", 93.0)
    until(lambda: 93.0 in (load.memory_percent for load, _ in four.cluster.heard().loads.values()), "it has some room")
    assert over() == ["node4"] and not waits.done() and not gang.done(), "it is not well below the mark"
    four.fill("node4", 60.0)
    assert waits.result(WAIT_S) == "node4"
    assert sorted(gang.result(WAIT_S)) == ["node3", "node4"]


# ---- pools of a size that was asked for

CAPS = """
import multiprocessing, os, sys, tempfile, time
from concurrent.futures import ProcessPoolExecutor
from joblib import Parallel, delayed

def run(folder, number, wanted):
    began = time.monotonic()
    open(os.path.join(folder, str(number)), "w").close()
    while len(os.listdir(folder)) < wanted and time.monotonic() < began + 30:
        time.sleep(0.005)
    time.sleep(0.05)  # more at once would be seen
    return began, time.monotonic()

def calls(wanted=2):  # six, of which the first wait until so many have begun
    folder = tempfile.mkdtemp(dir=sys.argv[1])
    return [(folder, number, wanted) for number in range(6)]

def tell(spells):
    print(max(sum(begin <= at < end for begin, end in spells) for at, _ in spells))

if __name__ == "__main__":
    print(multiprocessing.cpu_count())
    with ProcessPoolExecutor(2) as pool:
        tell(list(pool.map(run, *zip(*calls()))))
    with multiprocessing.Pool(2) as pool:
        tell(pool.starmap(run, calls(), 1))
    for backend in ("loky", "multiprocessing"):
        tell(Parallel(n_jobs=2, backend=backend)(delayed(run)(*call) for call in calls()))
    with multiprocessing.Pool() as pool:
        tell(pool.starmap(run, calls(3), 1))
"""


def test_an_explicit_size_of_a_scripts_pool_is_a_cap_and_the_default_are_all_slots(
    four: FourNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "script.py").write_text(CAPS)
    monkeypatch.chdir(tmp_path / "folder")
    assert run(["run", "--distribute", "script.py", str(tmp_path)], sys.stdout, sys.stderr) == 0
    slots, *capped, free = capfd.readouterr().out.split()
    assert (slots, capped) == (str(SLOTS * len(NODES)), ["2"] * 4)
    assert int(free) >= 3


# ---- large blocks


def told(words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """The rows of a listing, by their first word."""
    assert run(words.split(), sys.stdout, sys.stderr) == 0
    lines = capsys.readouterr().out.splitlines()
    head = [cell for cell in re.split(r"\s{2,}", lines[0].strip()) if cell]
    return {
        row[0]: dict(zip(head, row, strict=True)) for row in (re.split(r"\s{2,}", line.strip()) for line in lines[1:])
    }


def test_what_an_arena_cannot_hold_goes_to_the_disk_and_comes_back(
    four: FourNodes, capsys: pytest.CaptureFixture[str]
) -> None:
    four.quiet()
    assert {usage.limit_bytes for usage in four.cluster.memory().values()} == {ARENA_MIB * MIB}
    refs = [four.cluster.put(np.full(LARGE_BYTES, byte, dtype=np.uint8)) for byte in range(4)]
    home = refs[0].node_name
    usage = four.cluster.memory()[home]
    assert usage.blocks == 4 and LARGE_BYTES < usage.used_bytes <= ARENA_MIB * MIB
    assert 2 * LARGE_BYTES <= usage.spilled_bytes < 3 * LARGE_BYTES
    assert told("mem status", capsys)[home]["SPILLED"] == "96.0 MiB"
    for content in four.spilled(home).values():
        assert not any(bytes([byte]) * 64 in content for byte in range(4)), "it can be read by who reads the disk"
    oldest = set(four.spilled(home))
    assert [last(refs[3].get()), last(refs[2].get())] == [3, 2] and set(four.spilled(home)) == oldest
    assert last(refs[0].get()) == 0, "for which there is room when that has gone which was read longest ago: 3"
    now = set(four.spilled(home))
    assert now != oldest and last(refs[2].get()) == 2 and set(four.spilled(home)) == now
    for turn in range(2):  # also those that were spilled for the others
        assert [last(ref.get()) for ref in refs] == [0, 1, 2, 3], turn
    del refs


@pytest.mark.parametrize("together", [False, True], ids=["sent", "shared"])
def test_pinned_blocks_stay_in_memory_and_what_has_no_room_beside_them_is_refused_with_the_arithmetic(
    four: FourNodes, together: bool
) -> None:
    with four.together(together):
        full_of_pinned(four, together)


def full_of_pinned(four: FourNodes, together: bool) -> None:
    four.quiet()
    pinned = [four.cluster.put(np.zeros(LARGE_BYTES, dtype=np.uint8), pin=True) for _ in range(2)]
    home = pinned[0].node_name
    away = next(node for node in NODES if node != home)
    full = (
        rf"The arena of node {home} has no room: 48\.0 MiB are wanted and 24\.0 MiB of 120\.0 MiB are free; "
        r"of the 96\.0 MiB in use 0\.0 MiB could be moved to the disk, where .*'kos mem status'"
    )
    with pytest.raises(errors.ArenaFullError, match=full):
        four.cluster.put(np.zeros(LARGE_BYTES, dtype=np.uint8))
    coming = four.cluster.submit(made_to_stay, LARGE_BYTES, on=away).result(WAIT_S)
    with pytest.raises(errors.ArenaFullError, match=full):
        four.cluster.submit(last, coming, on=home).result(WAIT_S)
    usage = four.cluster.memory()[home]
    assert usage.spilled_bytes == 0 and usage.pinned_bytes == usage.used_bytes and usage.blocks == 2
    del pinned
    until(lambda: four.cluster.memory()[home].blocks == 0, "its owner has dropped them")
    assert four.cluster.submit(last, coming, on=home).result(WAIT_S) == 7, "there is room again"
    memory = {four.cluster.submit(memory_of, coming, on=node).result(WAIT_S)[1] for node in (home, away)}
    assert len(memory) == (1 if together else 2), "it is the same where both are on one machine"


def test_a_large_result_without_room_beside_pinned_blocks_comes_to_its_owner_and_goes_on_to_other_nodes(
    four: FourNodes,
) -> None:
    four.quiet()
    rest_mib = ARENA_MIB - 2 * LARGE_BYTES // MIB - FREE_MIB
    sizes = [LARGE_BYTES, LARGE_BYTES, rest_mib * MIB]
    pinned = [four.cluster.put(np.zeros(size, dtype=np.uint8), pin=True) for size in sizes]
    home = pinned[0].node_name
    away = next(node for node in NODES if node != home)
    before = four.cluster.memory()
    assert before[home].blocks == 3 and 0 < before[home].limit_bytes - before[home].used_bytes <= FREE_MIB * MIB
    future = four.cluster.submit(made, 2 * FREE_MIB * MIB, 3, on=home)
    taken = [four.cluster.submit(total, future, on=node) for node in (away, home)]
    value = future.result(WAIT_S)
    assert value.shape == (2 * FREE_MIB * MIB,) and (value == 3).all()
    assert [task.result(WAIT_S) for task in taken] == [(node, 3 * value.size) for node in (away, home)]
    assert four.cluster.memory() == before, "no arena has it, nor was anything moved to the disk for it"
    until(lambda: four.spool(home) == [], "the node has removed the file that the result came as")
    del pinned
    four.quiet()


def test_a_put_or_read_finds_the_room_of_what_was_dropped_just_before(four: FourNodes) -> None:
    array = np.ones((ARENA_MIB * 6 // 10) << 20, dtype=np.uint8)
    for _ in range(5):
        ref = four.cluster.put(array, pin=True)  # so that it cannot make room by going to the disk
        with pytest.raises(errors.ArenaFullError):
            four.cluster.put(array, pin=True)
        del ref
    other = four.cluster.put(array)
    for _ in range(5):
        ref = four.cluster.put(array, pin=True)  # for which the other goes to the disk
        with pytest.raises(errors.ArenaFullError):
            other.get()
        del ref
        assert other.get()[-1] == 1
    del other
    four.quiet()


def test_a_block_goes_straight_from_node_to_node(four: FourNodes) -> None:
    """Neither through the node that coordinates, where this process is attached, too, nor through this process."""
    four.quiet()
    assert four.cluster.status()["coordinator"] == "node1"
    before = {node: len(four.came(node)) for node in NODES}
    ref = four.cluster.submit(made_to_stay, LARGE_BYTES, on="node2").result(WAIT_S)
    assert four.cluster.submit(last, ref, on="node3").result(WAIT_S) == 7
    assert {node: usage.blocks for node, usage in four.cluster.memory().items()} == {
        "node1": 0,
        "node2": 1,
        "node3": 1,
        "node4": 0,
    }
    until(lambda: len(four.came("node3")) > before["node3"], "node3 has noted it")
    assert {node: four.came(node)[before[node] :] for node in NODES} == {
        "node1": [],
        "node2": [],
        "node3": ["node2"],
        "node4": [],
    }


def test_a_block_that_many_want_goes_down_a_tree(four: FourNodes) -> None:
    """While its node gives it to two, a third one gets it from one of these."""
    readers = [node for node in NODES if node != "node2"]

    def passed_on() -> bool:
        four.quiet()
        before = {node: len(four.came(node)) for node in readers}
        ref = four.cluster.submit(made_to_stay, 2 * LARGE_BYTES, on="node2").result(WAIT_S)
        futures = [four.cluster.submit(last, ref, on=node) for node in readers]
        assert [future.result(WAIT_S) for future in futures] == [7, 7, 7]
        until(lambda: all(len(four.came(node)) > before[node] for node in readers), "it is noted")
        senders = [sender for node in readers for sender in four.came(node)[before[node] :]]
        assert len(senders) == len(readers) and "node2" in senders, "each has got it once"
        return set(senders) != {"node2"}

    assert any(passed_on() for _ in range(TREES_LIMIT))


HOLDER = """
import kos_cluster as kos
from tests.mesh.errands import hold
for future in [kos.connect().submit(hold, mark, go, on="node2") for mark, go in {calls!r}]:
    future.result()
"""


@contextmanager
def all_in_use(four: FourNodes, folder: Path, elsewhere: bool) -> Iterator[Callable[[], None]]:
    """The slots of node2 meanwhile, by tasks of this or of another program; what is given frees one of them."""
    calls = [(str(folder / f"{number}"), str(folder / f"go{number}")) for number in range(SLOTS)]
    if elsewhere:
        program = four.program(HOLDER.format(calls=calls))
        end: Callable[[], object] = program.wait
    else:
        futures = [four.cluster.submit(hold, *call, on="node2") for call in calls]
        end = partial(concurrent.futures.wait, futures)
    try:
        until(lambda: all(os.path.exists(mark) for mark, _ in calls), "all slots of node2 are in use")
        until(lambda: four.heard_running(node2=SLOTS), "that is heard")
        yield Path(calls[0][1]).touch
    finally:
        for _, go in calls:
            Path(go).touch()
        end()


@pytest.mark.parametrize("elsewhere", [False, True], ids=["own tasks", "another program's"])
def test_a_task_waits_for_a_slot_where_its_block_is_if_that_takes_longer_to_move(
    four: FourNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    """Beside it, one that reads a block of a few KiB there does not wait."""
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    four.quiet()
    sizes = (8 << 10, LARGE_BYTES)
    small, large = (four.cluster.submit(made_to_stay, size, on="node2").result(WAIT_S) for size in sizes)
    before = {node: len(four.came(node)) for node in NODES}

    def moved() -> dict[str, list[str]]:
        return {node: came for node in NODES if (came := four.came(node)[before[node] :])}

    with four.slow_from("node2"), all_in_use(four, tmp_path, elsewhere) as free_one:
        waits = four.cluster.submit(memory_of, large)
        (row,) = four.cluster.why(waits.task)
        assert (row.state, row.node) == (TaskState.WAITING, "")
        assert row.why.startswith(
            "it needs 1 slot. 48 MiB of its inputs are on node2: moving them takes "
            f"{LARGE_BYTES / SLOW_BYTES_S:.1f} s, waiting there about {UNMEASURED_S / SLOTS:.1f} s; node1: 3 of 3 slots"
        )
        node, _ = four.cluster.submit(memory_of, small).result(WAIT_S)
        assert node != "node2", "its few bytes are moved at once"
        assert not waits.done(), "while all slots of node2 are in use"
        free_one()
        assert waits.result(WAIT_S)[0] == "node2"
    until(lambda: moved() == {node: ["node2"]}, "the small block was moved, and the large one was not")
    del small, large
    four.quiet()


def halted(four: FourNodes) -> tuple[kos.Future, list[kos.Future]]:
    """node2 stands still while node3 gets two blocks from it: one that a task can make again, which is the first, and
    one that was told to stay. The second are their readers, the latter's first."""
    daemon = four.pid("node2")
    for _ in range(KILLS_LIMIT):
        four.quiet()
        stayed = four.cluster.submit(made_to_stay, LARGE_BYTES, 1, on="node2", name="there").result(WAIT_S)
        again = four.cluster.submit(made, LARGE_BYTES, 2, labels="zone=a", near="there")
        until(lambda: four.cluster.memory()["node2"].blocks == 2, "node2 has both")
        before = four.came("node3")
        readers = [four.cluster.submit(last, block, on="node3") for block in (stayed, again)]
        until(lambda: four.cluster.memory()["node3"].blocks == 2, "node3 has room for both")
        os.kill(daemon, signal.SIGSTOP)
        if four.came("node3") == before:
            return again, readers
        os.kill(daemon, signal.SIGCONT)
        assert [reader.result(WAIT_S) for reader in readers] == [1, 2]
        del stayed, again, readers
    pytest.fail("no transfer was seen under way")


def test_a_block_whose_node_dies_while_it_is_moved_is_lost_or_made_again_and_never_seen_in_part(
    four: FourNodes,
) -> None:
    """Meanwhile the arena has no room for another block, and says so."""
    again, readers = halted(four)
    with pytest.raises(errors.ArenaFullError, match=r"node3 has no room: 48.* of the 96.0 MiB in use 0.0 MiB could be"):
        four.cluster.submit(made_to_stay, LARGE_BYTES, 3, on="node3").result(WAIT_S)
    assert four.cluster.memory()["node3"].blocks == 2 and not any(reader.done() for reader in readers)
    os.kill(four.pid("node2"), signal.SIGKILL)
    assert readers[1].result(WAIT_S) == 2
    error = readers[0].exception(WAIT_S)
    if error is None:  # the last of it had come, unnoticed here
        assert readers[0].result() == 1
    else:
        assert isinstance(error, errors.BlockLostError)
        assert re.search("could not be got from any node: .*What was put cannot be made again", str(error))
    assert again.story().attempts[0].node == "node2"
    del again
    readers.clear()
    gc.collect()
    until(lambda: four.cluster.memory()["node3"].blocks == 0, "no part of them is left on node3")
    four.heal()
