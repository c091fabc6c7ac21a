"""What `kos engine list` and `status` tell of an engine, by its state."""

from __future__ import annotations

import argparse
import io

import msgspec
import pytest

from kos_cluster.cli import engines
from kos_cluster.cli.console import Console
from kos_cluster.services.engines.spec import Address, Record, State

SERVING = Record(
    name="big", kind="dask", id="0" * 16, job="j", state=State.SERVING, wanted=2, cpus=1, memory_bytes=0,
    restarts_left=0, plaintext=False, since_s=0.0, node="attic", workers=2, waiting=31, running=17,
    held_bytes=5 << 20, address=Address("tls://10.0.0.7:41099"),
)  # fmt: skip


def told(monkeypatch: pytest.MonkeyPatch, record: Record) -> tuple[str, str]:
    """What the two commands print."""
    monkeypatch.setattr(engines.kos, "connect", lambda _: None)
    monkeypatch.setattr(engines.control, "engines", lambda _: [record])
    monkeypatch.setattr(engines.control, "unreadable", lambda _: [])
    monkeypatch.setattr(engines.control, "find", lambda _, __: record)
    listing, status = io.StringIO(), io.StringIO()
    parsed = argparse.Namespace(cluster=None, json=False, name="big")
    assert engines.engine_list_(parsed, Console(listing, io.StringIO())) == 0
    assert engines.engine_status_(parsed, Console(status, io.StringIO())) == 0
    return listing.getvalue(), status.getvalue()


def test_of_one_that_serves_its_tasks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    listing, status = told(monkeypatch, SERVING)
    assert "31" in listing.split() and "17" in listing.split()
    assert "Head: tls://10.0.0.7:41099 on attic." in status
    assert "Tasks: 31 wait, 17 run; 5.0 MiB of results are held." in status


@pytest.mark.parametrize("state", [State.LOST, State.FAILED])
def test_of_one_that_does_not_serve_no_tasks_are_told_and_no_address(
    monkeypatch: pytest.MonkeyPatch, state: State
) -> None:
    listing, status = told(monkeypatch, msgspec.structs.replace(SERVING, state=state))
    assert "31" not in listing.split() and "17" not in listing.split()
    assert "Tasks:" not in status and "41099" not in status
    assert "Its head was on attic." in status
