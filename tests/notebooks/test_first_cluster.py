"""The first notebook, executed on a real cluster of three nodes, computes what its kernel computes alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

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


@pytest.fixture(scope="module")
def executed() -> Iterator[tuple[Any, dict[str, Any]]]:
    """The executed notebook, and the values that its kernel held at the end."""
    with demo.temporary_home() as folder, demo.local_cluster(demo.NODES):
        document = demo.execute(NOTEBOOK, folder, cells=(DUMP,))
        yield document, json.loads((folder / "results.json").read_text())


def output_of(document: Any, tag: str) -> str:
    cell = next(cell for cell in document.cells if tag in cell.metadata.get("tags", []))
    return demo.text_of(cell)


def test_every_node_is_listed_alive(executed: tuple[Any, dict[str, Any]]) -> None:
    assert output_of(executed[0], "nodes").count("alive") == demo.NODES


def test_a_cell_brings_its_assignments_and_its_output_back(executed: tuple[Any, dict[str, Any]]) -> None:
    document, results = executed
    assert results["total"] == sum(n * n for n in range(1_000_000))
    assert f"{results['where']} adds the squares below 1,000,000" in output_of(document, "first")


def test_the_sweep_gives_the_scores_of_a_serial_run(executed: tuple[Any, dict[str, Any]]) -> None:
    scores, serial = executed[1]["scores"], executed[1]["serial"]
    assert len(scores) == 14
    assert scores == serial
    assert max(scores) > 0.97


def test_the_index_is_that_of_a_serial_run(executed: tuple[Any, dict[str, Any]]) -> None:
    index = executed[1]["index"]
    assert len(index) > 10_000
    assert index == executed[1]["serial_index"]
    assert "contextlib.py" in index["contextmanager"]


def test_the_work_was_spread_over_the_nodes(executed: tuple[Any, dict[str, Any]]) -> None:
    nodes = executed[1]["nodes"]
    assert sum(nodes["sweep"].values()) == 14
    assert sum(nodes["index"].values()) == 24
    assert len(nodes["sweep"]) == demo.NODES
    assert len(nodes["index"]) == demo.NODES


def test_a_task_tells_its_story(executed: tuple[Any, dict[str, Any]]) -> None:
    assert "done" in output_of(executed[0], "story")
