"""Pages become their main text; hostile ones are turned away soon."""

import time

import pytest

from llmjax.data.cleaning import Document, Html, Rejected

pytest.importorskip("trafilatura")

PARAGRAPHS = [
    f"Paragraph {number} says something of interest about rivers & boats, at some length indeed."
    for number in range(8)
]
PAGE = f"""<!DOCTYPE html><html><head><title>Rivers</title>
<meta property="og:title" content="Of rivers"><script>var menu = "tracking";</script>
<meta property="article:published_time" content="2021-03-04T10:00:00Z"></head>
<body><nav><a href="/">Home</a> <a href="/shop">Shop</a></nav><article><h1>Of rivers</h1>
{"".join(f"<p>{text.replace('&', '&amp;')}</p>" for text in PARAGRAPHS)}
<table><tr><td>Rhine</td><td>1233</td></tr></table></article>
<footer>Cookie settings</footer></body></html>"""


def page(body: str) -> Document:
    return Document(f"<html><body>{body}</body></html>", metadata={"format": "html"})


def test_the_main_text_and_no_more() -> None:
    found = Html()(Document(PAGE, "a:1", "web", {"url": "https://example.org/a"}))
    assert isinstance(found, Document)
    assert [line for line in found.text.splitlines() if line.startswith("Par")] == PARAGRAPHS
    for other in ("Shop", "tracking", "Cookie", "<p>", "&amp;"):
        assert other not in found.text
    assert found.metadata == {
        "url": "https://example.org/a", "title": "Of rivers", "published": "2021-03-04",
        "format": "text",
    }  # fmt: skip
    assert (found.id, found.source) == ("a:1", "web")
    assert Html()(found) is found
    assert "Rhine" in found.text
    without_tables = Html(tables=False)(Document(PAGE))
    assert isinstance(without_tables, Document)
    assert "Rhine" not in without_tables.text


@pytest.mark.parametrize("text", ["plain text", "a <b and c> d", "see <html>", "<div>x</div>", ""])
def test_what_is_no_page_passes(text: str) -> None:
    document = Document(text)
    assert Html()(document) is document


def test_what_is_said_to_be_text_is_text() -> None:
    document = Document(PAGE, metadata={"format": "text"})
    assert Html()(document) is document


FEW = {"max_characters": 1000, "max_elements": 50, "max_depth": 20, "max_attributes": 10}
NAMES = " ".join(f"a{number}" for number in range(300))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("x" * 1000, "page too long"),
        ("<p>x" * 50, "too many elements"),
        ("<div>" * 20 + "x", "nested too deeply"),
        (f"<p {NAMES[:600]}>x", "too many attributes"),
        (f"<p class=x' {NAMES[:600]} '>x", "too many attributes"),
        (f'<p class=="x {NAMES[:600]} ">x', "too many attributes"),
        (f'<p title="{NAMES[:600]}"></p>', "no main text"),
        ("", "no main text"),
    ],
)
def test_bounds_hold(body: str, reason: str) -> None:
    result = Html(**FEW)(page(body))
    assert isinstance(result, Rejected)
    assert result.reason == reason


@pytest.mark.parametrize("text", ["", "\x00\x01<<<>>>&&&", "<" * 1000, "no tags at all", "\ud800"])
def test_what_cannot_be_parsed_is_turned_away(text: str) -> None:
    assert isinstance(Html()(Document(text, metadata={"format": "html"})), Rejected)


@pytest.mark.parametrize(
    "text",
    [
        "<html>" + "<div>" * 300_000,
        "<html><p " + " ".join(f"b{number}=1" for number in range(150_000)) + ">",
        "<html>" + "<table><tr><td>" * 100_000,
        "<html><!--" + "-" * 1_000_000,
        "<!-- -->" * 100_000,
        "<html>" + "<a '" * 300_000,
        "<html>" + '<a b="' * 300_000,
        "<html><p>" + "&amp;" * 300_000,
    ],
    ids=lambda text: text[:16],
)
def test_hostile_pages_cost_little(text: str) -> None:
    start = time.process_time()
    Html()(Document(text))
    assert time.process_time() - start < 10


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"html.max_depth=300: must be from 1 to 255"):
        Html(max_depth=300)
