"""How soon failures are detected is chosen when a cluster is formed."""

from __future__ import annotations

from pathlib import Path

import pytest

from kos_cluster.cli import grammar
from kos_cluster.cli.forming import _joined_up
from kos_cluster.errors import UsageError
from kos_cluster.home import ClusterFile, ClusterHome, Home, Ready
from kos_cluster.node.daemon import PROFILES
from kos_cluster.services import daemons, embedded, membership, sweeping
from kos_cluster.services.ports import LOOPBACK, free_pairs


@pytest.fixture
def home(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home in which nothing is started."""
    for module in (embedded, membership):
        monkeypatch.setattr(module, "start_all", lambda cluster, nodes: None)
    return Home(short_folder / "home")


def test_the_command_knows_the_profiles_of_the_daemon() -> None:
    assert tuple(PROFILES) == grammar.PROFILES
    assert grammar.PROFILES[0] == daemons.DEFAULT_PROFILE


def test_up_gives_its_profile_to_every_node(home: Home) -> None:
    up = embedded.up(home, 3, "fast")
    starts = [daemons.read_start(up.cluster, node) for node in up.nodes]
    assert [start.profile for start in starts] == ["fast"] * 3
    assert all("fast" in start.arguments() for start in starts)


def test_up_without_one_takes_the_default(home: Home) -> None:
    up = embedded.up(home, 1)
    assert daemons.read_start(up.cluster, "node1").profile == daemons.DEFAULT_PROFILE


def test_a_cluster_that_runs_keeps_its_profile(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded.up(home, 1, "fast")
    monkeypatch.setattr(sweeping, "alive", lambda cluster, node: Ready(node, "1", 1, "127.0.0.1", 1))
    monkeypatch.setattr(embedded, "settled", lambda credentials, address, nodes: True)
    monkeypatch.setattr(embedded, "resume", lambda cluster: [])
    assert embedded.up(home, None).started == []
    assert embedded.up(home, None, "fast").started == []
    with pytest.raises(UsageError, match="without the profile 'lan' is up"):
        embedded.up(home, None, "lan")


def test_create_gives_its_profile_to_the_founder(home: Home) -> None:
    (port,) = free_pairs(1)
    assert membership.create(home, "lab", (LOOPBACK, port), "desk", "fast").profile == "fast"
    assert daemons.read_start(home.cluster("lab"), "desk").profile == "fast"


def test_up_cannot_choose_one_for_a_cluster_that_was_joined(home: Home) -> None:
    cluster = ClusterHome(home, "lab")
    cluster.write(ClusterFile("lab", "", False, [], ["desk"]))
    with pytest.raises(UsageError, match="--profile is for a new cluster"):
        _joined_up(cluster, None, "fast", None)
