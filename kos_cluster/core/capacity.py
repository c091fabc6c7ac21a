"""What work takes of a node, and what a node has to give: slots, memory, GPUs and named resources.

Theory of operation. A node keeps an `Account` of what its batches hold, and starts a batch only when all that it takes
is free at once. Owners count in the same units what they have sent, and read in gossip what others have.

Rules. Memory is counted as it was declared, not as it is used: a task that declares none takes a slot alone. A GPU is
given whole, by the name that CUDA_VISIBLE_DEVICES has for it. A named resource is a number that means what its users
agree on. A task that waits for tasks of its own lends its slots, and keeps the rest.

Limits: `NAMES_LIMIT` labels or resources of a node or a task, their names and values of at most `NAME_LIMIT`
characters; a node's all together at most `DECLARED_LIMIT_BYTES`, because they are gossiped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

NAMES_LIMIT = 16  # labels, resources or other names in one need or of one node
NAME_LIMIT = 63  # characters of a label's or resource's name or value
DECLARED_LIMIT_BYTES = 360  # a node's labels and resources, as they travel in its record
AMOUNT_LIMIT = 1 << 31  # of one resource
NAME = re.compile(rf"[A-Za-z0-9](?:[A-Za-z0-9._/-]{{0,{NAME_LIMIT - 1}}})")


class Demand(Protocol):
    """What one task, or a batch that runs its tasks one after the other, takes of its node."""

    @property
    def cpus(self) -> int: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def gpus(self) -> int: ...
    @property
    def resources(self) -> tuple[tuple[str, int], ...]: ...


class Capacity(msgspec.Struct, frozen=True):
    """What a node has beside its slots. `memory_bytes` of 0: memory is not counted."""

    memory_bytes: int = 0
    gpus: tuple[str, ...] = ()
    resources: Mapping[str, int] = {}


SLOTS_ALONE = Capacity()


class Declared(msgspec.Struct, frozen=True):
    """What its user says of a node, and tasks may ask for."""

    labels: dict[str, str] = {}
    resources: dict[str, int] = {}

    @property
    def fault(self) -> str:
        """Why this is too much to be gossiped, or an empty string."""
        if max(len(self.labels), len(self.resources)) > NAMES_LIMIT:
            return f"a node has at most {NAMES_LIMIT} labels and {NAMES_LIMIT} resources"
        size_bytes = len(msgspec.msgpack.encode((self.labels, self.resources)))
        if size_bytes > DECLARED_LIMIT_BYTES:
            return f"these labels and resources take {size_bytes} bytes; at most {DECLARED_LIMIT_BYTES} are gossiped"
        return ""


class Account:
    """What is taken of a node's slots and capacity. Who waits lends slots, so for a while more may be in use."""

    def __init__(self, slots: int, capacity: Capacity) -> None:
        self._slots = slots
        self._capacity = capacity
        self._gpus = list(capacity.gpus)  # that are free
        self.slots_in_use = 0
        self.memory_bytes = 0  # that running batches have declared
        self.resources = dict.fromkeys(sorted(capacity.resources), 0)

    @property
    def slots_left(self) -> bool:
        """Whether a slot is free."""
        return self.slots_in_use < self._slots

    @property
    def gpus_in_use(self) -> int:
        return len(self._capacity.gpus) - len(self._gpus)

    def why_never(self, demand: Demand) -> str:
        """Why this node can never give so much, or an empty string."""
        memory_bytes = self._capacity.memory_bytes or demand.memory_bytes
        return excess(demand, self._slots, memory_bytes, len(self._capacity.gpus), self._capacity.resources)

    def fits(self, demand: Demand) -> bool:
        """Whether all of it is free now."""
        return demand.cpus <= self._slots - self.slots_in_use and self.fits_but_for_slots(demand)

    def fits_but_for_slots(self, demand: Demand) -> bool:
        """Whether all of it is free now but perhaps slots."""
        return (
            (
                not demand.memory_bytes
                or not self._capacity.memory_bytes
                or demand.memory_bytes <= self._capacity.memory_bytes - self.memory_bytes
            )
            and demand.gpus <= len(self._gpus)
            and (
                not demand.resources
                or all(
                    count <= self._capacity.resources.get(name, 0) - self.resources.get(name, 0)
                    for name, count in demand.resources
                )
            )
        )

    def take(self, demand: Demand) -> tuple[str, ...]:
        """Count it as taken; gives the GPUs that it has now. Call only when it fits."""
        self.slots_in_use += demand.cpus
        self.memory_bytes += demand.memory_bytes
        for name, count in demand.resources:
            self.resources[name] += count
        given = tuple(self._gpus[: demand.gpus])
        del self._gpus[: demand.gpus]
        return given

    def give_back(self, demand: Demand, *, lent: bool) -> None:
        """It is over. With `lent` its slots are free already. Its GPUs are not, before `free`."""
        self.slots_in_use -= 0 if lent else demand.cpus
        self.memory_bytes -= demand.memory_bytes
        for name, count in demand.resources:
            self.resources[name] -= count

    def free(self, gpus: Iterable[str]) -> None:
        """The process that these GPUs were given to has ended."""
        self._gpus.extend(gpus)


def excess(
    demand: Demand, slots: int, memory_bytes: int, gpus: int, resources: Mapping[str, int], *, left: str = ""
) -> str:
    """The first thing that is asked for beyond these amounts, as "needs 4 slots, it has 2"; empty when all is there.

    `left` follows the amount: " free" where these amounts are what is left.
    """
    if demand.cpus > slots:
        return f"needs {slots_told(demand.cpus)}, it has {max(slots, 0)}{left}"
    if demand.memory_bytes and demand.memory_bytes > memory_bytes:
        return f"needs {gib(demand.memory_bytes)}, it has {gib(max(memory_bytes, 0))}{left}"
    if demand.gpus and demand.gpus > gpus:
        return f"needs {gpus_told(demand.gpus)}, it has {max(gpus, 0)}{left}"
    for name, count in demand.resources:
        if count > resources.get(name, 0):
            return f"needs {count} of {name}, it has {max(resources.get(name, 0), 0)}{left}"
    return ""


def fault_of(demand: Demand) -> str:
    """Why a demand from outside makes no sense, or an empty string: an account must never grow by being taken from."""
    resources = dict(demand.resources)
    if demand.cpus < 1 or demand.memory_bytes < 0 or demand.gpus < 0 or (resources and min(resources.values()) < 1):
        return "it needs less than nothing"
    if len(demand.resources) > NAMES_LIMIT or len(resources) < len(demand.resources):
        return f"it names a resource twice, or more than {NAMES_LIMIT}"
    return ""


def gib(size_bytes: int) -> str:
    """A size of memory for people, in GiB, or MiB where it is less than one, with at most one decimal."""
    unit, told = (30, "GiB") if size_bytes >= 1 << 30 else (20, "MiB")
    return f"{size_bytes / (1 << unit):.1f}".removesuffix(".0") + f" {told}"


def slots_told(count: int) -> str:
    """So many slots, in words."""
    return f"{count} slot{'s' * (count != 1)}"


def gpus_told(count: int) -> str:
    """So many GPUs, in words."""
    return f"{count} GPU{'s' * (count != 1)}"
