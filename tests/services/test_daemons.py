"""Starting a daemon that fails, and the lock around starting and stopping."""

from pathlib import Path

import pytest

from kos_cluster.errors import StateError
from kos_cluster.home import ClusterHome, Home, private_folder
from kos_cluster.services import daemons


@pytest.fixture
def cluster(short_folder: Path) -> ClusterHome:
    cluster = ClusterHome(Home(short_folder), "lab")
    private_folder(cluster.run("desk"))
    return cluster


def test_a_daemon_that_cannot_start_is_told_with_the_end_of_its_log(cluster: ClusterHome) -> None:
    daemons.write_start(cluster, "desk", daemons.NodeStart("127.0.0.1", 7567))
    started = {"desk": daemons.start(cluster, "desk")}  # it has no cluster.json and no credentials
    with pytest.raises(StateError, match=r"Node desk ended at its start.*exit code.*\n.*lab") as caught:
        daemons.wait_ready(cluster, started)
    assert "Traceback" not in caught.value.message


def test_a_start_that_is_damaged_says_what_to_do(cluster: ClusterHome) -> None:
    daemons.write_start(cluster, "desk", daemons.NodeStart("127.0.0.1", 7567))
    (cluster.node("desk") / "start.json").write_text("{")
    with pytest.raises(StateError, match="join the cluster again"):
        daemons.start(cluster, "desk")


def test_one_at_a_time_changes_a_home(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemons, "LOCK_TIMEOUT_S", 0.0)
    home = Home(short_folder)
    with daemons.changing(home), pytest.raises(StateError, match="Another command"), daemons.changing(home):
        pytest.fail("two commands hold the lock")
    with daemons.changing(home):
        pass


def test_many_daemons_start_some_at_a_time(cluster: ClusterHome, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    waited: list[list[str]] = []
    monkeypatch.setattr(daemons, "start", lambda cluster, node: started.append(node))
    monkeypatch.setattr(daemons, "wait_ready", lambda cluster, nodes: waited.append(list(nodes)))
    nodes = [f"node{number}" for number in range(2 * daemons.TOGETHER_LIMIT + 1)]
    daemons.start_all(cluster, nodes)
    assert started == nodes
    assert [node for wave in waited for node in wave] == nodes
    assert [len(wave) for wave in waited] == [daemons.TOGETHER_LIMIT, daemons.TOGETHER_LIMIT, 1]
