"""`kos bench notebook`: what the notebook's side costs, beside the same without it.

Theory of operation. Everything is measured in processes of their own: IPython shells and Jupyter kernels as a user's
are, on a cluster of two nodes on loopback. The notebook's package is only named in what they run, since the command
does not need it. What is compared alternates, so that a disturbance of the machine meets both.

Rules: data goes to stdout, progress to stderr. An aim that was not reached is printed as such.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
from jupyter_client.manager import KernelManager

from kos_cluster.errors import KosError
from kos_cluster.home import EMBEDDED_NAME, ClusterHome, Home
from kos_cluster.services import daemons, embedded
from kos_cluster.services.bench import machine
from kos_cluster.services.bench.main import target_of

NODES = 2
SETTLE_S = 3.0  # after which the fork servers have loaded what cells need
PAUSE_S = 0.1  # between two cells: nobody types faster
PROBE_TIMEOUT_S = 120
READY_TIMEOUT_S = 60

PROBE = """
import json, statistics, sys, time
import IPython.core.completer
from IPython.core.interactiveshell import InteractiveShell
repeats, pause_s = int(sys.argv[1]), float(sys.argv[2])
shell = InteractiveShell.instance()
began = time.perf_counter()
shell.run_line_magic("load_ext", "kos_kernel")
figures = {"load": [time.perf_counter() - began]}
import kos_cluster
cluster = kos_cluster.connect()
def noop(): pass
works = {
    "submit": lambda: cluster.submit(noop).result(),
    "cell": lambda: shell.run_cell_magic("kos", "run --distribute", "pass\\n"),
    "complete": lambda: shell.complete("%kos run --on n", cursor_pos=15),
}
for name in works:
    figures[name] = []
for round_ in range(repeats + 5):
    for name, work in works.items():
        time.sleep(pause_s)
        began = time.perf_counter()
        work()
        if round_ >= 5:
            figures[name].append(time.perf_counter() - began)
figures["cell beyond submit"] = [c - s for c, s in zip(figures["cell"], figures["submit"])]
print(json.dumps(figures))
"""


class Figure(msgspec.Struct, frozen=True):
    """Seconds, in the order in which they were measured. `aim_s`: what the median should not exceed; 0: none."""

    name: str
    meaning: str
    repeats_s: list[float]
    aim_s: float = 0.0

    @property
    def median_s(self) -> float:
        return statistics.median(self.repeats_s)


class Report(msgspec.Struct, frozen=True):
    """What `--json` writes."""

    figures: list[Figure]
    machine: dict[str, str | int | list[float]]
    versions: dict[str, str]


def run(args: argparse.Namespace) -> int:
    """Carry out `kos bench notebook`: `args` has repeats and json. Raises KosError when a measure fails."""
    target = target_of(args.json)
    report = Report(measured(args.repeats), machine.machine(), machine.versions())
    print(rendered(report))
    if target is not None:
        target.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    return 0


def measured(repeats: int) -> list[Figure]:
    """All figures, on a cluster of their own that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="kos-") as folder:
        home = Home(Path(folder))
        environ = {**os.environ, "KOS_HOME": folder}
        try:
            with daemons.changing(home):
                embedded.up(home, NODES)
            time.sleep(SETTLE_S)
            print("measuring cells", file=sys.stderr, flush=True)
            loads = [_probe(environ, 1)["load"][0] for _ in range(max(3, repeats // 10))]
            cells = _probe(environ, repeats)
            print("measuring kernels", file=sys.stderr, flush=True)
            plain, ours = _kernels(environ, max(3, repeats // 10))
        finally:
            with daemons.changing(home):
                embedded.down(ClusterHome(home, EMBEDDED_NAME))
    beyond = [ours_s - plain_s for plain_s, ours_s in zip(plain, ours, strict=True)]
    return [
        Figure("load", "%load_ext kos_kernel, beyond IPython", loads, 0.3),
        Figure("submit", "a no-op by cluster.submit(...).result()", cells["submit"]),
        Figure("cell", "a no-op cell by %%kos run --distribute", cells["cell"]),
        Figure("cell beyond submit", "the difference of these two", cells["cell beyond submit"], 0.01),
        Figure("completion", "of a node's name", cells["complete"], 0.05),
        Figure("plain kernel", "ipykernel, from its start until it answers", plain),
        Figure("kernel", "Python 3 (KOS), likewise", ours),
        Figure("kernel beyond plain", "the difference of these two", beyond, 1.0),
    ]


def rendered(report: Report) -> str:
    """The report as text for a terminal."""
    lines = []
    for each in report.figures:
        low, high = min(each.repeats_s), max(each.repeats_s)
        aim = ""
        if each.aim_s:
            reached = "reached" if each.median_s <= each.aim_s else "NOT reached"
            aim = f"; aim {_ms(each.aim_s)}: {reached}"
        spread = f"({_ms(low)} to {_ms(high)}, {len(each.repeats_s)} measurements)"
        lines.append(f"{each.name}: {each.meaning}\n  median {_ms(each.median_s)} {spread}{aim}")
    lines.append("Machine: " + ", ".join(f"{key} {value}" for key, value in report.machine.items()))
    lines.append("Versions: " + ", ".join(f"{name} {version}" for name, version in report.versions.items()))
    return "\n".join(lines)


def _probe(environ: dict[str, str], repeats: int) -> dict[str, list[float]]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(repeats), str(PAUSE_S)],
        env=environ,
        capture_output=True,
        text=True,
        timeout=PROBE_TIMEOUT_S + repeats,
        check=False,
    )
    if done.returncode != 0:
        raise KosError("The notebook's side could not be measured.", f"What happened: {done.stderr.strip()[-500:]}")
    figures: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _kernels(environ: dict[str, str], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds until kernels answer: plain ones, and ours."""
    took: dict[str, list[float]] = {"ipykernel_launcher": [], "kos_kernel": []}
    for _ in range(repeats):
        for module, seconds in took.items():
            seconds.append(_ready_s(module, environ))
    return took["ipykernel_launcher"], took["kos_kernel"]


def _ready_s(module: str, environ: dict[str, str]) -> float:
    manager = KernelManager()
    spec = manager.kernel_spec
    assert spec is not None
    spec.argv = [sys.executable, "-P", "-m", module, "-f", "{connection_file}"]
    began = time.perf_counter()
    manager.start_kernel(env=environ, stderr=subprocess.DEVNULL)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=READY_TIMEOUT_S)
        return time.perf_counter() - began
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if abs(seconds) < 1 else f"{seconds:.2f} s"
