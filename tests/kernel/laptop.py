"""A laptop whose network can be cut, as when it sleeps: the tunnels of one process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from kos_cluster.errors import UnreachableError
from kos_cluster.net import tunnel

ASLEEP = Path("asleep")  # in the folder that Lab was started in


class Laptop:
    """The links of all tunnels that this process has opened, and whether it may open more."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.links: list[Any] = []
        self.asleep = False
        dial = tunnel.dial

        def dialled(*args: Any) -> Any:
            if self.asleep:
                raise UnreachableError("The laptop sleeps.")
            link, received = dial(*args)
            self.links.append(link)
            return link, received

        patch.setattr(tunnel, "dial", dialled)

    def cut(self) -> None:
        """Every link breaks, as both ends see it."""
        for link in self.links:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(link.fileno())) as handle:
                handle.shutdown(socket.SHUT_RDWR)


def main() -> None:
    """JupyterLab on such a laptop: it sleeps, and wakes, at SIGUSR2. While it sleeps there is a file `asleep`."""
    from jupyterlab.labapp import LabApp

    with pytest.MonkeyPatch.context() as patch:
        laptop = Laptop(patch)

        def turn(*_: object) -> None:
            laptop.asleep = not laptop.asleep
            if laptop.asleep:
                laptop.cut()
                ASLEEP.touch()
            else:
                ASLEEP.unlink()

        signal.signal(signal.SIGUSR2, turn)
        LabApp.launch_instance()


if __name__ == "__main__":
    main()
