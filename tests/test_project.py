"""The habits of the project, held by cheap checks: paths, versions, docstrings, sizes, promises of the README."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import kos_cluster

ROOT = Path(__file__).parents[1]
PACKAGES = ("kos_cluster", "kos_kernel", "kos_gui")
MODULE_LINES_LIMIT = 600
# Built from pieces, so that this file does not find itself.
FORBIDDEN = {
    "a path of somebody's machine": re.compile(r"(?<![\w.$}>])/(?:" + "home|Users|work|opt|root" + r")/\w"),
    "the address of a package index": re.compile(
        r"--(?:extra-)?" + r"index-url|--find" + r"-links|files\.python" + r"hosted|py" + r"pi\.org/simple"
    ),
}


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def tracked() -> list[Path]:
    """The files under version control; in an export of them, all files that are not made by the tools."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    made = {".venv", "__pycache__", "build", "dist", ".git"}
    return [path for path in ROOT.rglob("*") if path.is_file() and made.isdisjoint(path.relative_to(ROOT).parts)]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_names(what: str) -> None:
    offenders = [
        f"{name_of(path)}:{number}: {line.strip()[:100]}"
        for path in tracked()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if FORBIDDEN[what].search(line)
    ]
    assert not offenders, f"{what}:\n" + "\n".join(offenders)


def test_no_merge_is_left_half_done() -> None:
    left = [name_of(path) for path in tracked() if re.search(rb"^(<{7}|>{7}) ", path.read_bytes(), re.MULTILINE)]
    assert left == []


def test_the_version_has_one_source() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]
    assert version("kos-cluster") == kos_cluster.__version__
    assert f"## [{kos_cluster.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_constraint_is_an_exact_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert not [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9_.-]+==[^\s/]+", pin)]


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    pinned = {plain(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert {plain(name) for name in wanted} - {"kos-cluster"} <= pinned


def test_the_package_is_what_was_promised() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = document["project"]
    assert (project["name"], project["requires-python"]) == ("kos-cluster", ">=3.11")
    assert {"kos"} == set(project["scripts"])
    assert {"test", "dev", "bench"} <= set(project["optional-dependencies"])
    assert {plain(name) for name in project["dependencies"]} >= {
        *("pyzmq", "msgspec", "cloudpickle", "cryptography", "numpy"),
        *("psutil", "ipykernel", "ipywidgets", "rich", "platformdirs"),
    }
    assert any(re.search(r"ipykernel\s*>=\s*7", name) for name in project["dependencies"])
    assert all((ROOT / package / "__init__.py").exists() for package in PACKAGES)
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert document["tool"]["mypy"]["strict"] is True
    assert document["tool"]["importlinter"]["contracts"]


def recipe(target: str) -> str:
    return subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "--always-make", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_one_command_runs_the_demo_the_checks_and_every_test() -> None:
    """The demo is run by `tests/notebooks/test_first_cluster.py`, as `make demo` does it."""
    steps = recipe("test")
    for step in ("ruff check", "mypy", "lint-imports", "-m pytest -n"):
        assert step in steps, steps
    assert not re.search(r"-m pytest .*(tests/|-k |-m |--ignore)", steps), "not every test"
    assert "-m kos_cluster.services.demo" in recipe("demo")
    assert "demo.main()" in (ROOT / "tests" / "notebooks" / "test_first_cluster.py").read_text()
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_one_command_measures_everything_and_then_writes_the_documentation() -> None:
    """Each file is of a whole run: of all systems and works, at the size that the tables tell."""
    steps = recipe("bench").splitlines()
    runs = [found for line in steps if (found := re.search(r"/kos bench(?: (\w+))? (.*)", line))]
    written = {re.findall(r"--json (\S+)", run[2])[0]: run[1] or "all systems" for run in runs}
    assert written == {
        "docs/figures.json": "all systems",
        "docs/figures-memory.json": "memory",
        "docs/figures-queued.json": "queued",
        "docs/figures-engines.json": "engines",
    }
    assert not [run[0] for run in runs if re.search(r"--(quick|only|peers|tasks)\b", run[2])]
    assert steps[-1].endswith("-m docs.tables")


def plain(requirement: str) -> str:
    """The normalised name in a requirement."""
    return re.split(r"[\[<>=~! ]", requirement, maxsplit=1)[0].lower().replace("_", "-").replace(".", "-")


def test_the_targets_that_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    named = {name for path in documents for name in re.findall(r"`make ([a-z-]+)", path.read_text())}
    named |= set(re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_links_between_documents_lead_somewhere() -> None:
    broken = [
        f"{name_of(path)}: {target}"
        for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
        if not (path.parent / target).exists()
    ]
    assert not broken


def test_every_module_says_what_it_is_for() -> None:
    silent = [name_of(path) for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


@pytest.mark.parametrize(
    "machine", ["swim", "loadgossip", "raft", "kademlia", "lookup", "buckets", "twophase", "replicated/locks", "arena"]
)
def test_a_machine_opens_with_its_theory_rules_limits_and_table(machine: str) -> None:
    """A package does in its parts, each of which has the table of what it decides."""
    path = ROOT / "kos_cluster" / "core" / machine
    sources = [part.read_text() for part in (path.glob("*.py") if path.is_dir() else [path.with_suffix(".py")])]
    opening = "\n".join(ast.get_docstring(ast.parse(source)) or "" for source in sources)
    assert re.search(r"^(## )?Theory( of operation)?\b", opening, re.MULTILINE)
    assert re.search(r"^(## )?Rules\b", opening, re.MULTILINE)
    assert re.search(r"^    [a-z].*\S {3,}\S.*\n    \S.* {2,}\S", opening, re.MULTILINE), "a table"
    limits = re.findall(r"^([A-Z_]+(?:LIMIT\w*|_S|_BYTES)) = [^#\n]*(#.*)?$", "\n".join(sources), re.MULTILINE)
    assert limits
    assert not [name for name, what in limits if not what and not name.endswith(("_S", "_BYTES"))], "limits of what?"


def test_modules_are_small() -> None:
    long = {name_of(path): count for path in modules() if (count := path.read_text().count("\n")) > MODULE_LINES_LIMIT}
    assert not long


def test_core_takes_its_randomness_from_outside() -> None:
    """import-linter cannot see below `random`: core may name `random.Random`, and never use the module's own."""
    offenders = []
    for path in (ROOT / "kos_cluster" / "core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "random":
                offenders += [f"{name_of(path)}: {name.name}" for name in node.names if name.name != "Random"]
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
                offenders += [f"{name_of(path)}: random.{node.attr}"] if node.attr != "Random" else []
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"Random", "random.Random"} and not node.args:
                offenders.append(f"{name_of(path)}: a generator without a seed")
    assert not offenders


def test_no_exception_is_swallowed() -> None:
    offenders = [
        f"{name_of(path)}:{node.lineno}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"})
        and all(isinstance(line, ast.Pass) for line in node.body)
    ]
    assert not offenders


def test_notebooks_are_stored_without_outputs() -> None:
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        assert not [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count")], name_of(path)
