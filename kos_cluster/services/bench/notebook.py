"""`kos bench notebook`: what the notebook's side costs, beside the same without it.

Theory of operation. Everything is measured in processes of their own: IPython shells and Jupyter kernels as a user's
are, on a cluster of two nodes on loopback; no browser is there. The notebook's package is only named in what they run,
since the command does not need it. What is compared alternates, so that a disturbance of the machine meets both.

Rules: data goes to stdout, progress to stderr. An aim that was not reached is printed as such.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from kos_cluster.errors import KosError
from kos_cluster.services.bench import reports
from kos_cluster.services.bench.fleet import fleet
from kos_cluster.services.bench.reports import Report, circumstances, report_of, target_of

NODES = 2
SETTLE_S = 3.0  # after which the fork servers have loaded what cells need
PAUSE_S = 0.1  # between two cells: nobody types faster
FEWEST = 3  # of what starts a process: a tenth of the repeats, but so many
WARM_UPS = 5  # rounds of cells that do not count: the first worker of a kind is made for them
MEASURE_TIMEOUT_S = 120
ROUND_TIMEOUT_S = 2  # beside, for each round of cells
READY_TIMEOUT_S = 60

LOAD = """
import time
import IPython.core.completer
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
began = time.perf_counter()
shell.run_line_magic("load_ext", "kos_kernel")
print(time.perf_counter() - began)
"""
# Run in a kernel, as a cell: submits and cells in turn.
CELLS = """
import json, time
import kos_cluster
cluster, shell = kos_cluster.connect(), get_ipython()
def noop(): pass
works = {{
    "submit": lambda: cluster.submit(noop).result(),
    "cell": lambda: shell.run_cell_magic("kos", "run --distribute", "pass\\n"),
}}
figures = {{name: [] for name in works}}
for round_ in range({warm_ups} + {repeats}):
    for name, work in works.items():
        time.sleep({pause_s})
        began = time.perf_counter()
        work()
        if round_ >= {warm_ups}:
            figures[name].append(time.perf_counter() - began)
print(json.dumps(figures))
"""
COMPLETED = "%kos run --on n"


class Figure(msgspec.Struct, frozen=True):
    """Seconds, in the order in which they were measured. `aim_s`: what the median should not exceed; 0: none."""

    name: str
    meaning: str
    repeats_s: list[float]
    aim_s: float = 0.0

    @property
    def median_s(self) -> float:
        return statistics.median(self.repeats_s)


def run(args: argparse.Namespace) -> int:
    """Carry out `kos bench notebook`: `args` has repeats and json. Raises KosError when a measure fails."""
    target = target_of(args.json)
    report = report_of(measured(args.repeats))
    print(rendered(report))
    reports.write(report, target)
    return 0


def measured(repeats: int) -> list[Figure]:
    """All figures, on a cluster of their own that is gone afterwards."""
    with fleet(NODES) as own:
        time.sleep(SETTLE_S)
        print("measuring cells", file=sys.stderr, flush=True)
        few = max(FEWEST, repeats // 10)
        loads = [_load_s(own.environ) for _ in range(few)]
        cells = _in_kernel(own.environ, repeats)
        print("measuring kernels", file=sys.stderr, flush=True)
        plain, ours = _kernels(own.environ, few)
    beyond = _differences(ours, plain)
    return [
        Figure("load", "%load_ext kos_kernel, beyond IPython", loads, 0.3),
        Figure("submit", "a no-op by cluster.submit(...).result()", cells["submit"]),
        Figure("cell", "a no-op cell by %%kos run --distribute", cells["cell"]),
        Figure("cell beyond submit", "the difference of these two", _differences(cells["cell"], cells["submit"]), 0.01),
        Figure(
            "completion", f"of {COMPLETED!r}, from the question to the kernel to its answer", cells["complete"], 0.05
        ),
        Figure("plain kernel", "ipykernel, from its start until it answers", plain),
        Figure("kernel", "Python 3 (KOS), likewise", ours),
        Figure("kernel beyond plain", "the difference of these two", beyond, 1.0),
    ]


def rendered(report: Report[Figure]) -> str:
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
    return "\n".join([*lines, *circumstances(report.machine, report.versions)])


def _differences(these: list[float], those: list[float]) -> list[float]:
    return [one - other for one, other in zip(these, those, strict=True)]


def _load_s(environ: dict[str, str]) -> float:
    """Seconds that a fresh IPython takes to load the extension."""
    words = [sys.executable, "-c", LOAD]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=MEASURE_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise _not_measured(done.stderr.strip()[-500:])
    return float(done.stdout.splitlines()[-1])


def _in_kernel(environ: dict[str, str], repeats: int) -> dict[str, list[float]]:
    """What a kernel takes for submits, cells and completions, the very first completion among them."""
    with _kernel("kos_kernel", environ) as client:
        figures = _cells(client, repeats)
        figures["complete"] = []
        for _ in range(repeats):
            began = time.perf_counter()
            client.complete(COMPLETED, len(COMPLETED), reply=True, timeout=MEASURE_TIMEOUT_S)
            figures["complete"].append(time.perf_counter() - began)
            time.sleep(PAUSE_S)
    return figures


def _cells(client: BlockingKernelClient, repeats: int) -> dict[str, list[float]]:
    printed: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
            printed.append(message["content"]["text"])

    code = CELLS.format(warm_ups=WARM_UPS, repeats=repeats, pause_s=PAUSE_S)
    timeout_s = MEASURE_TIMEOUT_S + ROUND_TIMEOUT_S * (WARM_UPS + repeats)
    reply = client.execute_interactive(code, output_hook=hear, allow_stdin=False, timeout=timeout_s)["content"]
    if reply["status"] != "ok":
        raise _not_measured(f"{reply.get('ename')}: {reply.get('evalue')}")
    figures: dict[str, list[float]] = json.loads("".join(printed).splitlines()[-1])
    return figures


def _not_measured(what: str) -> KosError:
    return KosError("The notebook's side could not be measured.", f"What happened: {what}")


def _kernels(environ: dict[str, str], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds until kernels answer: plain ones, and ours."""
    took: dict[str, list[float]] = {"ipykernel_launcher": [], "kos_kernel": []}
    for _ in range(repeats):
        for module, seconds in took.items():
            seconds.append(_ready_s(module, environ))
    return took["ipykernel_launcher"], took["kos_kernel"]


def _ready_s(module: str, environ: dict[str, str]) -> float:
    began = time.perf_counter()
    with _kernel(module, environ):
        return time.perf_counter() - began


@contextlib.contextmanager
def _kernel(module: str, environ: dict[str, str]) -> Iterator[BlockingKernelClient]:
    """A kernel of this module, once it answers."""
    manager = KernelManager()
    spec = manager.kernel_spec
    assert spec is not None
    spec.argv = [sys.executable, "-P", "-m", module, "-f", "{connection_file}"]
    manager.start_kernel(env=environ, stderr=subprocess.DEVNULL)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=READY_TIMEOUT_S)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if abs(seconds) < 1 else f"{seconds:.2f} s"
