"""What `kos doctor` looks at: this machine, this machine's nodes, and the cluster as it can be reached from here.

Theory of operation. Each check gives findings: what was looked at, a verdict, a sentence, and, unless all is well, the
line that mends it. Checks that need no cluster come first; those of the cluster are made over one connection, and when
there is none the reason for that is the finding.

Rules: it changes nothing, and starts nothing. Every check ends, whatever state the machine is in.
"""

from __future__ import annotations

import enum
import errno
import os
import resource
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

import kos_cluster as kos
from kos_cluster.core.records import Versions
from kos_cluster.core.voters import majority
from kos_cluster.errors import KosError
from kos_cluster.home import ClusterHome, Home
from kos_cluster.net import beacon
from kos_cluster.net.identity import Credentials, load_certificate
from kos_cluster.net.wire import OLDEST_WIRE_VERSION
from kos_cluster.node import machine
from kos_cluster.node.rotating import LATEST
from kos_cluster.services import sweeping
from kos_cluster.services.daemons import NodeStart, read_start
from kos_cluster.services.ports import check_free
from kos_cluster.tasks import compat
from kos_cluster.tasks.nodes import takes_part

MIB = 1 << 20
SHM = Path("/dev/shm")
SHM_WARN_BYTES, SHM_FAIL_BYTES = 256 * MIB, 16 * MIB
DISK_WARN_BYTES, DISK_FAIL_BYTES = 1024 * MIB, 64 * MIB  # a part may have 1 GiB; the log needs a few MiB
FILES_WARN, FILES_FAIL = 1024, 256  # descriptors that a process may open
SKEW_WARN_S, SKEW_FAIL_S = 2.0, 120.0  # leases end by the coordinator's clock; certificates allow for 300 s
CLOCK_TRIES = 3  # questions for one node's clock; the quickest answer counts
PORT_TIMEOUT_S = 2.0


class Verdict(enum.StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(msgspec.Struct, frozen=True):
    """One line of the report. `mend` is what to type or change; empty when all is well."""

    check: str
    verdict: Verdict
    said: str
    mend: str = ""


def examine(home: Home, name: str | None) -> Iterator[Finding]:
    """Every finding, in order, as soon as it is made. `name`: the cluster; None: the selected one."""
    yield from _of_machine(home)
    try:
        cluster = home.cluster(name)
        file = cluster.read()
    except KosError as error:
        yield Finding("cluster", Verdict.WARN, error.message, error.hint)
        return
    for node in file.nodes:
        yield from _of_node(cluster, node)
    yield _certificate("certificate of this machine's user", cluster.client)
    yield from _of_cluster(cluster)


# ---- this machine


def _of_machine(home: Home) -> Iterator[Finding]:
    yield Finding("versions", Verdict.OK, f"{_told(machine.versions())}.")
    yield _room("shared memory", SHM, SHM_WARN_BYTES, SHM_FAIL_BYTES, "Remount it larger: mount -o remount,size=1G")
    folder = next(path for path in (home.path, *home.path.parents) if path.exists())
    yield _room("disk", folder, DISK_WARN_BYTES, DISK_FAIL_BYTES, "Make room, or set KOS_HOME to a folder on a disk:")
    yield _open_files()


def _room(check: str, folder: Path, warn_bytes: int, fail_bytes: int, mend: str) -> Finding:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(check, Verdict.FAIL, f"{folder} cannot be looked at ({error.strerror}).", f"Mount {folder}.")
    if not os.access(folder, os.W_OK):
        return Finding(check, Verdict.FAIL, f"{folder} cannot be written to.", f"See who owns it: ls -ld {folder}")
    verdict = _graded(free < warn_bytes, free < fail_bytes)
    return Finding(check, verdict, f"{free // MIB} MiB free in {folder}.", _unless_ok(verdict, f"{mend} {folder}"))


def _open_files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY
    verdict = _graded(few and soft < FILES_WARN, few and soft < FILES_FAIL)
    said = f"A process may open {soft if few else 'any number of'} files."
    return Finding(
        "open files", verdict, said, _unless_ok(verdict, f"Type 'ulimit -n {max(4096, soft)}' before 'kos up'.")
    )


# ---- this machine's nodes


def _of_node(cluster: ClusterHome, node: str) -> Iterator[Finding]:
    yield _certificate(f"certificate of {node}", cluster.node(node))
    try:
        start = read_start(cluster, node)
    except KosError as error:
        yield Finding(f"node {node}", Verdict.FAIL, error.message, error.hint)
        return
    yield _address(node, start)
    if start.beacon:
        yield _beacon(node)
    if sweeping.alive(cluster, node) is not None:
        yield from (_ours(node, start, port, use) for port, use in ((start.port, "control"), (start.port + 1, "bulk")))
        return
    yield Finding(f"node {node}", Verdict.WARN, f"{node} does not run.", "Type 'kos up'.")
    try:
        check_free(start.host, start.port)
        yield Finding(f"ports of {node}", Verdict.OK, f"{start.port} and {start.port + 1} of {start.host} are free.")
    except KosError as error:
        yield Finding(
            f"ports of {node}", Verdict.FAIL, error.message, "End what uses it; or leave, and join with --listen."
        )


def _address(node: str, start: NodeStart) -> Finding:
    """Whether the address that others are told is one of this machine's."""
    check, host = f"address of {node}", start.advertise or start.host
    try:
        numbers = {str(found[4][0]) for found in socket.getaddrinfo(host, start.port, type=socket.SOCK_STREAM)}
    except OSError as error:
        return Finding(check, Verdict.FAIL, f"{host} cannot be resolved ({error.strerror}).", "Mend the name service.")
    if any(map(machine.is_own_address, numbers)):
        return Finding(check, Verdict.OK, f"Others reach it at {host}, an address of this machine.")
    return Finding(
        check,
        Verdict.FAIL,
        f"Others are told {host}, which is no address of this machine now; {machine.primary_address()} is.",
        "Type 'kos cluster leave', then join again, with --listen ADDRESS if it has several.",
    )


def _ours(node: str, start: NodeStart, port: int, use: str) -> Finding:
    """Whether a node that runs can be connected to at the address that others are told."""
    check, host = f"{use} port of {node}", start.advertise or start.host
    try:
        socket.create_connection((host, port), PORT_TIMEOUT_S).close()
    except OSError as error:
        said = f"{node} runs, but {host}:{port} cannot be connected to ({error.strerror or error})."
        return Finding(check, Verdict.FAIL, said, f"Let the firewall pass TCP {port}, here and between the machines.")
    return Finding(check, Verdict.OK, f"{host}:{port} takes connections.")


def _beacon(node: str) -> Finding:
    """Whether beacons can be heard here, as a joining machine would."""
    check = f"beacon of {node}"
    try:
        beacon.Finder("", "").close()
    except OSError as error:
        used = (
            "is in use by another program" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
        )
        mend = "End what uses it, or name a node when joining: 'kos cluster join NAME HOST'."
        return Finding(check, Verdict.WARN, f"UDP port {beacon.PORT}, for multicast, {used}.", mend)
    return Finding(check, Verdict.OK, f"UDP port {beacon.PORT} can be had for multicast.")


def _certificate(check: str, folder: Path) -> Finding:
    try:
        credentials = Credentials.load(folder)
    except KosError as error:
        return Finding(check, Verdict.FAIL, error.message, error.hint)
    end_s, now = credentials.peer.not_after, time.time()
    begin_s = load_certificate(credentials.cert_pem).not_valid_before_utc.timestamp()
    late = now > begin_s + LATEST * (end_s - begin_s)
    said = f"Good until {time.strftime('%Y-%m-%d', time.localtime(end_s))}, {(end_s - now) / 86400:.0f} days."
    verdict = Verdict.WARN if late else Verdict.OK
    return Finding(check, verdict, said, _unless_ok(verdict, "Type 'kos cluster rotate'."))


# ---- the cluster


def _of_cluster(home: ClusterHome) -> Iterator[Finding]:
    try:
        cluster = kos.connect(home.name)
        rows, status = cluster.nodes(), cluster.status()
    except KosError as error:
        yield Finding("cluster", Verdict.FAIL, error.message, error.hint)
        return
    rows = [row for row in rows if row["state"] != "left"]
    yield _alive(rows)
    for row in rows:
        if row["state"] == "alive":
            yield from _of_member(cluster, row)
    yield from _agreement(cluster, rows, status)


def _alive(rows: list[dict[str, Any]]) -> Finding:
    away = [f"{row['name']} ({row['state']})" for row in rows if row["state"] != "alive"]
    if not away:
        return Finding("nodes", Verdict.OK, f"All {len(rows)} nodes are alive.")
    said = f"{len(rows) - len(away)} of {len(rows)} nodes are alive; not {', '.join(away)}."
    return Finding(
        "nodes", Verdict.WARN, said, "Type 'kos up' there; or 'kos cluster remove NODE' if it is gone for good."
    )


def _of_member(cluster: kos.Cluster, row: dict[str, Any]) -> Iterator[Finding]:
    try:
        skew_s, within_s = _skew(cluster, row["id"])
    except KosError as error:
        yield Finding(f"clock of {row['name']}", Verdict.FAIL, error.message, error.hint)
    else:
        beyond_s = max(0.0, abs(skew_s) - within_s)
        verdict = _graded(beyond_s >= SKEW_WARN_S, beyond_s >= SKEW_FAIL_S)
        said = f"{skew_s:+.2f} s from this machine's, known to {within_s:.2f} s."
        mend = "Let both machines set their clocks by NTP: timedatectl set-ntp true"
        yield Finding(f"clock of {row['name']}", verdict, said, _unless_ok(verdict, mend))
    yield _versions(row)


def _skew(cluster: kos.Cluster, node: str) -> tuple[float, float]:
    """By how much a node's clock is ahead of ours, and how well that is known."""
    found = []
    for _ in range(CLOCK_TRIES):
        asked_s = time.time()
        told_s = cluster.agreement(node).now_s
        answered_s = time.time()
        found.append(((answered_s - asked_s) / 2, told_s - (asked_s + answered_s) / 2))
    within_s, skew_s = min(found)
    return skew_s, within_s


def _versions(row: dict[str, Any]) -> Finding:
    """What a node runs, beside what this machine does."""
    here = machine.versions()
    there = Versions(row["version"], row["wire"], row["python"], row["numpy"], row["cloudpickle"], here.log_format)
    unreadable = compat.unreadable(here, there)
    apart = not OLDEST_WIRE_VERSION <= there.wire <= here.wire + 1  # a newer one understands its neighbour
    verdict = _graded(there != here, apart or "" in unreadable)
    said = "; ".join([_told(there), *dict.fromkeys(unreadable.values())])
    mend = (
        f"Type there, for the Python that runs KOS: python -m {compat.installing(here)}; then 'kos down' and 'kos up'."
    )
    return Finding(f"versions of {row['name']}", verdict, f"{said}.", _unless_ok(verdict, mend))


def _told(versions: Versions) -> str:
    names = {"KOS": versions.kos, "Python": versions.python, "cloudpickle": versions.cloudpickle}
    told = ", ".join(f"{name} {version or 'not installed'}" for name, version in names.items())
    return f"{told}, numpy {versions.numpy or 'not installed'}, wire {versions.wire}"


def _agreement(cluster: kos.Cluster, rows: list[dict[str, Any]], status: dict[str, Any]) -> Iterator[Finding]:
    """Whether the cluster can decide, and could without one of its nodes."""
    voters = [row for row in rows if row["voter"]]
    taking_part, needed = sum(map(takes_part, voters)), majority(max(1, len(voters)))
    verdict = _graded(len(rows) > 2 and taking_part == needed, taking_part < needed or not status["coordinator"])
    said = status["loss"] if status["coordinator"] else f"No node coordinates. {status['loss']}"
    yield Finding("quorum", verdict, said, _unless_ok(verdict, "Start the nodes that are down: 'kos up' there."))
    for name, trouble in status["trouble"].items():
        mend = "Make room on its disk, or mend what is said; then start it again: 'kos down' and 'kos up' there."
        yield Finding(f"decisions of {name}", Verdict.FAIL, trouble, mend)
    if status["coordinator"]:
        yield _sealed(cluster, voters, status["coordinator"])
        yield from _lookups(cluster, rows, status["coordinator"])


def _sealed(cluster: kos.Cluster, voters: list[dict[str, Any]], coordinator: str) -> Finding:
    check = "authority's key"
    try:
        holders = set(cluster.agreement(coordinator).sealed_to)
    except KosError as error:
        return Finding(check, Verdict.FAIL, error.message, error.hint)
    without = [row["name"] for row in voters if row["id"] not in holders]
    if not any(row["id"] in holders and row["state"] == "alive" for row in voters):
        said = "No node that is alive holds a copy: nobody can join, and no certificate can be renewed."
        return Finding(check, Verdict.FAIL, said, "Start a node that does: 'kos up' on the founder's machine.")
    if without:
        said = f"{', '.join(without)} may vote and hold{'s' * (len(without) == 1)} no copy yet."
        return Finding(check, Verdict.WARN, said, "The coordinator gives it within seconds; look again.")
    names = ", ".join(row["name"] for row in voters)
    return Finding(check, Verdict.OK, f"All voters hold a copy, each sealed to its own key: {names}.")


def _lookups(cluster: kos.Cluster, rows: list[dict[str, Any]], coordinator: str) -> Iterator[Finding]:
    """Whether a node that is not where it was can be found through the coordinator, as through any other."""
    check = "look-ups"
    try:
        contacts = cluster.agreement(coordinator).contacts
    except KosError as error:
        yield Finding(check, Verdict.FAIL, error.message, error.hint)
        return
    others = sum(row["state"] == "alive" for row in rows) - 1
    if contacts < 0 or others < 1:
        return
    verdict = _graded(not contacts, False)
    said = f"{coordinator} can name {contacts} nodes, of the {others} others that are alive, to one who looks for them."
    mend = "Let the firewalls between the machines pass TCP; see the ports above."
    yield Finding(check, verdict, said, _unless_ok(verdict, mend))


def _graded(warn: bool, fail: bool) -> Verdict:
    return Verdict.FAIL if fail else Verdict.WARN if warn else Verdict.OK


def _unless_ok(verdict: Verdict, mend: str) -> str:
    return "" if verdict is Verdict.OK else mend
