"""Look-ups across many nodes: within the bounds, past dead nodes and past liars; and the machine's own rules."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from kos_cluster.core import kademlia
from kos_cluster.core.buckets import BUCKET_SIZE, PROBE_AFTER_S, Contact, key_of
from kos_cluster.core.kademlia import (
    ANSWER_TIMEOUT_S,
    LOOKUPS_LIMIT,
    REFRESH_S,
    REFRESHES_LIMIT,
    Failed,
    FindNode,
    Found,
    Kademlia,
    Lookup,
    LookupDone,
    LookupRefused,
    Mistaken,
    Received,
    Seen,
    Send,
)
from kos_cluster.core.lookup import PARALLEL, QUESTIONS_LIMIT
from tests.core.kademlia_network import Network

ME = Contact("me", "here", 7567)


def contact(number: int, port: int = 7567) -> Contact:
    return Contact(f"n{number}", "host", port)


def log2(count: int) -> int:
    return math.ceil(math.log2(count))


def machine(*known: Contact) -> Kademlia:
    """A machine that has been running, with nothing to refresh."""
    node = Kademlia(ME, random.Random(1))
    for one in known:
        node.handle(Seen(one), 0.0)
    return node


def sends(effects: list[kademlia.Effect]) -> list[Send]:
    return [effect for effect in effects if isinstance(effect, Send)]


def answer(send: Send, *contacts: Contact) -> Received:
    """What the asked node answers."""
    return Received(send.contact, Found(send.message.request, contacts))


# ---- many nodes


@pytest.mark.parametrize("count", [2, 10, 40])
def test_every_node_finds_every_other(count: int):
    network = Network(count, seed=count)
    network.grow()
    for seeker in network.contacts:
        for target in network.contacts:
            done = network.look_up(seeker.id, target.id)
            assert done.found == target, f"seed {count}: {seeker.id} looked for {target.id}"
            assert done.hops <= log2(count)


@pytest.mark.parametrize("count", [100, 300, 1000])
def test_a_look_up_takes_at_most_log_n_steps_and_a_table_at_most_k_log_n_contacts(count: int):
    network = Network(count, seed=count)
    network.grow()
    per_join = network.sent / count
    seekers = network.rng.sample(network.contacts, 100)
    for seeker in seekers:
        target = network.rng.choice(network.contacts)
        done = network.look_up(seeker.id, target.id)
        assert done.found == target, f"seed {count}: {seeker.id} looked for {target.id}"
        assert done.hops <= log2(count)
        assert done.questions <= PARALLEL * log2(count)
    assert max(node.contacts() for node in network.machines.values()) <= BUCKET_SIZE * log2(count)
    assert per_join <= 8 * BUCKET_SIZE  # both ways, whatever the number of nodes
    assert network.largest == BUCKET_SIZE


@pytest.mark.parametrize("seed", range(3))
def test_with_a_fifth_of_the_nodes_dead_all_others_are_found(seed: int):
    network = Network(200, seed)
    network.grow()
    network.dead = {one.id for one in network.rng.sample(network.contacts, 40)}
    alive = [one for one in network.contacts if one.id not in network.dead]
    for seeker in network.rng.sample(alive, 40):
        target = network.rng.choice(alive)
        done = network.look_up(seeker.id, target.id)
        assert done.found == target, f"seed {seed}: {seeker.id} looked for {target.id}"
        assert done.hops <= log2(200) and done.questions < QUESTIONS_LIMIT


def test_a_dead_node_is_not_found_and_the_look_up_ends():
    network = Network(60, seed=1)
    network.grow()
    network.dead = {"node7"}
    done = network.look_up("node3", "node7")
    assert done.found is None and done.hops == 0
    right = sorted(network.contacts, key=lambda one: key_of(one.id) ^ key_of("node7"))
    assert set(done.contacts) == {one for one in right if one.id not in ("node7", "node3")} & set(done.contacts)
    assert list(done.contacts) == [one for one in right if one in done.contacts] and len(done.contacts) == BUCKET_SIZE


def test_the_same_seed_gives_the_same_effects():
    def trace(seed: int) -> list[str]:
        network = Network(30, seed)
        network.grow()
        network.dead = {"node4", "node9"}
        network.refresh(["node1", "node2"], ticks=5)
        network.look_up("node1", "node20")
        network.look_up("node2", "node9")
        return network.trace

    assert trace(5) == trace(5) != trace(6)


# ---- liars


class Liar:
    """Answers every question with what `lie` makes of it."""

    def __init__(self, lie: Callable[[FindNode], tuple[Contact, ...]]) -> None:
        self._lie = lie

    def handle(self, event: kademlia.Event, now: float) -> list[kademlia.Effect]:
        if isinstance(event, Received) and isinstance(event.message, FindNode):
            return [Send(event.sender, Found(event.message.request, self._lie(event.message)))]
        return []

    def tick(self, now: float) -> list[kademlia.Effect]:
        return []


def too_many(_: FindNode) -> tuple[Contact, ...]:
    return tuple(contact(number) for number in range(1000))


def made_up(question: FindNode) -> tuple[Contact, ...]:
    return tuple(Contact(f"{question.request} {n}", "10.9.9.9", 7567) for n in range(BUCKET_SIZE))


def garbage(_: FindNode) -> tuple[Contact, ...]:
    return (
        Contact("", "h", 1),
        Contact("x" * 10_000, "h", 1),
        Contact("x", "", 1),
        Contact("x", "h" * 10_000, 1),
        Contact("x", "h", 0),
        Contact("x", "h", 65536),
        Contact("x", "h", -1),
        Contact("x\n", "h", 1),
        Contact("x", "h\x00", 1),
    )


def wrong_addresses(_: FindNode) -> tuple[Contact, ...]:
    """Everybody is said to be at the first node's address."""
    return tuple(Contact(f"node{number}", "10.0.0.0", 7567) for number in range(24, 40))


@pytest.mark.parametrize("lie", [too_many, made_up, garbage, wrong_addresses])
def test_a_fifth_of_liars_costs_questions_and_no_more(lie: Callable[[FindNode], tuple[Contact, ...]]):
    network = Network(60, seed=3)
    network.grow()
    for liar in network.contacts[1:13]:
        network.nodes[liar.id] = Liar(lie)
    for seeker in network.contacts[30:50]:
        target = network.rng.choice(network.contacts[20:])
        done = network.look_up(seeker.id, target.id)
        assert done.found == target and done.questions <= QUESTIONS_LIMIT
        unknown = network.look_up(seeker.id, "nobody")
        assert unknown.found is None and unknown.questions <= QUESTIONS_LIMIT
        assert set(unknown.contacts) <= set(network.contacts)
    real = {one.id for one in network.contacts}
    for id_, node in network.machines.items():
        (done,) = node.handle(Lookup(id_), network.now)
        assert {one.id for one in done.contacts} <= real


def test_an_answer_with_too_many_contacts_is_worth_nothing():
    node = machine(contact(1))
    (send,) = sends(node.handle(Lookup("n9"), 0.0))
    effects = node.handle(answer(send, *(contact(number) for number in range(2, BUCKET_SIZE + 3))), 0.1)
    assert effects == [LookupDone("n9", None, (), questions=1)]


def test_contacts_that_cannot_be_ones_are_passed_over():
    node = machine(contact(1))
    (send,) = sends(node.handle(Lookup("n9"), 0.0))
    effects = node.handle(answer(send, *garbage(send.message), contact(2)), 0.1)
    assert [effect.contact for effect in sends(effects)] == [contact(2)] and len(effects) == 1


def test_what_an_answer_says_of_the_asker_and_of_the_sender_is_passed_over():
    node = machine(contact(1))
    (send,) = sends(node.handle(Lookup("n9"), 0.0))
    effects = node.handle(answer(send, Contact("me", "there", 1), contact(1, port=9)), 0.1)
    assert effects == [LookupDone("n9", None, (contact(1),), questions=1)]


def test_what_an_answer_names_is_not_kept_until_it_is_proved():
    node = machine(contact(1))
    (send,) = sends(node.handle(Lookup("n9"), 0.0))
    (second,) = sends(node.handle(answer(send, contact(2)), 0.1))
    assert second.contact == contact(2) and node.contacts() == 1
    node.handle(Mistaken(contact(2)), 0.2)
    assert node.contacts() == 1
    reply = node.handle(Received(contact(3), FindNode(1, bytes(32))), 0.3)
    assert reply == [Send(contact(3), Found(1, (contact(1),)))]


def test_answers_that_nobody_asked_for_are_worth_nothing():
    node = machine(contact(1), contact(2))
    asked = sends(node.handle(Lookup("n9"), 0.0))
    one = asked[0]
    stranger = contact(66)
    for event in (
        Received(stranger, Found(one.message.request, (contact(7),))),
        Received(one.contact, Found(one.message.request + 100, (contact(7),))),
    ):
        assert node.handle(event, 0.1) == []
    node.handle(answer(one), 0.2)
    assert node.handle(answer(one, contact(7)), 0.3) == []  # said twice


def test_a_proved_address_is_tried_before_what_a_peer_says():
    known = sorted((contact(number) for number in range(24)), key=lambda one: key_of(one.id) ^ key_of("target"))
    node = machine(*known)
    asked = sends(node.handle(Lookup("target"), 0.0))
    first, last = asked[0].contact, known[-1]
    assert first == known[0]  # and `last` is too far away to be asked from the start
    asked = asked[1:] + sends(node.handle(answer(asked[0], Contact(last.id, "a liar's", 1)), 0.1))
    all_asked = [first]
    while asked:
        send = asked.pop(0)
        all_asked.append(send.contact)
        asked += sends(node.handle(Failed(send.contact), 0.2))
    assert [one for one in all_asked if one.id == last.id] == [last, Contact(last.id, "a liar's", 1)]


# ---- the machine's rules


def test_a_look_up_for_this_node_needs_no_question():
    assert machine(contact(1)).handle(Lookup("me"), 0.0) == [LookupDone("me", ME, (contact(1),))]


def test_without_any_contact_a_look_up_ends_at_once():
    node = machine()
    assert node.handle(Lookup("n1"), 0.0) == [LookupDone("n1", None, ())]
    assert node.tick(1.0) == []


def test_two_look_ups_for_one_node_are_one():
    node = machine(contact(1))
    assert len(sends(node.handle(Lookup("n9"), 0.0))) == 1
    assert node.handle(Lookup("n9"), 0.1) == []


def test_the_look_ups_under_way_are_bounded():
    node = machine(contact(1))
    for number in range(LOOKUPS_LIMIT):
        assert not isinstance(node.handle(Lookup(f"t{number}"), 0.0)[0], LookupRefused)
    (refused,) = node.handle(Lookup("one more"), 0.0)
    assert isinstance(refused, LookupRefused) and str(LOOKUPS_LIMIT) in refused.reason
    ended = [effect for effect in node.tick(ANSWER_TIMEOUT_S) if isinstance(effect, LookupDone)]
    assert len(ended) == LOOKUPS_LIMIT
    assert not isinstance(node.handle(Lookup("one more"), ANSWER_TIMEOUT_S)[0], LookupRefused)


def test_silence_is_a_failure_after_the_time_out():
    node = machine(contact(1))
    node.handle(Lookup("n9"), 0.0)
    assert not [e for e in node.tick(ANSWER_TIMEOUT_S - 0.1) if isinstance(e, LookupDone)]
    ended = [e for e in node.tick(ANSWER_TIMEOUT_S) if isinstance(e, LookupDone)]
    assert ended == [LookupDone("n9", None, (), questions=1)]


def test_a_failure_ends_every_question_to_that_address():
    node = machine(contact(1))
    for target in ("n8", "n9"):
        node.handle(Lookup(target), 0.0)
    assert [effect.target for effect in node.handle(Failed(contact(1)), 0.1)] == ["n8", "n9"]


def test_a_contact_that_failed_is_still_asked_and_one_that_is_another_node_is_not():
    node = machine(contact(1))
    node.handle(Failed(contact(1)), 0.0)
    assert [send.contact for send in sends(node.handle(Lookup("n9"), 0.1))] == [contact(1)]
    assert node.handle(Mistaken(contact(1)), 0.2) == [LookupDone("n9", None, (), questions=1)]
    assert node.contacts() == 0


def test_a_question_of_another_length_gets_no_answer_and_the_asker_is_not_named_to_itself():
    node = machine(contact(1), contact(2))
    assert node.handle(Received(contact(1), FindNode(7, b"short")), 0.0) == []
    (send,) = node.handle(Received(contact(1), FindNode(7, key_of("n1").to_bytes(32, "big"))), 0.0)
    assert send == Send(contact(1), Found(7, (contact(2),)))


def test_an_old_contact_is_probed_once_and_evicted_when_it_is_silent():
    number_of = {f"n{number}": number for number in range(200)}
    far = [id_ for id_ in number_of if (key_of(id_) ^ key_of("me")) >> 255][: BUCKET_SIZE + 2]
    inside, newcomers = far[:BUCKET_SIZE], far[BUCKET_SIZE:]
    node = machine(*(contact(number_of[id_]) for id_ in inside))
    now = PROBE_AFTER_S
    (probe,) = sends(node.handle(Seen(contact(number_of[newcomers[0]])), now))
    assert probe.contact.id == inside[0]
    assert node.handle(Seen(contact(number_of[newcomers[1]])), now) == []  # one probe is under way
    node.tick(now + ANSWER_TIMEOUT_S)
    (reply,) = node.handle(Received(ME, FindNode(1, key_of(inside[0]).to_bytes(32, "big"))), now + 3.0)
    assert {one.id for one in reply.message.contacts} == {*inside[1:], newcomers[1]}


def test_a_node_refreshes_its_own_key_first_then_a_few_buckets_at_a_time_and_again_in_an_hour():
    node = machine(contact(1))
    own = sends(node.tick(0.0))
    assert [send.message.key for send in own] == [key_of("me").to_bytes(32, "big")]
    assert node.tick(0.5) == []
    node.handle(answer(own[0]), 0.6)
    asked: list[Send] = []
    while more := sends(node.tick(1.0)):
        assert len(more) <= REFRESHES_LIMIT
        asked += more
        for send in more:
            node.handle(answer(send), 1.0)
    nearest = (key_of("n1") ^ key_of("me")).bit_length() - 1
    buckets = [(int.from_bytes(send.message.key, "big") ^ key_of("me")).bit_length() - 1 for send in asked]
    assert buckets == list(range(nearest, 256))
    assert node.tick(REFRESH_S - 1.0) == []
    assert len(sends(node.tick(REFRESH_S))) == 1
