"""Notebooks in a browser, as a user opens and runs them."""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.e2e.conftest import Machine, _until

PATIENCE_MS = 60_000
TOKEN = "look"

expect.set_options(timeout=PATIENCE_MS)


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for what no locator shows; its value."""
    return _until(condition, what, PATIENCE_MS / 1000)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server(NamedTuple):
    """A JupyterLab server, which writes its log into a file."""

    address: str
    pid: int
    log: Path


class Lab:
    """A browser at a JupyterLab server, which keeps what it has loaded once."""

    def __init__(self, browser: BrowserContext, server: Server, machine: Machine, pictures: Path) -> None:
        self.browser = browser
        self.server = server
        self.machine = machine
        self.pictures = pictures

    def write(self, name: str, *cells: str, kernel: str = "kos") -> None:
        """A notebook file with these cells, for a kernel of KOS."""
        document = {
            "cells": [
                {
                    "cell_type": "code",
                    "id": f"c{n}",
                    "metadata": {},
                    "outputs": [],
                    "execution_count": None,
                    "source": cell,
                }
                for n, cell in enumerate(cells)
            ],
            "metadata": {"kernelspec": {"name": kernel, "display_name": "Python 3 (KOS)", "language": "python"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        (self.machine.work / name).write_text(json.dumps(document))

    def open(self, name: str, width: int = 1280, height: int = 900) -> Notebook:
        """The notebook, alone in Lab's simple interface, with its kernel started."""
        page = self._new_page(width, height)
        with page.expect_websocket(lambda socket: "/kernels/" in socket.url) as kernel:
            page.goto(self.url(f"doc/tree/{name}?reset"))
        kernel.value.wait_for_event("framereceived", lambda frame: b"kernel_info_reply" in _bytes(frame))
        page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").first.wait_for(state="attached")
        return Notebook(page, self.pictures)

    def page(self, path: str, width: int = 1280, height: int = 900) -> Page:
        """Any other page of the server."""
        page = self._new_page(width, height)
        page.goto(self.url(path))
        return page

    def _new_page(self, width: int, height: int) -> Page:
        page = self.browser.new_page()
        page.set_viewport_size({"width": width, "height": height})
        page.set_default_timeout(PATIENCE_MS)
        return page

    def stop_kernels(self) -> None:
        """As when the server was stopped: no notebook has a kernel any more."""
        asking = {"Authorization": f"token {TOKEN}"}
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.server.address}/api/sessions", headers=asking)
        ) as answer:
            sessions = json.load(answer)
        for session in sessions:
            address = f"{self.server.address}/api/sessions/{session['id']}"
            urllib.request.urlopen(urllib.request.Request(address, method="DELETE", headers=asking)).close()

    def url(self, path: str) -> str:
        return f"{self.server.address}/{path}{'&' if '?' in path else '?'}token={TOKEN}"


def _bytes(frame: bytes | str) -> bytes:
    return frame.encode() if isinstance(frame, str) else frame


class Notebook:
    """A notebook in a page."""

    def __init__(self, page: Page, pictures: Path) -> None:
        self.page = page
        self._pictures = pictures

    def cell(self, index: int) -> Locator:
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(index)

    def write(self, index: int, code: str) -> Locator:
        """Put other code into a cell; its editor."""
        editor = self.cell(index).locator(".cm-content")
        editor.click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.press("Delete")
        self.page.keyboard.insert_text(code)
        return editor

    def run(self, index: int, wait: bool = True) -> Locator:
        """Run a cell, and wait until it has ended."""
        cell = self.cell(index)
        cell.locator(".jp-InputArea-editor").click()
        self.page.keyboard.press("Control+Enter")
        if wait:
            expect(cell.locator(".jp-InputPrompt")).to_have_text(_NUMBERED)
        return cell

    def empty(self, index: int) -> None:
        """Leave nothing of what a cell has shown."""
        self.write(index, "None")
        self.run(index)
        expect(self.cell(index).locator(".jp-OutputArea-output")).to_have_count(0)

    def press(self, name: str) -> None:
        """A button of the toolbar."""
        self.page.locator(f'.jp-NotebookPanel-toolbar [data-jp-item-name="{name}"] jp-button').click()

    def accept(self) -> None:
        """Say yes to what JupyterLab asks or tells."""
        self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self.page.locator(".jp-Dialog").wait_for(state="detached")

    def until_idle(self) -> None:
        self.page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").first.wait_for(state="attached")

    def restart(self) -> None:
        """Restart the kernel by the button, and wait until it is ready again."""
        self.press("restart")
        self.accept()
        self.until_idle()

    @property
    def monitor(self) -> Locator:
        return self.page.locator(".kos-monitor").first

    def look(self) -> None:
        """Have the monitor in sight; it is told nothing while it is not."""
        self.monitor.locator(".kos-live").scroll_into_view_if_needed()

    def picture(self, name: str, of: Locator | None = None) -> Path:
        path = self._pictures / f"{name}.png"
        (of or self.page).screenshot(path=path, animations="disabled")  # what moves is where it goes to
        return path

    def close(self) -> None:
        self.page.close()


_NUMBERED = re.compile(r"\[\d+\]")


def saved(lab: Lab, name: str) -> list[dict[str, Any]]:
    """The outputs of a notebook's file; none while it is being written."""
    try:
        document = json.loads((lab.machine.work / name).read_text())
    except json.JSONDecodeError:
        return []
    return [output for cell in document["cells"] for output in cell.get("outputs", [])]
