"""Pure state machines and policies: no socket, thread, file, clock or randomness of their own.

A machine has `handle(event, now) -> list[effect]` and, where time alone moves it, `tick(now) -> list[effect]`.
Same state and same input give the same output; randomness comes in through a seeded generator given at construction.
Events and effects are frozen values; only `node`, `tasks` and the simulator carry effects out.
"""
