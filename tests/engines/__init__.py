"""Real engines on real clusters."""
