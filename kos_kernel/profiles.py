"""The profile of a cell's tasks, and its flame graph.

Theory of operation. Stacks with their seconds come from the workers (`kos_cluster.tasks.profiling`) and are added up
over all tasks. The graph is drawn from the top: the width of a box is the time in which a function was on the stack,
and what it called hangs below (B. Gregg, "The Flame Graph", CACM 59(6), 2016). What all stacks have in common at their
beginning is told by its last function alone.

Rules: inline SVG without a script, so it is kept in the notebook file and shows where nothing may run. A box too narrow
to be seen is not drawn. Names are escaped.
"""

from __future__ import annotations

import html
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kos_cluster.tasks.profiling import Stack

OTHER = "sending and setting up"
STACKS_LIMIT = 50_000  # of all tasks of a cell together
DEPTH_LIMIT = 60  # levels that are drawn
LINES_LIMIT = 20  # of the text form
_WIDTH, _ROW = 1000, 18  # of the graph, in its own units
_LEAST = 0.8  # the width of a box that is drawn
_CHARACTER = 6.6  # about the width of one


@dataclass
class Call:
    """A function with the time it was on the stack, and what it called."""

    name: str
    seconds: float = 0.0
    calls: dict[str, Call] = field(default_factory=dict)


class Profile:
    """Where the tasks of a cell spent their time. `stacks`: seconds by stack.

    `beneath`: the file of the code whose calls are told; what else a task did is told as `OTHER`.
    """

    def __init__(self, beneath: str = "") -> None:
        self._beneath = f"({beneath}:" if beneath else ""
        self.stacks: dict[Stack, float] = {}
        self.tasks: Counter[str] = Counter()  # by node
        self.took_s = 0.0  # of all tasks together
        self.left_out_s = 0.0

    def add(self, content: Mapping[str, Any]) -> None:
        """Take in what one task sent."""
        self.tasks[str(content["node"])] += 1
        self.took_s += float(content["took_s"])
        for frames, seconds in content["stacks"]:
            stack = self._told(tuple(map(str, frames)))
            if stack in self.stacks or len(self.stacks) < STACKS_LIMIT:
                self.stacks[stack] = self.stacks.get(stack, 0.0) + float(seconds)
            else:
                self.left_out_s += float(seconds)

    def _told(self, stack: Stack) -> Stack:
        if not self._beneath:
            return stack
        inner = next((place for place, name in enumerate(stack) if self._beneath in name), None)
        return (OTHER,) if inner is None else stack[inner:]

    def functions(self) -> dict[str, float]:
        """Seconds in which each function itself ran, the longest first."""
        own: Counter[str] = Counter()
        for stack, seconds in self.stacks.items():
            own[stack[-1]] += seconds  # type: ignore[assignment]
        return {name: float(seconds) for name, seconds in own.most_common()}

    def to_dict(self) -> dict[str, Any]:
        return {"tasks": dict(self.tasks), "took_s": self.took_s, "functions": self.functions()}

    def tree(self) -> Call:
        """All stacks as one tree, its root the last function that all have in common."""
        root = Call("all tasks")
        for stack, seconds in self.stacks.items():
            root.seconds += seconds
            call = root
            for name in stack:
                call = call.calls.setdefault(name, Call(name))
                call.seconds += seconds
        while len(root.calls) == 1:
            (only,) = root.calls.values()
            if only.seconds < root.seconds * 0.999 or not only.calls:
                break
            root = only
        return root

    def __repr__(self) -> str:
        lines = [self._sentence()]
        for name, seconds in list(self.functions().items())[:LINES_LIMIT]:
            lines.append(f"{seconds:9.3f} s  {100 * seconds / self._sampled_s:5.1f} %  {_short(name)}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        root = self.tree()
        boxes = list(_boxes(root, 0.0, 0, _WIDTH / max(root.seconds, 1e-9), root.seconds))
        height = _ROW * (1 + max(depth for depth, _ in boxes))
        drawn = "".join(box for _, box in boxes)
        return (
            f"<div>{html.escape(self._sentence())}</div>"
            f'<svg viewBox="0 0 {_WIDTH} {height}" style="width:100%;height:auto" role="img" '
            f'aria-label="Flame graph" font-family="monospace" font-size="11">{drawn}</svg>'
        )

    @property
    def _sampled_s(self) -> float:
        return max(sum(self.stacks.values()), 1e-9)

    def _sentence(self) -> str:
        count = self.tasks.total()
        where = ", ".join(f"{number} on {node}" for node, number in sorted(self.tasks.items()))
        more = f"; stacks of {self.left_out_s:.1f} s are left out" if self.left_out_s else ""
        return f"{count} task{'s' * (count != 1)} ({where}) took {self.took_s:.2f} s together{more}."


def _boxes(call: Call, left: float, depth: int, scale: float, whole_s: float) -> Iterator[tuple[int, str]]:
    """A call's box and those below it, each with its depth."""
    width = call.seconds * scale
    if width < _LEAST or depth >= DEPTH_LIMIT:
        return
    yield depth, _box(call, left, depth, width, whole_s)
    for below in sorted(call.calls.values(), key=lambda each: -each.seconds):
        yield from _boxes(below, left, depth + 1, scale, whole_s)
        left += below.seconds * scale


def _box(call: Call, left: float, depth: int, width: float, whole_s: float) -> str:
    hue = 20 + zlib.crc32(call.name.encode()) % 40
    label = _short(call.name)[: max(0, int(width / _CHARACTER) - 1)]
    text = f'<text x="{left + 3:.1f}" y="{depth * _ROW + 13}" fill="#000">{html.escape(label)}</text>' if label else ""
    tip = f"{call.name}: {call.seconds:.3f} s, {100 * call.seconds / max(whole_s, 1e-9):.1f} %"
    return (
        f"<g><title>{html.escape(tip)}</title>"
        f'<rect x="{left:.1f}" y="{depth * _ROW}" width="{width:.1f}" height="{_ROW - 1}" fill="hsl({hue},85%,70%)"/>'
        f"{text}</g>"
    )


def _short(name: str) -> str:
    """A function with its file's last part alone."""
    function, _, place = name.partition(" (")
    return f"{function} ({os.path.basename(place)}" if place else function
