"""Raft, as a pure machine (theory of operation follows).

    ordering = Ordering()                       # kos_cluster.core.ordering, shared by daemon and simulator
    raft = Raft(node, group, restored, random, now)
    actions = ordering.take(raft.start())
    actions += ordering.take(raft.handle(event, now))
    # a Write is durable:
    actions += ordering.written(number); actions += ordering.take(raft.handle(Persisted(number), now))
"""
