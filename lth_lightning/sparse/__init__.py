"""Networks that cost what survives: kernels, compilation, export.

Reading order: `graph`, `trace`, `simplify`, `compaction`, `dense`, `plan`, `kernels.c`, `native`, `network`.

Its rule: it imports the foundation only. A graph is plain data; nothing here knows tickets, Lightning or a network's class.
"""
