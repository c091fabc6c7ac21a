"""What a program sees of blocks on a real cluster: put, get, arguments that are read where they are, and their end."""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import kos_cluster as kos
from kos_cluster import errors
from kos_cluster.cli.main import run
from kos_cluster.core.arena import Usage
from tests.mesh.conftest import Mesh, until
from tests.mesh.errands import memory_of

MIB = 1 << 20
WAIT_S = 60.0


def used(mesh: Mesh) -> int:
    """Bytes in all arenas."""
    return sum(usage.used_bytes for usage in mesh.cluster.memory().values())


def wait_until_empty(mesh: Mesh) -> None:
    gc.collect()
    until(lambda: used(mesh) == 0, "no arena holds anything", WAIT_S)


def whereabouts(array: np.ndarray) -> tuple[str, bool, bool, float]:
    """The node, whether the array is its own memory or can be written, and its sum."""
    return os.environ["KOS_NODE"], array.flags.owndata, array.flags.writeable, float(array.sum())


def test_an_array_is_read_where_it_is_by_its_process_and_by_tasks(mesh: Mesh) -> None:
    array = np.arange(MIB, dtype=np.float64)
    ref = mesh.cluster.put(array)
    assert used(mesh) >= array.nbytes
    back = ref.get()
    assert np.array_equal(back, array)
    assert not back.flags.owndata and not back.flags.writeable
    told = mesh.cluster.submit(whereabouts, ref, on=ref.node_name).result()
    assert told == (ref.node_name, False, False, float(array.sum()))
    assert used(mesh) < 2 * array.nbytes, "nobody has made a copy"
    del ref, back
    wait_until_empty(mesh)


def test_any_value_can_be_put_and_keywords_are_resolved_too(mesh: Mesh) -> None:
    value = {"names": ["a", "b"], "table": np.ones((10, 10)), "raw": b"x" * 100_000}
    ref = mesh.cluster.put(value)

    def keys(*, table: dict[str, object], inside: list[object]) -> tuple[list[str], str]:
        return sorted(table), type(inside[0]).__name__

    told = mesh.cluster.submit(keys, table=ref, inside=[ref], on=ref.node_name).result()
    assert told == (["names", "raw", "table"], "BlockRef"), "one that is inside of another argument stays as it is"
    assert ref.get()["raw"] == value["raw"]


def test_a_reference_tells_what_it_is_and_travels(mesh: Mesh) -> None:
    ref = mesh.cluster.put(np.zeros(MIB))
    assert isinstance(ref, kos.BlockRef)
    assert repr(ref) == f"<kos BlockRef {ref.id[:8]}, 8.0 MiB on {ref.node_name}>"
    other = pickle.loads(pickle.dumps(ref))
    assert other == ref and hash(other) == hash(ref) and other is not ref
    del ref
    gc.collect()
    assert float(other.get().sum()) == 0.0, "the copy keeps the block as well"
    del other
    wait_until_empty(mesh)


def test_a_function_may_hold_a_reference(mesh: Mesh) -> None:
    ref = mesh.cluster.put([1, 2, 3])
    assert mesh.cluster.submit(lambda: sum(ref.get()), on=ref.node_name).result() == 6
    assert list(mesh.cluster.map(lambda block, n: block[n], [ref] * 3, range(3), on=ref.node_name)) == [1, 2, 3]


def test_a_block_lives_while_a_task_that_is_not_done_names_it(mesh: Mesh, tmp_path: os.PathLike[str]) -> None:
    go = os.path.join(tmp_path, "go")

    def late(block: object, path: str) -> object:
        return block

    def waits(path: str) -> None:
        import time

        while not os.path.exists(path):
            time.sleep(0.01)

    node = mesh.cluster.put(b"").node_name
    blockers = [mesh.cluster.submit(waits, go, on=node) for _ in range(4)]
    future = mesh.cluster.submit(late, mesh.cluster.put("still here"), go, on=node)
    gc.collect()
    mesh.cluster.submit(int, on=next(name for name in mesh.cluster.memory() if name != node)).result()
    open(go, "w").close()
    assert future.result(WAIT_S) == "still here"
    assert [blocker.result(WAIT_S) for blocker in blockers] == [None] * 4
    wait_until_empty(mesh)


def test_a_task_on_another_node_gets_the_block_there_once_and_it_goes_with_the_others(mesh: Mesh) -> None:
    array = np.random.default_rng(1).random(2 * MIB)
    ref = mesh.cluster.put(array)
    other = next(name for name in mesh.cluster.memory() if name != ref.node_name)
    futures = [mesh.cluster.submit(whereabouts, ref, on=other) for _ in range(4)]
    assert {future.result(WAIT_S) for future in futures} == {(other, False, False, float(array.sum()))}
    usage = mesh.cluster.memory()[other]
    assert usage.blocks == 1 and array.nbytes < usage.used_bytes < 2 * array.nbytes
    del ref
    wait_until_empty(mesh)


def test_a_task_goes_to_the_node_that_has_what_it_reads(mesh: Mesh) -> None:
    """Moving the block would take longer than waiting for a slot, whatever is heard of the nodes' loads."""
    ref = mesh.cluster.submit(made, 32 * MIB, on="node2").result(WAIT_S)
    here = lambda block: (os.environ["KOS_NODE"], len(block))  # noqa: E731
    assert mesh.cluster.submit(here, ref).result(WAIT_S) == ("node2", 32 * MIB)
    assert list(mesh.cluster.map(here, [ref])) == [("node2", 32 * MIB)]
    del ref
    wait_until_empty(mesh)


def made(size: int) -> kos.BlockRef:
    return kos.stay(np.full(size, 7.0))


def test_a_result_stays_where_it_was_made_and_the_next_task_reads_it_there(mesh: Mesh) -> None:
    ref = mesh.cluster.submit(made, MIB, on="node2").result(WAIT_S)
    assert ref.node_name == "node2"
    held = lambda: mesh.cluster.memory()["node2"].held_bytes  # noqa: E731
    until(lambda: held() == 0, "the worker that made it does not hold it any more", WAIT_S)
    assert mesh.cluster.memory()["node1"].used_bytes == 0, "it has not passed by its owner"
    assert mesh.cluster.submit(whereabouts, ref, on="node2").result(WAIT_S) == ("node2", False, False, 7.0 * MIB)
    assert mesh.cluster.submit(whereabouts, ref, on="node1").result(WAIT_S)[0] == "node1"
    assert float(ref.get().sum()) == 7.0 * MIB
    del ref
    wait_until_empty(mesh)


def test_nodes_of_one_home_share_the_memory_of_a_result_and_it_counts_at_each_until_its_owner_drops_it(
    mesh: Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_until_empty(mesh)
    future = mesh.cluster.submit(np.full, MIB, 7.0, on="node2")
    reads = [mesh.cluster.submit(memory_of, future, on=node).result(WAIT_S) for node in ("node2", "node1")]
    assert [node for node, _ in reads] == ["node2", "node1"]
    assert reads[0][1] == reads[1][1] != 0
    value = future.result(WAIT_S)
    assert memory_of(value)[1] == reads[0][1], "nor has this process a copy"
    value[0] = 8.0
    assert mesh.cluster.submit(np.sum, future, on="node2").result(WAIT_S) == 7.0 * MIB, "but of what it changes"
    assert run(["mem", "status", "--json"], sys.stdout, sys.stderr) == 0
    told = {record["node"]: record for record in json.loads(capsys.readouterr().out)}
    assert {node: (record["blocks"], record["used_bytes"] > 8 * MIB) for node, record in told.items()} == {
        "node1": (1, True),
        "node2": (1, True),
    }
    del future, value
    wait_until_empty(mesh)


def test_a_future_whose_result_stays_is_read_where_it_is_by_the_task_that_takes_it(mesh: Mesh) -> None:
    future = mesh.cluster.submit(made, MIB, on="node2")
    told = mesh.cluster.submit(whereabouts, future, on="node2").result(WAIT_S)
    assert told == ("node2", False, False, 7.0 * MIB)
    assert mesh.cluster.memory()["node1"].used_bytes == 0, "it has not passed by its owner"
    del future
    wait_until_empty(mesh)


def test_what_a_stream_yields_may_stay(mesh: Mesh) -> None:
    def parts(count: int) -> Iterator[kos.BlockRef]:
        for number in range(count):
            yield kos.stay([number])

    refs = list(mesh.cluster.submit(parts, 5))
    mesh.cluster.submit(int).result(WAIT_S)
    assert [ref.get() for ref in refs] == [[number] for number in range(5)]
    del refs
    wait_until_empty(mesh)


def test_results_that_stay_go_with_what_refers_to_them(mesh: Mesh) -> None:
    futures = [mesh.cluster.submit(made, 1000) for _ in range(20)]
    results = mesh.cluster.map(lambda n: {"here": kos.stay([n])}, range(20))
    assert [float(future.result(WAIT_S).get()[0]) for future in futures] == [7.0] * 20
    assert [result["here"].get() for result in results] == [[n] for n in range(20)]
    del futures, results
    wait_until_empty(mesh)

    def fails() -> None:
        kos.stay(b"x")
        raise ValueError("after all")

    with pytest.raises(ValueError, match="after all"):
        mesh.cluster.submit(fails, on="node1").result(WAIT_S)
    assert mesh.cluster.submit(lambda: len(repr(kos.stay(b"x"))) > 0, on="node2").result(WAIT_S)
    wait_until_empty(mesh)  # no further task has come there
    assert mesh.cluster.cancel("nosuchid") is False
    untaken = mesh.cluster.submit(made, 1000)
    until(untaken.done, "it is done", WAIT_S)
    del untaken
    until(lambda: sum(list(mesh.cluster.map(lambda _: 1, range(8)))) == 8 and used(mesh) == 0, "all is gone", WAIT_S)
    with pytest.raises(errors.UsageError, match=r"Use cluster.put\(value\)"):
        kos.stay(1)


def test_what_is_dropped_is_gone_and_its_reader_is_told(mesh: Mesh) -> None:
    ref = mesh.cluster.put(np.zeros(100))
    stale = kos.BlockRef(ref.id, ref.size_bytes, ref.node, ref.node_name)
    del ref
    wait_until_empty(mesh)
    with pytest.raises(errors.BlockLostError, match=r"could not be got from any node: .* has no block .* put it again"):
        stale.get()
    with pytest.raises(errors.BlockLostError):
        mesh.cluster.submit(len, stale, on=stale.node_name).result()


def test_closing_under_a_live_view_raises(mesh: Mesh) -> None:
    view = mesh.cluster.put(np.arange(1000)).get()
    mapping = view.base
    while not hasattr(mapping, "close"):
        mapping = mapping.obj if isinstance(mapping, memoryview) else mapping.base
    with pytest.raises(BufferError):
        mapping.close()
    assert view[999] == 999


def test_what_cannot_be_put_says_why(mesh: Mesh) -> None:
    with pytest.raises(errors.NotPicklableError):
        mesh.cluster.put(threading.Lock())
    with pytest.raises(errors.ArenaFullError, match=r"The arena of node node\d has no room: .* are wanted and"):
        mesh.cluster.put(np.zeros(min(u.limit_bytes for u in mesh.cluster.memory().values()) + MIB, dtype=np.uint8))
    wait_until_empty(mesh)


def test_a_client_on_a_machine_without_a_node_reads_over_the_network(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = mesh.cluster.put(np.arange(MIB))
    monkeypatch.setattr(mesh.cluster._mesh.blocks, "_here", lambda: None)
    back = ref.get()
    assert np.array_equal(back, np.arange(MIB)) and not back.flags.writeable
    assert mesh.cluster.memory()[ref.node_name].held_bytes == 0, "it has a copy of its own"
    with pytest.raises(errors.UsageError, match="no node on this machine"):
        mesh.cluster.put(1)
    gone = kos.BlockRef("0" * 32, 1, ref.node, ref.node_name)
    with pytest.raises(errors.BlockLostError, match="could not be got from any node"):
        gone.get()


def test_status_tells_of_each_node(mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    wait_until_empty(mesh)
    ref = mesh.cluster.put(np.zeros(MIB), pin=True)
    assert run(["mem", "status", "--json"], sys.stdout, sys.stderr) == 0
    told = {record.pop("node"): Usage(**record) for record in json.loads(capsys.readouterr().out)}
    assert set(told) == {"node1", "node2"}
    usage = told[ref.node_name]
    assert usage.used_bytes == usage.pinned_bytes > 8 * MIB and usage.blocks == 1 and usage.spilled_bytes == 0
    assert run(["mem", "status"], sys.stdout, sys.stderr) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NODE", "USED", "LIMIT", "HELD", "PINNED", "SPILLED", "SPILL", "LIMIT", "BLOCKS"]
    assert [line.split()[:3] for line in lines[1:] if line.startswith(ref.node_name)] == [[ref.node_name, "8.0", "MiB"]]


OWNER = """
    import os, signal, time, numpy as np, kos_cluster as kos
    cluster = kos.connect()
    ref = cluster.put(np.zeros(1 << 20))
    view = ref.get()
    held = cluster.submit(time.sleep, 600)
    print(ref.node_name, flush=True)
    {end}
"""


@pytest.mark.parametrize("end", ["signal.pause()", "cluster.close(); signal.pause()"])
def test_what_a_process_owned_and_held_ends_with_it(mesh: Mesh, end: str) -> None:
    wait_until_empty(mesh)
    program = mesh.program(OWNER.format(end=end))
    assert program.stdout is not None
    program.stdout.readline()
    if "close" not in end:
        assert used(mesh) > 8 * MIB
        program.send_signal(signal.SIGKILL)
    else:
        until(lambda: all(u.blocks <= 1 for u in mesh.cluster.memory().values()), "its blocks are dropped", WAIT_S)
        program.send_signal(signal.SIGKILL)
    wait_until_empty(mesh)


def test_a_worker_that_is_killed_holds_nothing(mesh: Mesh, tmp_path: os.PathLike[str]) -> None:
    wait_until_empty(mesh)
    ref = mesh.cluster.put(np.zeros(MIB))

    def die(block: np.ndarray) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(errors.TaskLostError):
        mesh.cluster.submit(die, ref, on=ref.node_name, retries=0).result(WAIT_S)
    held: Callable[[], int] = lambda: mesh.cluster.memory()[ref.node_name].held_bytes  # noqa: E731
    until(lambda: held() == 0, "the worker has released it", WAIT_S)
    assert len(ref.get()) == MIB


def test_a_program_that_ends_leaves_no_connection_open(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDEVMODE", "1")  # which tells of what was not closed
    program = mesh.program("import kos_cluster as kos; ref = kos.connect().put(bytes(1000)); print(len(ref.get()))")
    assert program.communicate(timeout=60) == ("1000\n", "")
