"""`%%kos profile`: run a cell, sample its tasks in their workers, and show where they spent their time.

With nothing after `profile` the cell runs in the notebook, and what it submits is sampled; with a `run --distribute`
it runs on the cluster as by `%%kos run --distribute`, and is sampled there.

Rules: what has ended when the cell ends is in the profile. A cell that fails shows its error and no profile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kos_cluster.errors import UsageError
from kos_cluster.tasks import profiling
from kos_kernel.magics.shell import CELL_FILE
from kos_kernel.output import sink_of_this_cell
from kos_kernel.profiles import Profile
from kos_kernel.rendering import rendered

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def run(shell: InteractiveShell, line: str, cell: str) -> Profile:
    """What `%%kos profile LINE` does with this cell. Raises UsageError when there is nothing to sample."""
    profile = Profile(CELL_FILE if line else "")
    with sink_of_this_cell().profiled(profile.add), profiling.collecting():
        if line:
            _run_there(shell, line, cell)
        else:
            _run_here(shell, cell)
    if not profile.tasks:
        raise UsageError(
            "No task of this cell has run on the cluster, so there is nothing to profile.",
            "Wait in the cell for what it submits, or write '%%kos profile run --distribute' to run the cell there.",
        )
    if not profile.stacks:
        raise UsageError(
            f"The cell's tasks took less than the {1000 * profiling.INTERVAL_S:.0f} ms between two samples.",
            "Profile more work, or fewer and larger tasks.",
        )
    return profile


def _run_there(shell: InteractiveShell, line: str, cell: str) -> None:
    from kos_kernel.magics import cells

    cells.run(shell, line, cell)


def _run_here(shell: Any, cell: str) -> None:
    """In the notebook's own namespace. Raises what the cell raised, which has been shown."""
    result = shell.run_cell(cell, store_history=False)
    error = result.error_before_exec or result.error_in_exec
    if error is not None:
        raise rendered(error)
