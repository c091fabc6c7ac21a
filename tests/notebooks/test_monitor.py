"""The second notebook, executed on a real cluster of three nodes, shows the cluster and keeps a picture of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from kos_cluster.services import demo

NOTEBOOK = demo.NOTEBOOK.with_name("02_monitor.ipynb")


@pytest.fixture(scope="module")
def executed() -> Iterator[Any]:
    with demo.temporary_home() as folder, demo.local_cluster(demo.NODES):
        yield demo.execute(NOTEBOOK, folder)


def cell_of(document: Any, tag: str) -> Any:
    return next(cell for cell in document.cells if tag in cell.metadata.get("tags", []))


def output_of(document: Any, tag: str) -> str:
    return demo.text_of(cell_of(document, tag))


def test_the_monitor_leaves_a_widget_a_picture_and_text(executed: Any) -> None:
    live, still = cell_of(executed, "monitor").outputs
    assert live.data["application/vnd.jupyter.widget-view+json"]["model_id"]
    assert live.data["text/plain"].count("alive") > demo.NODES
    assert still.data["image/svg+xml"].startswith("<svg") and "node3" in still.data["image/svg+xml"]
    assert still.data["image/svg+xml"] in still.data["text/html"]
    assert "script" not in still.data["text/html"]
    assert still.data["text/html"].count("http") == still.data["text/html"].count("http://www.w3.org/2000/svg")
    assert "node3" in still.data["text/plain"]


def test_its_pictures_lie_beside_it() -> None:
    """As HTML: of one in Markdown, Voila in a Jupyter server never ends its page."""
    words = "".join("".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"])
    pictures = re.findall(r'<img src="([^"]+)" width="600" alt="[^"]+">', words)
    assert pictures
    assert "](" not in words
    assert all((NOTEBOOK.parent / picture).is_file() for picture in pictures)


def test_the_work_and_its_failures_are_counted(executed: Any) -> None:
    assert output_of(executed, "work").startswith("3 of 300 tasks failed")
    assert output_of(executed, "story").startswith("failed after 1 attempt on node")


def test_the_model_says_what_the_cluster_said(executed: Any) -> None:
    shown = output_of(executed, "model")
    assert "3 of 3 nodes alive; node" in shown
    assert "[('steps', 'failed', 297, 3)]" in shown
    assert "steps" in output_of(executed, "top")
