"""The first notebook, executed on a real cluster of three nodes, computes what a serial run here computes."""

from __future__ import annotations

import json
import sysconfig
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from kos_cluster.services import demo

DUMP = """
import json
with open("results.json", "w") as file:
    accuracies = [score["accuracy"] for score in scores]
    json.dump({"scores": accuracies, "index": index, "total": total, "where": where, "nodes": where_it_ran}, file)
"""


@pytest.fixture(scope="module")
def executed() -> Iterator[tuple[Any, dict[str, Any]]]:
    """The executed notebook, and the values that its kernel held at the end."""
    with demo.temporary_home() as folder, demo.local_cluster(demo.NODES):
        document = demo.execute(demo.NOTEBOOK, folder, cells=(DUMP,))
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
    images, digits = load_digits(return_X_y=True)
    models = [SVC(C=c, gamma=gamma) for c in (1, 10, 100) for gamma in (0.0001, 0.001, 0.01)]
    models += [RandomForestClassifier(n_estimators=n, random_state=0) for n in (50, 100)]
    models += [KNeighborsClassifier(n_neighbors=n) for n in (1, 3, 5)]
    assert executed[1]["scores"] == [float(cross_val_score(model, images, digits, cv=5).mean()) for model in models]


def test_the_index_is_that_of_a_serial_run(executed: tuple[Any, dict[str, Any]]) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    left_out = {"__pycache__", "dist-packages", "site-packages", "test", "tests"}
    index = defaultdict(list)
    folders = [folder for folder in library.iterdir() if folder.is_dir() and folder.name not in left_out]
    for path in [*library.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]:
        file = path.relative_to(library)
        if left_out.isdisjoint(file.parts):
            with tokenize.open(path) as lines:
                for name in {token.string for token in tokenize.generate_tokens(lines.readline) if token.type == 1}:
                    index[name].append(str(file))
    assert len(index) > 10_000
    assert executed[1]["index"] == {name: sorted(files) for name, files in index.items()}


def test_the_work_was_spread_over_the_nodes(executed: tuple[Any, dict[str, Any]]) -> None:
    nodes = executed[1]["nodes"]
    assert sum(nodes["sweep"].values()) == 14
    assert sum(nodes["index"].values()) == 24
    assert len(nodes["sweep"]) == demo.NODES
    assert len(nodes["index"]) == demo.NODES


def test_a_task_tells_its_story(executed: tuple[Any, dict[str, Any]]) -> None:
    assert "done" in output_of(executed[0], "story")
