"""The checker on histories that others recorded, whose verdicts are known."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path

import pytest

from kos_cluster.sim.linearizability import Operation, Outcome, check
from kos_cluster.sim.recording import Recorder
from kos_cluster.sim.sequential import Append, CompareAndSet, Get, KeyValue, Put, Read, Register, Write

ETCD_LINE = re.compile(r"INFO +jepsen\.util - (\d+)\t:(invoke|ok|fail|info)\t:(read|write|cas)\t(.+)")
KV_LINE = re.compile(
    r'\{:process (\d+), :type :(invoke|ok), :f :(get|put|append), :key "(.*?)", :value (?:nil|"(.*)")\}'
)


def register_input(function: str, value: str) -> Hashable:
    match function, [int(number) for number in re.findall(r"-?\d+", value)]:
        case "read", _:
            return Read()
        case "write", [new]:
            return Write(new)
        case "cas", [expected, new]:
            return CompareAndSet(expected, new)
    raise AssertionError(f"not an operation: {function} {value}")


def etcd_history(path: Path) -> list[Operation]:
    """The history in a log; a time is the number of its line."""
    recorder = Recorder()
    for number, line in enumerate(path.read_text().splitlines()):
        match = ETCD_LINE.fullmatch(line)
        assert match, f"{path.name}:{number + 1}: {line}"
        process, event, function, value = int(match[1]), *match.groups()[1:]
        if event == "invoke":
            recorder.call(process, register_input(function, value), number)
        elif event == "info":
            recorder.unknown(process)
        elif function == "cas":
            recorder.ok(process, event == "ok", number)
        elif event == "fail":
            recorder.failed(process)
        else:
            recorder.ok(process, None if value == "nil" else int(value), number)
    return recorder.history()


def kv_history(path: Path) -> list[Operation]:
    recorder = Recorder()
    for number, line in enumerate(path.read_text().splitlines()):
        match = KV_LINE.fullmatch(line)
        assert match, f"{path.name}:{number + 1}: {line}"
        process, event, function, key, value = int(match[1]), *match.groups()[1:]
        if event == "ok":
            recorder.ok(process, value, number)
        else:
            calls = {"get": Get(key), "put": Put(key, value or ""), "append": Append(key, value or "")}
            recorder.call(process, calls[function], number)
    return recorder.history()


def test_all_verdicts_on_histories_of_a_register_are_right(cases: Path):
    folder = cases / "linearizability"
    known = dict(line.split() for line in (folder / "verdicts.txt").read_text().splitlines())
    assert len(known) == 40 and set(known.values()) == {Outcome.LINEARIZABLE, Outcome.NOT_LINEARIZABLE}
    found = {name: check(etcd_history(folder / name), Register()) for name in known}
    assert {name: str(verdict.outcome) for name, verdict in found.items()} == known
    blocked = [name for name, verdict in found.items() if verdict.blocked is not None]
    assert blocked == [name for name, outcome in known.items() if outcome == Outcome.NOT_LINEARIZABLE]


@pytest.mark.parametrize("name", ["kv-c01-ok", "kv-c01-bad", "kv-c10-ok", "kv-c10-bad"])
def test_verdicts_on_histories_of_a_store_are_right(cases: Path, name: str):
    verdict = check(kv_history(cases / "linearizability" / f"{name}.txt"), KeyValue())
    right = Outcome.LINEARIZABLE if name.endswith("ok") else Outcome.NOT_LINEARIZABLE
    assert verdict.outcome is right, str(verdict)
