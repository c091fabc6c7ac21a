"""Distributed memory: a node's arena of sealed blocks, as `core.arena` has them in its books.

Rules: nothing here unpickles; what a block holds is its reader's business.
"""
