"""A detached job's work as one part, and its tasks' outcomes as they are kept.

Rules: the bundle holds all that an owner needs to run the job: function, environment, the parts that it names, options,
and the arguments of each task. It is bounded by `BUNDLE_LIMIT_BYTES`. Equal work makes an equal bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from kos_cluster.core.replicated.jobs import RESULTS_LIMIT
from kos_cluster.errors import LimitError, ProtocolError, UsageError
from kos_cluster.net.local import Environment
from kos_cluster.tasks.futures import Outcome
from kos_cluster.tasks.job import JobSpec
from kos_cluster.tasks.options import Options
from kos_cluster.tasks.workspace import readable_size

BUNDLE_LIMIT_BYTES = 512 << 20  # of one job's work


class _Bundle(msgspec.Struct, frozen=True):
    fn: bytes
    environment: Environment
    parts: dict[str, bytes]
    options: dict[str, Any]
    name: str
    modules: tuple[str, ...]
    payloads: list[bytes]


def pack(spec: JobSpec, payloads: Sequence[bytes]) -> bytes:
    """Raises UsageError for no tasks at all, LimitError for more than the cluster keeps for one job."""
    if not payloads:
        raise UsageError("A detached job needs at least one task.", "Give an iterable that is not empty.")
    if len(payloads) > RESULTS_LIMIT:
        raise LimitError(
            f"A detached job has at most {RESULTS_LIMIT:,} tasks, not {len(payloads):,}.",
            "Let each task do more, or detach a script, which may run any number of them.",
        )
    told = {name: value for name, value in vars(spec.options).items() if name not in ("sink", "name")}
    options = told | {"env": dict(spec.options.env) if spec.options.env else None}
    packed = _Bundle(spec.fn, spec.environment, dict(spec.parts), options, spec.name, spec.modules, list(payloads))
    data = msgspec.msgpack.encode(packed)
    if len(data) > BUNDLE_LIMIT_BYTES:
        raise LimitError(
            f"The work of this job takes {readable_size(len(data))}; the limit is {readable_size(BUNDLE_LIMIT_BYTES)}.",
            "Pass paths that the nodes can read instead of what is in the files.",
        )
    return data


def unpack(data: bytes) -> tuple[JobSpec, list[bytes]]:
    """Raises ProtocolError for what is none, or of another version."""
    try:
        b = msgspec.msgpack.decode(data, type=_Bundle)
        options = Options(**b.options)
    except (msgspec.MsgspecError, UnicodeDecodeError, TypeError, UsageError) as error:
        raise ProtocolError(
            f"A detached job's work cannot be read here ({error}).",
            "Install the version of kos-cluster that the job was submitted with.",
        ) from None
    return JobSpec(b.fn, b.environment, b.parts, options, None, b.name, b.modules), b.payloads


def pack_outcome(outcome: Outcome) -> bytes:
    """One task's outcome as it is kept."""
    return bytes((outcome.failed,)) + bytes(outcome.payload)


def unpack_outcome(data: bytes) -> Outcome:
    """What `pack_outcome` made."""
    return Outcome(memoryview(data)[1:], bool(data[0]))


def pack_outcomes(outcomes: dict[int, bytes]) -> bytes:
    """The outcomes of several tasks, as one part."""
    return msgspec.msgpack.encode(outcomes)


def unpack_outcomes(data: bytes) -> dict[int, bytes]:
    """Raises ProtocolError."""
    try:
        return msgspec.msgpack.decode(data, type=dict[int, bytes])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"Kept results cannot be read ({error}).") from None
