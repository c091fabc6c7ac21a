"""Tab completion."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from kos_cluster.cli.grammar import build_parser
from kos_kernel.magics.completion import NAMES_WAIT_S, Names, complete, words_to_complete

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
    "%kos cancel ": "j1 j2",
    "%kos story j1": "j1",
    "%kos story j1 ": "",
    "%kos cluster drain ": "node1 node2",
    "%kos cluster rotate node1 n": "node1 node2",
    "%kos --cluster ": "lab local",
    "%kos run --cluster lo": "local",
    "%%kos run --distribute --over x": "xs",
    "%%kos run --distribute --over xs --out s": "scores",
    "%kos run --cpus ": "",
    "%kos run ls -": "",
    "%kos kernel in": "install",
    "%kos engine st": "start status stop",
    "%kos engine start d": "dask",
    "%kos engine stop ": "dask night",
    "  %kos dow": "down",
}


SOURCES = {
    "NODE": lambda: ["node1", "node2"],
    "ID": lambda: ["j1", "j2"],
    "ENGINE": lambda: ["dask", "night"],
    "CLUSTER": lambda: ["local", "lab"],
    "OVER": lambda: ["xs"],
    "OUT": lambda: ["xs", "scores"],
}


@pytest.mark.parametrize("line", CASES)
def test_completions(line: str) -> None:
    words = words_to_complete(line)
    assert words is not None
    assert complete(build_parser(), words, SOURCES) == CASES[line].split()


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

    names = Names(ask, lambda: now[0])
    assert names.get() == names.get() == ["node1"]
    now[0] = 60
    assert names.get() == ["node2"]


def test_a_slow_cluster_does_not_hold_up_the_keyboard() -> None:
    answer = threading.Event()

    def ask() -> list[str]:
        answer.wait(10)
        return ["late"]

    names = Names(ask)
    began = time.monotonic()
    assert names.get() == []
    assert time.monotonic() - began < NAMES_WAIT_S + 3
    answer.set()
    waits(lambda: names.get() == ["late"])


def test_an_error_means_no_names() -> None:
    def ask() -> list[str]:
        raise RuntimeError

    assert Names(ask).get() == []


def test_a_kernel_completes(kernel: Any) -> None:
    assert kernel.complete("x = 1\n%kos cluster sta") == ["status"]
    assert "--no-redirect" in kernel.complete("%kos run --no-r")
    assert kernel.complete("%kos kernel li") == ["list"]


def test_a_kernel_completes_variables_and_no_name_of_its_own(kernel: Any) -> None:
    kernel.run("xs = [1]\nxylophone = 3\ndef xf(): pass")
    assert kernel.complete("%%kos run --distribute --over x") == ["xs"]
    assert kernel.complete("%%kos run --distribute --over xs --out x") == ["xs", "xylophone"]
    assert not [name for name in kernel.complete("%%kos run --over ") if name.startswith("_") or name in ("In", "Out")]
