"""Notebooks in a browser, as a user opens and runs them."""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page, expect

from tests.e2e.conftest import Machine

PATIENCE_MS = 30_000
TOKEN = "look"

expect.set_options(timeout=PATIENCE_MS)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Lab:
    """A browser at a JupyterLab server."""

    def __init__(self, browser: Browser, address: str, machine: Machine, pictures: Path) -> None:
        self.browser = browser
        self.address = address
        self.machine = machine
        self.pictures = pictures

    def write(self, name: str, *cells: str) -> None:
        """A notebook file with these cells."""
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
            "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        (self.machine.work / name).write_text(json.dumps(document))

    def open(self, name: str, width: int = 1280, height: int = 900) -> Notebook:
        """The notebook, alone in Lab's simple interface, with its kernel started."""
        page = self.browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(PATIENCE_MS)
        with page.expect_websocket(lambda socket: "/kernels/" in socket.url) as kernel:
            page.goto(self.url(f"doc/tree/{name}?reset"))
        kernel.value.wait_for_event("framereceived", lambda frame: b"kernel_info_reply" in _bytes(frame))
        page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").first.wait_for(state="attached")
        return Notebook(page, self.pictures)

    def page(self, path: str, width: int = 1280, height: int = 900) -> Page:
        """Any other page of the server."""
        page = self.browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(PATIENCE_MS)
        page.goto(self.url(path))
        return page

    def stop_kernels(self) -> None:
        """As when the server was stopped: no notebook has a kernel any more."""
        asking = {"Authorization": f"token {TOKEN}"}
        with urllib.request.urlopen(urllib.request.Request(f"{self.address}/api/sessions", headers=asking)) as answer:
            sessions = json.load(answer)
        for session in sessions:
            address = f"{self.address}/api/sessions/{session['id']}"
            urllib.request.urlopen(urllib.request.Request(address, method="DELETE", headers=asking)).close()

    def url(self, path: str) -> str:
        return f"{self.address}/{path}{'&' if '?' in path else '?'}token={TOKEN}"


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

    def restart(self) -> None:
        """Restart the kernel by the menu, and wait until it is ready again."""
        self.page.get_by_role("menuitem", name="Kernel", exact=True).click()
        self.page.get_by_role("menuitem", name="Restart Kernel…", exact=True).click()
        self.page.get_by_role("button", name="Confirm Kernel Restart").click()
        self.page.locator(".jp-Dialog").wait_for(state="detached")
        self.page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").first.wait_for(state="attached")

    @property
    def monitor(self) -> Locator:
        return self.page.locator(".kos-monitor").first

    def picture(self, name: str, of: Locator | None = None) -> Path:
        path = self._pictures / f"{name}.png"
        (of or self.page).screenshot(path=path)
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
