"""What threads print, in a real kernel: under the cell that started them, whatever runs meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

STARTS = {
    "a thread": "threading.Thread(target=speak, args=({word!r},)).start()",
    "a thread of a thread": (
        "def starts(word):\n  threading.Thread(target=speak, args=(word,)).start()\n"
        "threading.Thread(target=starts, args=({word!r},)).start()"
    ),
    "a subclass": (
        "class Speaker(threading.Thread):\n  def run(self): speak(self.name)\nSpeaker(name={word!r}).start()"
    ),
    "a pool of many cells": "pool.submit(speak, {word!r});",
    "a timer": "threading.Timer(0.01, speak, [{word!r}]).start()",
    "an asyncio task": "import asyncio\ntask = asyncio.ensure_future(asyncio.to_thread(speak, {word!r}));",
}


def test_prints_and_displays_of_threads_land_in_their_cell(kernel: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "go")
    kernel.run(
        "import os, threading, time\nfrom concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(9)\n"
        f"def speak(word):\n  while not os.path.exists({path!r}): time.sleep(0.01)\n"
        "  print(word)\n  display(word)\n"
        "list(pool.map(time.sleep, [0.01] * 20));"  # its threads are there before the cells
    )
    cells = {kind: kernel.run(code.format(word=kind)) for kind, code in STARTS.items()}
    assert all(cell.text() == "" and not cell.error for cell in cells.values()), [c.shown() for c in cells.values()]
    # It runs until they have printed: what they say must not land in the cell that is running then.
    last = kernel.run(f"open({path!r}, 'w').close()\ntime.sleep(0.2)")
    for kind, cell in cells.items():  # a print may come in two pieces, when another thread's is sent in between
        kernel.wait(lambda cell=cell, kind=kind: f"[display_data] {kind!r}" in cell.shown() and "\n" in cell.text())
        assert cell.text() == f"{kind}\n"
    assert last.shown() == []


def test_unloading_leaves_the_library_as_it_was(kernel: Any) -> None:
    names = "threading.Thread.start.__module__, ThreadPoolExecutor.submit.__module__"
    kernel.run("import threading\nfrom concurrent.futures import ThreadPoolExecutor")
    kernel.run("%unload_ext kos_kernel")
    assert kernel.value(names) == f"{threading.Thread.start.__module__} {ThreadPoolExecutor.submit.__module__}"
    assert kernel.value("threading.Thread.start.__code__.co_filename == threading.__file__") == "True"
    assert not kernel.run("%load_ext kos_kernel").error
