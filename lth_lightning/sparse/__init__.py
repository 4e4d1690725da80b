"""Networks that cost what survives: kernels, compilation, export.

Reading order: `graph`, `trace`, `simplify`, `compaction`, `dense`, `plan`, `kernels.c`, `native`, `network`,
`compile`.

Its rule: it imports the foundation only. A graph is plain data; nothing here knows a ticket or a network's class.
"""

from lth_lightning.sparse.compile import Choice, compile

__all__ = ["Choice", "compile"]
