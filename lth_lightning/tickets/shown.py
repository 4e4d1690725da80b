"""How a ticket shows itself: a line of text, and in a notebook a card with the density of each layer."""

from typing import TYPE_CHECKING

from lth_lightning.cards import Bar, bars, card
from lth_lightning.pruning.masks import density

if TYPE_CHECKING:
    from lth_lightning.tickets.ticket import Ticket


def in_short(ticket: "Ticket") -> str:
    """A ticket in one line: `Ticket(LeNet300 on MNIST, round 7, 21.0 % of 266,200 weights, test acc 98.1 %)`."""
    info = ticket.info
    what = [" on ".join(str(info[key]) for key in ("architecture", "data") if info.get(key))]
    if "round" in info:
        what.append(f"round {info['round']}")
    what.append(f"{_percent(ticket.density)} of {_weights(ticket):,} weights")
    what += [f"{name} {value}" for name, value in _scores(ticket).items()]
    return f"Ticket({', '.join(part for part in what if part)})"


def as_card(ticket: "Ticket") -> str:
    """A ticket as HTML: its architecture, its scores, and a bar a layer."""
    info, scores = ticket.info, _scores(ticket)
    title = f"Ticket of {info.get('architecture', 'a network')}" + (f" on {info['data']}" if info.get("data") else "")
    facts = {"round": str(info["round"])} if "round" in info else {}
    facts |= {"weights kept": f"{_percent(ticket.density)} of {_weights(ticket):,}", **scores}
    if ticket.trained is None:
        facts["trained weights"] = "none"
    layers = [
        Bar(name, density({name: mask}), f"{_percent(density({name: mask}))} of {mask.numel():,}")
        for name, mask in ticket.masks.items()
    ]
    return card(title, facts, bars(layers))


def _weights(ticket: "Ticket") -> int:
    return sum(mask.numel() for mask in ticket.masks.values())


def _scores(ticket: "Ticket") -> dict[str, str]:
    """The ticket's scores after training by name, `test acc`; accuracies in percent."""
    found = {name: value for name, value in ticket.info.items() if name.startswith(("val_", "test_"))}
    return {
        name.replace("_", " "): f"{100 * value:.2f} %" if name.endswith("_acc") else f"{value:.4g}"
        for name, value in found.items()
        if isinstance(value, float)
    }


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %"
