"""What a user sees of `%kos` and `%%kos` in a real kernel without a cluster."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from typing import Any

import pytest

LOADED = """
import sys, time
import IPython.core.interactiveshell, IPython.core.completer
shell = IPython.core.interactiveshell.InteractiveShell.instance()
began = time.perf_counter()
shell.run_line_magic("load_ext", "kos_kernel")
print(time.perf_counter() - began)
heavy = "numpy", "zmq", "cloudpickle", "kos_cluster.tasks.cluster", "matplotlib"
print([name for name in heavy if name in sys.modules])
"""


def test_loading_is_light() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=60, check=True)
    _, heavy = done.stdout.splitlines()
    assert heavy == "[]"


def sentence(cell: Any) -> str:
    """The one line that an error shows."""
    assert cell.error, cell.shown()
    assert len(cell.error["traceback"]) == 1 and "\n" not in cell.error["traceback"][0], cell.error["traceback"]
    assert cell.text("stderr") == ""
    return str(cell.error["traceback"][0])


BAD_LINES = {
    "%kos fly": "fly",
    "%kos run --cpus none x": "none",
    "%kos run 'x": "quotation",
    "%kos nodes --cluster nowhere": "nowhere",
    "%%kos nodes\n1": "can only be run",
    "%%kos run\n1": "%%kos run --distribute",
    "%%kos run --distribute script.py\n1": "script.py",
    "%%kos run --distribute --detach\n1": "A cell cannot be detached",
    "%%kos run --distribute --out y\n1": "--over",
    "%%kos run --distribute --over xs --out 3y\n1": "'3y'",
    "%%kos run --distribute --over xs --out class\n1": "'class'",
    "%%kos run --distribute --over nothing\n1": "nothing",
    "%%kos run --distribute --over [1,2]\n1": "--over takes the name of a variable, not '[1,2]'",
    "%%kos run --distribute --over range(3)\n1": "not 'range(3)'",
    "%%kos run --distribute --over [1, 2]\n1": "--over takes the name of a variable, not '[1,'",
    "%%kos run --distribute --over seven\n1": "int cannot be iterated",
    "%%kos run --distribute --env KOS_NOT_SET\n1": "KOS_NOT_SET",
    "%%kos run --distribute\nlock": f"'lock' (_thread.lock, {sys.getsizeof(threading.Lock())} bytes) cannot travel: ",
    "%%kos run --distribute --over xs\nlock": f"'lock' (_thread.lock, {sys.getsizeof(threading.Lock())} bytes)",
    "%%kos run --distribute --over locks\nitem": "Element 0 of --over: 'item' (_thread.lock, ",
    "%%kos run --distribute\nlen(big)": "big 120.0 MiB",
}
NEXT_STEP = re.compile(r"[.:] \S.*[.?]$")  # after what is wrong


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_mistake_shows_one_sentence(kernel: Any, line: str) -> None:
    kernel.run("import threading\nlock = threading.Lock()\nlocks = [lock]\nseven = 7\nxs = [1]")
    kernel.run("big = bytearray(120 << 20)")
    said = sentence(kernel.run(line))
    assert BAD_LINES[line] in said and NEXT_STEP.search(said)


def test_a_syntax_error_is_shown_as_ipython_shows_it(kernel: Any) -> None:
    here = kernel.run("x = 1\nx = 2\ny = = 2").error
    there = kernel.run("%%kos run --distribute\nx = 1\ny = = 2").error
    assert there["ename"] == here["ename"] == "SyntaxError"
    assert cell_number(here) + 1 == cell_number(there)
    assert without_number(there) == without_number(here)


def test_what_only_the_compiler_finds_is_refused_too(kernel: Any) -> None:
    assert kernel.run("%%kos run --distribute\nreturn 1").error["ename"] == "SyntaxError"


def plain(error: Any) -> str:
    """Without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error["traceback"]))


def cell_number(error: Any) -> int:
    found = re.search(r"In\[(\d+)\], line 3", plain(error))
    assert found, plain(error)
    return int(found[1])


def without_number(error: Any) -> str:
    return re.sub(r"In\[\d+\]", "In[]", plain(error))


HELP = {
    "%kos": "usage: kos ",
    "%kos --help": "usage: kos ",
    "%kos run?": "usage: kos run ",
    "x = 1\n  \n%kos cluster token ?": "usage: kos cluster token ",
    "%%kos run --over?": "usage: kos run ",
}


@pytest.mark.parametrize("line", HELP)
def test_help(kernel: Any, line: str) -> None:
    cell = kernel.run(line)
    assert not cell.error
    assert cell.text().startswith(HELP[line])


def test_the_magics_own_help(kernel: Any) -> None:
    assert not kernel.run("%kos?").error


def test_commands_print_what_the_command_prints(kernel: Any) -> None:
    cell = kernel.run("%kos --version")
    assert cell.text().startswith("kos ") and not cell.error


def test_the_extension_can_be_unloaded_and_loaded_again(kernel: Any) -> None:
    assert not kernel.run("%reload_ext kos_kernel").error
    assert kernel.value("len([m for m in get_ipython().Completer.custom_matchers])") == "1"
    kernel.run("%unload_ext kos_kernel")
    assert kernel.run("%kos --version").error or "not found" in kernel.run("%kos --version").text("stderr")
    assert not kernel.run("%load_ext kos_kernel").error
