"""What a node measures of its machine's load."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest

from kos_cluster.node import machine

Moved = namedtuple("Moved", "bytes_recv bytes_sent")
GIB = 1 << 30


@pytest.mark.parametrize(("loopback", "received", "sent"), [(False, 500, 100), (True, 500_500, 500_100)])
def test_a_load_has_slots_queue_processor_memory_and_network(
    loopback: bool, received: int, sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = {"lo": Moved(0, 0), "eth0": Moved(10**9, 10**8)}
    now_s = 100.0
    memory = namedtuple("Memory", "percent available")(25.0, 6 * GIB)
    here = SimpleNamespace(
        net_io_counters=lambda **_: dict(moved), cpu_percent=lambda **_: 75.0, virtual_memory=lambda: memory
    )
    monkeypatch.setattr(machine, "psutil", here)
    monkeypatch.setattr(machine, "time", SimpleNamespace(monotonic=lambda: now_s))

    def measured() -> Any:
        return meter.sample(running=3, queued=2, dropped_frames=1)

    meter = machine.LoadMeter(loopback=loopback)
    moved.update(lo=Moved(10**6, 10**6), eth0=Moved(10**9 + 1000, 10**8 + 200))
    now_s += 2.0
    load = measured()
    assert (load.running, load.queued, load.dropped_frames) == (3, 2, 1)
    assert (load.cpu_percent, load.memory_percent, load.memory_available_bytes) == (75.0, 25.0, 6 * GIB)
    assert (load.received_bytes_s, load.sent_bytes_s) == (received, sent)

    moved.update(lo=Moved(10**6, 10**6), eth0=Moved(0, 0))  # the interface was reset
    now_s += 2.0
    assert (measured().received_bytes_s, measured().sent_bytes_s) == (0, 0)
