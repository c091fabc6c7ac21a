"""Tab completion."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from kos_cluster.cli.grammar import build_parser
from kos_kernel.magics.completion import NODES_WAIT_S, NodeNames, complete, words_to_complete

CASES = {
    "%kos no": "node nodes",
    "%kos cluster jo": "join",
    "%kos cluster run --distri": "--distribute",
    "%%kos run --distribute --ov": "--over",
    "%kos --cluster nodes sta": "status",
    "%kos cluster token --role c": "client",
    "%kos run --on n": "node1 node2",
    "%kos cluster exec ": "node1 node2",
    "%kos cluster exec node1 n": "",
    "%kos unknown ": "",
    "%kos cancel ": "",
    "  %kos dow": "down",
}


@pytest.mark.parametrize("line", CASES)
def test_completions(line: str) -> None:
    words = words_to_complete(line)
    assert words is not None
    assert complete(build_parser(), words, lambda: ["node1", "node2"]) == CASES[line].split()


@pytest.mark.parametrize("line", ["kos no", "%kosmos no", "%kos", "x = 1", ""])
def test_other_lines_are_not_completed(line: str) -> None:
    assert words_to_complete(line) is None


def waits(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_node_names_are_kept_for_a_while() -> None:
    now = [0.0]
    asked: list[float] = []

    def ask() -> list[str]:
        asked.append(now[0])
        return [f"node{len(asked)}"]

    names = NodeNames(ask, lambda: now[0])
    assert names.get() == names.get() == ["node1"]
    now[0] = 60
    assert names.get() == ["node2"]


def test_a_slow_cluster_does_not_hold_up_the_keyboard() -> None:
    answer = threading.Event()

    def ask() -> list[str]:
        answer.wait(10)
        return ["late"]

    names = NodeNames(ask)
    began = time.monotonic()
    assert names.get() == []
    assert time.monotonic() - began < NODES_WAIT_S + 0.3
    answer.set()
    waits(lambda: names.get() == ["late"])


def test_an_error_means_no_names() -> None:
    def ask() -> list[str]:
        raise RuntimeError

    assert NodeNames(ask).get() == []


def test_a_kernel_completes(kernel: Any) -> None:
    assert kernel.complete("x = 1\n%kos cluster sta") == ["status"]
    assert "--no-redirect" in kernel.complete("%kos run --no-r")
