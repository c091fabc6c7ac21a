"""`%%kos profile`: run a cell, sample its tasks in their workers, and show where they spent their time.

With nothing after `profile` the cell runs in the notebook, and what it submits is sampled; with a `run --distribute`
it runs on the cluster as by `%%kos run --distribute`, and is sampled there.

Theory of operation. A magic is a plain call, and beneath one nothing can be awaited while the kernel's loop runs. So
IPython is given, in place of a cell that awaits at its top level, an `await` of `awaiting`: that runs as any cell that
awaits, and an interrupt reaches it as any.

Rules: what has ended when the cell ends is in the profile. A cell that fails shows its error and no profile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from IPython.core.getipython import get_ipython

from kos_cluster.errors import KosError, UsageError
from kos_kernel.rendering import as_sentence, rendered

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from kos_kernel.profiles import Profile

_HERE = re.compile(r"^%%kos[ \t]+profile[ \t]*\n?$")
_AWAITED = "await __import__('kos_kernel.magics.profiling', fromlist=['awaiting']).awaiting"


def run(shell: InteractiveShell, line: str, cell: str) -> Profile:
    """What `%%kos profile LINE` does with this cell. Raises UsageError when there is nothing to sample."""
    from kos_kernel.magics.shell import CELL_FILE

    with _sampled(CELL_FILE if line else "") as profile:
        if line:
            _run_there(shell, line, cell)
        else:
            _run_here(shell, cell)
    return _found(profile)


async def awaiting(cell: str) -> Profile:
    """What `%%kos profile` does with a cell that awaits."""
    shell: Any = get_ipython()
    with _sampled("") as profile:
        result = await shell.run_cell_async(cell, transformed_cell=shell.transform_cell(cell))
        shell.events.trigger("post_execute")  # which IPython leaves to whoever awaits a cell
        shell.events.trigger("post_run_cell", result)
        _check(result)
    try:
        return _found(profile)
    except KosError as error:
        as_sentence(error)
        raise


def with_await(lines: list[str]) -> list[str]:
    """The lines of a cell; of one whose profile is to be taken, and that awaits, the call that awaits it."""
    if not lines or not _HERE.match(lines[0]):
        return lines
    cell = "".join(lines[1:])
    return [f"{_AWAITED}({cell!r})\n"] if _awaits(cell) else lines


def register(shell: InteractiveShell) -> None:
    shell.input_transformers_cleanup.append(with_await)


def unregister(shell: InteractiveShell) -> None:
    if with_await in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.remove(with_await)


def _awaits(cell: str) -> bool:
    shell: Any = get_ipython()
    try:
        return bool(shell.should_run_async(cell, transformed_cell=shell.transform_cell(cell)))
    except SyntaxError:  # shown when it runs
        return False


@contextmanager
def _sampled(beneath: str) -> Iterator[Profile]:
    """Sample what the calling cell submits meanwhile."""
    from kos_cluster.tasks import profiling
    from kos_kernel.output import sink_of_this_cell
    from kos_kernel.profiles import Profile

    profile = Profile(beneath)
    with sink_of_this_cell().profiled(profile.add), profiling.collecting():
        yield profile


def _found(profile: Profile) -> Profile:
    """The profile, if there is anything in it. Raises UsageError."""
    from kos_cluster.tasks.profiling import INTERVAL_S

    if not profile.tasks:
        raise UsageError(
            "No task of this cell has run on the cluster, so there is nothing to profile.",
            "Wait in the cell for what it submits, or write '%%kos profile run --distribute' to run the cell there.",
        )
    if not profile.stacks:
        raise UsageError(
            f"The cell's tasks took less than the {1000 * INTERVAL_S:.0f} ms between two samples.",
            "Profile more work, or fewer and larger tasks.",
        )
    return profile


def _run_there(shell: InteractiveShell, line: str, cell: str) -> None:
    from kos_kernel.magics import cells

    cells.run(shell, line, cell)


def _run_here(shell: InteractiveShell, cell: str) -> None:
    """In the notebook's own namespace. Raises what the cell raised, which has been shown."""
    _check(shell.run_cell(cell, store_history=False))


def _check(result: Any) -> None:
    error = result.error_before_exec or result.error_in_exec
    if error is not None:
        raise rendered(error)
