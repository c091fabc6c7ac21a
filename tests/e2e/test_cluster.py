"""Clusters as a user forms and uses them: embedded, of several machines, and what is said when it cannot be."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest

from kos_cluster.home import EMBEDDED_NAME, ClusterHome, Home
from kos_cluster.tasks.cluster import Cluster
from kos_cluster.tasks.mesh import Mesh

NODE_KEYS = {
    "name", "id", "address", "state", "role", "coordinator", "slots", "running", "cpu_percent", "memory_percent",
    "received_bytes_s", "sent_bytes_s", "answers", "version",
}  # fmt: skip
POOL_SCRIPT = """
import os, sys
from concurrent.futures import ProcessPoolExecutor

def where(_):
    import time
    time.sleep(0.2)  # so that no node does all of them
    return os.environ["KOS_NODE"]

if __name__ == "__main__":
    with ProcessPoolExecutor() as pool:
        nodes = set(pool.map(where, range(12)))
    print(sys.argv[1:], *sorted(nodes))
    open("written.txt", "w").write("by the script")
    sys.exit(3)
"""


# ---- an embedded cluster


def test_nodes_are_listed_with_what_scripts_need(local: Any) -> None:
    nodes = local.json("nodes")
    assert [node["name"] for node in nodes] == ["node1", "node2"]
    assert all(set(node) >= NODE_KEYS for node in nodes)
    assert {node["state"] for node in nodes} == {"alive"}
    assert [node["coordinator"] for node in nodes] == [True, False]
    assert all(node["slots"] == max(1, len(os.sched_getaffinity(0)) // 2) for node in nodes)
    assert all(Path(f"/proc/{node['pid']}").exists() for node in nodes)
    assert "node2" in local.ok("cluster", "nodes")


def test_an_embedded_cluster_listens_on_loopback_alone_and_sends_no_beacon(local: Any) -> None:
    for node in local.json("nodes"):
        connections = psutil.Process(node["pid"]).net_connections("inet")
        listening = {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}
        assert not [c for c in connections if c.type == socket.SOCK_DGRAM]


def test_every_listing_is_json_on_stdout_alone(local: Any) -> None:
    local.ok("run", "echo", "said")
    token = local.kos("cluster", "token", "--role", "observer", "--ttl", "10m", "--json")
    assert json.loads(token.stdout)["token"].startswith("KOS1.")
    assert (json.loads(token.stdout)["role"], json.loads(token.stdout)["ttl_s"], token.stderr) == ("observer", 600, "")
    for words in (("nodes",), ("status",), ("ps",), ("cluster", "nodes"), ("cluster", "status")):
        assert json.loads(local.ok(*words, "--json")) is not None


def test_nodes_have_the_labels_and_resources_that_up_was_told(local: Any) -> None:
    for node in local.json("nodes"):
        assert (node["labels"], node["resources"]) == ({"site": "here"}, {"licence": {"total": 1, "in_use": 0}})
    assert local.kos("up", "--label", "site=there").returncode == 2
    refused = local.kos("run", "--label", "site!=here", "true")
    assert refused.returncode == 12
    assert "its site is here, which the task is to be away from" in refused.stderr


def test_an_arena_that_is_no_amount_is_refused_by_its_name(machine: Any) -> None:
    refused = machine.kos("up", "-n", "1", KOS_ARENA="plenty")
    assert refused.returncode == 16
    assert "KOS_ARENA in this node's environment is wrong: 'plenty' is not an amount of memory" in refused.stderr
    assert "Write it as 8G, 512M or a number of bytes." in refused.stderr
    assert machine.processes() == []


def test_status_says_what_a_loss_would_mean(local: Any, until: Callable[..., Any]) -> None:
    status = local.json("status")
    assert (status["alive"], status["nodes"], status["coordinator"], status["role"]) == (2, 2, "node1", "admin")
    assert status["voters"] == ["node1"]
    until(lambda: "1 voter, 1 taking part, 1 needed: if the voter is lost" in local.ok("status"), "it answers in time")


def test_up_again_is_no_error_and_another_number_is(local: Any) -> None:
    before = [node["pid"] for node in local.json("nodes")]
    assert "up already" in local.ok("up")
    assert "up already" in local.ok("up", "-n", "2")
    refused = local.kos("up", "-n", "3")
    assert refused.returncode == 2
    assert "kos down" in refused.stderr
    assert [node["pid"] for node in local.json("nodes")] == before


def test_exec_streams_both_outputs_and_passes_the_exit_code(local: Any) -> None:
    done = local.kos("cluster", "exec", "node2", "echo out $KOS_NODE; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out node2\n", "err\n")


def test_run_takes_a_command_as_words(local: Any) -> None:
    done = local.kos("run", "--on", "node1", "--env", "COLOUR=sea blue", "sh", "-c", 'echo "$COLOUR $KOS_NODE"; exit 7')
    assert (done.returncode, done.stdout) == (7, "sea blue node1\n")


def test_a_script_runs_across_the_cluster(local: Any) -> None:
    (local.work / "pool.py").write_text(POOL_SCRIPT)
    done = local.kos("run", "--distribute", "python", "pool.py", "--on", "x")
    assert done.returncode == 3, done.stderr
    assert done.stdout == "['--on', 'x'] node1 node2\n"
    assert (local.work / "written.txt").read_text() == "by the script"


@pytest.mark.parametrize(
    ("words", "code", "mentions"),
    [
        (("cluster", "exec", "node9", "ls"), 5, "node9"),
        (("run", "--on", "node9", "ls"), 5, "node9"),
        (("story", "nonsense"), 5, "nonsense"),
        (("logs", "nonsense"), 5, "nonsense"),
        (("cancel", "nonsense"), 5, "nonsense"),
        (("nodes", "--cluster", "lab"), 3, "lab"),
        (("cluster", "create", "local"), 2, "kos up"),
        (("run", "--cpus", "4096", "ls"), 12, "4096"),
        (("run", "--distribute", "absent.py"), 2, "no script absent.py"),
        (("run", "--distribute", "python", "-c", "pass"), 2, "python -c"),
    ],
)
def test_what_is_not_there_is_a_sentence(words: tuple[str, ...], code: int, mentions: str, local: Any) -> None:
    done = local.kos(*words)
    assert done.returncode == code, done.stderr
    assert mentions in done.stderr
    assert done.stdout == ""


def test_an_interrupt_stops_the_remote_program(local: Any, until: Callable[..., Any]) -> None:
    typed = local.start("cluster", "exec", "node2", "echo $$; exec sleep 300")
    pid = int(typed.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    typed.send_signal(signal.SIGINT)
    typed.communicate(timeout=20)
    assert typed.returncode == 130
    until(lambda: not Path(f"/proc/{pid}").exists(), "the remote sleep ends")


def test_a_job_can_be_listed_cancelled_and_told(local: Any, until: Callable[..., Any]) -> None:
    typed = local.start("run", "--on", "node1", "sh", "-c", "echo begun; exec sleep 300")
    assert typed.stdout.readline() == "begun\n"
    (job,) = until(lambda: local.json("ps"), "the job is listed")
    assert "cancelled" in local.ok("cancel", job["job"])
    assert "cancelled" in typed.communicate(timeout=20)[1]
    assert typed.returncode == 130
    assert until(lambda: "begun" in local.ok("logs", job["job"]), "its output is kept")
    assert local.json("logs", job["job"]) == [{"task": f"{job['job']}.0", "output": "begun\n"}]
    (story,) = until(lambda: local.json("story", job["job"]), "its story is kept")
    assert [attempt["node"] for attempt in story["attempts"]] == ["node1"]
    assert until(lambda: not local.json("ps"), "it is listed no more") is True


def test_a_reader_that_went_away_stops_the_work(local: Any, until: Callable[..., Any]) -> None:
    typed = local.start("run", "sh", "-c", "echo $$; exec yes")
    pid = int(typed.stdout.readline())
    typed.stdout.close()
    assert typed.wait(timeout=20) == 141
    assert typed.stderr.read() == ""
    until(lambda: not Path(f"/proc/{pid}").exists(), "the remote program ends")
    typed.stderr.close()


def test_up_heals_a_cluster_that_lost_a_node(machine: Any, until: Callable[..., Any]) -> None:
    machine.ok("up", "-n", "2")
    first, second = (node["pid"] for node in machine.json("nodes"))
    os.kill(second, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{second}/environ").exists() or not _environ(second), "the node is gone")
    assert "node2 had died" in machine.ok("up", "-n", "2")
    nodes = {node["name"]: node for node in machine.json("nodes")}
    assert nodes["node1"]["pid"] == first
    assert nodes["node2"]["pid"] != second
    assert nodes["node2"]["state"] == "alive"
    assert machine.ok("cluster", "exec", "node2", "echo well") == "well\n"
    machine.ok("down")


def test_a_cluster_that_is_up_outlives_its_founder_at_once(machine: Any, until: Callable[..., Any]) -> None:
    machine.ok("up", "-n", "3")
    founder = ClusterHome(Home(machine.home), EMBEDDED_NAME).ready("node1")
    assert founder is not None
    os.kill(founder.pid, signal.SIGKILL)
    until(lambda: machine.json("cluster", "status")["coordinator"] in ("node2", "node3"), "another coordinates")
    assert "a lock" in machine.ok("lock", "bench", "--", "echo", "a lock")
    machine.ok("down")


# ---- several machines: one home each, on loopback


class Lab:
    """A cluster created on one machine, and what others need to join it."""

    def __init__(self, founder: Any) -> None:
        self.founder = founder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.created = founder.kos(
            "cluster", "create", "lab", "--listen", self.address, "--name", "desk", "--label", "zone=a"
        )
        assert self.created.returncode == 0, self.created.stderr

    def token(self, *words: str) -> str:
        return str(self.founder.ok("cluster", "token", *words)).strip()


@pytest.fixture(scope="module")
def lab(machine_of: Callable[..., Any]) -> Iterator[Lab]:
    founder = machine_of()
    yield Lab(founder)
    founder.ok("down")
    founder.end()


@pytest.fixture(scope="module")
def member(lab: Lab, machine_of: Callable[..., Any]) -> Iterator[Any]:
    """A second machine, joined as a node named rack1."""
    machine = machine_of()
    machine.ok(
        *("cluster", "join", "lab", lab.address, "--listen", f"127.0.0.1:{free_port()}", "--name", "rack1"),
        *("--label", "zone=b", "--label", "disk=fast", "--resource", "licence=2"),
        KOS_TOKEN=lab.token(),
    )
    yield machine
    machine.ok("down")
    machine.end()


def test_create_says_how_to_join(lab: Lab) -> None:
    assert f"kos cluster join lab {lab.address} --token KOS1." in lab.created.stdout


def test_a_joined_node_takes_work(lab: Lab, member: Any, until: Callable[..., Any]) -> None:
    nodes = until(lambda: alive(lab.founder, 2), "both nodes are alive")
    assert {node["name"] for node in nodes} == {"desk", "rack1"}
    assert lab.founder.ok("cluster", "exec", "rack1", "echo $KOS_NODE") == "rack1\n"
    assert member.ok("cluster", "exec", "desk", "echo $KOS_NODE") == "desk\n"
    assert member.json("status")["role"] == "client"
    assert "kos --cluster local up" in member.kos("up", "-n", "2").stderr


def test_options_of_run_take_it_to_nodes_and_keep_it_from_them(
    lab: Lab, member: Any, until: Callable[..., Any]
) -> None:
    """Without them it goes to the node that has nothing to do."""
    nodes = {node["name"]: node for node in until(lambda: alive(lab.founder, 2), "both nodes are alive")}
    assert nodes["desk"]["labels"] == {"zone": "a"}
    assert nodes["rack1"]["labels"] == {"zone": "b", "disk": "fast"}
    assert nodes["rack1"]["resources"] == {"licence": {"total": 2, "in_use": 0}}

    mesh = Mesh(ClusterHome(Home(lab.founder.home), "lab"))
    mesh.start()
    with Cluster(mesh) as cluster:
        held = lab.founder.start("run", "--label", "disk=fast", "--resource", "licence=2", "sleep", "300")

        def heard() -> bool:
            """That it runs there, and of both that nothing else does."""
            loads = cluster.heard().loads
            return {n: loads[n][0].running for n in loads} == {nodes["desk"]["id"]: 0, nodes["rack1"]["id"]: 1}

        until(heard, "it is known where that runs")
        (job,) = (job.job for job in until(cluster.jobs, "the node that is asked has been told of it"))
        assert cluster.would_go().node == "desk"

        def went(*wish: str) -> str:
            return str(lab.founder.ok("run", *wish, "sh", "-c", "echo $KOS_NODE")).strip()

        assert went("--near", job) == "rack1"
        assert went("--pack") == "rack1"
        assert went("--apart", job) == "desk"
        cluster.cancel(job)
    held.communicate(timeout=20)


def test_a_result_is_sent_between_nodes_of_two_homes_which_cannot_share_it(
    lab: Lab, member: Any, until: Callable[..., Any]
) -> None:
    until(lambda: alive(lab.founder, 2), "both nodes are alive")

    def memory(array: Any) -> tuple[str, int, float]:
        """The node, the number of the file that is mapped where it lies, and the sum."""
        for line in Path("/proc/self/maps").read_text().splitlines():
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            if begin <= array.ctypes.data < end:
                return os.environ["KOS_NODE"], int(line.split()[4]), float(array.sum())
        raise AssertionError("it is mapped nowhere")

    mesh = Mesh(ClusterHome(Home(lab.founder.home), "lab"))
    mesh.start()
    with Cluster(mesh) as cluster:
        future = cluster.submit(numpy.ones, 1 << 20, on="rack1")
        there, here = (cluster.submit(memory, future, on=node).result(60) for node in ("rack1", "desk"))
        assert (there[0], here[0], there[2], here[2]) == ("rack1", "desk", 1 << 20, 1 << 20)
        assert there[1] != here[1] and there[1] and here[1]
        del future
        gc.collect()
        until(lambda: not any(row["blocks"] for row in lab.founder.json("mem", "status")), "it is gone from both")


@pytest.mark.parametrize(
    ("role", "allowed", "refused"),
    [
        ("client", ("run", "true"), ("cluster", "token")),
        ("observer", ("nodes",), ("run", "true")),
        ("admin", ("cluster", "token"), ()),
    ],
)
def test_a_token_gives_its_role_and_no_more(
    role: str, allowed: tuple[str, ...], refused: tuple[str, ...], lab: Lab, machine: Any
) -> None:
    token = lab.token("--role", role)
    machine.ok("cluster", "join", "lab", lab.address, "--token", token)
    assert machine.json("status")["role"] == role
    assert not list(machine.home.glob("clusters/lab/nodes/*")), "no node is run for it"
    machine.ok(*allowed)
    if refused:
        done = machine.kos(*refused)
        assert done.returncode == 6, done.stderr
        assert role in done.stderr
    used = machine.kos("cluster", "join", "lab", lab.address, "--token", token)
    assert used.returncode != 0
    machine.ok("cluster", "leave")
    used = machine.kos("cluster", "join", "lab", lab.address, "--token", token)
    assert used.returncode == 7
    assert "token" in used.stderr


def test_joining_wrongly_leaves_nothing(lab: Lab, machine: Any) -> None:
    token = lab.token()
    wrong = token[:-4] + ("abcd" if token[-4:] != "abcd" else "dcba")
    other_ca = ".".join(["KOS1", "0" * len(token.split(".")[1]), *token.split(".")[2:]])
    attempts = [
        ((f"lab {lab.address} --token {wrong}"), 7, "token"),
        ((f"lab {lab.address} --token {other_ca}"), 7, "authority"),
        ((f"lab {lab.address} --token nonsense"), 2, "KOS1"),
        ((f"attic {lab.address} --token {token}"), 7, "attic"),
        ((f"lab {lab.address}"), 2, "KOS_TOKEN"),
        ((f"lab 127.0.0.1:{free_port()} --token {token}"), 4, "127.0.0.1"),
        ((f"lab {lab.address} --token {token} --listen {lab.address}"), 8, str(lab.port)),
    ]
    for words, code, mentions in attempts:
        done = machine.kos("cluster", "join", *words.split())
        assert done.returncode == code, (words, done.stderr)
        assert mentions in done.stderr
        assert machine.processes() == []
        assert not (machine.home / "clusters").exists() or not os.listdir(machine.home / "clusters")


def test_every_machine_remembers_where_the_others_are(lab: Lab, member: Any, until: Callable[..., Any]) -> None:
    """So that the founding machine finds the cluster also when its own node is down."""

    def known(machine: Any) -> int:
        machine.ok("nodes")
        return len(json.loads((machine.home / "clusters/lab/cluster.json").read_text())["bootstrap"])

    until(lambda: known(lab.founder) >= 2 and known(member) >= 2, "both addresses are known on both machines")


def test_a_name_that_is_taken_is_refused_and_the_token_stays_good(lab: Lab, machine: Any) -> None:
    join = ["cluster", "join", "lab", lab.address, "--token", lab.token(), "--listen", f"127.0.0.1:{free_port()}"]
    refused = machine.kos(*join, "--name", "desk")
    assert refused.returncode == 7
    assert "is named desk" in refused.stderr
    assert "its node shelf" in machine.ok(*join, "--name", "shelf")
    machine.ok("cluster", "leave")


def test_an_expired_token_is_refused(lab: Lab, machine: Any, until: Callable[..., Any]) -> None:
    token = lab.token("--role", "client", "--ttl", "0.05s")
    done = machine.kos("cluster", "join", "lab", lab.address, "--token", token)
    assert done.returncode == 7
    assert "expired" in done.stderr


def test_a_taken_port_is_named_at_create(machine: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = machine.kos("cluster", "create", "lab", "--listen", f"127.0.0.1:{port}")
    assert done.returncode == 8
    assert str(port) in done.stderr
    assert "--listen" in done.stderr
    assert not (machine.home / "clusters" / "lab").exists()


def test_down_and_up_keep_membership(lab: Lab, member: Any, until: Callable[..., Any]) -> None:
    until(lambda: alive(lab.founder, 2), "both nodes are alive")
    member.ok("down")
    until(lambda: alive(lab.founder, 1), "the stopped node is known to be dead")
    for words in (("cluster", "exec", "rack1", "true"), ("run", "--on", "rack1", "true")):
        unreachable = lab.founder.kos(*words)
        assert unreachable.returncode == 4
        assert "rack1 is dead" in unreachable.stderr
    (port,) = (int(node["address"].rpartition(":")[2]) for node in lab.founder.json("nodes") if node["name"] == "rack1")
    with socket.create_server(("127.0.0.1", port + 1)):
        taken = member.kos("up")
    assert taken.returncode == 8
    assert f"ports {port} and {port + 1} of 127.0.0.1: one is in use" in taken.stderr
    foreground = member.start("node")
    until(lambda: alive(lab.founder, 2), "it is back, in the foreground")
    assert "runs already" in member.kos("node").stderr
    foreground.send_signal(signal.SIGTERM)
    foreground.communicate(timeout=20)
    assert foreground.returncode == 0
    assert "rack1" in member.ok("up")
    until(lambda: alive(lab.founder, 2), "it is back in the background")


def test_leave_is_for_good(lab: Lab, machine: Any, until: Callable[..., Any]) -> None:
    listen = f"127.0.0.1:{free_port()}"
    token = lab.token()
    machine.ok("cluster", "join", "lab", lab.address, "--token", token, "--listen", listen, "--name", "rack9")
    machine.ok("cluster", "leave")
    until(lambda: states(lab.founder).get("rack9") == "left", "the cluster marks it as left")
    assert machine.processes() == []
    assert not (machine.home / "clusters" / "lab").exists()
    assert machine.kos("nodes").returncode == 3


LATE = """
import sys

if "kos_cluster.node" in sys.orig_argv:
    import asyncio
    from kos_cluster.net import transport, wire
    from kos_cluster.node.administering import Administration

    leave, send, expelled = Administration.leave, transport.Server.send, []

    def noted(self, route, message, payload=b""):
        expelled.extend([message] * isinstance(message, wire.Expelled))
        return send(self, route, message, payload)

    async def late(self, peer, own_id):
        goes_on = await leave(self, peer, own_id)
        while peer.id != own_id and not expelled:  # the other one has said something meanwhile
            await asyncio.sleep(0.01)
        return goes_on

    transport.Server.send, Administration.leave = noted, late
"""


def test_who_leaves_may_be_expelled_before_it_is_told_that_it_is_done(
    machine_of: Callable[..., Any], machine: Any, until: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(LATE)
    founder, address = machine_of(), f"127.0.0.1:{free_port()}"
    founder.ok("cluster", "create", "lab", "--listen", address, "--name", "desk", PYTHONPATH=str(tmp_path))
    token = founder.ok("cluster", "token").strip()
    machine.ok("cluster", "join", "lab", address, "--token", token, "--listen", f"127.0.0.1:{free_port()}")
    done = machine.kos("cluster", "leave")
    assert (done.returncode, done.stderr) == (0, "")
    until(lambda: sorted(states(founder).values()) == ["alive", "left"], "the cluster marks it as left")
    founder.ok("down")
    founder.end()


# ---- two hosts on a network of their own


@pytest.fixture
def hosts() -> Iterator[list[tuple[str, ...]]]:
    """Two network namespaces joined by a bridge, as command prefixes. Addresses 10.77.0.1 and 10.77.0.2."""
    if shutil.which("ip") is None:
        pytest.skip("there is no ip command")
    tag = f"k{random.randrange(16**6):06x}"
    names = [f"{tag}a", f"{tag}b"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        ip("netns", "add", tag)
        ip("-n", tag, "link", "add", "br0", "type", "bridge")
        ip("-n", tag, "link", "set", "br0", "up")
        for number, name in enumerate(names, 1):
            ip("netns", "add", name)
            ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"to{number}", "netns", tag)
            ip("-n", tag, "link", "set", f"to{number}", "master", "br0", "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "route", "add", "224.0.0.0/4", "dev", "eth0")
        yield [("ip", "netns", "exec", name) for name in names]
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
    finally:
        for name in (*names, tag):
            with suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)


def test_two_hosts_find_each_other_by_beacon(
    hosts: list[tuple[str, ...]], machine_of: Callable[..., Any], until: Callable[..., Any]
) -> None:
    desk, rack = (machine_of(*prefix) for prefix in hosts)
    created = desk.ok("cluster", "create", "lab", "--listen", "10.77.0.1", "--name", "desk")
    assert "kos cluster join lab 10.77.0.1 --token" in created
    token = desk.ok("cluster", "token").strip()
    rack.ok("cluster", "join", "lab", "--token", token, "--name", "rack1")
    until(lambda: alive(desk, 2), "both hosts' nodes are alive")
    addresses = {node["name"]: node["address"] for node in desk.json("nodes")}
    assert addresses == {"desk": "10.77.0.1:7567", "rack1": "10.77.0.2:7567"}
    assert desk.ok("cluster", "exec", "rack1", "echo $KOS_NODE") == "rack1\n"
    for host in (rack, desk):
        host.ok("down")
        host.end()


def free_port() -> int:
    """A port that is free now, and so is the next one."""
    while True:
        port = random.randrange(20000, 32000, 2)
        with (
            suppress(OSError),
            socket.create_server(("127.0.0.1", port)),
            socket.create_server(("127.0.0.1", port + 1)),
        ):
            return port


def states(machine: Any) -> dict[str, str]:
    return {node["name"]: node["state"] for node in machine.json("nodes")}


def alive(machine: Any, count: int) -> list[dict[str, Any]] | None:
    """The nodes that are alive, if there are so many."""
    nodes = [node for node in machine.json("nodes") if node["state"] == "alive"]
    return nodes if len(nodes) == count else None


def _environ(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""
