"""What the rows of several networks say together: pooled over runs and replicates."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lth_lightning.runs.rows import VARIANTS, Record, Row


@dataclass(frozen=True)
class Spread:
    """One figure over the `n` networks (runs, replicates) for which it is known."""

    mean: float
    low: float
    high: float
    n: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean, least and greatest of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return Spread(sum(known) / len(known), min(known), max(known), len(known)) if known else None


def by_round(rows: Iterable[Record], figure: Callable[[Record], float | None]) -> dict[int, Spread]:
    """`figure` of the rows, pooled over runs and replicates; only the rounds where it is known."""
    pooled: dict[int, list[float | None]] = {}
    for row in rows:
        pooled.setdefault(row.round, []).append(figure(row))
    return {number: found for number, values in sorted(pooled.items()) if (found := spread(values))}


def of_variant(rows: Iterable[Record], variant: str) -> list[Record]:
    """The rows of one variant."""
    return [row for row in rows if row.variant == variant]


def curves(rows: Sequence[Row], figure: Callable[[Row], float | None]) -> dict[str, dict[int, Spread]]:
    """`by_round` of each variant for which `figure` is known, in the order of `VARIANTS`."""
    found = {variant: by_round(of_variant(rows, variant), figure) for variant in VARIANTS}
    return {variant: curve for variant, curve in found.items() if curve}


def densities(rows: Iterable[Row]) -> dict[int, float]:
    """The density of each round; a round's variants share it."""
    return {row.round: row.density for row in rows}


def dense_rows(rows: Iterable[Row]) -> list[Row]:
    """The dense network, once a run: round 0 where it keeps every weight (a run from ticket files has none)."""
    return [row for row in rows if row.round == 0 and row.variant == "ticket" and row.kept == row.prunable]
