"""Tab completion of `%kos`: sub-commands and options from the grammar, node names from the cluster.

Rules: completing never blocks longer than `NODES_WAIT_S` and never shows an error: without an answer in time there are
no node names. Node names are asked for in a thread, at most one at a time, and kept for `NODES_KEPT_S`.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

NODES_WAIT_S = 0.2
NODES_KEPT_S = 5.0
_PREFIXES = ("%kos", "%%kos")
_NODE_OPTIONS = ("--on",)
_NODE_COMMANDS = ("exec",)


class NodeNames:
    """The names of the live nodes, as fresh as can be had quickly."""

    def __init__(self, ask: Callable[[], list[str]], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._names: list[str] = []
        self._until_s = float("-inf")
        self._asking: threading.Thread | None = None

    def get(self) -> list[str]:
        if self._clock() < self._until_s:
            return self._names
        with self._lock:
            if self._asking is None or not self._asking.is_alive():
                self._asking = threading.Thread(target=self._refresh, name="kos-node-names", daemon=True)
                self._asking.start()
            asking = self._asking
        asking.join(NODES_WAIT_S)
        return self._names

    def _refresh(self) -> None:
        try:
            self._names = self._ask()
        except Exception:  # completion has no place to show an error; the command itself will say what is wrong
            self._names = []
        self._until_s = self._clock() + NODES_KEPT_S


def complete(parser: argparse.ArgumentParser, words: list[str], node_names: Callable[[], Iterable[str]]) -> list[str]:
    """Completions of the last of `words`, which may be empty; `words` are those after `%kos`."""
    *before, current = words
    previous = ""
    for word in before:
        option = _option(parser, previous)
        is_value = option is not None and option.nargs != 0
        commands = _commands(parser)
        if commands and not is_value and not word.startswith("-"):
            if word not in commands:
                return []
            parser = commands[word]
        previous = word
    option = _option(parser, previous)
    if previous in _NODE_OPTIONS or (previous in _NODE_COMMANDS and parser.prog.endswith(previous)):
        candidates: Iterable[str] = node_names()
    elif option is not None and option.nargs != 0:
        candidates = map(str, option.choices or ())
    elif current.startswith("-"):
        candidates = [name for action in parser._actions for name in action.option_strings]
    else:
        candidates = _commands(parser)
    return sorted(name for name in candidates if name.startswith(current))


def _commands(parser: argparse.ArgumentParser) -> dict[str, Any]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _option(parser: argparse.ArgumentParser, word: str) -> argparse.Action | None:
    return next((action for action in parser._actions if word and word in action.option_strings), None)


def words_to_complete(line: str) -> list[str] | None:
    """The words after `%kos` up to the cursor, the last one being the one in hand; None when the line is no `%kos`."""
    words = line.lstrip().split(" ")
    if words[0] not in _PREFIXES or len(words) < 2:
        return None
    return [word for word in words[1:-1] if word] + [words[-1]]


def _live_nodes() -> list[str]:
    import kos_cluster as kos

    return [node["name"] for node in kos.connect().nodes() if node["state"] == "alive"]


class _Matcher:
    def __init__(self) -> None:
        self._nodes = NodeNames(_live_nodes)

    def match(self, context: CompletionContext) -> SimpleMatcherResult:
        lines = context.full_text.splitlines() or [""]
        line = lines[min(context.cursor_line, len(lines) - 1)]
        words = words_to_complete(line[: context.cursor_position])
        if words is None:
            return SimpleMatcherResult(completions=[])
        from kos_cluster.cli.grammar import build_parser

        found = complete(build_parser(), words, self._nodes.get)
        # The token that IPython replaces may be less than the word in hand (it splits at '-').
        skipped = len(words[-1]) - len(context.token) if words[-1].endswith(context.token) else 0
        completions = [SimpleCompletion(name[skipped:], type="param") for name in found]
        return SimpleMatcherResult(completions=completions, suppress=bool(completions))


def register(shell: InteractiveShell) -> None:
    """Add the matcher to the shell's completer."""
    matcher = _Matcher()

    @context_matcher(identifier="kos_kernel", priority=100)
    def kos_matcher(context: CompletionContext) -> SimpleMatcherResult:
        return matcher.match(context)

    shell.Completer.custom_matchers.append(kos_matcher)


def unregister(shell: InteractiveShell) -> None:
    matchers = shell.Completer.custom_matchers
    matchers[:] = [m for m in matchers if getattr(m, "matcher_identifier", "") != "kos_kernel"]
