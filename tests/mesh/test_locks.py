"""Named locks against real daemons: one holder at a time, a lost lease is told, the coordinator's death costs none."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kos_cluster.errors import LockHeldError, UsageError
from kos_cluster.net.locks import LockReleased, LockState, LockWanted
from tests.mesh.conftest import Mesh, until


@pytest.fixture
def three() -> Iterator[Mesh]:
    """Three nodes, each a voter: the coordinator is killed."""
    mesh = Mesh(3)
    until(lambda: sum(row["voter"] for row in mesh.cluster.nodes()) == 3, "three voters")
    yield mesh
    mesh.down()


def coordinator(mesh: Mesh) -> str:
    return next((row["name"] for row in mesh.cluster.nodes() if row["coordinator"]), "")


def is_waited_for(mesh: Mesh, name: str) -> bool:
    """Whether somebody waits for this lock, which is held."""
    with pytest.raises(LockHeldError) as caught:
        mesh.cluster.lock(name, wait=0).__enter__()
    return "1 waiting" in str(caught.value)


def test_a_lock_has_one_holder_and_each_a_larger_token(mesh: Mesh) -> None:
    with mesh.cluster.lock("one", ttl=5) as first:
        assert first.held and first.token > 0
        with pytest.raises(LockHeldError, match=r"The lock 'one' is taken: .* has held it for"):
            mesh.cluster.lock("one", wait=0).__enter__()
        began_s = time.monotonic()
        with pytest.raises(LockHeldError, match=r"could not be had within 0.4 s: .* has held it for"):
            mesh.cluster.lock("one", wait=0.4).__enter__()
        assert time.monotonic() - began_s >= 0.4
    assert not first.held
    with mesh.cluster.lock("one", wait=0) as second:
        assert second.held


def test_who_waits_gets_it_when_it_is_given_up(mesh: Mesh) -> None:
    order: list[str] = []

    def wait() -> None:
        with mesh.cluster.lock("next") as lock:
            order.append(f"second {lock.held}")

    with mesh.cluster.lock("next"):
        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: is_waited_for(mesh, "next"), "the other one waits")
        order.append("first")
    thread.join(10)
    assert order == ["first", "second True"]


def test_a_lease_is_renewed_while_it_is_held(mesh: Mesh) -> None:
    with mesh.cluster.lock("kept", ttl=1) as lock:
        time.sleep(2.5)  # the lease would have ended twice
        assert lock.held
        with pytest.raises(LockHeldError):
            mesh.cluster.lock("kept", wait=0).__enter__()


def test_a_lost_lease_is_told_by_held_and_raised_at_the_end(mesh: Mesh) -> None:
    lock = mesh.cluster.lock("lost", ttl=1)
    lock.__enter__()
    token = lock.token
    mesh.cluster._mesh.request(LockReleased("lost", lock._owner), bool)  # as if it had run out
    until(lambda: not lock.held, "it is told", 5)
    with mesh.cluster.lock("lost", wait=0) as other:
        assert other.token > token
    with pytest.raises(LockHeldError, match=rf"The lease of the lock 'lost' with token {token} has ended"):
        lock.__exit__(None, None, None)


def test_an_error_of_the_program_is_not_hidden_by_a_lost_lease(mesh: Mesh) -> None:
    lock = mesh.cluster.lock("hidden", ttl=1)
    lock.__enter__()
    lock._lost = "It is lost."
    error = KeyError("of the program")
    lock.__exit__(KeyError, error, None)
    assert error.__notes__ == ["It is lost."]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("", {}, "'' cannot be the name of a lock. Use up to 64 letters, digits and . _ / -, beginning with"),
        ("x" * 65, {}, "cannot be the name of a lock"),
        ("a\nb", {}, "'a\\nb' cannot be the name of a lock"),
        (7, {}, "A lock's name is a string, not a int"),
        ("x", {"ttl": 0.5}, "cannot be leased for 0.5 s. Give 1 to 86400 s"),
        ("x", {"ttl": 86401}, "cannot be leased"),
        ("x", {"ttl": float("nan")}, "cannot be leased"),
        ("x", {"ttl": "30s"}, "ttl='30s' is not a number of seconds"),
        ("x", {"wait": -1}, "Nobody can wait -1 s"),
    ],
)
def test_a_lock_that_cannot_be_is_a_sentence(name: Any, options: dict[str, Any], said: str, mesh: Mesh) -> None:
    with pytest.raises(UsageError) as caught:
        mesh.cluster.lock(name, **options).__enter__()
    assert said in str(caught.value)


def test_a_node_refuses_a_name_that_its_client_let_pass(mesh: Mesh) -> None:
    with pytest.raises(UsageError, match="'a b' cannot be the name of a lock"):
        mesh.cluster._mesh.request(LockWanted("a b", "me", 5.0, 0.0), LockState)


def test_tasks_exclude_each_other(mesh: Mesh, tmp_path: Any) -> None:
    """Each reads a counter and writes it one larger, slowly; none is lost when they do so one at a time."""
    counter = tmp_path / "counter"
    counter.write_text("0")

    def add(path: str) -> int:
        import time

        import kos_cluster as kos

        with kos.connect().lock("counter") as lock:
            with open(path) as file:
                before = int(file.read())
            time.sleep(0.05)
            with open(path, "w") as file:
                file.write(str(before + 1))
            return lock.token

    tokens = list(mesh.cluster.map(add, [str(counter)] * 6))
    assert counter.read_text() == "6"
    assert len(set(tokens)) == 6


def test_an_interrupted_wait_leaves_no_place_behind(mesh: Mesh) -> None:
    with mesh.cluster.lock("busy"):
        program = mesh.program(
            """
            import kos_cluster as kos
            cluster = kos.connect()
            cluster.lock("busy").__enter__()
            """
        )
        until(lambda: is_waited_for(mesh, "busy"), "the program waits")
        program.send_signal(signal.SIGINT)
        program.wait(10)
        assert not is_waited_for(mesh, "busy")


def test_a_lock_outlives_the_coordinator(three: Mesh) -> None:
    with three.cluster.lock("safe", ttl=6) as lock:
        token = lock.token
        killed = coordinator(three)
        os.kill(three.pid(killed), signal.SIGKILL)
        until(lambda: coordinator(three) not in ("", killed), "another coordinates")
        with pytest.raises(LockHeldError):
            three.cluster.lock("safe", wait=0).__enter__()
        moment_s = time.monotonic()
        until(lambda: lock._until_s - lock._ttl_s > moment_s, "it is renewed through the new coordinator")
        assert lock.held and lock.token == token
    with three.cluster.lock("safe", wait=0) as after:
        assert after.token > token
