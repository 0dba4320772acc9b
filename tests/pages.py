"""What holds of every page that llmjax writes."""

import html.parser
import re


class Page(html.parser.HTMLParser):
    """Collects the tags, the attributes and the text, and checks that tags are closed."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check_self_contained(text):
    """Nothing on the page asks anybody for anything."""
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "base", "object"} & set(page.tags)
    for name, value in page.attributes:
        assert name not in ("src", "srcset", "action", "onload", "onclick")
        if name in ("href", "xlink:href"):
            assert value.startswith("#")
        assert "//" not in (value or "")
    style = "".join(re.findall(r"<style>.*?</style>", text, re.DOTALL))
    assert not re.search(r"url\((?!#)|@import", style)
    assert not re.search(r"url\((?!#)", text)
    assert "default-src 'none'" in text


def check_charts(text):
    """They take the page's colours, and no two things have one id."""
    assert "var(--first)" in text
    assert not re.search(r"#0102\d\d", text)
    ids = [value for name, value in Page(text).attributes if name == "id"]
    assert len(ids) == len(set(ids))
