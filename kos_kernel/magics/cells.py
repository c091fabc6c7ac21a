"""`%%kos run --distribute`: a cell from the notebook to the cluster and back.

Rules: nothing is submitted before the line, the cell's syntax, and the size of what it reads are found good. Nothing
is assigned unless the whole cell has succeeded. What does not come back is named on stderr.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Sequence
from types import CodeType
from typing import TYPE_CHECKING, Any, NoReturn

from kos_cluster.errors import GangError, KosError, NotPicklableError, UsageError
from kos_cluster.tasks.failures import fold
from kos_kernel.attaching import ensure_cluster
from kos_kernel.magics.command import words
from kos_kernel.magics.names import free_names, imported_modules
from kos_kernel.magics.running import INLINE_BACKEND, VALUE, Answer, CellError, RemoteCell
from kos_kernel.magics.travel import Packing, Parcel, Unpacking
from kos_kernel.rendering import refuse_syntax, rendered

if TYPE_CHECKING:
    import argparse

    from IPython.core.interactiveshell import InteractiveShell

    from kos_cluster import Cluster

LOST_RETRIES = 3  # of an element of --over; a single cell is not rerun, since its output would repeat


def run(shell: InteractiveShell, line: str, cell: str) -> None:
    """What `%%kos LINE` with this cell does. Raises KosError, or what the cell raised."""
    parsed = parse(line)
    try:
        source = "\n" + shell.transform_cell(cell)  # for the magic's own line, so that line numbers are the notebook's
        names = free_names(source, shell.compile.cache(source, shell.displayhook.prompt_count))
    except SyntaxError as error:
        refuse_syntax(shell, error)
    travel = _Travel(shell.user_ns, cell, names, imported_modules(source), parsed.engine)
    options = submit_options(parsed, f"cell {shell.displayhook.prompt_count}")
    if parsed.engine:
        _check_for_engine(options, parsed.engine)
    if parsed.gang:
        travel.gang(options, parsed.gang, parsed.restarts)
    elif parsed.over is None:
        travel.single(options, parsed.retries or 0)
    else:
        retries = LOST_RETRIES if parsed.retries is None else parsed.retries
        travel.over(elements(shell.user_ns, parsed.over), parsed.out, {**options, "retries": retries})


def parse(line: str) -> argparse.Namespace:
    """The options of the line, by the grammar of the `kos` command. Raises UsageError."""
    from kos_cluster.cli.grammar import parse as parse_command
    from kos_cluster.cli.parser import Shown
    from kos_cluster.cli.running import check_gang

    try:
        parsed = parse_command(words(line))
    except Shown as shown:
        raise UsageError(shown.text) from None
    if parsed.action != "run" or not (parsed.distribute or parsed.gang):
        raise UsageError("A cell can only be run.", "Start it with '%%kos run --distribute', or '%%kos run --gang N'.")
    if parsed.detach:
        raise UsageError(
            "A cell cannot be detached, for its variables would have nowhere to come back to.",
            "Detach a script with '%kos run --detach', or a function with cluster.detach(fn, elements).",
        )
    check_gang(parsed)
    if parsed.gang and parsed.over is not None:
        raise UsageError("--over does not go with --gang.", "Share the elements out by kos.comm().rank.")
    if parsed.gang and parsed.engine:
        raise UsageError("--engine does not go with --gang.", "A gang runs on the mesh: leave out one of the two.")
    if parsed.over is not None and not parsed.over.isidentifier():
        raise UsageError(
            f"--over takes the name of a variable, not {parsed.over!r}.",
            "Assign the elements to one in a cell before this one, and name that.",
        )
    if parsed.argv:
        raise UsageError(
            f"%%kos run --distribute runs the cell, so it takes no command ({parsed.argv[0]!r}).",
            "With one percent sign it runs a script.",
        )
    if parsed.out is not None and parsed.over is None:
        raise UsageError("--out only means something with --over.", "A single cell's assignments come back anyway.")
    if parsed.out is not None and not _assignable(parsed.out):
        raise UsageError(f"--out {parsed.out!r} cannot be the name of a variable.", "Choose a Python name.")
    return parsed


def submit_options(parsed: argparse.Namespace, name: str) -> dict[str, Any]:
    """The grammar's options as those of `Cluster.submit`."""
    from kos_cluster.cli.running import environment, placing

    return {
        "cluster": parsed.cluster,
        "name": name,
        **placing(parsed),
        "timeout": parsed.timeout,
        "priority": parsed.priority,
        "seed": parsed.seed,
        # Also keeps cells in workers of their own, away from tasks that draw no figures inline.
        "env": {"MPLBACKEND": INLINE_BACKEND, **environment(parsed.env)},
    }


def _check_for_engine(options: dict[str, Any], engine: str) -> None:
    """Raises UsageError for what an engine cannot honour."""
    from kos_cluster.services.engines.launching import check
    from kos_cluster.tasks.options import split_options

    check(split_options(options)[0], engine)


def elements(namespace: dict[str, Any], name: str) -> list[Any]:
    """The elements of the variable that --over names. Raises UsageError."""
    if name not in namespace:
        raise UsageError(f"--over {name}: there is no variable of that name.", "Define it in a cell before this one.")
    try:
        return list(namespace[name])
    except TypeError:
        kind = type(namespace[name]).__name__
        raise UsageError(f"--over {name}: a {kind} cannot be iterated over.", "Name a list, for example.") from None


class _Travel:
    """One cell's way there and back."""

    def __init__(
        self,
        namespace: dict[str, Any],
        cell: str,
        names: Sequence[str],
        modules: Iterable[str],
        engine: str | None = None,
    ) -> None:
        self._engine = engine  # None: the mesh
        self._namespace = namespace
        self._cell = cell
        self._names = names
        self._modules = set(modules)
        self._packing = Packing(namespace)  # of what was sent; knows the objects that an answer refers to

    def single(self, options: dict[str, Any], retries: int) -> None:
        remote = self._pack(self._names, value_back=False)
        (answer,) = self._run(remote, [None], [None], {**options, "retries": retries, "fresh": True})
        self._assign(answer)

    def _assign(self, answer: Answer) -> None:
        unpacking = self._open(answer)
        self._namespace.update(dict(unpacking))
        for name, reason in {**answer.left_out, **unpacking.missing}.items():
            _warn(f"{name!r} does not come back: {reason}")

    def gang(self, options: dict[str, Any], ranks: int, restarts: int) -> None:
        """The cell on each rank; what it assigns on rank 0 comes back."""
        remote = self._pack(self._names, value_back=False)
        gang = self._cluster(options.pop("cluster")).gang(remote, ranks, restarts=restarts, **options)
        try:
            answer = gang.result()[0]
        except GangError as error:
            self._raise(error.__cause__ if isinstance(error.__cause__, CellError) else error, [])
        except BaseException as error:
            gang.cancel()
            self._raise(error, [])
        self._assign(answer)

    def over(self, items: list[Any], out: str | None, options: dict[str, Any]) -> None:
        packed, wanted = self._pack_items(items)
        names = [name for name in dict.fromkeys([*self._names, *wanted]) if name not in ("item", "index")]
        remote = self._pack(names, value_back=out is not None)
        answers = self._run(remote, range(len(packed)), packed, options)
        values = [self._value(index, answer) for index, answer in enumerate(answers)] if out is not None else []
        lost = sorted({name for answer in answers for name in answer.changed})
        if lost:
            _warn(f"changed in place by elements, which is lost with --over: {', '.join(lost)}.")
        if out is not None:
            self._namespace[out] = values

    def _pack(self, names: Iterable[str], value_back: bool) -> RemoteCell:
        self._packing.add_all(names)
        parcel = self._packing.parcel()
        return RemoteCell(self._cell, parcel, value_back, _imports(self._modules | parcel.modules))

    def _pack_items(self, items: Iterable[Any]) -> tuple[list[Parcel], list[str]]:
        packed: list[Parcel] = []
        wanted: dict[str, None] = {}
        for index, item in enumerate(items):
            packing = Packing(self._namespace)
            try:
                packing.add("item", item)
            except NotPicklableError as error:
                raise NotPicklableError(f"Element {index} of --over: {error.message}", error.hint) from error
            packed.append(packing.parcel())
            wanted.update(dict.fromkeys(packing.wanted))
            self._modules |= packed[-1].modules
        return packed, list(wanted)

    def _open(self, answer: Answer) -> Unpacking:
        objects = self._packing.objects() if answer.known else {}
        known = [objects[position] for position in answer.known]
        return Unpacking(answer.parcel, self._namespace, known, lenient=True)

    def _value(self, index: int, answer: Answer) -> Any:
        """The last expression of one element. Raises UsageError when it can't come back."""
        unpacking = self._open(answer)
        found = dict(unpacking)
        if VALUE in found:
            return found[VALUE]
        reason = {**answer.left_out, **unpacking.missing}[VALUE].removeprefix(repr(VALUE)).strip()
        raise UsageError(
            f"The last expression of element {index} does not come back: {reason}",
            "End the cell in a value that can be pickled.",
        )

    def _run(
        self, remote: RemoteCell, indices: Sequence[int | None], items: Sequence[Parcel | None], options: dict[str, Any]
    ) -> list[Answer]:
        """The answers for all items, in order. Raises what the cell raised, shown as it was raised there."""
        cluster = self._cluster(options.pop("cluster"))
        # A job of its own, which is forgotten with its variables when it is done.
        on = cluster.on_engine(self._engine) if self._engine else cluster
        results = on.map(remote, indices, items, **options)
        try:
            return list(results)
        except BaseException as error:
            others = results.failures()
            results.cancel()
            self._raise(error, others)

    def _cluster(self, name: str | None) -> Cluster:
        """The cluster of that name, started if need be, once one of its nodes answers."""
        import kos_cluster as kos

        ensure_cluster(name)
        cluster = kos.connect(name)
        cluster.check_reachable()
        return cluster

    def _raise(self, failed: BaseException, others: Sequence[BaseException]) -> NoReturn:
        if isinstance(failed, CellError):
            text = failed.text
            if others:
                text += f"\nBy then, other elements had failed too:\n{fold(map(_told, others))}\n"
            raise rendered(self._rebuilt(failed), f"On the cluster ({failed.where}):", text) from None
        if isinstance(failed, KeyboardInterrupt):
            raise rendered(failed, "KeyboardInterrupt: the cell was stopped on the cluster.") from None
        if isinstance(failed, KosError):
            raise failed
        raise rendered(failed, f"{type(failed).__name__}: {failed}") from None

    def _rebuilt(self, failed: CellError) -> Exception:
        error = dict(self._open(failed.answer)).get(VALUE) if failed.answer is not None else None
        # One that cannot travel is told by its text; and a SystemExit must not end the notebook.
        return error if isinstance(error, Exception) else KosError(failed.summary)


def _imports(modules: Iterable[str]) -> CodeType:
    importable = sorted(name for name in modules if all(part.isidentifier() for part in name.split(".")))
    return compile("\n".join(f"import {name}" for name in importable), "<imports>", "exec")


def _told(failure: BaseException) -> BaseException:
    """A cell's error as its own text, so that equal ones are folded."""
    return KosError(failure.summary) if isinstance(failure, CellError) else failure


def _assignable(name: str) -> bool:
    try:
        target = ast.parse(f"{name} = 0").body[0]
    except (SyntaxError, ValueError):
        return False
    return isinstance(target, ast.Assign) and isinstance(target.targets[0], ast.Name) and target.targets[0].id == name


def _warn(text: str) -> None:
    sys.stderr.write(f"kos: {text}\n")
