"""A shell that is made before workers are forked: it is used, and until then nobody can tell that it is there."""

from __future__ import annotations

import subprocess
import sys

HIDDEN = """
import atexit, builtins, os, signal, sys, threading
import kos_cluster.tasks.worker
before = [set(vars(builtins)), set(vars(sys)), list(sys.path), dict(os.environ), sys.displayhook, sys.excepthook]
import kos_kernel.magics.warm
after = [set(vars(builtins)), set(vars(sys)), list(sys.path), dict(os.environ), sys.displayhook, sys.excepthook]
assert after == before, (before, after)
from IPython import get_ipython
assert get_ipython() is None
assert threading.enumerate() == [threading.main_thread()]
from kos_kernel.magics.shell import _kept, the_shell
kept = _kept[0]._shell
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
assert the_shell() is kept and get_ipython() is kept and __IPYTHON__
kept.new_namespace()
assert kept.run("40 + 2", shown=False) == (42, None)
assert the_shell() is kept
"""


def test_a_shell_made_ahead_of_time_hides_until_a_cell_comes() -> None:
    done = subprocess.run([sys.executable, "-c", HIDDEN], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
