"""Ways to look away from a monitor and back, and what its kernel does meanwhile: its samples, where it listens."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.browser.lab import Notebook, until
from tests.e2e.conftest import _until

STOPS_WITHIN_S = 15.0  # half of the lease after which a kernel forgets who looks, and has not said that he does not
UNSEEN_MS = 2500  # in which two samples would be taken
_LISTENS = "00010000"  # among the flags of /proc/net/unix


class Samples:
    """The samples that the process of a notebook takes, a byte each in a file. Works without running a cell."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.noting = f"from tests.browser.synthetic import note_samples\nnote_samples({str(file)!r})"

    def taken(self) -> int:
        return self._file.stat().st_size if self._file.exists() else 0

    def go_on(self) -> None:
        before = self.taken()
        until(lambda: self.taken() > before, "samples are taken")

    def stop(self, notebook: Notebook) -> None:
        def stands_still() -> bool:
            before = self.taken()
            notebook.page.wait_for_timeout(UNSEEN_MS)
            return self.taken() == before

        _until(stands_still, "no more samples are taken", STOPS_WITHIN_S)


@contextmanager
def scrolled_away(notebook: Notebook, below: int) -> Iterator[None]:
    """The cell of this number is in sight, and the monitor above it is not."""
    before = notebook.page.viewport_size
    assert before is not None
    notebook.page.set_viewport_size({"width": before["width"], "height": 300})
    notebook.cell(below).locator(".cm-content").click()
    notebook.cell(below).evaluate("cell => cell.scrollIntoView({ block: 'start' })")
    try:
        yield
    finally:
        notebook.page.set_viewport_size(before)
        notebook.look()


@contextmanager
def in_a_hidden_tab(notebook: Notebook) -> Iterator[None]:
    """As a browser tells a page whose tab is behind another. A headless one holds each page to be in front."""
    tell = "hidden => (Object.defineProperty(document, 'hidden', { get: () => hidden, configurable: true })"
    tell += " && document.dispatchEvent(new Event('visibilitychange')))"
    notebook.page.evaluate(tell, True)
    try:
        yield
    finally:
        notebook.page.evaluate(tell, False)


@contextmanager
def closed(notebook: Notebook, index: int, code: str) -> Iterator[None]:
    """The cell of this number, which has this code, shows it no more, and then anew."""
    notebook.empty(index)
    try:
        yield
    finally:
        notebook.write(index, code)
        notebook.run(index)


def listening(pid: int) -> set[str]:
    """Where others can come to a process: its TCP sockets that listen, those of UDP, and UNIX sockets that listen."""
    own = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            own.add(os.readlink(descriptor))
    found = {
        f"{each.type.name} {each.laddr}"
        for each in psutil.Process(pid).net_connections("inet")
        if each.status == psutil.CONN_LISTEN or each.type == socket.SOCK_DGRAM
    }
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        _, _, _, flags, _, _, inode, *path = line.split()
        if flags == _LISTENS and f"socket:[{inode}]" in own:
            found.add(f"UNIX {inode} {path}")
    return found
