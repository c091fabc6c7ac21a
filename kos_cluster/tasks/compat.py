"""Which payloads another machine can read, told from both sides' versions."""

from __future__ import annotations

from collections.abc import Iterable

from kos_cluster.core.records import Versions


def unreadable(ours: Versions, theirs: Versions) -> dict[str, str]:
    """Modules whose objects the other side cannot read -> why. The key "" stands for every payload.

    cloudpickle promises compatibility only between equal major versions (and Python minors, which joining checks); a
    pickled array of numpy 2 names modules that numpy 1 does not have.
    """
    reasons: dict[str, str] = {}
    if _major(ours.cloudpickle) != _major(theirs.cloudpickle):
        reasons[""] = f"it has cloudpickle {theirs.cloudpickle or 'not installed'}, this side {ours.cloudpickle}"
    if ours.numpy and _major(ours.numpy) != _major(theirs.numpy):
        reasons["numpy"] = f"it has numpy {theirs.numpy or 'not installed'}, this side {ours.numpy}"
    return reasons


def needed(modules: tuple[str, ...], payloads: Iterable[bytes]) -> tuple[str, ...]:
    """The modules that a function imports, and numpy if a call's pickled arguments name it: they may hold arrays."""
    if "numpy" not in modules:
        for payload in payloads:
            if b"numpy" in payload:
                return (*modules, "numpy")
    return modules


def installing(ours: Versions) -> str:
    """What to type after `python -m` on a node that shall read this side's payloads."""
    wanted = [f"cloudpickle=={ours.cloudpickle}", *([f"numpy=={ours.numpy}"] if ours.numpy else [])]
    return f"pip install {' '.join(wanted)}"


def _major(version: str) -> str:
    return version.partition(".")[0]
