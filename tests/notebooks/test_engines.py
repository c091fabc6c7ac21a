"""The notebook of engines, executed on a real cluster of three nodes with the real Dask: the same cell on both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy
import pytest

from kos_cluster.services import demo

NOTEBOOK = demo.NOTEBOOK.with_name("04_engines.ipynb")
DUMP = """
import json
with open("results.json", "w") as file:
    nodes = [block.node_name for block in blocks]
    json.dump({"mesh": on_mesh, "dask": on_dask, "singular": list(singular), "blocks": nodes}, file)
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


def test_the_same_cell_gives_the_same_on_mesh_and_engine(executed: tuple[Any, dict[str, Any]]) -> None:
    mesh, dask = executed[1]["mesh"], executed[1]["dask"]
    assert [count for count, _ in dask] == [count for count, _ in mesh]
    assert {node for _, node in dask} <= {"node1", "node2", "node3"}
    assert output_of(executed[0], "same") == f"pi is about {4 * sum(count for count, _ in mesh) / 160_000:.3f}"


def test_what_an_element_prints_on_the_engine_appears_under_its_cell(executed: tuple[Any, dict[str, Any]]) -> None:
    assert re.search("the first element runs on node[123]$", output_of(executed[0], "engine"), re.MULTILINE)


def test_the_executor_runs_there(executed: tuple[Any, dict[str, Any]]) -> None:
    assert output_of(executed[0], "executor") == "[1024, 81]"


def test_a_block_is_a_dask_array_and_its_chunks_are_blocks(executed: tuple[Any, dict[str, Any]]) -> None:
    rows = numpy.random.default_rng(0).normal(size=(40_000, 8)) * [8, 7, 6, 5, 4, 3, 2, 1]
    assert numpy.allclose(executed[1]["singular"], numpy.linalg.svd(rows, compute_uv=False))
    assert len(executed[1]["blocks"]) == 4
    assert output_of(executed[0], "outlive") == "True"


def test_the_engine_is_listed_and_its_end_is_quiet(executed: tuple[Any, dict[str, Any]]) -> None:
    document = executed[0]
    assert "serving" in output_of(document, "list")
    assert output_of(document, "stop") == "Engine dask is stopped."
    errors = [out.text for cell in document.cells for out in cell.get("outputs", ()) if out.get("name") == "stderr"]
    assert not [text for text in errors if "Traceback" in text or "distributed" in text]
