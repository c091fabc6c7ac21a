"""Tab completion of `%kos`: commands and options from the grammar, nodes, jobs and engines from the cluster, variables.

Rules: completing never blocks longer than `NAMES_WAIT_S` and never shows an error: without an answer in time there are
no names. Names are asked for in a thread, at most one at a time; those of the last answer serve meanwhile, and for
`NAMES_KEPT_S` no new ones are asked for.
"""

from __future__ import annotations

import argparse
import keyword
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

NAMES_WAIT_S = 0.03
NAMES_KEPT_S = 2.0
JOBS_LIMIT = 200  # of the newest, among the completions
_PREFIXES = ("%kos", "%%kos")

Sources = Mapping[str, Callable[[], Iterable[str]]]  # NODE, ID, ENGINE, OVER, OUT, CLUSTER -> the names to choose from


class Names:
    """Names that the cluster knows, as fresh as can be had quickly."""

    def __init__(self, ask: Callable[[], list[str]], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._names: list[str] = []
        self._until_s = float("-inf")
        self._asking: threading.Thread | None = None

    def get(self) -> list[str]:
        if self._clock() >= self._until_s:
            with self._lock:
                if self._asking is None or not self._asking.is_alive():
                    self._asking = threading.Thread(target=self._refresh, name="kos-names", daemon=True)
                    self._asking.start()
                asking = self._asking
            asking.join(NAMES_WAIT_S)
        return self._names

    def _refresh(self) -> None:
        try:
            self._names = self._ask()
        except Exception:  # completion has no place to show an error; the command itself will say what is wrong
            self._names = []
        self._until_s = self._clock() + NAMES_KEPT_S


def complete(parser: argparse.ArgumentParser, words: list[str], sources: Sources) -> list[str]:
    """Completions of the last of `words`, which may be empty; `words` are those after `%kos`."""
    *before, current = words
    previous = ""
    given = 0  # arguments that are neither commands nor options
    for word in before:
        option = _option(parser, previous)
        is_value = option is not None and option.nargs != 0
        commands = _commands(parser)
        if not is_value and not word.startswith("-"):
            if commands and word not in commands:
                return []
            if commands:
                parser = commands[word]
            else:
                given += 1
        previous = word
    option = _option(parser, previous)
    if option is not None and option.nargs != 0:
        candidates = _values(option, sources)
    elif current.startswith("-"):
        candidates = [] if _in_remainder(parser, given) else [o for a in parser._actions for o in a.option_strings]
    else:
        candidates = _commands(parser) or _values(_argument(parser, given), sources)
    return sorted(name for name in candidates if name.startswith(current))


def _values(action: argparse.Action | None, sources: Sources) -> Iterable[str]:
    """What may stand for an option's or an argument's value."""
    if action is None:
        return ()
    if action.choices is not None:
        return map(str, action.choices)
    key = action.dest.upper() if action.metavar == "NAME" else str(action.metavar)
    return sources[key]() if key in sources else ()


def _argument(parser: argparse.ArgumentParser, given: int) -> argparse.Action | None:
    """The argument that comes after so many others."""
    arguments = [action for action in parser._actions if not action.option_strings]
    if given < len(arguments):
        return arguments[given]
    return arguments[-1] if arguments and arguments[-1].nargs in ("*", "+") else None


def _in_remainder(parser: argparse.ArgumentParser, given: int) -> bool:
    """Whether what is typed belongs to a command that is to be run."""
    arguments = [action for action in parser._actions if not action.option_strings]
    return bool(arguments) and arguments[-1].nargs == argparse.REMAINDER and given >= len(arguments)


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


def _jobs() -> list[str]:
    import kos_cluster as kos

    return [job.job for job in kos.connect().jobs()[-JOBS_LIMIT:]]


def _engines() -> list[str]:
    import kos_cluster as kos
    from kos_cluster.services.engines.registers import records

    return [record.name for record in records(kos.connect().registers())]


def _clusters() -> list[str]:
    from kos_cluster.home import Home

    return Home().clusters()


def _variables(namespace: Mapping[str, Any], usable: Callable[[Any], bool]) -> list[str]:
    return [
        name
        for name, value in namespace.items()
        if not name.startswith("_") and not keyword.iskeyword(name) and usable(value)
    ]


class _Matcher:
    def __init__(self, shell: InteractiveShell) -> None:
        self._nodes = Names(_live_nodes)
        self._jobs = Names(_jobs)
        self._engines = Names(_engines)
        self._hidden = shell.user_ns_hidden
        self._shell = shell
        self._sources: Sources = {
            "NODE": self._nodes.get,
            "ID": self._jobs.get,
            "ENGINE": self._engines.get,
            "CLUSTER": _clusters,
            "OVER": lambda: self._users(lambda value: hasattr(value, "__iter__") and not isinstance(value, type)),
            "OUT": lambda: self._users(lambda value: not callable(value)),
        }

    def match(self, context: CompletionContext) -> SimpleMatcherResult:
        lines = context.full_text.splitlines() or [""]
        line = lines[min(context.cursor_line, len(lines) - 1)]
        words = words_to_complete(line[: context.cursor_position])
        if words is None:
            return SimpleMatcherResult(completions=[])
        from kos_cluster.cli.grammar import build_parser

        found = complete(build_parser(), words, self._sources)
        # The token that IPython replaces may be less than the word in hand (it splits at '-').
        skipped = len(words[-1]) - len(context.token) if words[-1].endswith(context.token) else 0
        completions = [SimpleCompletion(name[skipped:], type="param") for name in found]
        return SimpleMatcherResult(completions=completions, suppress=bool(completions))

    def _users(self, usable: Callable[[Any], bool]) -> list[str]:
        """The user's own variables of some kind."""
        return [name for name in _variables(self._shell.user_ns, usable) if name not in self._hidden]


def register(shell: InteractiveShell) -> None:
    """Add the matcher to the shell's completer."""
    matcher = _Matcher(shell)

    @context_matcher(identifier="kos_kernel", priority=100)
    def kos_matcher(context: CompletionContext) -> SimpleMatcherResult:
        return matcher.match(context)

    shell.Completer.custom_matchers.append(kos_matcher)


def unregister(shell: InteractiveShell) -> None:
    matchers = shell.Completer.custom_matchers
    matchers[:] = [m for m in matchers if getattr(m, "matcher_identifier", "") != "kos_kernel"]
