"""What `make demo` runs: the first notebook, through Jupyter's own client, on a cluster of three nodes on this machine.

Rules: everything it makes lies in one temporary folder: KOS_HOME, the kernel's specification, Jupyter's files. However
it ends (a failing cell, Ctrl-C, SIGTERM), the cluster is stopped and the folder removed before it returns, and the exit
code says which. It needs a checkout of the project and its `test` extra.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVarTuple

from kos_cluster.errors import KosError, StateError, UsageError
from kos_cluster.services.engines import lazily

lazily.put_here()  # before anything imports jsonschema

import nbformat  # noqa: E402
from nbclient import NotebookClient  # noqa: E402
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError  # noqa: E402
from traitlets.config import Config  # noqa: E402

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01_first_cluster.ipynb"
NODES = 3
CELL_TIMEOUT_S = 180
COMMAND_TIMEOUT_S = 90
KERNEL = "kos-demo"
SUMMARY_TAG = "summary"
EXIT_INTERRUPTED = 130
_Arguments = TypeVarTuple("_Arguments")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def main() -> int:
    """Run the demo; 0 when every cell ran and its checks held."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        with temporary_home() as folder, local_cluster(NODES):
            _print_summary(execute(NOTEBOOK, folder))
    except KeyboardInterrupt:
        return _failed("interrupted; the cluster is stopped and nothing is left.", EXIT_INTERRUPTED)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return _failed(f"the notebook failed.\n{error}", 1)
    except KosError as error:
        return _failed(str(error), error.exit_code)
    return 0


@contextmanager
def temporary_home() -> Iterator[Path]:
    """A folder that holds everything of the demo; the environment of this process points into it."""
    folder = Path(tempfile.mkdtemp(prefix="kos-"))
    before = dict(os.environ)
    try:
        for name in [name for name in os.environ if name.startswith("KOS_")]:
            del os.environ[name]
        os.environ["KOS_HOME"] = str(folder / "kos")
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
            os.environ[name] = str(folder / "jupyter")
        yield folder
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder)


@contextmanager
def local_cluster(nodes: int) -> Iterator[None]:
    """A cluster of this KOS_HOME, stopped at the end; a second Ctrl-C does not break off the stopping."""
    started = time.perf_counter()
    try:
        _kos("up", "-n", str(nodes))
        print(f"{nodes} nodes ready after {time.perf_counter() - started:.1f} s", flush=True)
        yield
    finally:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            _kos("down")
        finally:
            signal.signal(signal.SIGINT, before)


def execute(notebook: Path, folder: Path, cells: tuple[str, ...] = ()) -> Any:
    """Execute a notebook, `cells` appended to it, with this interpreter as its kernel; it with its outputs."""
    if not notebook.exists():
        raise UsageError(f"There is no notebook {notebook}.", "Run the demo from a checkout of the project: make demo.")
    _write_kernel(folder)
    document = nbformat.read(notebook, as_version=4)
    document.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    client = NotebookClient(
        document,
        timeout=CELL_TIMEOUT_S,
        kernel_name=KERNEL,
        resources={"metadata": {"path": str(folder)}},
        on_cell_executed=_narrate,
        config=_config(folder),
    )
    with asyncio.Runner(loop_factory=_SignalFreeLoop) as runner:
        runner.run(_executed(client))
    return document


class _SignalFreeLoop(asyncio.SelectorEventLoop):
    """Refuses signal handlers, as a loop outside the main thread would: nbclient's break off its own clean-up."""

    def add_signal_handler(self, sig: int, callback: Callable[[*_Arguments], Any], *args: *_Arguments) -> None:
        raise RuntimeError("signals are handled by the runner, which cancels the execution")


async def _executed(client: NotebookClient) -> None:
    try:
        await client.async_execute()
    except DeadKernelError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # nbclient takes its own cancelling for the kernel's death
            raise asyncio.CancelledError from None
        raise


def _write_kernel(folder: Path) -> None:
    """A kernel of this very interpreter, whatever kernels the user has installed."""
    spec = folder / "jupyter" / "kernels" / KERNEL / "kernel.json"
    spec.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": KERNEL, "language": "python"}))


def _config(folder: Path) -> Config:
    """Jupyter talks to the kernel through sockets in our private folder, not over TCP without encryption."""
    return Config({"KernelManager": {"transport": "ipc", "ip": str(folder / "jupyter" / "k")}})


def _narrate(cell: Any, cell_index: int, execute_reply: dict[str, Any]) -> None:
    """Show what a cell printed, under its number, as soon as it has run."""
    text = text_of(cell)
    if text and SUMMARY_TAG not in cell.metadata.get("tags", []):
        print(f"\n[{cell.execution_count}]\n{text}", flush=True)


def text_of(cell: Any) -> str:
    """What a cell printed and displayed, as plain text."""
    pieces = [output.text for output in cell.outputs if output.output_type == "stream"]
    pieces += [output.data["text/plain"] for output in cell.outputs if "text/plain" in output.get("data", {})]
    return "\n".join(piece.rstrip() for piece in pieces if piece.strip())


def _print_summary(document: Any) -> None:
    cell = next(cell for cell in document.cells if SUMMARY_TAG in cell.metadata.get("tags", []))
    print("\nWhat ran where, and how long it took beside a serial run (the results are equal):")
    print(text_of(cell), flush=True)


def _kos(*words: str) -> None:
    """Run one `kos` command; StateError with what it said when it fails."""
    command = [sys.executable, "-m", "kos_cluster.cli.main", *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    if done.returncode != 0:
        raise StateError(f"'kos {' '.join(words)}' failed ({done.returncode}): {done.stderr.strip()}")


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)


def _failed(sentence: str, code: int) -> int:
    print(f"demo: {_COLOURS.sub('', sentence)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
