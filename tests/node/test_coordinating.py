"""When the coordinator has the log written in a newer format."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest

from kos_cluster.core.records import MemberState
from kos_cluster.core.replicated import commands, formats
from kos_cluster.node.coordinating import Coordinating
from tests.core.replicated.log import certificate
from tests.node.agreed import VERSIONS, Agreement, View

NEWER = commands.FORMAT + 1
READS_NEWER: dict[str, Any] = {"versions": msgspec.structs.replace(VERSIONS, log_format=NEWER)}


def test_the_format_is_raised_once_when_the_last_node_of_the_cluster_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "FORMAT", NEWER)

    async def scene() -> None:
        agreement, view = Agreement(), View("a", "b")
        coordinating = Coordinating("a", agreement, view, None, None)  # type: ignore[arg-type]
        first = tuple(
            msgspec.structs.replace(certificate(serial, id_), not_after_s=time.time() + 3600)
            for serial, id_ in enumerate("abc", 1)
        )
        await agreement.propose(commands.FoundCluster("lab", b"ca", first))
        view.now("a", **READS_NEWER)
        view.now("b", **READS_NEWER)
        assert not await coordinating._raise_format(), "one of them has not been heard of"
        view.known |= View("c").known
        view.dead("c")
        assert not await coordinating._raise_format(), "one that is dead comes back as it was"
        view.now("c", state=MemberState.ALIVE, **READS_NEWER)
        assert await coordinating._raise_format()
        assert agreement.state.format == formats.agreed(agreement.state.settings) == NEWER
        assert not await coordinating._raise_format()

    asyncio.run(scene())
