"""References between KOS's blocks and what an engine holds.

Theory of operation. A process of an engine's worker stands on a node, and comes to that node's arena as any process of
its user does. So a block is opened there by `BlockRef.get`, as it is in a task: read-only, and where it lies.
What an engine holds becomes a block in the process that holds it (`laid`); then the client takes the block over, and
the process need not hold it any more. Both work on any engine. The rest is Dask's way of it: a future of a block's
value, an array whose chunks are slices of a block, and blocks of futures and of a persisted array's chunks; and Ray's:
a block of an object. A reference in a Ray object, or given to a Ray task, is opened there by `get`.

What is copied. A block that is read on the machine where it was made: nothing. One that is read on another comes to the
node there once, as a whole, whoever reads it; so tasks that read one prefer the workers on its node. What Dask moves
between its own workers is Dask's copy. A result that becomes a block is copied once, from its process's memory into
that of the node; its bytes never leave the node.

Rules. A block lives as long as a client has its reference: keep it for as long as the engine may read it, also to make
a lost result again. What is read from a block cannot be written to. When one of several cannot become a block, none
does.

Limits: `LAY_TIMEOUT_S` for workers to lay what they hold.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
import secrets
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from kos_cluster.dmem.attached import attached
from kos_cluster.errors import UnreachableError, UsageError
from kos_cluster.home import Home
from kos_cluster.tasks import serialise
from kos_cluster.tasks.blocks import BlockRef, arena_beneath, named_in
from kos_cluster.tasks.cluster import Cluster, connect
from kos_cluster.tasks.futures import Future, StayedOutcome
from kos_cluster.tasks.mesh import Mesh

if TYPE_CHECKING:
    import dask.array
    import distributed
    import ray

LAY_TIMEOUT_S = 60.0

_opened: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()  # arrays of blocks, by their ids


def run_folder() -> Path | None:
    """Where the node beneath this process has its arena and spool; None: there is no node."""
    node = os.environ.get("KOS_NODE")
    return Home().cluster().run(node) if node else None


# ---- any engine


def block_of_result(future: Future) -> BlockRef:
    """The block of a task's large result. Waits for it; raises what the task raised, and UsageError for a small one."""
    _check(future, Future, "block_of_result", "the future of a task")
    concurrent.futures.wait([future])
    future.keep()
    outcome = future.ending()
    if not isinstance(outcome, StayedOutcome):
        future.result()
        raise UsageError(
            f"The result of task {future.task} is small, so it is in no block.", "Pass it as it is, or cluster.put it."
        )
    mesh = future.owner
    assert isinstance(mesh, Mesh)  # results of an engine's calls do not stay
    members = {member.id: member.name for member in mesh.members}
    ref = BlockRef(named_in(outcome.payload)[0], outcome.size_bytes, outcome.node, members.get(outcome.node, ""))
    mesh.blocks.returned(ref)
    return ref


def laid(value: Any) -> BlockRef:
    """In a process of an engine: copy a value into its node's memory. It is held until somebody keeps it."""
    folder = arena_beneath()
    if folder is None:
        raise UsageError("There is no node beneath this process.", "Call this in a worker of an engine of KOS's.")
    pieces, block = serialise.dumps_block(value), secrets.token_hex(16)
    node = attached(folder).write(block, pieces)
    return BlockRef(block, sum(map(len, pieces)), node, os.environ["KOS_NODE"])


def let_go(blocks: Sequence[str]) -> None:
    """In the process that has `laid` these: they need not be held any more."""
    folder = arena_beneath()
    if folder is not None:
        for block in blocks:
            attached(folder).passed_on(block)


# ---- Dask


def dask_future(client: distributed.Client, ref: BlockRef) -> distributed.Future:
    """A Dask future of what a block holds, opened on the block's node if a worker is there, without a copy."""
    _check(ref, BlockRef, "dask_future", "the reference of a block, as cluster.put gives it")
    return client.submit(BlockRef.get, ref, pure=False, **_near(client, ref))


def dask_array(client: distributed.Client, ref: BlockRef, chunks: Any = "auto") -> dask.array.Array:
    """A Dask array of an array in a block. Its chunks are slices, each read where it is when it is needed."""
    import dask
    import dask.array
    from dask.base import tokenize

    _check(ref, BlockRef, "dask_array", "the reference of a block, as cluster.put gives it")
    near = _near(client, ref)
    told = client.submit(_shape_of, ref, pure=False, **near).result()
    if told is None:
        raise UsageError(f"The block {ref.id[:12]} holds no array.", "Use references.dask_future for other values.")
    source = _Slices(ref, *told)
    with dask.annotate(**near):
        return dask.array.from_array(
            source,
            chunks=chunks,
            name=f"kos-block-{tokenize(ref.id, chunks)}",
            asarray=True,
            inline_array=True,
            meta=numpy.empty((0,) * source.ndim, source.dtype),
        )


def block_of(future: distributed.Future, cluster: Cluster | None = None) -> BlockRef:
    """The result of a Dask future as a block of the node where it is."""
    import distributed

    _check(future, distributed.Future, "block_of", "a future of Dask's")
    return _blocks_of(future.client, [future], cluster)[0]


def blocks_of(array: dask.array.Array, cluster: Cluster | None = None) -> Any:
    """The chunks of a persisted Dask array, each as a block of the node where it is: in lists as Dask nests them."""
    import dask.array
    from distributed.client import futures_of

    _check(array, dask.array.Array, "blocks_of", "an array of Dask's")
    futures = {future.key: future for future in futures_of(array)}
    keys = list(_flat(array.__dask_keys__()))
    if not futures or not set(keys) <= futures.keys():
        raise UsageError("The chunks of this array are nowhere yet.", "Persist it first: array = array.persist()")
    refs = _blocks_of(next(iter(futures.values())).client, [futures[key] for key in keys], cluster)
    by_key = dict(zip(keys, refs, strict=True))
    return _nested(array.__dask_keys__(), by_key)


# ---- Ray


def block_of_object(ref: ray.ObjectRef[Any], cluster: Cluster | None = None) -> BlockRef:
    """What a Ray object holds as a block of the node where it is; of a small one, of any node of the engine's."""
    import ray

    block: BlockRef = ray.get(ray.remote(laid).options(num_cpus=0).remote(ref))
    (cluster or connect())._mesh.blocks.take_over(block)
    return block


# ---- inside


def _check(value: object, kind: type, call: str, what: str) -> None:
    if not isinstance(value, kind):
        raise UsageError(f"{call}() takes {what}, not {type(value).__name__}.", "See docs/engines.md.")


class _Slices:
    """What Dask takes for an array, and slices: the block is opened where a slice is taken."""

    def __init__(self, ref: BlockRef, shape: tuple[int, ...], dtype: numpy.dtype[Any]) -> None:
        self.ref, self.shape, self.dtype = ref, shape, dtype
        self.ndim = len(shape)

    def __getitem__(self, index: Any) -> Any:
        return _array(self.ref)[index]


def _array(ref: BlockRef) -> Any:
    """Opened once while any part of it is in use."""
    array = _opened.get(ref.id)
    if array is None:
        array = _opened[ref.id] = ref.get()
    return array


def _shape_of(ref: BlockRef) -> tuple[tuple[int, ...], numpy.dtype[Any]] | None:
    value = ref.get()
    return (value.shape, value.dtype) if isinstance(value, numpy.ndarray) else None


def _near(client: distributed.Client, ref: BlockRef) -> dict[str, Any]:
    """The options of a Dask task that is to run on the node of a block, or elsewhere if it has to."""
    there = [worker for worker, node in client.run(_node).items() if node == ref.node_name]
    return {"workers": there, "allow_other_workers": True} if there else {}


def _node() -> str:
    return os.environ.get("KOS_NODE", "")


def _blocks_of(
    client: distributed.Client, futures: Sequence[distributed.Future], cluster: Cluster | None
) -> list[BlockRef]:
    from distributed import wait

    blocks = (cluster or connect())._mesh.blocks
    with client.as_current():
        wait(futures)
    holders = client.who_has(list(futures))
    made = [
        client.submit(_laid_here, future, pure=False, workers=list(holders[future.key]), allow_other_workers=False)
        for future in futures
    ]
    told: list[tuple[BlockRef, str]] = []
    try:
        with suppress(TimeoutError), client.as_current():
            wait(made, LAY_TIMEOUT_S)
        told = _told(client, made)
        if len(told) < len(made):
            raise _unlaid(made)
        for ref, _ in told:
            blocks.take_over(ref)
    finally:
        client.cancel([future for future in made if future.status == "pending"])
        _have_let_go(client, told)
    return [ref for ref, _ in told]


def _told(client: distributed.Client, made: Sequence[distributed.Future]) -> list[tuple[BlockRef, str]]:
    """Of those that are laid: the block, and the worker that holds it."""
    laid_ = [future for future in made if future.status == "finished"]
    with suppress(TimeoutError):  # one of these workers has gone meanwhile
        gather = functools.partial(client.gather, laid_, errors="skip", asynchronous=True)
        return list(client.sync(gather, callback_timeout=LAY_TIMEOUT_S))
    return []


def _unlaid(made: Sequence[distributed.Future]) -> BaseException:
    """Why not all are blocks."""
    for future in made:
        if future.status == "error":
            error = future.exception()
            assert isinstance(error, BaseException)
            return error
    return UnreachableError(
        f"What Dask holds did not become blocks within {LAY_TIMEOUT_S:g} s: a worker that has it is gone, or busy.",
        "Compute or persist it again, then ask again.",
    )


def _have_let_go(client: distributed.Client, told: Sequence[tuple[BlockRef, str]]) -> None:
    held: dict[str, list[str]] = {}
    for ref, worker in told:
        held.setdefault(worker, []).append(ref.id)
    for worker, names in held.items():
        client.run(let_go, names, workers=[worker], on_error="ignore")  # one that has gone holds nothing


def _laid_here(value: Any) -> tuple[BlockRef, str]:
    import distributed

    return laid(value), distributed.get_worker().address


def _flat(keys: Any) -> Any:
    for key in keys:
        if isinstance(key, list):
            yield from _flat(key)
        else:
            yield key


def _nested(keys: Any, by_key: Mapping[Any, BlockRef]) -> Any:
    return [_nested(key, by_key) if isinstance(key, list) else by_key[key] for key in keys]
