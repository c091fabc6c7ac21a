"""The demo as `make demo` runs it: the first notebook on three nodes computes what its kernel computes alone, and says so.

It is executed here and nowhere else in `make test`, with one more cell, which hands out the values that its kernel holds.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kos_cluster.services import demo

NOTEBOOK = demo.NOTEBOOK
DUMP = """
import json
with open("results.json", "w") as file:
    accuracies = [score["accuracy"] for score in scores]
    told = {"scores": accuracies, "index": index, "total": total, "where": where, "nodes": where_it_ran}
    json.dump(told | {"serial": serial_scores, "serial_index": serial_index}, file)
"""


class Executed(NamedTuple):
    """The executed notebook, the values that its kernel held at the end, and what the demo printed."""

    document: Any
    results: dict[str, Any]
    printed: str


@pytest.fixture(scope="module")
def executed() -> Executed:
    kept: list[Any] = []
    execute = demo.execute

    @functools.wraps(execute)
    def with_values(notebook: Path, folder: Path) -> Any:
        kept.extend((execute(notebook, folder, cells=(DUMP,)), json.loads((folder / "results.json").read_text())))
        return kept[0]

    before = signal.getsignal(signal.SIGTERM)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(demo, "execute", with_values)
        exit_code = demo.main()
    signal.signal(signal.SIGTERM, before)
    assert exit_code == 0, printed.getvalue()
    document, results = kept
    return Executed(document, results, printed.getvalue())


def output_of(document: Any, tag: str) -> str:
    cell = next(cell for cell in document.cells if tag in cell.metadata.get("tags", []))
    return demo.text_of(cell)


def test_the_demo_tells_what_ran_where_beside_a_serial_run(executed: Executed, record_property: Any) -> None:
    assert executed.printed.startswith(f"{demo.NODES} nodes ready after ")
    _, told = executed.printed.split("(the results are equal):\n")
    assert told.strip() == output_of(executed.document, demo.SUMMARY_TAG).strip()
    record_property("make demo", f"what ran where, and how long it took beside a serial run\n{told.rstrip()}")


def test_every_node_is_listed_alive(executed: Executed) -> None:
    assert output_of(executed.document, "nodes").count("alive") == demo.NODES


def test_a_cell_brings_its_assignments_and_its_output_back(executed: Executed) -> None:
    document, results, *_ = executed
    assert results["total"] == sum(n * n for n in range(1_000_000))
    assert f"{results['where']} adds the squares below 1,000,000" in output_of(document, "first")


def test_the_sweep_gives_the_scores_of_a_serial_run(executed: Executed) -> None:
    scores, serial = executed.results["scores"], executed.results["serial"]
    assert len(scores) == 14
    assert scores == serial
    assert max(scores) > 0.97


def test_the_index_is_that_of_a_serial_run(executed: Executed) -> None:
    index = executed.results["index"]
    assert len(index) > 10_000
    assert index == executed.results["serial_index"]
    assert "contextlib.py" in index["contextmanager"]


def test_the_work_was_spread_over_the_nodes(executed: Executed) -> None:
    nodes = executed.results["nodes"]
    assert sum(nodes["sweep"].values()) == 14
    assert sum(nodes["index"].values()) == 24
    assert len(nodes["sweep"]) == demo.NODES
    assert len(nodes["index"]) == demo.NODES


def test_a_task_tells_its_story(executed: Executed) -> None:
    assert "done" in output_of(executed.document, "story")
