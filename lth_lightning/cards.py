"""Cards: what our objects show in a notebook in place of a line of text. Plain HTML with inline styles, no scripts.

Colours come from the page, so that a card can be read in a dark notebook too.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

BAR = "#0072B2"


class Bar(NamedTuple):
    """A line with a bar: its name, the bar's length as a fraction of the whole, and a text beside it."""

    name: str
    share: float
    text: str


def card(title: str, facts: Mapping[str, str], *parts: str) -> str:
    """A card with a title, facts as `name: value`, and further parts below, which are HTML already."""
    said = " · ".join(f"{escape(name)}: <b>{escape(value)}</b>" for name, value in facts.items())
    body = "".join(f'<div style="margin-top:6px">{part}</div>' for part in (said, *parts) if part)
    return (
        '<div style="border:1px solid #8888;border-radius:4px;padding:8px 12px;display:inline-block;max-width:60em">'
        f"<b>{escape(title)}</b>{body}</div>"
    )


def bars(lines: Iterable[Bar]) -> str:
    """A table with a bar a line."""
    return _table(
        [
            escape(line.name),
            f'<div style="width:160px;background:#8884"><div style="width:{100 * line.share:.4g}%;min-width:1px;'
            f'height:0.8em;background:{BAR}"></div></div>',
            escape(line.text),
        ]
        for line in lines
    )


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of texts."""
    return _table(([escape(text) for text in line] for line in lines), [escape(name) for name in header])


def _table(lines: Iterable[Sequence[str]], header: Sequence[str] = ()) -> str:
    head = f"<tr>{''.join(f'<th>{name}</th>' for name in header)}</tr>" if header else ""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    return f'<table style="margin:0">{head}{body}</table>'
