"""The ticket to use after a run: the sparsest one that still matches the dense network."""

import os
from pathlib import Path

from lth_lightning.errors import SettingError
from lth_lightning.report.aggregate import PooledRuns
from lth_lightning.report.statistics import smallest_match
from lth_lightning.report.wording import weights
from lth_lightning.runs.folder import RunFolder
from lth_lightning.runs.run import RunFiles
from lth_lightning.tickets.ticket import Ticket


def best_ticket(run: str | os.PathLike[str]) -> Ticket:
    """Load the sparsest ticket of a run that matches the dense network, by the rule of the run's report.

    It matches if its score at the end of training is at most the score's tolerance worse than the dense network's
    (for accuracy half a point), even if a ticket of a larger density missed by chance. Its `info["round"]` says which
    it is.

    Args:
        run: the run's folder, which holds results.csv and tickets/, or a `Run`.

    Raises:
        SettingError: the folder holds no run, or no sparse ticket that matches; the error names the nearest.
        TicketError: the ticket's file is missing or damaged.

    Example:
        >>> best_ticket("runs/lenet/0").predict("my_digits/")  # doctest: +SKIP
    """
    folder = Path(run)
    experiment = PooledRuns([RunFiles.read(folder)])
    dense, density, reported = experiment.dense_score, experiment.density, experiment.reported
    tickets = experiment.scores.get("ticket", {})
    sparse = {number: value for number, value in tickets.items() if density[number] < 1}
    if dense is None or not sparse:
        missing = "a sparse ticket" if dense is not None else "its dense network (round 0)"
        raise SettingError(f"best_ticket: {folder} has no {reported.label} of {missing}, so no ticket can match.")
    score = reported.score
    if (least := smallest_match(score, sparse, density, dense)) is None:
        best = score.best([value.mean for value in sparse.values()])
        nearest = next(number for number, value in sparse.items() if value.mean == best)
        raise SettingError(
            f"best_ticket: no sparse ticket of {folder} matches the dense network's {reported.label} of "
            f"{score.text(dense.mean)}{score.unit} (at most {score.size(score.allowance(dense.mean))} worse). The "
            f"nearest is round {nearest} with {score.text(best)}{score.unit} at {weights(density[nearest])} of the "
            f"weights: {RunFolder(folder).ticket(nearest)}."
        )
    number = next(n for n, value in sparse.items() if density[n] == least and score.matches(value.mean, dense.mean))
    return Ticket.load(RunFolder(folder).ticket(number))
