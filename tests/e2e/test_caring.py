"""`kos cluster drain`, `remove` and `rotate`, as they are typed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.test_entering_and_leaving import Terminal


def node(local: Any, name: str) -> Any:
    return next(row for row in local.json("nodes") if row["name"] == name)


def test_a_drained_node_is_listed_and_refuses_what_asks_for_it(local: Any, until: Callable[..., Any]) -> None:
    assert "node2 is drained: it gets no more work; nothing runs there now." in local.ok("cluster", "drain", "node2")
    until(lambda: node(local, "node2")["drained"], "it is listed")
    assert "drained" in local.ok("nodes")
    assert "Drained, so given no more work: node2." in local.ok("status")
    refused = local.kos("run", "--on", "node2", "true")
    assert refused.returncode == 12
    assert "Node node2 is drained, so it takes no more work. Type 'kos cluster drain --undo node2'" in refused.stderr
    assert local.ok("run", "sh", "-c", "echo $KOS_NODE") == "node1\n"
    assert "node2 is given work again." in local.ok("cluster", "drain", "--undo", "node2")
    until(lambda: not node(local, "node2")["drained"], "it works again")
    assert local.ok("run", "--on", "node2", "sh", "-c", "echo $KOS_NODE") == "node2\n"


def test_rotate_tells_each_certificate_and_when_it_ends(local: Any) -> None:
    said = local.ok("cluster", "rotate")
    assert [line.split(":")[0] for line in said.splitlines()[:2]] == ["node1", "node2"]
    assert "this machine's own: renewed, good until 20" in said
    assert local.ok("cluster", "rotate", "node2").startswith("node2: renewed, good until 20")
    local.ok("run", "true")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("drain", "node9"), 5, "No node is named 'node9'. The cluster has node1, node2."),
        (("rotate", "node1", "node9"), 5, "No node is named 'node9'."),
        (("remove", "node9", "--yes"), 5, "No node or client is named 'node9'. The cluster has node1, node2,"),
        (("remove", "node2"), 2, "Removing node2 is for good, and nobody can be asked here. Add --yes"),
        (("remove", "node1", "--yes"), 16, "The cluster's only admin is on node1"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(words: tuple[str, ...], code: int, said: str, local: Any) -> None:
    done = local.kos("cluster", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr


def test_removing_is_asked_about_at_a_terminal(local: Any) -> None:
    terminal = Terminal(local, "cluster", "remove", "node2")
    terminal.until("Remove node node2 (alive, 127.0.0.1:")
    terminal.until("[y/N]")
    terminal.type("n\n")
    assert terminal.end() == 2
    assert "Nothing was removed." in terminal.shown
    assert node(local, "node2")["state"] == "alive"


def test_a_dead_node_can_be_drained_and_removed_but_not_rotated(machine: Any, until: Callable[..., Any]) -> None:
    machine.ok("up", "-n", "3")
    until(lambda: len(machine.json("status")["voters"]) == 3, "three voters")
    os.kill(node(machine, "node3")["pid"], signal.SIGKILL)
    until(lambda: node(machine, "node3")["state"] == "dead", "it is dead")
    assert "node3 is dead; when it comes back, it gets no work." in machine.ok("cluster", "drain", "node3")
    refused = machine.kos("cluster", "rotate", "node3")
    assert (refused.returncode, "Node node3 (dead) cannot be reached" in refused.stderr) == (4, True)
    rotated = machine.kos("cluster", "rotate")
    assert rotated.returncode == 0
    assert "node3 is dead; it renews its certificate by itself once it is back." in rotated.stderr
    # With node2 gone as well one of three voters would decide: nobody can. Without node3 two of two would.
    refused = machine.kos("cluster", "remove", "node2", "--yes")
    assert refused.returncode == 16
    assert (
        "node2 cannot be removed. Of 2 voters 2 would have to agree, but only 1 would be reachable." in refused.stderr
    )
    removed = machine.ok("cluster", "remove", "node3", "--yes")
    assert removed == "Removed from cluster 'local': node3. Their certificates are refused.\n"
    assert node(machine, "node3")["state"] == "left"
    machine.ok("run", "true")
    machine.ok("down")
