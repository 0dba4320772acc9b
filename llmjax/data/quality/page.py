"""Renders the report as one page: what was removed and why, and the effect on quality."""

import difflib
import re
from collections.abc import Iterable, Sequence

from llmjax.data.quality import metrics, pictures
from llmjax.data.quality.measuring import FAMILIES, Amount, Quality
from llmjax.data.quality.metrics import Metric
from llmjax.data.quality.survey import REPORT_FILE, Edits, Report, Source, Step
from llmjax.pages import drawing, page

_WORDS = re.compile(r"\s+|[^\s]+")
_CONTEXT = 12  # words shown around an edit


def render(report: Report, title: str) -> str:
    """Renders the HTML page."""
    drawn = [drawing.svg(chart) for chart in pictures.charts_of(report)]
    cleaned = len(report.total.stages) > 1
    names = ", ".join(source.name or "unnamed" for source in report.sources[:6])
    more = f" and {len(report.sources) - 6} more" if len(report.sources) > 6 else ""
    sections = [
        page.header("Data report", title, names + more, _figures(report.total)),
        page.section("At a glance", page.plots(drawn)),
        page.section("What was removed", _removed(report)) if cleaned else "",
        page.section("Quality", *_quality(report.total)),
        page.section("By source", *_by_source(report.sources)) if len(report.sources) > 1 else "",
        page.section("Step by step", *_by_step(report.total)) if cleaned else "",
        page.section("What each step removed", *map(_step, _busy(report.steps))),
        page.section("What was edited", _edits(report.edits)),
        page.section("Topics", _topics(report)),
        page.section("What the numbers mean", _meanings()),
    ]
    footer = f"Written by llmjax; the numbers are in {REPORT_FILE}."
    return page.render(title, sections, footer)


def _figures(total: Source) -> list[tuple[str, str, str]]:
    """(label, figure, note) of the headline numbers."""
    raw, cleaned = total.raw, total.cleaned
    if len(total.stages) == 1:
        pairs = [(m, getattr(raw.amount, m.name)) for m in metrics.of(Amount)]
        found = [(m.title, page.number(value), f"{value:,}") for m, value in pairs]
    else:
        found = []
        for one in metrics.of(Amount):
            left, came = getattr(cleaned.amount, one.name), getattr(raw.amount, one.name)
            share = f"{left / came:.1%}" if came else "–"
            found.append(
                (f"{one.title} kept", share, f"{page.number(left)} of {page.number(came)}")
            )
    for family, name in (
        ("language", "unknown_words"),
        ("duplication", "near_copies"),
        ("density", "compression"),
        ("diversity", "topics"),
        ("language", "perplexity"),
    ):
        (one,) = (m for m in metrics.of(FAMILIES[family][1]) if m.name == name)
        before, after = _value(raw, family, one), _value(cleaned, family, one)
        if after is not None:
            note = f"{one.written(before)} before" if len(total.stages) > 1 else "raw"
            found.append((one.title, one.written(after), note))
    return found


def _removed(report: Report) -> str:
    """A row per step: documents in, documents removed, and the most frequent reason."""
    came = report.total.raw.amount.documents + report.total.unreadable
    rows = []
    for step in report.steps:
        gone = sum(step.documents.values())
        share = f"{gone / came:.2%}" if came else "–"
        why = f"{step.reasons[0].reason} ({step.reasons[0].documents:,})" if step.reasons else "–"
        rows.append((page.text(step.name), f"{came:,}", f"{gone:,}", share, page.text(why)))
        came -= gone
    rows.append(("kept", f"{report.total.cleaned.amount.documents:,}", "", "", ""))
    note = ""
    if report.total.unaccounted:
        note = (
            f'<p class="note"><b class="worse">{report.total.unaccounted:,} documents are neither '
            "among those kept nor among those removed.</b></p>\n"
        )
    head = ("Step", "Documents in", "Removed", "Share", "Most frequent reason")
    return note + page.table(head, rows)


def _quality(source: Source) -> Iterable[str]:
    """A table per family: each metric before, during and after cleaning."""
    cleaned = len(source.stages) > 1
    for family, (title, kind) in FAMILIES.items():
        rows = []
        for one in metrics.of(kind):
            path = [_value(stage.quality, family, one) for stage in source.stages]
            if all(value is None for value in path):
                continue
            row = [f'<span title="{page.text(one.meaning)}">{page.text(one.title)}</span>']
            row.append(one.written(path[0]))
            if cleaned:
                row += [one.written(path[-1]), _change(one, path[0], path[-1]), _spark(path)]
            rows.append(row)
        head = ("", "Raw", "Cleaned", "Change", "Over the steps") if cleaned else ("", "Value")
        yield f'<h3 class="family">{title}</h3>\n' + page.table(head, rows)


def _by_source(sources: Sequence[Source]) -> Iterable[str]:
    """A table per family: a row per source, each metric before and after cleaning."""
    for family, (title, kind) in {"amount": ("Amount", Amount), **FAMILIES}.items():
        shown = [
            one
            for one in metrics.of(kind)
            if one.name != "sources"
            and any(_value(source.raw, family, one) is not None for source in sources)
        ]
        rows = []
        for source in sources:
            cells = []
            for one in shown:
                before, after = (_value(q, family, one) for q in (source.raw, source.cleaned))
                cell = one.written(before)
                if len(source.stages) > 1:
                    cell += f" → <b>{one.written(after)}</b>"
                cells.append(cell)
            rows.append([page.text(source.name or "unnamed"), *cells])
        head = ["Source", *(page.text(one.title) for one in shown)]
        yield f'<h3 class="family">{title}</h3>\n' + page.table(head, rows)


def _by_step(source: Source) -> Iterable[str]:
    """A folded table per family with a row per stage."""
    for family, (title, kind) in {"amount": ("Amount", Amount), **FAMILIES}.items():
        shown = metrics.of(kind)
        rows = [
            [page.text(stage.name), *(m.written(_value(stage.quality, family, m)) for m in shown)]
            for stage in source.stages
        ]
        head = ["After step", *(page.text(one.title) for one in shown)]
        yield page.details(title, page.table(head, rows))


def _busy(steps: Sequence[Step]) -> list[Step]:
    return [step for step in steps if step.reasons]


def _step(step: Step) -> str:
    """The reasons of a step, and examples of documents that it rejected."""
    total = sum(step.documents.values())
    rows = [
        (page.text(r.reason), f"{r.documents:,}", f"{r.documents / total:.1%}")
        for r in step.reasons
    ]
    cards = []
    for reason in step.reasons:
        for example in reason.examples:
            score = "" if example.score is None else f" · score {example.score:.4g}"
            where = f"{reason.reason}{score} · {example.source} · {example.id}"
            cards.append(
                f'<article class="sample card"><h3>{page.text(where)}</h3>'
                f"<p>{page.text(example.text)}</p></article>\n"
            )
    body = page.table(("Reason", "Documents", "Share"), rows) + "".join(cards)
    return page.details(f"{step.name}: {total:,} documents", body)


def _edits(edits: Edits) -> str:
    """Documents that were kept with changed text, with the changes marked."""
    if not edits.compared:
        return ""
    note = (
        f'<p class="note">Of {edits.compared:,} kept documents, drawn at random, '
        f"{edits.edited:,} had their text changed.</p>\n"
    )
    cards = (
        f'<article class="sample card"><h3>{page.text(f"{edit.source} · {edit.id}")}</h3>'
        f"<p>{_difference(edit.before, edit.after)}</p></article>\n"
        for edit in edits.examples
    )
    return note + "".join(cards)


def _difference(before: str, after: str) -> str:
    """A diff of two texts, with most of the unchanged text left out."""
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    parts = []
    codes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    for number, (kind, a, b, c, d) in enumerate(codes):
        if kind == "equal":
            head = _CONTEXT if number else 0
            tail = _CONTEXT if number < len(codes) - 1 else 0
            kept = old[a:b]
            if len(kept) > head + tail:
                kept = [*kept[:head], " … ", *kept[len(kept) - tail :]]
            parts.append(page.text("".join(kept)))
            continue
        if b > a:
            parts.append(f"<del>{_visible(old[a:b])}</del>")
        if d > c:
            parts.append(f"<ins>{_visible(new[c:d])}</ins>")
    return "".join(parts)


def _visible(words: Sequence[str]) -> str:
    """Changed words as text, with visible line ends."""
    return page.text("".join(words)).replace("\n", "↵")


def _topics(report: Report) -> str:
    """The topics of the sample, and how their shares changed."""
    cleaned = len(report.total.stages) > 1
    rows = []
    for place, topic in enumerate(report.topics):
        row = [page.text(", ".join(topic.words))]
        for quality in (report.total.raw, report.total.cleaned)[: 1 + cleaned]:
            row.append(f"{quality.topics[place]:.1%}" if quality.topics else "–")
        rows.append(row)
    head = ("Characteristic words", "Raw", "Cleaned")
    return page.table(head[: 2 + cleaned], rows)


def _meanings() -> str:
    rows = [
        f"<tr><td>{page.text(one.title)}</td><td>{page.text(one.meaning)}</td></tr>\n"
        for _, kind in FAMILIES.values()
        for one in metrics.of(kind)
    ]
    return page.details("All numbers", f'<table class="settings">\n{"".join(rows)}</table>')


def _value(quality: Quality, family: str, one: Metric) -> float | None:
    return getattr(getattr(quality, family), one.name)


def _change(one: Metric, before: float | None, after: float | None) -> str:
    """The relative change of a metric, coloured by which direction is better."""
    if before is None or after is None or one.written(before) == one.written(after):
        return "–"
    moved = f"{after / before - 1:+.1%}" if before else f"{one.written(after)} from 0"
    if not one.better:
        return moved
    kind = "better" if (after < before) == (one.better == "less") else "worse"
    return f'<span class="{kind}">{moved}</span>'


def _spark(path: Sequence[float | None]) -> str:
    """A sparkline of a metric's known values over the stages."""
    known = [(place, value) for place, value in enumerate(path) if value is not None]
    if len(known) < 2:
        return ""
    values = [value for _, value in known]
    low, high = min(values), max(values)
    scale = 20 / (high - low) if high > low else 0
    points = [
        (92 * place / (len(path) - 1) + 2, 22 - (value - low) * scale) for place, value in known
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    x, y = points[-1]
    return (
        '<svg class="spark" viewBox="0 0 96 24" aria-hidden="true">'
        f'<polyline fill="none" points="{line}"></polyline>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4"></circle></svg>'
    )
