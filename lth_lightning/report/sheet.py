"""A table for persons, before it becomes Markdown or HTML."""

from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Cell:
    """A figure as text, the range it is the mean of (empty for one network), and whether it is its row's best."""

    text: str = ""
    range: str = ""
    best: bool = False


@dataclass(frozen=True)
class Sheet:
    """Headers and lines, of as many cells each."""

    headers: list[str]
    lines: list[list[Cell]]


def markdown(sheet: Sheet) -> str:
    """The table for report.md."""
    lines = [sheet.headers, ["---:"] * len(sheet.headers), *([_markdown(c) for c in line] for line in sheet.lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text} ({cell.range})" if cell.range else text


def html(sheet: Sheet, caption: str, kind: str = "numbers") -> str:
    """The table for report.html, in a box that scrolls by itself where a screen is narrow.

    Args:
        sheet: what it holds; the first column names the line.
        caption: what a screen reader calls it, and stands above it.
        kind: its CSS class: "numbers" are aligned to the right.
    """
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in sheet.headers)
    body = "\n".join(f"<tr>{_html_line(line)}</tr>" for line in sheet.lines)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption)}"><table class="{kind}">\n'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _html_line(line: list[Cell]) -> str:
    first, *others = line
    return f'<th scope="row">{_html(first)}</th>' + "".join(f"<td>{_html(cell)}</td>" for cell in others)


def _html(cell: Cell) -> str:
    text = f"<strong>{escape(cell.text)}</strong>" if cell.best else escape(cell.text)
    return f"{text} <small>({escape(cell.range)})</small>" if cell.range else text
