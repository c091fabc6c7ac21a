"""The simulator: core machines under virtual time and seeded faults, and the checker of what was recorded.

    from kos_cluster.sim.run import Options, run_seed
    result = run_seed(7, Options(nodes=5, seconds=60.0))
    assert not result.rule, result.what

`world` tells the theory of operation, `faults` what can go wrong, `invariants` and `swimrules` what must hold, and
`mutants` which defects this is known to catch.
"""
