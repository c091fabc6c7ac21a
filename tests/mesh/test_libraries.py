"""joblib and Dask on the cluster, each by the one line that its users write."""

from __future__ import annotations

import os
import time
from pathlib import Path

import joblib
import numpy
import pytest

import kos_cluster as kos
import kos_cluster.joblib  # registers the backend
from kos_cluster.errors import UsageError
from kos_cluster.tasks import futures
from tests.mesh.conftest import until

dask = pytest.importorskip("dask")

pytestmark = pytest.mark.usefixtures("mesh")


def test_joblib_uses_the_whole_cluster_unless_told_otherwise():
    def where(_: int) -> tuple[str, int]:
        time.sleep(0.05)
        return os.environ.get("KOS_NODE", "here"), os.getpid()

    with joblib.parallel_config("kos"):
        assert joblib.effective_n_jobs() == 2
        ran = joblib.Parallel()(joblib.delayed(where)(n) for n in range(12))
        assert {node for node, _ in ran} == {"node1", "node2"}
        assert joblib.Parallel(n_jobs=1)(joblib.delayed(where)(n) for n in range(1)) == [("here", os.getpid())]


def test_a_call_may_name_the_backend_itself():
    def nested(number: int) -> list[int]:
        return joblib.Parallel(n_jobs=2, backend="kos")(joblib.delayed(abs)(-number) for _ in range(2))

    with joblib.parallel_config("kos"):
        assert joblib.Parallel()(joblib.delayed(nested)(number) for number in range(3)) == [[0, 0], [1, 1], [2, 2]]


def test_a_grid_search_runs_on_every_node(tmp_path: Path):
    model_selection = pytest.importorskip("sklearn.model_selection")
    from sklearn.linear_model import Ridge

    def score(model: Ridge, x: numpy.ndarray, y: numpy.ndarray) -> float:
        (tmp_path / os.environ["KOS_NODE"]).touch()
        deadline = time.monotonic() + 30
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        return float(model.score(x, y))

    x = numpy.arange(24.0).reshape(12, 2)
    search = model_selection.GridSearchCV(Ridge(), {"alpha": [1e-6, 1e6]}, cv=2, scoring=score)
    with joblib.parallel_config("kos"):
        search.fit(x, x @ [1, 2])
    assert search.best_params_ == {"alpha": 1e-6} and search.best_score_ > 0.99
    assert {path.name for path in tmp_path.iterdir()} == {"node1", "node2"}


def test_a_slow_call_holds_no_other_back(tmp_path: Path):
    def call(n: int) -> int:
        while n == 1 and not (tmp_path / "gate").exists():
            time.sleep(0.005)
        return n

    with joblib.parallel_config("kos"):
        results = joblib.Parallel(return_as="generator_unordered")(joblib.delayed(call)(n) for n in range(8))
        assert sorted(next(results) for _ in range(7)) == [0, 2, 3, 4, 5, 6, 7]
        (tmp_path / "gate").touch()
        assert list(results) == [1]


def test_dask_runs_delayed_calls_with_their_dependencies():
    @dask.delayed
    def add(x: int, y: int) -> int:
        return x + y

    @dask.delayed
    def node(x: int) -> tuple[int, str]:
        return x, os.environ["KOS_NODE"]

    layer = [add(n, n + 1) for n in range(8)]
    while len(layer) > 1:
        layer = [add(a, b) for a, b in zip(layer[::2], layer[1::2], strict=True)]
    (total, ran_at), again = dask.compute(node(layer[0]), layer[0], scheduler=kos.dask_get)
    assert total == again == 64 and ran_at in ("node1", "node2")


def test_dask_arrays_and_bags_run_on_the_cluster():
    import dask.array
    import dask.bag

    x = numpy.arange(10_000).reshape(100, 100)
    lazy = dask.array.from_array(x, chunks=(50, 50))
    assert numpy.array_equal((lazy @ lazy.T).compute(scheduler=kos.dask_get), x @ x.T)
    words = dask.bag.from_sequence(["a b", "b c", "c c"], npartitions=3).map(str.split).flatten()
    assert dict(words.frequencies().compute(scheduler=kos.dask_get)) == {"a": 1, "b": 2, "c": 3}


def test_what_dask_tasks_pass_on_does_not_come_through_this_process(monkeypatch: pytest.MonkeyPatch):
    @dask.delayed
    def make():
        return numpy.ones(1 << 20)

    @dask.delayed
    def total(array, more):
        return float(array.sum()) + more

    read = []
    loads = futures.serialise.loads
    monkeypatch.setattr(futures.serialise, "loads", lambda data: read.append(len(data)) or loads(data))
    array = make()
    found = dask.compute(total(array, 1), [total(array, 2)], scheduler=kos.dask_get)
    assert found == ((1 << 20) + 1.0, [(1 << 20) + 2.0])
    assert max(read) < 1000, "the array came here"


def test_a_failed_dask_task_says_which_and_where_and_stops_the_rest(tmp_path: Path):
    @dask.delayed
    def divide(x: int, y: int) -> float:
        return x / y

    @dask.delayed
    def wait(_: object) -> None:
        (tmp_path / "begun").touch()
        try:
            while True:
                time.sleep(0.005)
        finally:
            (tmp_path / "ended").touch()

    @dask.delayed
    def after_begun(_: object) -> int:
        while not (tmp_path / "begun").exists():
            time.sleep(0.005)
        return 0

    with pytest.raises(ZeroDivisionError) as caught:
        dask.compute(wait(1), divide(1, after_begun(2)), scheduler=kos.dask_get)
    assert "in divide" in str(caught.value.__cause__)
    assert any("divide" in note and "Dask" in note for note in caught.value.__notes__)
    until(lambda: (tmp_path / "ended").exists(), "the other task is stopped")


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize(
    ("graph", "said"),
    [
        ({"a": (abs, "a")}, "'a' needs 'a'."),
        ({"a": (abs, "b"), "b": (abs, "a")}, "'a' needs 'b' needs 'a'."),
        (
            {"x": 1, "a": (max, "b", "x"), "b": (max, "c", "x"), "c": (max, "a", "x")},
            "'a' needs 'b' needs 'c' needs 'a'.",
        ),
        (
            {("k", n): (abs, ("k", (n + 1) % 20)) for n in range(20)},
            " needs ".join(f"('k', {n})" for n in range(8)) + " and so on.",
        ),
    ],
)
def test_a_dask_graph_with_a_cycle_is_refused_in_a_sentence(graph: dict, said: str, optimize: bool):
    with pytest.raises(UsageError) as caught:
        kos.dask_get(graph, [next(key for key in graph if key != "x")], optimize_graph=optimize)
    assert caught.value.message == f"The Dask graph has a cycle: {said}"


def test_dask_tells_its_callbacks_and_keeps_a_cap(tmp_path: Path):
    from dask.callbacks import Callback

    ended: list[object] = []

    @dask.delayed
    def alone(n: int) -> int:
        mark = tmp_path / str(n)
        mark.touch()
        time.sleep(0.02)
        count = len(list(tmp_path.iterdir()))
        mark.unlink()
        return count

    with Callback(posttask=lambda key, *_: ended.append(key)):
        assert set(dask.compute(*map(alone, range(6)), scheduler=kos.dask_get, num_workers=1)) == {1}
    assert len(ended) == 6
