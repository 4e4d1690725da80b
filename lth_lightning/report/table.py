"""A table for readers: in Markdown for report.md, in HTML for report.html, and for a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rich import box
from rich.table import Table as RichTable
from rich.text import Text


@dataclass(frozen=True)
class Cell:
    """A figure as text, more text in brackets after it (in a terminal: below it), and whether it is the best."""

    text: str = ""
    more: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Headers, and lines with one cell per header; a header may have several lines."""

    headers: list[str]
    lines: list[list[Cell]]
    legend: Sequence[str] = ()  # below the table, in a terminal
    title: str = ""  # above the table, in a terminal
    gap: int = 1  # characters between columns, in a terminal
    label_width: int = 0  # in a terminal, the width at which all headers but the first two wrap; 0: no wrapping

    def markdown(self) -> str:
        """Render the table for report.md."""
        lines = [self.headers, ["---:"] * len(self.headers), *([_markdown(c) for c in line] for line in self.lines)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def html(self, caption: str, kind: str = "numbers") -> str:
        """Render the table for report.html, in a box that scrolls on a screen too narrow for its words.

        Args:
            caption: the text above the table, and its name for screen readers.
            kind: its CSS classes; "numbers" are aligned to the right, "beside" is in small print.
        """
        name = escape(caption)
        head = "".join(f'<th scope="col">{escape(header)}</th>' for header in self.headers)
        body = "\n".join(f"<tr>{_html_line(line)}</tr>" for line in self.lines)
        return (
            f'<div class="wide" role="region" tabindex="0" aria-label="{name}"><table class="{kind}">\n'
            f"<caption>{name}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
        )

    def rich(self) -> RichTable:
        """Render the table for a terminal."""
        result = RichTable(
            title=Text(self.title, style="bold") if self.title else None,
            caption="\n".join(["", *self.legend]) if self.legend else None,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, self.gap, 0, 0),
        )
        height = 0 if self.label_width else max(header.count("\n") for header in self.headers)
        for place, header in enumerate(self.headers):
            is_label = self.label_width > 0 and place > 1
            text, width = Text(header + "\n " * (height - header.count("\n"))), self.label_width or None
            result.add_column(text, justify="right", no_wrap=not is_label, min_width=width if is_label else None)
        for line in self.lines:
            result.add_row(*map(_text, line))
        return result


def _markdown(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text} ({cell.more})" if cell.more else text


def _html_line(line: Sequence[Cell]) -> str:
    first, *others = line
    return f'<th scope="row">{_html(first)}</th>' + "".join(f"<td>{_html(cell)}</td>" for cell in others)


def _html(cell: Cell) -> str:
    text = f"<strong>{escape(cell.text)}</strong>" if cell.best else escape(cell.text)
    more = escape(cell.more).replace(" = ", "\u00a0=\u00a0")  # "n = 3" stays on a line
    return f"{text} <small>({more})</small>" if more else text


def _text(cell: Cell) -> Text:
    text = Text(cell.text, style="bold" if cell.best else "")
    if cell.more:
        text.append(f"\n{cell.more}", style="not bold dim")
    return text
