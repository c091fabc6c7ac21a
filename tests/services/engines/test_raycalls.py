"""What calls on Ray say, on its way to the connection. Ray itself is a stand-in."""

from __future__ import annotations

import asyncio
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from kos_cluster.services.engines import raycalls
from kos_cluster.services.engines.engine import Task

WAIT_S = 10.0


class RayError(Exception):
    pass


class Gone:
    """A relay whose connection has gone, in the place of an actor."""

    def __init__(self) -> None:
        self.say = SimpleNamespace(remote=lambda texts: None)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    def get(_: Any) -> None:
        raise RayError

    stand_in = SimpleNamespace(get=get, exceptions=SimpleNamespace(RayError=RayError))
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    return stand_in


def test_a_call_whose_connection_has_gone_is_told_to_stop_and_does_not_wait_for_room(ray: SimpleNamespace) -> None:
    ended = threading.Event()

    def call(task: Task) -> None:
        task.write("stdout", "one")
        assert task.stopped.wait(WAIT_S)
        for _ in range(3):
            task.write("stdout", "x" * raycalls.PENDING_CHARACTERS)
        ended.set()

    threading.Thread(target=raycalls.run, args=(call, "id", Gone()), daemon=True).start()
    assert ended.wait(WAIT_S)


def test_the_relay_takes_no_more_than_there_is_room_for() -> None:
    lot = [("id", "stdout", "x" * raycalls.PENDING_CHARACTERS)]

    async def many() -> None:
        relay = raycalls.Relay()
        says = [asyncio.ensure_future(relay.say(lot)) for _ in range(3)]
        assert [len(await relay.hear()) for _ in says] == [1, 1, 1]
        await asyncio.gather(*says)

    asyncio.run(many())
