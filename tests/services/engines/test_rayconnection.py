"""A client's way to a Ray, when the head or the way is gone. Ray itself is a stand-in."""

from __future__ import annotations

import concurrent.futures
import queue
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from kos_cluster.errors import TaskLostError, UnreachableError
from kos_cluster.services.engines import rayconnection
from kos_cluster.services.engines.engine import Address
from kos_cluster.services.engines.raycalls import Relay, Returned
from kos_cluster.services.engines.rayconnection import RayConnection
from kos_cluster.tasks.enginekeys import Credentials
from tests.mesh.conftest import until

WAIT_S = 20.0


class RayError(Exception):
    pass


class Ray:
    """Has what is used of the module: `heard` are what the relay tells, or raises, one after the other."""

    def __init__(self) -> None:
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayError)
        self.heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.calls: list[tuple[str, concurrent.futures.Future[Returned]]] = []

    def remote(self, what: Any) -> Any:
        make = self._relay if what is Relay else self._call
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=make))

    def _relay(self) -> Any:
        return SimpleNamespace(hear=SimpleNamespace(remote=self.heard.get))

    def _call(self, call: Any, id_: str, relay: Any) -> Any:
        self.calls.append((id_, concurrent.futures.Future()))
        return SimpleNamespace(future=lambda done=self.calls[-1][1]: done)

    def get(self, told: Any) -> Any:
        if isinstance(told, Exception):
            raise told
        return told

    def kill(self, _: Any) -> None:
        self.heard.put([])


class Store:
    """The head's control store."""

    def __init__(self) -> None:
        self.answers = True
        self.asked = 0

    def check(self) -> None:
        self.asked += 1
        if not self.answers:
            raise UnreachableError("The Ray does not answer.", "")

    def close(self) -> None:
        self.answers = False


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    stand_in = Ray()
    monkeypatch.setitem(sys.modules, "ray", stand_in)  # type: ignore[arg-type]
    monkeypatch.setattr(rayconnection, "_drive", lambda *_: None)
    monkeypatch.setattr(rayconnection, "_drive_no_more", lambda _: None)
    monkeypatch.setattr(rayconnection, "WATCH_S", 0.01)
    return stand_in


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store()
    monkeypatch.setattr(rayconnection, "Gcs", lambda *_: made)
    return made


@pytest.fixture
def connection(ray: Ray, store: Store) -> Iterator[RayConnection]:
    made = RayConnection(Address("127.0.0.1:1,127.0.0.1:2"), Credentials("", "", "", ""))
    yield made
    made.close()


def test_it_is_usable_as_the_last_look_has_told_and_nobody_is_asked(
    connection: RayConnection, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = store.asked
    assert all(connection.usable for _ in range(100)) and store.asked == asked
    assert connection.client  # somebody looks from now on
    store.answers = False
    until(lambda: not connection.usable, "the head is missed")
    store.answers = True
    until(lambda: connection.usable, "it is there again")
    connection.close()
    assert not connection.usable


def test_a_call_that_was_given_up_may_come_back_after_all(
    connection: RayConnection, ray: Ray, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rayconnection, "LOST_S", 0.0)
    future = connection.submit(lambda _: None)
    store.answers = False
    with pytest.raises(TaskLostError, match="lost with the head of its engine"):
        future.result(WAIT_S)
    ray.calls[0][1].set_result(Returned(0, "late"))
    assert not caplog.records  # a thread of Ray's would have raised


def test_what_is_expected_ends_when_the_way_is_gone(connection: RayConnection, ray: Ray) -> None:
    said: list[str] = []
    heard = threading.Event()

    def write(_: str, text: str) -> None:
        said.append(text)
        heard.set()

    runs, ended = (connection.submit(lambda _: None, write=write) for _ in range(2))
    ray.heard.put([(ray.calls[0][0], "stdout", "word")])
    assert heard.wait(WAIT_S)
    ray.calls[1][1].set_result(Returned(3, "value"))  # of whose texts none has come
    ray.heard.put(ConnectionError("Ray Client is gone"))
    with pytest.raises(TaskLostError, match="lost with the way to its engine: Ray Client is gone"):
        runs.result(WAIT_S)
    assert ended.result(WAIT_S) == "value"
    ray.calls[0][1].set_exception(ConnectionError("late"))
    again = connection.submit(lambda _: None, write=write)  # by a relay of its own
    ray.heard.put([(ray.calls[2][0], "stdout", "more")])
    ray.calls[2][1].set_result(Returned(1, "other"))
    assert again.result(WAIT_S) == "other" and said == ["word", "more"]
