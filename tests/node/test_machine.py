"""What a node measures of its machine's load."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kos_cluster.node import machine

Moved = namedtuple("Moved", "bytes_recv bytes_sent")
GIB = 1 << 30


@pytest.mark.parametrize(("loopback", "received", "sent"), [(False, 500, 100), (True, 500_500, 500_100)])
def test_a_load_has_processor_memory_and_network(
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
        return meter.sample(dropped_frames=1)

    meter = machine.LoadMeter(loopback=loopback)
    moved.update(lo=Moved(10**6, 10**6), eth0=Moved(10**9 + 1000, 10**8 + 200))
    now_s += 2.0
    load = measured()
    assert load.dropped_frames == 1
    assert (load.cpu_percent, load.memory_percent, load.memory_available_bytes) == (75.0, 25.0, 6 * GIB)
    assert (load.received_bytes_s, load.sent_bytes_s) == (received, sent)

    moved.update(lo=Moved(10**6, 10**6), eth0=Moved(0, 0))  # the interface was reset
    now_s += 2.0
    assert (measured().received_bytes_s, measured().sent_bytes_s) == (0, 0)


@pytest.mark.parametrize(
    ("drivers", "devices", "visible", "found"),
    [
        (0, [], None, ()),
        (2, [], None, ("0", "1")),
        (0, ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"], None, ("0", "1")),
        (2, [], "1", ("1",)),
        (2, [], "GPU-8932f937, GPU-1", ("GPU-8932f937", "GPU-1")),
        (4, [], "2,-1,3", ("2",)),
        (2, [], "", ()),
        (1, [], "0,1", ("0",)),
        (0, [], "0", ()),
    ],
)
def test_the_gpus_are_those_that_the_driver_has_and_that_are_visible(
    drivers: int, devices: list[str], visible: str | None, found: tuple[str, ...], tmp_path: Path
) -> None:
    for number in range(drivers):
        (tmp_path / "driver" / "nvidia" / "gpus" / f"0000:0{number}:00.0").mkdir(parents=True)
    for device in devices:
        (tmp_path / device).touch()
    assert machine.gpus(tmp_path, tmp_path, visible) == found
