"""Networks that cost what survives: kernels, compilation, export.

Reading order: `graph`, `trace`, `simplify`, `compaction`, `dense`, `plan`, `kernels.c`, `native`, `network`,
`compile`; then what leaves the house: `gaps`, `file`, `onnx_model`, `c_source`.

Its rule: it imports the foundation, and `pruning` for the hash of tensors. A graph is plain data; nothing here knows a
ticket or a network's class.
"""

from lth_lightning.sparse.compile import Choice, compile
from lth_lightning.sparse.network import SparseNetwork, load

__all__ = ["Choice", "SparseNetwork", "compile", "load"]
