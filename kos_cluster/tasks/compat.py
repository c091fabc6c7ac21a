"""Which payloads another machine can read, told from both sides' versions."""

from __future__ import annotations

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


def _major(version: str) -> str:
    return version.partition(".")[0]
