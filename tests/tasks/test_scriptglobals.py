"""What the calls of a script's pool find in its globals is what they find with the original, which runs beside it.

Each script runs twice: as it is, where its pool's processes are forked, and with the cluster's pool in the original's
place, on two workers (see `test_redirect`). Both must print the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.tasks.test_redirect import Ran, run

HELPER = """
import multiprocessing

setting = 1

def settled():
    return setting

class Counter:
    def __init__(self):
        self.value = multiprocessing.get_context("fork").Value("i")
"""


def both(tmp_path: Path, source: str) -> Ran:
    """Run a script as it is, and on the cluster's workers; they print the same, which is something."""
    files = {"helper.py": HELPER}
    ran = run(tmp_path, source, files=files)
    plain = tmp_path / "plain"
    plain.mkdir()
    for path, text in {"script.py": textwrap.dedent(source), **files}.items():
        (plain / path).write_text(text)
    original = subprocess.run(
        [sys.executable, "script.py"],
        cwd=plain,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ,
        check=False,
    )
    assert (original.returncode, original.stderr) == (0, "")
    assert original.stdout
    assert (ran.code, ran.out) == (0, original.stdout), ran.err
    return ran


TRAVELS = """
import multiprocessing
import os
import helper
from helper import *

MISSING = object()
registry = {"given": 1}

class Holder:
    value = 1
    items = []
    unset = MISSING

def double(x):
    return 2 * x

transform = None

def floored(x):
    return math.floor(x), transform(x), helper.settled(), settled()

def held(_):
    return Holder.value, Holder.items, Holder.unset is MISSING, registry

def optional(x=MISSING):
    return x is MISSING

def looked_up(name):
    return globals()[name]

def report(text):
    print(text, file=log)

def main():
    global log
    log = open(os.devnull, "w")  # cannot be pickled, and no call of the pool uses it
    report("begun")

if __name__ == "__main__":
    import math
    main()
    transform = double
    found = 17
    registry["set"] = 2
    Holder.value = 2
    Holder.items.append(3)
    helper.setting = 5
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.apply(floored, (2.5,)), pool.apply(held, (0,)))
        print(pool.apply(optional), pool.apply(looked_up, ("found",)))
"""


def test_what_was_bound_and_set_since_the_script_was_loaded_travels(tmp_path: Path) -> None:
    assert both(tmp_path, TRAVELS).err == ""


STAYS = """
import multiprocessing
import threading

transform = None
config = None
lock = None
hidden = None

def make(factor):
    return lambda x: factor * x

def transformed(x):
    return transform(x)

def through(x):
    return transformed(x)

def configured(x):
    return config["change"](x)

def locked(x):
    with lock:
        return x

def shown(x):
    return hidden.x + x

def plain(x):
    return -x

def call(fn, argument):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        print(fn.__name__, pool.apply(plain, (1,)), pool.apply(fn, (argument,)))

if __name__ == "__main__":
    transform = make(3)
    config = {"change": lambda x: x + 1}
    lock = threading.Lock()

    class Late:
        x = 40

        def __add__(self, other):
            return self.x + other

    def late(x):
        return x + 2

    hidden = Late()
    call(through, 1)
    call(configured, 1)
    call(locked, 1)
    call(late, 1)
    call(late, Late())
    call(shown, 1)
"""


def test_calls_that_use_what_only_a_forked_process_has_stay_and_say_so(tmp_path: Path) -> None:
    ran = both(tmp_path, STAYS)
    told = [line.removeprefix("kos: warning: a process pool stays on this machine: ") for line in ran.err.splitlines()]
    guarded = "is defined where loading the script does not come by: move it out of the __main__ guard."
    assert [told[0][:60], told[1][:57], told[2][:55]] == [
        "a call uses 'transform', which cannot be sent to a worker (C",
        "a call uses 'config', which cannot be sent to a worker (C",
        "a call uses 'lock', which cannot be sent to a worker (c",
    ]
    assert told[3:] == [
        f"a call uses 'late', which {guarded}",
        f"a call uses 'Late', which {guarded}",
        f"a call uses 'hidden', which refers to 'Late', which {guarded}",
    ]


SHARED = {
    "a class attribute": ("class Counts:\n    counter = Value('i')", "Counts.counter", "Counts.counter"),
    "a default": ("def add(_, counter=Value('i')):\n    with counter:\n        counter.value += 1", "", "add"),
    "what a function encloses": (
        "def made(counter):\n    def inner():\n        return counter\n    return inner\ninner = made(Value('i'))",
        "inner()",
        "inner",
    ),
    "an object of a module": ("import helper\nhelper.counted = helper.Counter()", "helper.counted.value", ""),
}


@pytest.mark.parametrize("where", SHARED)
def test_what_processes_share_is_found_wherever_it_hangs(tmp_path: Path, where: str) -> None:
    made, counter, named = SHARED[where]
    adds = "" if not counter else f"def add(_):\n    with {counter}:\n        {counter}.value += 1\n"
    counted = counter or "add.__defaults__[0]"
    ran = both(
        tmp_path,
        "import multiprocessing\n"
        "Value = multiprocessing.get_context('fork').Value\n"
        f"{made}\n{adds}"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "        pool.map(add, range(10))\n"
        f"    print({counted}.value)\n",
    )
    assert ran.out == "10\n"
    said = "kos: warning: a process pool stays on this machine: its processes share the Synchronized in "
    assert ran.err == f"{said}'{named or 'helper.counted'}'.\n"
