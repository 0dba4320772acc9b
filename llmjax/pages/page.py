"""HTML of one file: styles and charts within, no script, and a policy that forbids any request.

Texts go through `text`, so that nothing that a corpus or a model wrote is taken for HTML. All other
parameters named `body` or `parts` are HTML that functions here made.
"""

import datetime
import html
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any


def render(title: str, sections: Iterable[str], footer: str) -> str:
    """The whole page.

    Args:
        title: of the window, as text.
        sections: HTML, from `header` and `section`.
        footer: a line below all, as text.
    """
    style = pathlib.Path(__file__).with_suffix(".css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{text(title)} · llmjax</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(sections)}<footer>{text(footer)}</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


def header(kind: str, title: str, where: str, figures: Sequence[tuple[str, str, str]]) -> str:
    """The head of a page: what it is, whose, when and where made, and its headline numbers.

    Args:
        kind: of page, in a word or two.
        title: whose page it is.
        where: said behind the time; "" says nothing.
        figures: (label, figure, note) each.
    """
    when = datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M")
    line = f"{when} · {where}" if where else when
    cards = "".join(
        f'<div class="card"><dt>{text(label)}</dt><dd>{text(figure)}'
        f"<small>{text(note)}</small></dd></div>\n"
        for label, figure, note in figures
    )
    return (
        f'<header><p class="eyebrow">{text(kind)}</p><h1>{text(title)}</h1>'
        f"<p>{text(line)}</p></header>\n"
        f'<dl class="figures">\n{cards}</dl>\n'
    )


def section(title: str, *parts: str) -> str:
    """Parts under a heading; nothing where there are none."""
    body = "".join(parts)
    return f"<section>\n<h2>{text(title)}</h2>\n{body}</section>\n" if body else ""


def details(summary: str, body: str) -> str:
    """What folds out of its summary."""
    return f'<details class="card"><summary>{text(summary)}</summary>{body}</details>\n'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML; nothing where it has no rows."""
    body = "".join(f"<tr>{_cells('td', row)}</tr>\n" for row in rows)
    if not body:
        return ""
    return (
        f'<div class="card scroll"><table>\n<thead><tr>{_cells("th", head)}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>\n"
    )


def plots(charts: Iterable[str]) -> str:
    """Charts side by side, as far as the window is wide; nothing where there are none."""
    figures = "".join(f'<figure class="card">{chart}</figure>\n' for chart in charts)
    return f'<div class="plots">\n{figures}</div>\n' if figures else ""


def text(value: Any) -> str:
    """Any value as text that HTML shows as it is."""
    return html.escape(str(value))


def cell(value: Any, form: str) -> str:
    """A number in a format; a dash in place of what is none."""
    return format(value, form) if isinstance(value, int | float) else "–"


def number(value: float) -> str:
    """Three or more digits that matter, with a unit prefix where it is large."""
    for size, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if abs(value) >= size:
            return f"{value / size:.2f}{suffix}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds in words."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def _cells(kind: str, values: Sequence[str]) -> str:
    return "".join(f"<{kind}>{value}</{kind}>" for value in values)
