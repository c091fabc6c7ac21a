"""Real IPython kernels, driven through Jupyter's own client."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable
from typing import Any

from jupyter_client.manager import KernelManager

START_TIMEOUT_S = 60
CELL_TIMEOUT_S = 60


class Cell:
    """What one execution has shown so far."""

    def __init__(self, client: Any, code: str) -> None:
        self.id = client.execute(code)
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self.idle = False

    def text(self, name: str = "stdout") -> str:
        return "".join(
            content["text"] for kind, content in self.messages if kind == "stream" and content["name"] == name
        )

    def progress(self) -> list[tuple[str, dict[str, Any]]]:
        """The messages of the progress display."""
        return [
            (kind, content)
            for kind, content in self.messages
            if content.get("transient", {}).get("display_id", "").startswith("kos-")
        ]

    def shown(self) -> list[str]:
        """All outputs but progress, in order: prints as they are, displays as plain text, errors as their lines."""
        parts: list[str] = []
        for kind, content in self.messages:
            if kind == "stream":
                parts.append(content["text"])
            elif content.get("transient", {}).get("display_id", "").startswith("kos-"):
                continue  # the progress, which comes when a machine is slow
            elif kind in ("display_data", "execute_result", "update_display_data"):
                parts.append(f"[{kind}] {content['data'].get('text/plain', '')}")
            elif kind == "error":
                parts.append("\n".join(content["traceback"]))
            elif kind == "clear_output":
                parts.append("[clear_output]")
        return parts

    def mimes(self) -> set[str]:
        return {mime for _, content in self.messages for mime in content.get("data", {})}

    @property
    def error(self) -> dict[str, Any]:
        return next((content for kind, content in self.messages if kind == "error"), {})


class Kernel:
    """A real IPython kernel, driven through Jupyter's own client."""

    def __init__(self, environment: dict[str, str], name: str = "python3") -> None:
        self.manager = KernelManager(kernel_name=name)
        self.manager.start_kernel(env={**os.environ, **environment})
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=START_TIMEOUT_S)
        self._cells: dict[str, Cell] = {}

    def start(self, code: str) -> Cell:
        cell = Cell(self.client, code)
        self._cells[cell.id] = cell
        return cell

    def run(self, code: str, timeout: float = CELL_TIMEOUT_S) -> Cell:
        cell = self.start(code)
        self.wait(lambda: cell.idle, timeout)
        return cell

    def value(self, expression: str) -> str:
        """What evaluating the expression prints."""
        cell = self.run(f"print({expression})")
        assert not cell.error, cell.error
        return cell.text().strip()

    def wait(self, condition: Callable[[], bool], timeout: float = CELL_TIMEOUT_S) -> None:
        """Take messages until the condition holds."""
        end = time.monotonic() + timeout
        while not condition():
            left = end - time.monotonic()
            assert left > 0, "\n".join(str(part) for cell in self._cells.values() for part in cell.shown())
            message = self.client.get_iopub_msg(timeout=left)
            cell = self._cells.get(message["parent_header"].get("msg_id", ""))
            if cell is None:
                continue
            if message["msg_type"] == "status":
                cell.idle = cell.idle or message["content"]["execution_state"] == "idle"
            else:
                cell.messages.append((message["msg_type"], message["content"]))

    def interrupt(self) -> None:
        self.manager.interrupt_kernel()

    def complete(self, code: str) -> list[str]:
        reply = self.client.complete(code, len(code), reply=True, timeout=CELL_TIMEOUT_S)
        matches: list[str] = reply["content"]["matches"]
        return matches

    def restart(self) -> None:
        """As a front end does: an interrupt, a request, and after a while the end.

        The new kernel may answer before ZeroMQ has connected to its output once more, and what it shows until then is
        lost to this client. So it is asked until what it shows is heard.
        """
        self.manager.restart_kernel()
        self.client.wait_for_ready(timeout=START_TIMEOUT_S)
        wait_for(lambda: self._shows(self.client.kernel_info()))

    def _shows(self, request: str) -> bool:
        """Whether it has shown within a moment that it is busy with this."""
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=0.5)
            except queue.Empty:
                return False
            if message["parent_header"].get("msg_id") == request:
                return True

    def shut_down(self) -> None:
        """Likewise."""
        self.client.stop_channels()
        self.manager.shutdown_kernel()

    def stop(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def ok(cell: Cell) -> Cell:
    """The cell, which has ended well."""
    assert not cell.error, cell.shown()
    return cell
