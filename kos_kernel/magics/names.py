"""Which names a cell reads: the first step of sending it elsewhere.

Rules: pure, on transformed source (what `shell.transform_cell` gives). The answer may hold a name too many, never one
too few that plain code can reach: a name counts as read unless an earlier statement that surely ran has bound it.
Magics and `!commands` are calls with their text in a string; that text is searched for names as IPython would expand
them.
"""

from __future__ import annotations

import ast
import dis
import re
from collections.abc import Iterator, Sequence
from types import CodeType

# Set by every interpreter or shell on its own side, so these never travel.
OWN_NAMES = frozenset(
    [
        "__name__",
        "__doc__",
        "__package__",
        "__loader__",
        "__spec__",
        "__file__",
        "__builtin__",
        "__builtins__",
        "__annotations__",
        "get_ipython",
        "exit",
        "quit",
        "In",
        "Out",
        "_ih",
        "_oh",
        "_dh",
    ]
)
# Magics whose text is Python; in any other only `$name` and `{expression}` are names.
PYTHON_MAGICS = frozenset(["time", "timeit", "prun", "capture", "mprun", "memit", "lprun", "debug"])

_READS = frozenset(["LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS", "DELETE_NAME", "DELETE_GLOBAL"])
_IDENTIFIER = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
_EXPANDED = re.compile(r"\{([^{}]*)\}|\$\{?([A-Za-z_]\w*)")
_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def free_names(source: str, file_name: str = "<cell>") -> list[str]:
    """The names that the cell may read from its namespace, in order of first reading, without repetition.

    Raises SyntaxError when the source does not parse or compile.
    """
    compile(source, file_name, "exec", _FLAGS, dont_inherit=True)  # finds what parsing does not: a return, two globals
    found: dict[str, None] = {}
    for name in _Reader().read(ast.parse(source).body, set()):
        if name not in OWN_NAMES:
            found.setdefault(name)
    return list(found)


def imported_modules(source: str) -> set[str]:
    """The modules that import statements anywhere in the source name."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module)
    return modules


def modules_imported_by(code: CodeType) -> Iterator[str]:
    """The modules that a function's own import statements name."""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME" and instruction.argval:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from modules_imported_by(constant)


def names_in_magic(magic: str, text: str) -> Iterator[str]:
    """Names in the text of a magic (or of a `!command`, with an empty `magic`)."""
    if magic in PYTHON_MAGICS:
        yield from _IDENTIFIER.findall(text)
        return
    for expression, name in _EXPANDED.findall(text):
        yield from _IDENTIFIER.findall(expression) if expression else [name]


class _Reader:
    """Walks statements in order, with the set of names that are surely bound so far."""

    def read(self, body: Sequence[ast.stmt], bound: set[str]) -> Iterator[str]:
        """Yield unbound reads; add to `bound` what every path through `body` binds."""
        for statement in body:
            yield from self._statement(statement, bound)

    def _statement(self, node: ast.stmt, bound: set[str]) -> Iterator[str]:
        match node:
            case ast.If():
                yield from _reads(node.test, bound)
                yield from self._either([node.body, node.orelse], bound)
            case ast.For() | ast.AsyncFor():
                yield from _reads(node.iter, bound)
                yield from _reads(node.target, bound)
                yield from self.read(node.body, bound | _targets(node.target))
                yield from self.read(node.orelse, set(bound))
            case ast.While():
                yield from _reads(node.test, bound)
                yield from self.read(node.body, set(bound))
                yield from self.read(node.orelse, set(bound))
            case ast.With() | ast.AsyncWith():
                yield from self._with(node, bound)
            case ast.Try() | ast.TryStar():
                yield from self._try(node, bound)
            case ast.Break() | ast.Continue() | ast.Pass():
                pass
            case _:
                yield from _reads(node, bound)
                bound |= _binds(node)

    def _either(self, branches: Sequence[Sequence[ast.stmt]], bound: set[str]) -> Iterator[str]:
        after: list[set[str]] = []
        for branch in branches:
            inside = set(bound)
            yield from self.read(branch, inside)
            after.append(inside)
        bound |= set.intersection(*after)

    def _with(self, node: ast.With | ast.AsyncWith, bound: set[str]) -> Iterator[str]:
        for item in node.items:
            yield from _reads(item.context_expr, bound)
            if item.optional_vars is not None:
                yield from _reads(item.optional_vars, bound)
                bound |= _targets(item.optional_vars)
        yield from self.read(node.body, set(bound))  # the manager may swallow an exception: nothing is sure after it

    def _try(self, node: ast.Try | ast.TryStar, bound: set[str]) -> Iterator[str]:
        body = set(bound)
        yield from self.read(node.body, body)
        for handler in node.handlers:
            if handler.type is not None:
                yield from _reads(handler.type, bound)
            yield from self.read(handler.body, bound | ({handler.name} if handler.name else set()))
        yield from self.read(node.orelse, body)
        yield from self.read(node.finalbody, bound)


def _reads(node: ast.AST, bound: set[str]) -> Iterator[str]:
    for name in (*_read_by_code(node), *_read_by_magics(node)):
        if name not in bound:
            yield name


def _read_by_code(node: ast.AST) -> Iterator[str]:
    """The global names that a statement, expression or target reads, in nested scopes too, as the compiler has it."""
    if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        yield node.target.id
    module = ast.Module([_as_statement(node)], [])
    yield from _global_reads(compile(ast.fix_missing_locations(module), "<cell>", "exec", _FLAGS, dont_inherit=True))


def _as_statement(node: ast.AST) -> ast.stmt:
    if isinstance(node, ast.stmt):
        return node
    assert isinstance(node, ast.expr)
    if isinstance(getattr(node, "ctx", None), ast.Store):
        return ast.Assign(targets=[node], value=ast.Constant(None))
    return ast.Expr(node)


def _global_reads(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in _READS:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_reads(constant)


def _read_by_magics(node: ast.AST) -> Iterator[str]:
    for call in ast.walk(node):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and _is_shell(call.func.value)):
            continue
        texts = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        if call.func.attr in ("run_line_magic", "run_cell_magic") and texts:
            for text in texts[1:]:
                yield from names_in_magic(texts[0], text)
        else:
            for text in texts:
                yield from names_in_magic("", text)


def _is_shell(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "get_ipython"


def _targets(node: ast.expr) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}


def _binds(node: ast.stmt) -> set[str]:
    """What a simple statement binds once it has run."""
    match node:
        case ast.Assign():
            return set().union(*map(_targets, node.targets))
        case ast.AnnAssign():
            return _targets(node.target) if node.value is not None else set()
        case ast.AugAssign():
            return _targets(node.target)
        case ast.Import() | ast.ImportFrom():
            return {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return {node.name}
        case _:
            return set()
