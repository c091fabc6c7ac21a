"""A message that gets lost on its way, whichever it is: nothing relies on any single one arriving."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kos_cluster.net import wire
from kos_cluster.net.nodelink import NodeLink
from kos_cluster.net.streams import Item, ItemsWanted
from kos_cluster.tasks.attachment import Attachment
from tests.mesh.conftest import Mesh, until


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], list[Any]]:
    """Loses the first message of a kind, in either direction; gives the list that it is put into."""

    def lose(kind: type) -> list[Any]:
        lost: list[Any] = []

        def is_lost(message: Any) -> bool:
            if lost or type(message) is not kind:
                return False
            lost.append(message)
            return True

        def send(self: NodeLink, message: Any, payload: Any = b"") -> bool:
            return True if is_lost(message) else sending(self, message, payload)

        def said(self: Attachment, link: NodeLink, message: Any, payload: Any) -> None:
            if not is_lost(message):
                hearing(self, link, message, payload)

        sending, hearing = NodeLink.send, Attachment.link_said
        monkeypatch.setattr(NodeLink, "send", send)
        monkeypatch.setattr(Attachment, "link_said", said)
        return lost

    return lose


@pytest.mark.parametrize("kind", [wire.PutPart, wire.Exec, wire.Missing, wire.Result, wire.Release])
def test_the_work_is_done_once_all_the_same(
    kind: type, losing: Callable[[type], list[Any]], mesh: Mesh, tmp_path: Path
) -> None:
    marks, secret = tmp_path / "marks", os.urandom(8)

    def work(number: int) -> int:
        with open(marks, "ab") as file:  # with a part that no node has seen before
            file.write(secret and b"x")
        return 2 * number

    lost = losing(kind)
    if kind is wire.Missing:  # which is only sent when a part came later than the batch
        first = losing(wire.PutPart)
        assert mesh.cluster.submit(work, 21).result(30) == 42
        assert first
    else:
        assert mesh.cluster.submit(work, 21).result(30) == 42
    until(lambda: bool(lost), f"a {kind.__name__} was lost")
    assert marks.read_bytes() == b"x"


def test_a_stream_is_whole_though_messages_of_it_were_lost(losing: Callable[[type], list[Any]], mesh: Mesh) -> None:
    def numbers(stop: int) -> Iterator[int]:
        yield from range(stop)

    lost = [losing(kind) for kind in (Item, ItemsWanted, wire.Result)]
    assert list(mesh.cluster.submit(numbers, 300)) == list(range(300))
    assert all(lost)


def test_a_task_whose_cancelling_was_lost_is_stopped_too(
    losing: Callable[[type], list[Any]], mesh: Mesh, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"

    def work() -> None:
        while True:
            with open(marks, "ab") as file:
                file.write(b"x")
            time.sleep(0.01)

    lost = losing(wire.Cancel)
    future = mesh.cluster.submit(work)
    until(marks.exists, "it runs")
    future.cancel()
    until(lambda: bool(lost), "the message was lost")

    def stands() -> bool:
        before = marks.stat().st_size
        time.sleep(0.2)
        return marks.stat().st_size == before

    until(stands, "it is stopped")
