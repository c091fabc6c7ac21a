"""`kos top`: the cluster live in the terminal, until `q` or Ctrl-C; and `kos monitor`, which is for notebooks.

Rules: on a terminal the screen is as it was when it ends. Elsewhere, and with `--once`, one frame is printed. A cluster
that stops answering is said in a line, and looked for on.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from kos_cluster.cli.console import Console, on_terminal
from kos_cluster.cli.topview import view
from kos_cluster.errors import UsageError
from kos_cluster.services.monitor.model import Model
from kos_cluster.services.monitor.sampler import Sampler

END_KEYS = (b"q", b"Q", b"\x03", b"\x04")
COLUMNS = 110  # where there is no terminal
LINES = 40
SETTLE_S = 1.2  # for a first frame that shows loads: each node answers the beat of a client, one a second, with its own


def top_(parsed: argparse.Namespace, console: Console) -> int:
    """Show the cluster, live on a terminal."""
    sampler, model = Sampler(parsed.cluster), Model()
    sampler.cluster()  # raises what is wrong, before anything is drawn
    if parsed.once or not on_terminal(console.out):
        time.sleep(SETTLE_S)
        model.handle(sampler.sample())
        _print(model, console)
    else:
        _live(sampler, model, console, parsed.interval)
    return 0


def monitor_(parsed: argparse.Namespace, console: Console) -> int:
    """Say where the monitor is."""
    raise UsageError(
        "The monitor is a widget of notebooks: there, '%load_ext kos_kernel' and '%kos monitor' show it.",
        "In a terminal type 'kos top'.",
    )


def _print(model: Model, console: Console) -> None:
    from rich.console import Console as RichConsole

    width = None if on_terminal(console.out) else COLUMNS
    RichConsole(file=console.out, width=width, highlight=False, force_jupyter=False).print(view(model, LINES))


def _live(sampler: Sampler, model: Model, console: Console, interval_s: float) -> None:
    from rich.console import Console as RichConsole
    from rich.live import Live

    screen = RichConsole(file=console.out, highlight=False)
    try:
        with _keys() as keyboard, Live(console=screen, screen=True, auto_refresh=False) as live:
            while True:
                model.handle(sampler.sample())
                live.update(view(model, screen.height), refresh=True)
                if _ends(keyboard, interval_s):
                    return
    except KeyboardInterrupt:
        return  # as people end a top


@contextmanager
def _keys() -> Iterator[int | None]:
    """The keyboard, key by key and without echo; None where stdin is no terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    try:
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _ends(keyboard: int | None, wait_s: float) -> bool:
    """Wait so long for a key that ends it."""
    if keyboard is None:
        time.sleep(wait_s)
        return False
    deadline = time.monotonic() + wait_s
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([keyboard], [], [], left)
        if ready and (key := os.read(keyboard, 1)) in (*END_KEYS, b""):
            return bool(key) or True
    return False
