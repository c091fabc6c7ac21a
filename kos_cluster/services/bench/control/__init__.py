"""`kos bench control`: how the control plane of real daemons does, on loopback: losses, joins, rates, rest.

    figures.py     pure: what is measured, what it aims at, samples to figures, and the report's form
    fleet.py       a cluster of real daemons in a folder of its own, whose nodes can be killed and started again
    observer.py    a client that is linked to every node, asks, and sees what each of them believes
    failover.py    the coordinator is killed; when is the next proposal committed?
    detection.py   a node is killed; when do all others hold it dead?
    joining.py     from the wish for a token to the first task on the node that joined with it
    rates.py       replicated writes and linearizable reads a second
    rest.py        many daemons that do nothing: memory, processor, false suspicions, elections
    main.py        the command

Rules: nothing is simulated here, and nothing is left behind: every daemon runs from a folder that is removed with it.
What a measure waits for, it waits for as a client would, over the wire.
"""
