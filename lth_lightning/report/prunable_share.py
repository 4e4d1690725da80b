"""The share of the network that densities refer to, read from the ticket files."""

from collections.abc import Sequence

from lth_lightning.runs.folder import RunFolder
from lth_lightning.runs.run import RunFiles
from lth_lightning.tickets.packed_file import prunable_share, read_facts


def prunable_facts(runs: Sequence[RunFiles]) -> dict[str, str]:
    """Describe the prunable share in one line, from one ticket of each run; empty if no ticket records it."""
    tickets = [next(iter(sorted(RunFolder(run.path).ticket(0).parent.glob("*.safetensors"))), None) for run in runs]
    said = [read_facts(path) for path in tickets if path is not None]
    lines = dict.fromkeys(prunable_share(ticket) for ticket in said if "parameters" in ticket)
    return {"prunable": "; ".join(lines)} if lines else {}
