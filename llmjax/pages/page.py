"""Builds single-file HTML: inline styles and charts, no scripts, and a policy against requests.

Text passes through `text`, which escapes it, so that text from a corpus or a model is never taken
for HTML. Parameters named `body` or `parts` are HTML made by the functions here.
"""

import datetime
import html
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any


def render(title: str, sections: Iterable[str], footer: str) -> str:
    """Renders a page.

    Args:
        title: title of the window, as text.
        sections: HTML from `header` and `section`.
        footer: last line of the page, as text.
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
    """The head of a page: kind, title, date and headline figures.

    Args:
        kind: kind of page, in a word or two.
        title: subject of the page.
        where: shown after the time; "" for none.
        figures: (label, figure, note) triples.
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
    """Parts under a heading; empty if there are none."""
    body = "".join(parts)
    return f"<section>\n<h2>{text(title)}</h2>\n{body}</section>\n" if body else ""


def details(summary: str, body: str) -> str:
    """A collapsible block."""
    return f'<details class="card"><summary>{text(summary)}</summary>{body}</details>\n'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells; empty without rows."""
    body = "".join(f"<tr>{_cells('td', row)}</tr>\n" for row in rows)
    if not body:
        return ""
    return (
        f'<div class="card scroll"><table>\n<thead><tr>{_cells("th", head)}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>\n"
    )


def plots(charts: Iterable[str]) -> str:
    """Charts side by side, as many as fit the window; empty if there are none."""
    figures = "".join(f'<figure class="card">{chart}</figure>\n' for chart in charts)
    return f'<div class="plots">\n{figures}</div>\n' if figures else ""


def text(value: Any) -> str:
    """Any value as escaped text."""
    return html.escape(str(value))


def cell(value: Any, form: str) -> str:
    """A formatted number; a dash for anything else."""
    return format(value, form) if isinstance(value, int | float) else "–"


def number(value: float) -> str:
    """At least three significant digits, with a unit prefix for large numbers."""
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
