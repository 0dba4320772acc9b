"""Charts say what they hold, in the page's colours or on paper, and are the same each time."""

import html
import re

import numpy as np
import pytest

from llmjax.pages import charts, drawing

STEPS = np.arange(1.0, 6.0)
TEXTS = re.compile(r"<text[^>]*>([^<]*)</text>")


def texts(chart):
    return [html.unescape(text) for text in TEXTS.findall(drawing.svg(chart))]


def plot(*curves, **settings):
    return charts.Plot("some", "Loss (nats)", curves, **settings)


def test_a_legend_names_what_has_a_name_and_is_not_alone():
    named = [charts.Curve(f"run {i}", STEPS, STEPS + i) for i in range(5)]
    background = charts.Curve("", STEPS, STEPS, strength=charts.FAINT)
    assert not any("run" in text for text in texts(plot(background, named[0])))
    for count in (2, 3, 5):  # among the curves, and below them
        found = [text for text in texts(plot(background, *named[:count])) if "run" in text]
        assert found == [f"run {i}" for i in range(count)]


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (np.array([1e-5, 1e-2]), {"10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²"}),
        (np.array([1e7, 1e11]), {"10⁷", "10⁸", "10⁹", "10¹⁰", "10¹¹"}),
        (np.array([1.0, 1e5]), {"1", "10", "100", "1,000", "10,000", "100,000"}),
        (np.array([0.01, 0.1]), {"0.01", "0.02", "0.05", "0.1"}),
        (np.array([2e-5, 9e-5]), {"2·10⁻⁵", "5·10⁻⁵"}),
    ],
)
def test_a_logarithmic_axis_is_readable(x, expected):
    shown = texts(plot(charts.Curve("", x, np.array([0.5, 0.7])), x="rate", log_x=True))
    assert expected <= set(shown)
    assert {"rate", "Loss (nats)"} <= set(shown)


def test_what_has_no_logarithm_is_drawn_all_the_same():
    curve = charts.Curve("", np.array([0.0, 1.0]), np.array([0.0, 2.0]))
    assert {"0", "1"} <= set(texts(plot(curve, scale="log", log_x=True)))
    nothing = charts.Curve("", np.array([]), np.array([]))
    assert "Loss (nats)" in texts(plot(nothing, scale="log", log_x=True))


def test_steps_have_no_halves_and_small_shares_are_not_zero():
    curve = charts.Curve("", np.array([1.0, 2.0]), np.array([0.01, 0.04]))
    assert [text for text in texts(plot(curve)) if text in ("1", "1.5", "2")] == ["1", "2"]
    for scale, expected in (("from zero", "0.02"), ("share", "2.00%"), ("percent", "2.00%")):
        assert expected in texts(plot(curve, scale=scale))


def test_titles_are_text():
    title = 'what "A & B" <b>are</b>'
    chart = charts.Bars("b", title, ("one",), (("n", np.array([1.0])),))
    assert title in texts(chart)
    assert f'aria-label="{html.escape(title)}"' in drawing.svg(chart)


def test_files_are_the_same_each_time_and_of_two_kinds(tmp_path):
    chart = plot(charts.Curve("a", STEPS, STEPS, band=(STEPS - 1, STEPS + 1)))
    for name in ("a.svg", "b.svg", "a.png"):
        drawing.write(chart, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"a\.gif: a chart is written as \.png or \.svg"):
        drawing.write(chart, tmp_path / "a.gif")
