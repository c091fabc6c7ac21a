"""KOS in IPython and Jupyter: `%load_ext kos_kernel` gives the `%kos` and `%%kos` magics.

    kernel, __main__   the kernel "Python 3 (KOS)", which has the extension loaded
    attaching          when a notebook comes to a cluster, and how it leaves
    output, threads    output lands in the cell that caused it
    interrupts         an interrupt reaches a cell that awaits
    bar, listings, profiles, rendering    progress, tables, flame graphs and errors as a notebook shows them
    magics/            what is typed, and cells on their way

Rules: loading is light: everything that talks to a cluster is imported when it is first used. Nothing here keeps
state of a cluster; that is `kos_cluster`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from kos_kernel.dashboard.widget import Monitor


def monitor(cluster: str | None = None) -> Monitor:
    """A live monitor of the cluster of this name, or of the one that `kos_cluster.connect` finds.

    Raises NotInClusterError, UnreachableError, AuthError.
    """
    from kos_cluster.errors import KosError
    from kos_kernel.dashboard.widget import Monitor
    from kos_kernel.rendering import as_sentence

    try:
        return Monitor(cluster)
    except KosError as error:
        as_sentence(error)
        raise


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Called by `%load_ext kos_kernel`."""
    from kos_kernel import interrupts, output, threads
    from kos_kernel.magics import asking, command, completion, profiling

    command.register(shell)
    asking.register(shell)
    profiling.register(shell)
    completion.register(shell)
    output.register(shell)
    threads.register(shell)
    interrupts.register(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """Called by `%unload_ext kos_kernel`; `%reload_ext` is this and loading."""
    from kos_kernel import interrupts, output, threads
    from kos_kernel.magics import asking, command, completion, profiling

    interrupts.unregister(shell)
    threads.unregister()
    output.unregister()
    completion.unregister(shell)
    profiling.unregister(shell)
    asking.unregister(shell)
    command.unregister(shell)
