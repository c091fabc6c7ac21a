"""The kernel "Python 3 (KOS)": IPython's, with the extension loaded, that leaves no work behind when it ends.

Theory of operation. It attaches to a cluster when one is first asked for, so it starts as soon as ipykernel does.
Whoever shuts a kernel down or restarts it asks by a message, which is taken by a thread of its own: also while a cell
runs. The connections are closed there and then, which stops what they had submitted; a kernel that is killed instead
is seen by the nodes, which hold its pidfd.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ipykernel.ipkernel import IPythonKernel

from kos_cluster import __version__
from kos_cluster.services.kernelspec import MODULE
from kos_kernel import interrupts
from kos_kernel.attaching import disconnect


class KosKernel(IPythonKernel):
    """See the module."""

    implementation = "kos"
    implementation_version = __version__

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        assert self.shell is not None
        self.shell.extension_manager.load_extension(MODULE)

    def start(self) -> None:
        super().start()
        interrupts.register(self.shell)  # now that there is a loop

    @property
    def banner(self) -> str:  # type: ignore[override]
        return f"KOS {__version__}. '%kos' takes what the 'kos' command takes; '%kos?' says what.\n{super().banner}"

    async def do_shutdown(self, restart: bool) -> dict[str, Any]:
        await asyncio.to_thread(disconnect)
        reply: dict[str, Any] = super().do_shutdown(restart)
        return reply
