"""Which runs may be pooled: repetitions of one experiment that differ only by seed, as far as results depend on it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from lth_lightning.errors import SettingError
from lth_lightning.report.aggregate import densities
from lth_lightning.runs.run import RunFiles, Settings, lookup
from lth_lightning.runs.settings import MAY_DIFFER, Different, differences, shown, what_counts

SEEDS = ("seed_everything", "lottery.seed")
NOT_COMPARED = (
    *SEEDS,
    "lottery.keep",  # writes more files
    "data.eval_batch_size",  # batches are weighted by their images, so results do not depend on it
    *(name for name in chain(*MAY_DIFFER.values()) if name != "data.batch_size"),
)
FINDING = ("lottery.rounds", "lottery.pruning", "lottery.rewind_to")
"""How tickets are found. A run that trains another run's tickets has these settings too, but does not use them."""
AFTER_FINDING = ("lottery.rounds", "lottery.control*", "lottery.evaluate_test", "lottery.tickets")
"""Settings that do not change the tickets that a run finds."""


def compared(run: RunFiles, among: Sequence[RunFiles]) -> Settings:
    """The settings of `run` that must equal those of the runs it is `among`.

    `data.batch_size` counts images per step over all processes. If any of the runs trains tickets that another run
    found, all are treated as trainings of found tickets, and `tickets` holds how these were found. For a run that found
    its own tickets, `tickets` holds its own settings.
    """
    settings = _with_images_a_step(run.settings)
    if not any(lookup(other.settings, "lottery.tickets") for other in among):
        return what_counts(settings, NOT_COMPARED)
    own = what_counts(settings, (*NOT_COMPARED, *FINDING, "tickets"))
    found_by = all_settings(run, among)["tickets"]
    return own | {"tickets": found_by and _of_finding(found_by)}


def all_settings(run: RunFiles, among: Sequence[RunFiles]) -> Settings:
    """All settings of a run, and under `tickets` those of the run that found its tickets, as in `compared`."""
    if not any(lookup(other.settings, "lottery.tickets") for other in among):
        return run.settings
    own = {name: value for name, value in run.settings.items() if name != "tickets"}
    found_here = not lookup(run.settings, "lottery.tickets")
    return own | {"tickets": own if found_here else run.settings.get("tickets")}


def _of_finding(settings: Settings) -> Settings:
    """The settings that count of the run that found the tickets, and recursively of the run that found its tickets."""
    counts = what_counts(_with_images_a_step(settings), (*NOT_COMPARED, *AFTER_FINDING, "tickets"))
    return counts | ({"tickets": _of_finding(settings["tickets"])} if settings.get("tickets") else {})


def _with_images_a_step(settings: Settings) -> Settings:
    """The settings with `data.batch_size` multiplied by the number of processes; `auto` counts as one device."""
    size = lookup(settings, "data.batch_size")
    if not isinstance(size, int):
        return settings
    devices, nodes = lookup(settings, "trainer.devices"), lookup(settings, "trainer.num_nodes")
    a_node = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) and devices > 0 else 1
    return settings | {"data": settings["data"] | {"batch_size": size * a_node * (nodes or 1)}}


def check_comparable(
    runs: Sequence[RunFiles], among: Sequence[RunFiles] | None = None, compared_by: Sequence[str] = ()
) -> None:
    """Refuse to pool runs that are not repetitions of one experiment.

    Of runs without config.yaml only the densities are compared.

    Args:
        runs: the runs to be pooled.
        among: all runs of the report, if there are more.
        compared_by: the settings that distinguish these runs from the others of the report.

    Raises:
        SettingError: settings differ (the error names them all), or a round's densities do, or two runs are copies.
    """
    _check_origins(among or runs)
    if differ := list(_different_settings(runs, among or runs)):
        keys = ",".join(dict.fromkeys([*compared_by, *(key(found) for found, _, _ in differ)]))
        said = "; ".join(
            f"{key(found)} is {brief(found.then)} in {one.path} and {brief(found.now)} in {other.path}"
            for found, one, other in differ
        )
        raise SettingError(
            f"report: these runs are not repetitions of one experiment: {said}. Report on each alone, or show them "
            f"side by side: --compare {keys}"
        )
    _check_densities(runs)
    _check_copies(runs)


def _different_settings(
    runs: Sequence[RunFiles], among: Sequence[RunFiles]
) -> Iterator[tuple[Different, RunFiles, RunFiles]]:
    """Yield each setting that differs from the first run's, with that run and the first run that differs."""
    known = [run for run in runs if run.settings]
    named: set[str] = set()
    for run in known[1:]:
        for found in differences(compared(known[0], among), compared(run, among)):
            if found.name not in named:
                named.add(found.name)
                yield found, known[0], run


def key(found: Different) -> str:
    """The setting's name as `--compare` and flags take it: without `init_args`."""
    return found.name.replace(".init_args", "")


def brief(value: Any) -> str:
    """A setting's value in an error, cut off after 60 characters."""
    text = shown(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _check_origins(runs: Sequence[RunFiles]) -> None:
    """Refuse tickets of unknown origin: the settings of the run that found them must be known."""
    for run in runs if len(runs) > 1 else ():
        if (tickets := lookup(run.settings, "lottery.tickets")) and not run.settings.get("tickets"):
            raise SettingError(
                f"report: {run.path} trains the tickets in {tickets} (lottery.tickets), but the config.yaml of the run "
                "that found them is missing. Restore that run, or report on each alone."
            )


def _check_densities(runs: Sequence[RunFiles]) -> None:
    first = densities(runs[0].rows)
    for run in runs[1:]:
        other = densities(run.rows)
        for number in sorted(first | other):
            if first.get(number) != other.get(number):
                raise SettingError(
                    f"report: these runs are not one experiment: round {number} is {_at(first, number)} in "
                    f"{runs[0].path} and {_at(other, number)} in {run.path}. Report on each alone."
                )


def _at(density: dict[int, float], number: int) -> str:
    return f"at density {density[number]!r}" if number in density else "missing"


def _check_copies(runs: Sequence[RunFiles]) -> None:
    seen: list[tuple[Any, Any, RunFiles]] = []
    for run in runs:
        seeds, figures = _seeds(run), [replace(row, seconds=0.0) for row in run.rows]
        for other_seeds, other_figures, other in seen:
            known = seeds is not None and other_seeds is not None
            if seeds == other_seeds if known else figures == other_figures:
                seed = lookup(run.settings, "seed_everything")
                both = f"both have seed {seed} (seed_everything)"
                if seed != lookup(other.settings, "seed_everything"):
                    both = "train the same tickets, which carry their own seed"
                why = both if known else "have the same results"
                raise SettingError(
                    f"report: {other.path} and {run.path} {why}: they are copies, not repetitions. "
                    "Leave one out, or train with another --seed_everything; if weights come from ticket files, find "
                    "the tickets with another seed."
                )
        seen.append((seeds, figures, run))


def _seeds(run: RunFiles) -> Any:
    """The seeds that everything random in a run depends on; None if not known.

    Tickets whose weights are taken over carry their own seed, and the run's seed has no effect.
    """
    return _seeds_of(run.settings)


def _seeds_of(settings: Settings) -> Any:
    own = [lookup(settings, name) for name in SEEDS]
    if own[0] in (None, False):
        return None
    if not (path := lookup(settings, "lottery.tickets")):
        return own
    found_by = settings.get("tickets")
    origin = _seeds_of(found_by) if found_by else path
    whole = (lookup(settings, "lottery.transfer") or "mask_and_weights") == "mask_and_weights"
    return origin if whole and lookup(settings, "lottery.on_mismatch") != "reinitialise" else [own, origin]
