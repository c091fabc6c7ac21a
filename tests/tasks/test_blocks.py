"""What a worker does with blocks that stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from kos_cluster.errors import UnreachableError
from kos_cluster.tasks import blocks
from kos_cluster.tasks.blocks import let_go
from kos_cluster.tasks.context import here


def test_a_worker_whose_arena_is_gone_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    def gone(folder: Path) -> None:
        tried.append(folder)
        assert len(tried) < 5, "it would never end"
        raise UnreachableError("The arena of this machine's node cannot be reached.")

    monkeypatch.setattr(blocks, "attached", gone)
    monkeypatch.setattr(blocks, "_staying", {"x": 0.0, "y": 0.0})
    monkeypatch.setattr(here, "arena", Path("arena"))
    let_go()
    assert not blocks._staying
    assert "Blocks that stay could not be passed on: The arena of this machine's node cannot be reached" in caplog.text
