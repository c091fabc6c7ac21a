"""How the ranks of a gang speak with each other: `kos.comm()` and what it stands on.

    table         what each rank is told of all before it begins: where they are, and the epoch's secret
    frames        how a value becomes a message: arrays as they lie in memory, the rest pickled
    links         a one-way stream from one rank to another: TLS between nodes, shared memory within one
    endpoint      opens links, takes those of others, and answers what this rank is doing
    collectives   broadcast, reduce and the others, from messages between two ranks
    communicator  what user code calls
    ranks         what runs in a rank's worker before user code does

Rules. A rank speaks only with ranks of its own gang and epoch: between nodes both show certificates of the cluster's
authority, within a node the kernel tells the other's user; on either the connecting side then gives the secret that its
owner made for this epoch. Between nodes everything is encrypted. Nothing here has a name in a file system.
"""
