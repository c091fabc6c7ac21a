"""`kos top` in a pseudo-terminal, and `kos metrics`, on a real cluster."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest

from kos_cluster import errors
from kos_cluster.home import ClusterHome, Home
from tests.e2e.conftest import KOS, Machine
from tests.e2e.test_cluster import free_port

COLUMNS, LINES = 120, 40


def top(machine: Machine, *words: str) -> Any:
    """`kos top` in a terminal of its own."""
    environ = machine.environ | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(LINES)}
    return pexpect.spawn(
        KOS,
        ["top", *words],
        env=environ,
        cwd=str(machine.work),
        dimensions=(LINES, COLUMNS),
        encoding="utf-8",
        timeout=20,
    )


def ended(child: Any) -> int:
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus is not None
    return int(child.exitstatus)


@pytest.mark.parametrize("key", ["q", "\x03"])
def test_top_shows_the_nodes_until_it_is_told_to_end_and_leaves_the_screen_as_it_was(local: Machine, key: str) -> None:
    child = top(local, "--interval", "0.2s")
    child.expect_exact("\x1b[?1049h")  # another screen
    child.expect("node1.*alive.*node2.*alive")
    child.expect("node1.*alive")  # and again: it is live
    child.send(key)
    child.expect_exact("\x1b[?1049l")  # the screen that was there before
    assert ended(child) == 0


def test_top_shows_a_job_while_it_runs(local: Machine) -> None:
    work = local.start("cluster", "exec", "node2", "sleep 60")
    child = top(local, "--interval", "0.2s")
    try:
        child.expect("sleep 60.*running")
        child.expect("1 of 1")
        work.send_signal(signal.SIGINT)
        work.communicate(timeout=20)
        child.expect("cancelled|gone")
    finally:
        work.kill()
        work.communicate()
        child.send("q")
    assert ended(child) == 0


def test_top_into_a_pipe_prints_one_frame(local: Machine) -> None:
    shown = local.ok("top")
    assert shown.count("alive") == 3  # the cluster's line, and two nodes
    assert "coordinator: node" in shown
    assert "\x1b" not in shown


def test_top_without_a_cluster_says_so(machine: Machine) -> None:
    done = machine.kos("top")
    assert done.returncode == 3
    assert done.stderr.startswith("kos: ") and done.stderr.count("\n") == 1


def test_the_monitor_is_not_for_terminals(local: Machine) -> None:
    done = local.kos("monitor")
    assert done.returncode == 2
    assert "%kos monitor" in done.stderr and "kos top" in done.stderr


def metrics(machine: Machine, *words: str) -> tuple[subprocess.Popen[str], str]:
    """The endpoint, and its address."""
    process = machine.start("metrics", *words)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_metrics_are_served_on_loopback_until_it_is_terminated(local: Machine, until: Callable[..., Any]) -> None:
    process, address = metrics(local, "--listen", f"127.0.0.1:{free_port()}")
    try:

        def scraped() -> str:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return str(answer.read().decode())

        assert "kos_up 1.0" in scraped()
        assert 'kos_nodes{state="alive"} 2.0' in scraped()
        until(
            lambda: re.search(r'kos_node_memory_ratio{node="node2"} 0\.[0-9]*[1-9]', scraped()), "node2 tells its load"
        )
    finally:
        process.terminate()
        _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--listen", "0.0.0.0"), 2, "--token-file"),
        (("--listen", "192.0.2.1", "--token-file", "t"), 2, "cannot be listened on"),
        (("--token-file", "open"), 2, "chmod 600"),
        (("--token-file", "no/such/folder"), 16, "no/such/folder"),
        (("--listen", "nowhere.invalid"), 2, "is not an address"),
    ],
)
def test_a_wrong_endpoint_is_a_sentence(local: Machine, words: tuple[str, ...], code: int, said: str) -> None:
    path = Path(local.work / "open")
    path.write_text("a token that others can read")
    os.chmod(path, 0o644)
    done = local.kos("metrics", *words)
    assert said in done.stderr, done.stderr
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)


def test_a_port_in_use_is_a_sentence(local: Machine) -> None:
    process, address = metrics(local, "--listen", f"127.0.0.1:{free_port()}")
    try:
        port = address.rpartition(":")[2].partition("/")[0]
        done = local.kos("metrics", "--listen", f"127.0.0.1:{port}")
        assert (done.returncode, done.stderr.count("\n")) == (8, 1)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def test_a_second_daemon_of_a_node_ends_and_takes_nothing_from_the_first(local: Machine) -> None:
    daemon = ClusterHome(Home(local.home), "local").ready("node2")
    assert daemon is not None
    words = Path(f"/proc/{daemon.pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    words[words.index("--listen") + 1] = f"{daemon.host}:{daemon.port}"
    held = ClusterHome(Home(local.home), "local").run("node2") / "spool" / "held"
    held.write_text("a result that waits to be fetched")
    second = local.popen(words)
    _, said = second.communicate(timeout=60)
    assert second.returncode == errors.PortTakenError.exit_code, said
    assert held.exists()
    assert local.json("status")["alive"] == 2


def test_a_cluster_that_goes_and_comes_is_followed(machine: Machine, until: Callable[..., Any]) -> None:
    machine.ok("up", "-n", "1")
    child = top(machine, "--interval", "0.2s")
    child.expect("node1.*alive")
    machine.ok("down")
    child.expect("answers|belongs to no cluster|No cluster|known to run")
    machine.ok("up", "-n", "1")
    child.expect("answers again", timeout=30)
    child.send("q")
    assert ended(child) == 0
