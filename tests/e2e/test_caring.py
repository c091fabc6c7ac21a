"""`kos cluster drain`, `remove` and `rotate`, as they are typed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kos_cluster.cli import caring
from tests.e2e.test_entering_and_leaving import Terminal


def node(local: Any, name: str) -> Any:
    return next(row for row in local.json("nodes") if row["name"] == name)


def test_a_drained_node_is_listed_and_refuses_what_asks_for_it(local: Any, until: Callable[..., Any]) -> None:
    assert "node2 is drained: it gets no more work; nothing runs there now." in local.ok("cluster", "drain", "node2")
    until(lambda: node(local, "node2")["drained"], "it is listed")
    assert "Drained, so given no more work: node2." in local.ok("status")
    refused = local.kos("run", "--on", "node2", "true")
    assert refused.returncode == 12
    assert "Node node2 is drained, so it takes no more work. Type 'kos cluster drain --undo node2'" in refused.stderr
    assert "node2 is given work again." in local.ok("cluster", "drain", "--undo", "node2")


def test_rotate_tells_each_certificate_and_when_it_ends(local: Any) -> None:
    said = local.ok("cluster", "rotate")
    assert [line.split(":")[0] for line in said.splitlines()[:2]] == ["node1", "node2"]
    assert "this machine's own: renewed, good until 20" in said


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("drain", "node9"), 5, "No node is named 'node9'. The cluster has node1, node2."),
        (("rotate", "node1", "node9"), 5, "No node is named 'node9'."),
        (("remove", "node2"), 2, "Removing node2 is for good, and nobody can be asked here. Add --yes"),
        (("remove", "node1", "--yes"), 16, "The cluster's only admin is on node1"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(words: tuple[str, ...], code: int, said: str, local: Any) -> None:
    done = local.kos("cluster", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr


@pytest.mark.parametrize(
    ("state", "undo", "left", "said"),
    [
        ("alive", False, 0, "n is drained: it gets no more work; nothing runs there now."),
        ("alive", False, 1, "n is drained: it gets no more work; 1 task there goes on."),
        ("alive", False, 2, "n is drained: it gets no more work; 2 tasks there go on."),
        ("suspect", True, 0, "n is given work again."),
        ("dead", False, 0, "n is dead; when it comes back, it gets no work."),
        ("dead", True, 0, "n is dead; when it comes back, it may work again."),
    ],
)
def test_what_draining_means_is_said(state: str, undo: bool, left: int, said: str) -> None:
    assert caring._drained({"name": "n", "state": state, "running": left, "queued": 0}, undo) == said


def test_removing_is_asked_about_at_a_terminal(local: Any) -> None:
    terminal = Terminal(local, "cluster", "remove", "node2")
    terminal.until("Remove node node2 (alive, 127.0.0.1:")
    terminal.until("[y/N]")
    terminal.type("n\n")
    assert terminal.end() == 2
    assert "Nothing was removed." in terminal.shown
    assert node(local, "node2")["state"] == "alive"
