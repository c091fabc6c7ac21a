"""What `kos doctor` finds: each thing that can be wrong is made wrong, and the finding names it and what mends it."""

from __future__ import annotations

import errno
import resource
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from kos_cluster.core.roles import Role
from kos_cluster.errors import UnreachableError
from kos_cluster.home import ClusterFile, ClusterHome, Home
from kos_cluster.net.administration import ClusterStatus
from kos_cluster.net.authority import CertificateAuthority
from kos_cluster.node import machine
from kos_cluster.services import doctor
from kos_cluster.services.daemons import NodeStart, write_start
from kos_cluster.services.doctor import Finding, Verdict
from kos_cluster.services.ports import free_pairs
from kos_cluster.tasks.nodes import status_of

LIFE_S = 365 * 86400.0


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return CertificateAuthority.create("lab")


@pytest.fixture
def cluster(authority: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterHome:
    """A cluster of one node, desk, that does not run."""
    monkeypatch.setenv("KOS_HOME", str(tmp_path))
    cluster = ClusterHome(Home(tmp_path), "lab")
    authority.local("c1", "ada@desk", Role.CLIENT).save(cluster.client)
    authority.local("n1", "desk", Role.NODE).save(cluster.node("desk"))
    (port,) = free_pairs(1)
    write_start(cluster, "desk", NodeStart("127.0.0.1", port, beacon=False))
    cluster.write(ClusterFile("lab", authority.sha256, True, [f"127.0.0.1:{port}"], ["desk"]))
    return cluster


def found(cluster: ClusterHome, check: str) -> Finding:
    return next(f for f in doctor.examine(cluster.home, "lab") if f.check == check)


def bad(finding: Finding) -> str:
    """What is said of something that is not well; then there is a line that mends it, too."""
    assert finding.verdict is not Verdict.OK and finding.mend
    return f"{finding.verdict}: {finding.said}"


# ---- this machine


@pytest.mark.parametrize(
    ("free_mib", "disk", "shm"), [(4096, "ok", "ok"), (500, "warn", "ok"), (100, "warn", "warn"), (8, "fail", "fail")]
)
def test_little_room_is_found(
    free_mib: int, disk: str, shm: str, cluster: ClusterHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=free_mib * doctor.MIB)
    monkeypatch.setattr(doctor, "shutil", SimpleNamespace(disk_usage=lambda path: usage))
    assert (found(cluster, "disk").verdict, found(cluster, "shared memory").verdict) == (disk, shm)
    assert bool(found(cluster, "disk").mend) is (disk != "ok")
    assert ("mount -o remount" in found(cluster, "shared memory").mend) is (shm != "ok")
    assert str(free_mib) in found(cluster, "disk").said


@pytest.mark.parametrize(("limit", "verdict"), [(128, "fail"), (512, "warn"), (4096, "ok"), (-1, "ok")])
def test_a_small_limit_of_open_files_is_found(
    limit: int, verdict: str, cluster: ClusterHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    finding = found(cluster, "open files")
    assert finding.verdict == verdict
    assert ("ulimit -n 4096" in finding.mend) is (verdict != "ok")


def test_a_machine_in_no_cluster_is_told_how_to_come_into_one(tmp_path: Path) -> None:
    *others, last = doctor.examine(Home(tmp_path / "absent"), None)
    assert {finding.check for finding in others} == {"versions", "shared memory", "disk", "open files"}
    assert bad(last) == "warn: This machine is in no cluster."
    assert "kos up" in last.mend


# ---- its nodes


def test_a_node_that_does_not_run_and_a_cluster_that_is_dead(cluster: ClusterHome) -> None:
    assert bad(found(cluster, "node desk")) == "warn: desk does not run."
    assert found(cluster, "ports of desk").verdict is Verdict.OK
    assert bad(found(cluster, "cluster")).startswith("fail: No node of cluster 'lab' answers (127.0.0.1:")


def test_a_port_that_another_program_has_is_found(cluster: ClusterHome) -> None:
    port = doctor.read_start(cluster, "desk").port
    with socket.create_server(("127.0.0.1", port + 1)):
        said = bad(found(cluster, "ports of desk"))
    assert said == f"fail: Port {port + 1} on 127.0.0.1, the node's bulk port, is in use by another program."


def test_an_address_that_is_no_longer_this_machines_is_found(cluster: ClusterHome) -> None:
    start = doctor.read_start(cluster, "desk")
    assert found(cluster, "address of desk").verdict is Verdict.OK
    write_start(cluster, "desk", msgspec.structs.replace(start, advertise="192.0.2.7"))
    assert "fail: Others are told 192.0.2.7, which is no address of this machine" in bad(
        found(cluster, "address of desk")
    )
    write_start(cluster, "desk", msgspec.structs.replace(start, advertise="nowhere.invalid"))
    assert bad(found(cluster, "address of desk")).startswith("fail: nowhere.invalid cannot be resolved")


def test_a_port_that_a_firewall_keeps_shut_is_found(cluster: ClusterHome, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: tuple[str, int], timeout_s: float) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(doctor.sweeping, "alive", lambda cluster, node: "it runs")
    monkeypatch.setattr(doctor, "socket", SimpleNamespace(**{**vars(socket), "create_connection": refuse}))
    port = doctor.read_start(cluster, "desk").port
    for use, number in (("control", port), ("bulk", port + 1)):
        finding = found(cluster, f"{use} port of desk")
        assert bad(finding) == f"fail: desk runs, but 127.0.0.1:{number} cannot be connected to (timed out)."
        assert finding.mend == f"Let the firewall pass TCP {number}, here and between the machines."


def test_a_machine_that_cannot_hear_beacons_is_found(cluster: ClusterHome, monkeypatch: pytest.MonkeyPatch) -> None:
    start = doctor.read_start(cluster, "desk")
    write_start(cluster, "desk", msgspec.structs.replace(start, beacon=True))

    def no_route(name: str, ca_sha256: str) -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(doctor.beacon, "Finder", no_route)
    finding = found(cluster, "beacon of desk")
    assert bad(finding) == f"warn: UDP port {doctor.beacon.PORT}, for multicast, cannot be had (No such device)."
    assert "name a node when joining" in finding.mend


def test_a_certificate_that_should_have_been_renewed_or_is_damaged_is_found(
    cluster: ClusterHome, authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = found(cluster, "certificate of desk")
    assert (fresh.verdict, "365 days" in fresh.said or "364 days" in fresh.said) == (Verdict.OK, True)
    authority.local("n1", "desk", Role.NODE, lifetime_s=30).save(cluster.node("desk"))  # of 330 s, 300 have passed
    assert bad(found(cluster, "certificate of desk")).startswith("warn: Good until 20")
    assert "kos cluster rotate" in found(cluster, "certificate of desk").mend
    (cluster.client / "cert.pem").write_text("damaged")
    assert "fail: The credentials are not usable" in bad(found(cluster, "certificate of this machine's user"))


# ---- the cluster


class FakeCluster:
    """Nodes whose clocks are ahead by so much, and what they say of the authority's key."""

    def __init__(self, ahead_s: float = 0.0, sealed_to: list[str] | None = None, contacts: int = -1) -> None:
        self._ahead_s = ahead_s
        self._sealed_to = sealed_to
        self._contacts = contacts

    def agreement(self, node: str) -> ClusterStatus:
        if self._sealed_to is None and not self._ahead_s:
            raise UnreachableError(f"Node {node} did not answer.", "Look again.")
        return ClusterStatus("n1", 1, [], [], "", self._sealed_to or [], time.time() + self._ahead_s, self._contacts)


def row(name: str, **changes: Any) -> dict[str, Any]:
    here = machine.versions()
    return {
        "name": name, "id": name, "state": "alive", "voter": True, "coordinator": name == "n1", "drained": False,
        "answers": True, "trouble": "", "slots": 1, "running": 0, "version": here.kos, "wire": here.wire,
        "python": here.python, "numpy": here.numpy, "cloudpickle": here.cloudpickle, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(("ahead_s", "verdict"), [(0.2, "ok"), (-5.0, "warn"), (600.0, "fail"), (0.0, "fail")])
def test_a_clock_that_is_off_or_cannot_be_asked_is_found(ahead_s: float, verdict: str) -> None:
    clock, _ = doctor._of_member(FakeCluster(ahead_s), row("n2"))  # type: ignore[arg-type]
    assert clock.verdict == verdict
    if verdict != "ok" and ahead_s:
        assert f"{ahead_s:+.2f} s from this machine's" in bad(clock)
        assert "NTP" in clock.mend


@pytest.mark.parametrize(
    ("changes", "verdict", "said"),
    [
        ({}, "ok", "Python"),
        ({"python": "3.11.0"}, "warn", "Python 3.11.0"),
        ({"numpy": ""}, "warn", "it has numpy not installed, this side"),
        ({"cloudpickle": "2.0.0"}, "fail", "it has cloudpickle 2.0.0, this side"),
        ({"wire": 99}, "fail", "wire 99"),
    ],
)
def test_other_versions_are_found(changes: dict[str, Any], verdict: str, said: str) -> None:
    finding = doctor._versions(row("n2", **changes))
    assert (finding.verdict, said in finding.said) == (verdict, True)
    assert bool(finding.mend) is (verdict != "ok")


@pytest.mark.parametrize(
    ("dead", "verdict", "said"),
    [
        (0, "ok", "3 voters, 3 taking part, 2 needed: the cluster outlives the loss of any one voter."),
        (1, "warn", "3 voters, 2 taking part, 2 needed: the loss of one more voter stops agreement"),
        (2, "fail", "3 voters, 1 taking part, 2 needed: nothing can be agreed on until 1 more does"),
    ],
)
def test_the_quorum_is_told_with_its_arithmetic(
    dead: int, verdict: str, said: str, authority: CertificateAuthority
) -> None:
    names = ["n1", "n2", "n3"]
    gone = {"state": "dead", "answers": False}
    rows = [row(name, **(gone if place >= 3 - dead else {})) for place, name in enumerate(names)]
    peer = authority.local("c1", "ada", Role.CLIENT).peer
    quorum, sealed = doctor._agreement(FakeCluster(0.0, names), rows, status_of("lab", peer, rows))  # type: ignore[arg-type]
    assert (quorum.verdict, said in quorum.said) == (verdict, True)
    assert ("kos up" in quorum.mend) is (verdict != "ok")
    assert sealed.verdict is Verdict.OK


def test_a_node_that_takes_no_part_is_found(authority: CertificateAuthority) -> None:
    rows = [row("n1"), row("n2", trouble="Its disk is full."), row("n3")]
    peer = authority.local("c1", "ada", Role.CLIENT).peer
    findings = doctor._agreement(FakeCluster(0.0, ["n1"]), rows, status_of("lab", peer, rows))  # type: ignore[arg-type]
    assert "fail: Its disk is full." in [f"{f.verdict}: {f.said}" for f in findings]


def test_who_holds_the_authoritys_key_is_looked_at() -> None:
    rows = [row("n1"), row("n2")]
    assert bad(doctor._sealed(FakeCluster(0.0, ["n1"]), rows, "n1")) == "warn: n2 may vote and holds no copy yet."  # type: ignore[arg-type]
    lost = [row("n1"), row("n2", state="dead")]
    assert bad(doctor._sealed(FakeCluster(0.0, ["n2"]), lost, "n1")).startswith("fail: No node that is alive")  # type: ignore[arg-type]
    assert bad(doctor._sealed(FakeCluster(), rows, "n1")).startswith("fail: Node n1 did not answer")  # type: ignore[arg-type]


@pytest.mark.parametrize(("contacts", "verdicts"), [(2, ["ok"]), (0, ["warn"]), (-1, [])])
def test_a_coordinator_that_can_name_no_node_is_found(contacts: int, verdicts: list[str]) -> None:
    """One of a version without look-ups is passed over."""
    found = list(doctor._lookups(FakeCluster(1.0, contacts=contacts), [row("n1"), row("n2"), row("n3")], "n1"))  # type: ignore[arg-type]
    assert [finding.verdict for finding in found] == verdicts


def test_nodes_that_are_away_are_named() -> None:
    assert doctor._alive([row("n1"), row("n2")]).said == "All 2 nodes are alive."
    away = doctor._alive([row("n1"), row("n2", state="dead")])
    assert bad(away) == "warn: 1 of 2 nodes are alive; not n2 (dead)."
    assert "kos cluster remove" in away.mend
