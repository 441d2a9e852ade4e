"""Random calls of the ops, each held to its definition: shared by the tests and tools/stress.py."""
