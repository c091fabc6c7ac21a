"""Engines: real Dask or Ray on KOS's nodes, started as gangs, with certificates of the cluster, behind the same calls.

A module `services.engines.KIND` is an engine, as `engine` has it; the rest of the package is for all of them.
"""
