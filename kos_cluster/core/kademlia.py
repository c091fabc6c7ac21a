"""Look-ups by node id over authenticated links, for peers that no LAN beacon reaches.

Theory of operation (P. Maymounkov, D. Mazières, "Kademlia", IPTPS 2002). Every node keeps some contacts, mostly near
its own key (`buckets.py`), and answers "who is closest to this key?" with the closest that it knows. Asking the closest
of the answers again and again leads to any node in O(log n) steps (`lookup.py`). A node that knows one member looks up
its own key and then a random key in each bucket, and by that is known to the others: whoever is asked keeps the asker.

    event                    what follows
    Seen                     the contact is kept; the longest unheard of a full bucket is probed
    Received FindNode        Found with up to `BUCKET_SIZE` contacts; the sender is kept, if its address is known
    Received Found           if it was asked for: the look-up goes on; the sender is kept
    Failed, or no answer     the contact is stale, the look-up asks another
    Mistaken                 the contact is dropped, the look-up tries what others say of it
    Lookup                   LookupDone, sooner or later; LookupRefused when too many are under way
    tick                     time-outs; buckets in which nothing was looked up for `REFRESH_S` are refreshed

Rules. A contact in an answer is a hint: it is used to make a link, and only what the link's certificate proves is kept
or told to others. Before a message leaves, the runtime checks that the id proved is the one that the message is for; if
not, it says `Mistaken` instead. An answer that nobody asked for, that comes from another node than the one asked, or
that names more than `BUCKET_SIZE` contacts is worth nothing; a contact in it that cannot be one is passed over. A
question's number is matched with the authenticated sender, so it need not be secret. A member of the cluster can lie;
each contact that it makes up costs a look-up one question at most, and all together no more than its limit.

Limits: `LOOKUPS_LIMIT` look-ups at once, each with `PARALLEL` questions at once and `QUESTIONS_LIMIT` in all; with none
answered the longest takes QUESTIONS_LIMIT / PARALLEL * ANSWER_TIMEOUT_S, 86 s. A table has at most KEY_BITS *
BUCKET_SIZE, 4,096 contacts. An answer is at most some 5 KiB, mostly below 1.5 KiB.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import msgspec

from kos_cluster.core.buckets import BUCKET_SIZE, KEY_BITS, Contact, Table, key_of
from kos_cluster.core.lookup import LookUp

ANSWER_TIMEOUT_S = 2.0  # making the link included
REFRESH_S = 3600.0  # a bucket in which nothing was looked up for so long is refreshed
REFRESHES_LIMIT = 3  # buckets refreshed at once
LOOKUPS_LIMIT = 64  # look-ups at once that were asked for; refreshes come on top
ID_LIMIT_CHARS = 64  # of a node's id
HOST_LIMIT_CHARS = 255  # of a host's name
KEY_BYTES = KEY_BITS // 8


class FindNode(msgspec.Struct, frozen=True, tag="find-node"):
    """Message: who is closest to this key?"""

    request: int  # the asker's number for it
    key: bytes


class Found(msgspec.Struct, frozen=True, tag="found"):
    """Message: the closest contacts that the sender knows, the closest first; the asker and the sender left out."""

    request: int
    contacts: tuple[Contact, ...]


Message = FindNode | Found


# ---- events


class Seen(msgspec.Struct, frozen=True):
    """A link has proved that this contact is right."""

    contact: Contact


class Received(msgspec.Struct, frozen=True):
    """A message came over a link that has proved its sender. Port 0: where it can be reached is not known."""

    sender: Contact
    message: Message


class Failed(msgspec.Struct, frozen=True):
    """A contact could not be reached, or its link broke."""

    contact: Contact


class Mistaken(msgspec.Struct, frozen=True):
    """The address of this contact proved to be another node's."""

    contact: Contact


class Lookup(msgspec.Struct, frozen=True):
    """Somebody wants the contact of the node with this id."""

    target: str


# ---- effects


class Send(msgspec.Struct, frozen=True):
    """Effect: send this over a link that has proved the contact's id; make the link if there is none."""

    contact: Contact
    message: Message


class LookupDone(msgspec.Struct, frozen=True):
    """Effect: the look-up has ended. `contacts` are the closest that answered, the closest first.

    `found` is the target's own contact, proved by its answer, or None when nobody who answered could lead to it.
    """

    target: str
    found: Contact | None
    contacts: tuple[Contact, ...]
    hops: int = 0  # messages along the way to the target; 0 when not found, or when it is this node
    questions: int = 0  # asked in all


class LookupRefused(msgspec.Struct, frozen=True):
    """Effect: the look-up was not begun; the sentence says why."""

    target: str
    reason: str


Event = Seen | Received | Failed | Mistaken | Lookup
Effect = Send | LookupDone | LookupRefused


@dataclass(frozen=True, slots=True)
class _Question:
    """A question under way. Without a look-up it is a probe: only that there is an answer matters."""

    contact: Contact
    lookup: LookUp | None
    deadline: float


class Kademlia:
    """The machine of the node `me`."""

    def __init__(self, me: Contact, rng: random.Random) -> None:
        self._me = me
        self._own_key = key_of(me.id)
        self._rng = rng
        self._table = Table(me.id)
        self._questions: dict[int, _Question] = {}
        self._last_request = 0
        self._wanted: dict[str, LookUp] = {}  # by target
        self._refreshes: list[LookUp] = []
        self._looked_up_s: dict[int, float] = {}  # by bucket, -1 for the own key: when a key in it was last looked up

    def contacts(self) -> int:
        """How many contacts are kept."""
        return len(self._table)

    def handle(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Seen(contact):
                return self._saw(contact, now)
            case Received(sender, message):
                return self._receive(sender, message, now)
            case Failed(contact):
                self._table.failed(contact, now)
                return self._give_up(contact, now)
            case Mistaken(contact):
                self._table.mistaken(contact)
                return self._give_up(contact, now)
            case Lookup(target):
                return self._look_up(target, now)

    def tick(self, now: float) -> list[Effect]:
        """Give up what is late, and refresh what is due. Call it at least once a second."""
        effects: list[Effect] = []
        for number in [number for number, question in self._questions.items() if now >= question.deadline]:
            self._table.failed(self._questions[number].contact, now)
            effects += self._end_in_vain(number, now)
        return effects + self._refresh(now)

    def _saw(self, contact: Contact, now: float) -> list[Effect]:
        old = self._table.saw(contact, now)
        if old is None or any(q.lookup is None and q.contact == old for q in self._questions.values()):
            return []
        return [self._ask(old, None, self._own_key, now)]

    def _receive(self, sender: Contact, message: Message, now: float) -> list[Effect]:
        effects = self._saw(sender, now) if sender.port else []
        match message:
            case FindNode(request, key):
                if len(key) == KEY_BYTES:
                    closest = self._table.closest(int.from_bytes(key, "big"), without=sender.id)
                    effects.append(Send(sender, Found(request, tuple(closest))))
            case Found(request, contacts):
                effects += self._take_answer(sender, request, contacts, now)
        return effects

    def _take_answer(self, sender: Contact, number: int, contacts: tuple[Contact, ...], now: float) -> list[Effect]:
        question = self._questions.get(number)
        if question is None or question.contact.id != sender.id:
            return []
        if len(contacts) > BUCKET_SIZE:
            return self._end_in_vain(number, now)
        del self._questions[number]
        if question.lookup is None:
            return []
        hints: list[Contact] = []
        for contact in contacts:
            if _is_sound(contact) and contact.id != self._me.id:
                # What was proved here is tried before what others say.
                proved = self._table.known(contact.id)
                hints += [proved, contact] if proved is not None else [contact]
        question.lookup.answered(sender, hints)
        return self._go_on(question.lookup, now)

    def _give_up(self, contact: Contact, now: float) -> list[Effect]:
        """End every question to a contact at this address."""
        effects: list[Effect] = []
        for number in [number for number, question in self._questions.items() if question.contact == contact]:
            effects += self._end_in_vain(number, now)
        return effects

    def _end_in_vain(self, number: int, now: float) -> list[Effect]:
        question = self._questions.pop(number)
        if question.lookup is None:
            return []
        question.lookup.failed(question.contact.id)
        return self._go_on(question.lookup, now)

    def _look_up(self, target: str, now: float) -> list[Effect]:
        if target == self._me.id:
            return [LookupDone(target, self._me, tuple(self._table.closest(self._own_key)))]
        if target in self._wanted:
            return []  # its end serves both
        if len(self._wanted) >= LOOKUPS_LIMIT:
            return [LookupRefused(target, f"{LOOKUPS_LIMIT} look-ups are under way, which is the limit")]
        key = key_of(target)
        lookup = self._wanted[target] = LookUp(key, self._table.closest(key, stale=True), target)
        return self._begin(lookup, now)

    def _begin(self, lookup: LookUp, now: float) -> list[Effect]:
        self._looked_up_s[self._table.bucket_of(lookup.key)] = now
        return self._go_on(lookup, now)

    def _go_on(self, lookup: LookUp, now: float) -> list[Effect]:
        effects: list[Effect] = [self._ask(contact, lookup, lookup.key, now) for contact in lookup.next()]
        if not lookup.done:
            return effects
        # What is still under way comes too late for it, and is of use to the table only.
        for number, question in self._questions.items():
            if question.lookup is lookup:
                self._questions[number] = _Question(question.contact, None, question.deadline)
        if lookup in self._refreshes:
            self._refreshes.remove(lookup)
            return effects
        del self._wanted[lookup.target]
        done = LookupDone(lookup.target, lookup.found, lookup.closest(), lookup.hops, lookup.questions)
        return [*effects, done]

    def _ask(self, contact: Contact, lookup: LookUp | None, key: int, now: float) -> Send:
        self._last_request += 1
        self._questions[self._last_request] = _Question(contact, lookup, now + ANSWER_TIMEOUT_S)
        return Send(contact, FindNode(self._last_request, key.to_bytes(KEY_BYTES, "big")))

    def _refresh(self, now: float) -> list[Effect]:
        """Look up the own key, then a random key in each bucket that may hold anything, a few at once."""
        nearest = self._table.nearest_bucket()
        if nearest is None:
            return []
        effects: list[Effect] = []
        for bucket in (-1, *range(nearest, KEY_BITS)):
            own_first = any(lookup.key == self._own_key for lookup in self._refreshes)
            if own_first or len(self._refreshes) >= REFRESHES_LIMIT:
                break
            if now - self._looked_up_s.get(bucket, now - REFRESH_S) >= REFRESH_S:
                offset = 1 << bucket | self._rng.getrandbits(bucket) if bucket >= 0 else 0
                key = self._own_key ^ offset
                lookup = LookUp(key, self._table.closest(key, stale=True))
                self._refreshes.append(lookup)
                effects += self._begin(lookup, now)
        return effects


def _is_sound(contact: Contact) -> bool:
    """Whether a contact from outside can be one."""
    return (
        0 < len(contact.id) <= ID_LIMIT_CHARS
        and 0 < len(contact.host) <= HOST_LIMIT_CHARS
        and 0 < contact.port < 2**16
        and contact.host.isprintable()
        and contact.id.isprintable()
    )
