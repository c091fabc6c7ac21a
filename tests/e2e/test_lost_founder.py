"""The founding machine is lost for good, disk and all: others let nodes in, renew certificates, and shut nodes out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kos_cluster import errors
from kos_cluster.net.administration import ClusterStatus, RemoveNode, RenewNode, Status
from kos_cluster.net.identity import Credentials
from kos_cluster.tasks.cluster import Cluster
from tests.e2e.fleet import NAME, Fleet, connection, free_port, home_of, until
from tests.net.presented import present

# The members are written when a voter is new among them, and never else.
ONLY_VOTERS_KEPT = """
import kos_cluster.node.membership as membership

membership.KEEP_EVERY_S = 86400.0
"""
SHUT_OUT_S = 2.0  # after which no session of a node that was removed is served any more
ASK_S = 0.5


@pytest.fixture
def fleet(machine_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    (tmp_path / "sitecustomize.py").write_text(ONLY_VOTERS_KEPT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = Fleet({name: machine_of() for name in ("n1", "n2", "n3")})
    yield made
    made.end()


@pytest.fixture
def admin(fleet: Fleet, machine: Any) -> Any:
    """An admin on a machine without a node."""
    token = fleet.cluster.mint_token("admin", 600.0)
    machine.ok("cluster", "join", NAME, fleet.address, "--token", token)
    return machine


def test_the_founder_is_lost_for_good(
    fleet: Fleet, admin: Any, machine_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.cluster.close()
    cluster = fleet.cluster = connection(admin)
    fleet.kill("n1")
    shutil.rmtree(fleet.machines["n1"].home)

    # The others lose their power with it. Each knows from its own disk where the other is.
    fleet.kill("n2", "n3")
    monkeypatch.delenv("PYTHONPATH")  # from here on all changes are written
    fleet.start("n2", "n3")
    second = fleet.successor("n1")

    # A node joins, with a token that an admin made elsewhere.
    late = machine_of()
    ready = home_of(fleet.machines["n2"]).ready("n2")
    words = ("cluster", "join", NAME, f"{ready.host}:{ready.port}", "--listen", f"127.0.0.1:{free_port()}")
    late.ok(*words, "--name", "n4", KOS_TOKEN=cluster.mint_token("node", 60.0))
    fleet.add("n4", late)
    until(lambda: {"n2", "n3", "n4"} <= fleet.alive("n2") & fleet.alive("n4"), "the new node is one of them")

    # A certificate is renewed, of the node that coordinates and of one that does not.
    for node in ("n2", "n3"):
        folder = home_of(fleet.machines[node]).node(node)
        before = Credentials.load(folder).peer
        ends_s = fleet.ask(node, RenewNode(), float)
        after = Credentials.load(folder).peer
        assert after.serial != before.serial
        assert ends_s == after.not_after >= before.not_after
        assert cluster.mint_token("client", 60.0)
    assert fleet.coordinator("n2", "n3") == second, "nothing was interrupted"

    # Nodes are removed: the one that is lost, the one that coordinates, and one that lives.
    assert "n1" in fleet.ask("n2", RemoveNode("n1"), list[str])
    until(lambda: (said := fleet.status("n4")) is not None and len(said.voters) == 3, "three vote", 30.0)
    assert f"Removed from cluster '{NAME}': {second}" in admin.ok("cluster", "remove", second, "--yes")
    rest = {"n2", "n3", "n4"} - {second}
    until(lambda: all(fleet.alive(node) == rest for node in rest), "the others are alone")
    last = fleet.coordinator(*rest)
    (third,) = rest - {last}
    until(lambda: not fleet.machines[second].processes(), "the removed one has stopped by itself", 30.0)
    theirs = connection(fleet.machines[third])
    try:
        until(lambda: answers(theirs, last), "it is served")
        node_of_theirs = Credentials.load(home_of(fleet.machines[third]).node(third))
        assert third in fleet.ask(last, RemoveNode(third), list[str])
        deadline = time.monotonic() + SHUT_OUT_S
        until(lambda: not answers(theirs, last), "no session of it is served any more")
        assert time.monotonic() < deadline
        ready = home_of(fleet.machines[last]).ready(last)
        with pytest.raises(errors.AuthError, match="revoked"):
            present(ready.host, ready.port, node_of_theirs)
    finally:
        theirs.close()
    until(lambda: fleet.alive(last) == {last}, "it is gone from the members")
    assert cluster.mint_token("client", 60.0).startswith("KOS1.")

    # The last voter stays, and it is said what its loss would mean.
    assert "this is the only node, and its loss is the cluster's" in admin.ok("cluster", "status")
    refused = admin.kos("cluster", "remove", last, "--yes")
    assert (refused.returncode, refused.stdout) == (errors.StateError.exit_code, ""), refused.stderr
    assert f"kos: {last} cannot be removed. It is the last voter; without it the cluster could agree" in refused.stderr
    assert fleet.coordinator(last) == last

    # Who was removed is told so where it was, and what to type.
    until(lambda: not fleet.machines[third].processes(), "its daemon has stopped, too", 30.0)
    up = fleet.machines[second].kos("up")
    assert (up.returncode, up.stdout) == (errors.RevokedError.exit_code, "")
    assert up.stderr == (
        f"kos: This node, {second}, was removed from cluster '{NAME}': the nodes that answer refuse its certificate. "
        f"Type 'kos cluster leave --cluster {NAME}' here; to come back, join again with a new token.\n"
    )
    assert fleet.machines[second].processes() == []


def answers(cluster: Cluster, node: str) -> bool:
    try:
        cluster._mesh.request(Status(), ClusterStatus, node=node, timeout_s=ASK_S)
    except errors.KosError:
        return False
    return True
