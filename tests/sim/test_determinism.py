"""The same seed gives the same bytes, in any process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

from kos_cluster.sim.faults import KINDS
from kos_cluster.sim.run import Options, run_many, run_seed
from kos_cluster.sim.trace import Trace

COMMAND = ["sim", "--nodes", "5", "--seed", "7", "--faults", "all", "--minutes", "0.3", "--trace"]


def traced(hash_seed: str) -> bytes:
    done = subprocess.run(
        [sys.executable, "-m", "kos_cluster.cli.main", *COMMAND],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_two_processes_give_the_same_bytes():
    one, other = traced("1"), traced("2")
    assert len(one) > 10_000
    assert hashlib.sha256(one).hexdigest() == hashlib.sha256(other).hexdigest()


def test_watching_a_world_does_not_change_it():
    options = Options(seconds=6.0)
    assert run_seed(11, options) == run_seed(11, options, Trace(lambda note, text: None))


def test_other_seeds_give_other_traces():
    digests = set()
    for seed in range(3):
        trace = Trace(lambda note, text: None)
        run_seed(seed, Options(seconds=3.0, kinds=tuple(KINDS)), trace)
        digests.add(trace.digest())
    assert len(digests) == 3


def test_many_processes_come_to_the_same_results():
    options = Options(seconds=2.0, membership=False)
    alone = list(run_many(range(10), options))
    shared = sorted(run_many(range(10), options, processes=2), key=lambda result: result.seed)
    assert shared == alone
