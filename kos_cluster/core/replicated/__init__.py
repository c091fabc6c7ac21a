"""The state that all nodes agree on: what Raft's committed commands are applied to, one module a part."""
