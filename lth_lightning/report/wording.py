"""Names and numbers as tables, charts and sentences print them, in percent; rows hold fractions."""

from collections.abc import Iterable


def weights(density: float) -> str:
    """A density as printed in sentences and labels: 0.2107 is 21.1 %."""
    return f"{100 * density:.3g} %"


def named(variant: str) -> str:
    """The name of a variant in words."""
    return variant.replace("_", " ")


def short_names(names: list[str]) -> list[str]:
    """Remove the dotted parts that all names begin with (`model.net.`) or end in (`.weight`)."""
    parts = [name.split(".") for name in names]
    for end in (0, -1):
        while min(map(len, parts)) > 1 and len({part[end] for part in parts}) == 1:
            for part in parts:
                del part[end]
    return [".".join(part) for part in parts]


def counted(counts: Iterable[int]) -> str:
    """How many networks or runs the figures cover: "n = 3", or "n = 1 to 3" if that varies."""
    found = set(counts)
    return "n = " + " to ".join(map(str, sorted({min(found), max(found)})))
