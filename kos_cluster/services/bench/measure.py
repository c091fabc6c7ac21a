"""The process that measures one part on one system once: `python -m kos_cluster.services.bench.measure JOB`.

JOB is a JSON `Assignment`. Samples are appended to `samples.jsonl` in its folder as they are made, so what was
measured before a failure is kept. The process, and all that it starts, keeps to `parts.CORES` cores, so that machines
with more of them compare.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import msgspec

from kos_cluster.services.bench import overhead, parts
from kos_cluster.services.bench.figures import Part, Sample, Work
from kos_cluster.services.bench.plan import Plan
from kos_cluster.services.bench.systems import ENTRIES

SAMPLES_FILE = "samples.jsonl"


class Assignment(msgspec.Struct, frozen=True):
    """What to measure. `began_s` is the monotonic clock, which all processes share, before this one was started."""

    system: str
    part: Part
    plan: Plan
    folder: str
    began_s: float


def noop(item: int) -> int:
    """The task. As this module is run as a script, it is pickled by value, like a notebook's function."""
    return item


def main(job: str) -> None:
    """Measure, and leave the samples in the folder."""
    assignment = msgspec.json.decode(job, type=Assignment)
    entry = ENTRIES[assignment.system]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: parts.CORES])
    folder = Path(assignment.folder)
    with open(folder / SAMPLES_FILE, "ab", buffering=0) as file:

        def keep(work: Work, value: float, items: int = 1) -> None:
            file.write(msgspec.json.encode(Sample(work, entry.name, value, items)) + b"\n")

        if assignment.part is Part.OVERHEAD:
            overhead.measure(entry, folder, assignment.plan, keep, noop, lambda: time.monotonic() - assignment.began_s)
        else:
            parts.MEASURES[assignment.part](entry, folder, assignment.plan, keep)


if __name__ == "__main__":
    main(sys.argv[1])
