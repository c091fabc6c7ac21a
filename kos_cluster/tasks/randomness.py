"""Random state of workers: new after every fork, and reproducible by item when a seed is given.

Rules: workers are forked from one warm server, so whatever random state it held would be equal in all of them. With a
seed, a task's numbers depend on (seed, index) alone, whichever worker runs it. `numpy.random.default_rng()` without
an argument takes its entropy from the system and is new in every call, seeded or not.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import sys

_WORDS = 8  # of 32 bits, from one SHA-256


def renew() -> None:
    """Give this process random state of its own; called once after a fork. A later import of numpy brings its own."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def prepare_seeding() -> None:
    """Import numpy's legacy generator where it is installed, so that `seed_task` reaches it before user code does."""
    if "numpy.random" not in sys.modules and importlib.util.find_spec("numpy") is not None:
        importlib.import_module("numpy.random")


def seed_task(seed: int, index: int) -> None:
    """Seed `random` and numpy's legacy generator from (seed, index)."""
    import hashlib

    digest = hashlib.sha256(f"{seed}.{index}".encode()).digest()
    random.seed(digest)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed([int.from_bytes(digest[4 * word : 4 * word + 4], "little") for word in range(_WORDS)])
