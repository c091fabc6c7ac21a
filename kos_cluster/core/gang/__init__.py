"""Gangs: N ranks that start all together or not at all, and are started anew as a whole when one is lost.

    assignment   how many ranks go to which node, or why they fit nowhere; pure arithmetic
    scheduler    the coordinator's side: which gang may try to reserve its slots, and when it tries again
    slots        a node's side: slots that are reserved, for how long, and what waits for them
    epochs       the owner's side: one life of the whole gang after another, and what ended each

Theory of operation. Gang scheduling (J. Ousterhout, "Scheduling Techniques for Concurrent Systems", ICDCS 1982) by
reservation: the coordinator plans where the ranks of a gang go and has the plan carried out by two-phase commit
(`core.twophase`), one participant a node. A node that votes yes holds the slots; a commit hands them to the owner, who
sends one rank a reserved slot; an abort frees them. So slots are reserved for all ranks or for none.

No deadlock. What competing gangs could wait for each other with, slots of open transactions, the coordinator never
promises twice: it plans the next gang around them. Two coordinators, a deposed one and its successor, can for a moment;
then the patience of a node that waits for slots ends (`patience_s`), the transaction aborts and nothing is held.

Leases. A reservation lives in the memory of its node's daemon and ends by that node's own clock, whatever becomes of
coordinator, decision and owner: `lease_s` after it was granted. A commit that comes later finds nothing to do, and a
rank that comes later is refused. A daemon that was started anew holds no reservation. Either way the owner finds out
before any rank has begun, and asks anew: ranks run user code only when all of them are in place.
"""
