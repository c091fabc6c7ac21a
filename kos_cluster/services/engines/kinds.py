"""The kinds of engines that there are, and whether the nodes of a cluster have what one needs.

Rules: a kind is a module `services.engines.KIND` with an ENGINE; a third one is named in KINDS and has an extra of its
name in pyproject.toml. Nothing of an engine is imported before it is used.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping

from kos_cluster.errors import EngineError, UsageError
from kos_cluster.services.engines.engine import Engine

KINDS = ("dask", "ray")
NODES_TOLD = 16  # that lack a package, by name


def engine_of(kind: str) -> Engine:
    """The engine of this kind. Raises UsageError."""
    if kind not in KINDS:
        raise UsageError(f"There is no engine {kind!r}.", f"Choose from {', '.join(KINDS)}.")
    engine: Engine = importlib.import_module(f"kos_cluster.services.engines.{kind}").ENGINE
    return engine


def check_installed(engine: Engine, packages: Mapping[str, Mapping[str, str]]) -> None:
    """Raises EngineError, which names the nodes that lack what it needs. `packages`: of each node, by its name."""
    lacking = sorted(name for name, installed in packages.items() if not set(engine.packages) <= set(installed))
    if not lacking:
        return
    named = ", ".join(lacking[:NODES_TOLD]) + (f" and {len(lacking) - NODES_TOLD} more" * (len(lacking) > NODES_TOLD))
    raise EngineError(
        f"{engine.kind} cannot be started: {' and '.join(engine.packages)} "
        f"{'is' if len(engine.packages) == 1 else 'are'} not installed on {named}.",
        f"Type there, for the Python that runs KOS: {installing(engine)}; then 'kos down' and 'kos up'.",
    )


def check_installed_here(engine: Engine) -> None:
    """Raises EngineError when this process cannot speak with such an engine."""
    missing = [name for name in engine.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineError(
            f"This program cannot use {engine.kind}: {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed here.",
            f"Type: {installing(engine)}.",
        )


def installing(engine: Engine) -> str:
    """What to type to have what it needs."""
    return f"pip install 'kos-cluster[{engine.kind}]'"


def check_plaintext(engine: Engine, allowed: bool) -> None:
    """Raises EngineError for an engine that would send something unencrypted without leave."""
    if engine.plaintext and not allowed:
        raise EngineError(
            f"{engine.kind} cannot encrypt {'; '.join(engine.plaintext)}.",
            "Type --allow-plaintext to start it all the same, where you trust the network between the nodes.",
        )
