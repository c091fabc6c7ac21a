"""`python -m kos_kernel.remote -f CONNECTION_FILE`: the kernel as it runs on a node, for a notebook elsewhere.

Rules: what it says while its client is away is kept for that client, up to `KEPT_MESSAGES` a socket; a plain kernel
keeps a thousand, which a progress bar writes in minutes.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from ipykernel.kernelapp import IPKernelApp

from kos_kernel.kernel import KosKernel

KEPT_MESSAGES = 100_000  # of one client's socket that does not read
NOTICE = "KOS_KERNEL_NOTICE"  # what the first cell is to say before anything else


class RemoteKernelApp(IPKernelApp):
    """IPython's kernel application, for a client that may be away for long."""

    def init_iopub(self, context: Any) -> None:
        context.sndhwm = KEPT_MESSAGES
        super().init_iopub(context)

    def init_extensions(self) -> None:
        super().init_extensions()
        notice = os.environ.pop(NOTICE, "")
        if notice:
            self._say_before_first_cell(notice)

    def _say_before_first_cell(self, notice: str) -> None:
        assert self.shell is not None
        events = self.shell.events

        def say(*_: object) -> None:
            events.unregister("pre_run_cell", say)
            sys.stderr.write(f"kos: {notice}\n")

        events.register("pre_run_cell", say)


if __name__ == "__main__":
    RemoteKernelApp.launch_instance(kernel_class=KosKernel)
