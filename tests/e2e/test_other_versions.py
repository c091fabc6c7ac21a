"""Nodes of other versions: of numpy or cloudpickle, where it is refused what could not be read; and of KOS's wire."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from kos_cluster.errors import IncompatibleError
from kos_cluster.home import ClusterHome, Home
from kos_cluster.net import wire
from kos_cluster.net.registers import RegistersAsked, RegisterWritten
from kos_cluster.tasks.asking import DECISION_TIMEOUT_S
from kos_cluster.tasks.cluster import Cluster
from tests.e2e.fleet import T, connection, side_by_side
from tests.e2e.test_cluster import Lab, alive, free_port

TASKS = """
import json, time
import numpy
import kos_cluster as kos
from kos_cluster.errors import KosError

def plain(x):
    return x + 1

def with_numpy(n):
    import numpy
    return float(numpy.ones(n).sum())

def with_probe():
    import os, kosprobe
    return kosprobe.__name__, os.environ["KOS_NODE"]

cluster = kos.connect()
calls = {
    "plain": lambda **on: cluster.submit(plain, 1, **on),
    "imports": lambda **on: cluster.submit(with_numpy, 3, **on),
    "argument": lambda **on: cluster.submit(plain, numpy.ones(3), **on),
    "map": lambda **on: cluster.map(plain, [1, numpy.ones(3)], **on).futures[0],
    "probes": lambda: cluster.submit(sorted, {cluster.submit(with_probe).result() for _ in range(6)}),
    "executor": lambda: kos.Executor().submit(plain, numpy.ones(3)),
}

while "kosprobe" not in cluster.packages().get("old", {}):
    time.sleep(0.02)

def said(kind, **on):
    try:
        return str(calls[kind](**on).result())
    except (KosError, ModuleNotFoundError) as error:
        return f"{type(error).__name__}: {error}"

print(json.dumps({
    "on old": {kind: said(kind, on="old") for kind in ("plain", "imports", "argument", "map")},
    "anywhere": {kind: said(kind) for kind in ("plain", "argument", "executor", "probes")},
}))
"""


def pretend(folder: Path, package: str, number: str) -> Path:
    """A folder that, put in front of sys.path, makes a package seem to be of another version; and has kosprobe."""
    for name, version_, top in ((package, number, package), ("kosprobe", "1.0", "kosprobe")):
        info = folder / f"{name}-{version_}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version_}\n")
        (info / "top_level.txt").write_text(f"{top}\n")
    (folder / "kosprobe.py").write_text("")
    return folder


@pytest.fixture(scope="module")
def lab(machine_of: Callable[..., Any]) -> Iterator[Lab]:
    founder = machine_of()
    (founder.work / "tasks.py").write_text(TASKS)
    yield Lab(founder)
    founder.ok("down")
    founder.end()


def said_by(machine: Any) -> Any:
    """What came of each kind of call, on the node named old and anywhere."""
    with machine.popen([sys.executable, "tasks.py"]) as program:
        out, err = program.communicate(timeout=60)
    assert program.returncode == 0, err
    return json.loads(out)


@pytest.fixture
def old(
    lab: Lab, machine_of: Callable[..., Any], until: Callable[..., Any], tmp_path: Path
) -> Iterator[Callable[[str, str], None]]:
    """Adds a node, named old, that has this version of this package."""
    machine = machine_of()

    def join(package: str, number: str) -> None:
        machine.ok(
            *("cluster", "join", "lab", lab.address, "--listen", f"127.0.0.1:{free_port()}", "--name", "old"),
            KOS_TOKEN=lab.token(),
            PYTHONPATH=str(pretend(tmp_path, package, number)),
        )
        until(lambda: alive(lab.founder, 2), "both nodes are alive")

    yield join
    machine.ok("cluster", "leave")
    machine.end()


def test_a_numpy_that_cannot_read_arrays(lab: Lab, old: Callable[[str, str], None]) -> None:
    old("numpy", "1.26.4")
    ours, said = version("numpy"), said_by(lab.founder)
    assert said["on old"].pop("plain") == "2", "what holds no arrays goes there"
    for sentence in said["on old"].values():
        assert sentence.startswith("IncompatibleError: No node can run "), sentence
        assert f"old: cannot read the payload: it has numpy 1.26.4, this side {ours}" in sentence
        assert "desk" not in sentence
        assert f"pip install cloudpickle=={version('cloudpickle')} numpy=={ours}" in sentence
    assert said["anywhere"].pop("probes") == "[('kosprobe', 'old')]", "where the imported package is"
    assert said["anywhere"] == {"plain": "2", "argument": "[2. 2. 2.]", "executor": "[2. 2. 2.]"}


def test_a_cloudpickle_that_can_read_nothing(lab: Lab, old: Callable[[str, str], None]) -> None:
    old("cloudpickle", "2.2.1")
    said = said_by(lab.founder)
    for sentence in said["on old"].values():
        assert f"old: cannot read the payload: it has cloudpickle 2.2.1, this side {version('cloudpickle')}" in sentence
    assert said["anywhere"]["plain"] == "2"
    done = lab.founder.kos("cluster", "exec", "old", "true")
    assert done.returncode == 9
    assert "cloudpickle 2.2.1" in done.stderr
    assert lab.founder.json("ps") == []


SPEAKS_AN_OLDER_VERSION = """
import kos_cluster.core.raft.elections as elections, kos_cluster.core.raft.state as state
import kos_cluster.net.wire as wire

wire._MAGIC = bytes((ord("K"), wire.OLDEST_WIRE_VERSION))
elections.WIRE_VERSION = state.WIRE_VERSION = 1
"""
WITHIN_S = 60.0
READS_A_NEWER_FORMAT = """
import kos_cluster.core.replicated.commands as commands

commands.FORMAT += 1
"""


def test_a_cluster_is_upgraded_node_by_node(
    machine_of: Callable[..., Any], until: Callable[..., Any], tmp_path: Path
) -> None:
    """In the middle of it gossip, agreement and work go both ways, and a newer one may coordinate."""
    paths = {"old": tmp_path / "old", "new": tmp_path / "new"}
    for path, source in zip(paths.values(), (SPEAKS_AN_OLDER_VERSION, READS_A_NEWER_FORMAT), strict=True):
        path.mkdir()
        (path / "sitecustomize.py").write_text(source)
    lab = Lab(machine_of())
    desk, old, new = lab.founder, machine_of(), machine_of()
    everybody = {"desk": True, "old": True, "new": True}
    with connection(desk) as cluster:

        def join(name: str) -> None:
            words = {"KOS_TOKEN": cluster.mint_token("node", 600.0), "PYTHONPATH": str(paths[name])}
            {"old": old, "new": new}[name].ok(*joining(lab, name), **words)

        side_by_side(join, ("old", "new"))
        until(lambda: states(cluster, "voter") == everybody, "all vote, the old one, too", WITHIN_S)
        desk.ok("down")
        desk.ok("up", PYTHONPATH=str(paths["new"]))
        until(lambda: states(cluster, "answers") == everybody, "all answer", WITHIN_S)
        for name in everybody:
            assert cluster.submit(os.getenv, "KOS_NODE", on=name).result(WITHIN_S) == name
        cluster.drain_node("old")  # so another coordinates
        until(lambda: cluster.status()["coordinator"] in ("desk", "new"), "a newer one coordinates", WITHIN_S)
        for writer, reader in (("old", "desk"), ("new", "old")):
            assert through(cluster, writer, RegisterWritten("colour", writer), bool)
            assert through(cluster, reader, RegistersAsked("colour"), dict[str, str]) == {"colour": writer}
        assert cluster.status()["trouble"] == {}
        assert not raised(desk, "desk") and not raised(new, "new")

        old.ok("cluster", "leave")
        until(lambda: raised(desk, "desk") or raised(new, "new"), "all read the newer format now", WITHIN_S)
        assert through(cluster, "new", RegisterWritten("colour", "newer"), bool)
        assert through(cluster, "desk", RegistersAsked("colour"), dict[str, str]) == {"colour": "newer"}
        late = old.kos(*joining(lab, "late"), KOS_TOKEN=cluster.mint_token("node", 600.0))
        assert late.returncode == IncompatibleError.exit_code
        assert "The joining machine reads the log of a cluster up to format 1 " in late.stderr
    for machine in (desk, old, new):
        machine.end()


def states(cluster: Cluster, what: str) -> dict[str, Any]:
    """This of each node that has not left, by name."""
    return {row["name"]: row[what] for row in cluster.nodes() if row["state"] != "left"}


def through(cluster: Cluster, node: str, question: wire.Asked, kind: type[T]) -> T:
    """What comes of a question that this node is asked."""
    return cluster._mesh.request(question, kind, node=node, timeout_s=DECISION_TIMEOUT_S)


def joining(lab: Lab, name: str) -> tuple[str, ...]:
    return ("cluster", "join", "lab", lab.address, "--listen", f"127.0.0.1:{free_port()}", "--name", name)


def raised(machine: Any, node: str) -> bool:
    """Whether this node, as it coordinated, has had a newer format of the log agreed."""
    log = ClusterHome(Home(machine.home), "lab").run(node) / "log"
    return "All nodes read format 2 of the log" in log.read_text()
