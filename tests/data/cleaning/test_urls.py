"""Addresses are refused by domain, by address and by word, from settings and files."""

import pytest

from llmjax.data.cleaning import Document, Rejected, Urls, urls


def reason(step: Urls, url: str | None) -> str:
    result = step(Document("text", metadata={} if url is None else {"url": url}))
    return result.reason if isinstance(result, Rejected) else ""


def test_domains_are_refused_with_those_below_them() -> None:
    step = Urls(domains=("Example.org", "co.test"))
    for url in (
        "http://example.org",
        "https://EXAMPLE.org:8080/a",
        "http://a.b.example.org./x",
        "https://user:word@example.org/",
        "example.org/path",
        "https://shop.co.test?q=1",
    ):
        assert reason(step, url) == "blocked domain", url
    for url in ("http://myexample.org", "http://example.org.uk", "http://b.test/example.org", ""):
        assert reason(step, url) == "", url
    assert reason(step, None) == ""


def test_addresses_are_refused_however_they_are_written() -> None:
    step = Urls(urls=("http://www.example.org/a?b=1", "plain.test/x", "www.bare.test/#top"))
    for url in (
        "https://example.org/a?b=1",
        "http://example.org/A?b=1#part",
        "https://plain.test/x/",
        "https://bare.test",
        "www.bare.test",
    ):
        assert reason(step, url) == "blocked address", url
    for url in ("https://example.org/a?b=2", "https://example.org/", "https://plain.test/xy"):
        assert reason(step, url) == "", url


def test_words_are_refused_alone_in_parts_or_together() -> None:
    step = Urls(words=("casino",), subwords=("free-slots",), weak_words=("win", "bet", "cash"))
    assert reason(step, "http://x.test/best_Casino.html") == "blocked word in the address"
    assert reason(step, "http://x.test/casinos") == ""
    assert reason(step, "http://myfreeslotsonline.test") == "blocked part of the address"
    assert reason(step, "http://x.test/win") == ""
    assert reason(step, "http://x.test/win/win") == ""
    assert reason(step, "http://x.test/win?cash") == "several weak words in the address"


def test_how_an_address_is_encoded_does_not_show() -> None:
    step = Urls(
        domains=("müller.test",), urls=("bücher.test/Café",), words=("hôtel de luxe", "été")
    )
    for url in ("http://müller.test", "http://a.XN--MLLER-KVA.test/b"):
        assert reason(step, url) == "blocked domain", url
    for url in ("http://xn--bcher-kva.test/caf%C3%A9", "https://www.bücher.test/café/"):
        assert reason(step, url) == "blocked address", url
    for url in (
        "http://a.test/h%C3%B4tel-de-luxe",
        "http://a.test/Hotel_de/luxe",
        "http://a.test/e\u0301te\u0301",
        "http://a.test/%C3%89T%C3%89",
    ):
        assert reason(step, url) == "blocked word in the address", url
    for url in ("http://a.test/hotel/luxe", "http://a.test/luxe-de-hotel", "http://a.test/etes"):
        assert reason(step, url) == "", url


def test_lists_come_from_files(tmp_path) -> None:
    listed = tmp_path / "domains.txt"
    step = Urls(domains=("c.test",), domain_files=(str(listed),))
    hosts = ("casino.test", "b.test", "c.test", "d.test", "gambling")
    for text in ("# gambling\n\n Casino.test \nb.test\n", "\ufeffCasino.test\r\nb.test\r\n"):
        listed.write_text(text, "utf-8")
        urls.load.cache_clear()
        assert [bool(reason(step, f"http://{host}")) for host in hosts] == [True] * 3 + [False] * 2


def test_a_list_that_cannot_be_read_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"the list .*none.txt cannot be read"):
        reason(Urls(word_files=(str(tmp_path / "none.txt"),)), "http://a.test")
    with pytest.raises(ValueError, match=r"urls.min_weak_words=0: must be >= 1"):
        Urls(min_weak_words=0)


@pytest.mark.parametrize("url", ["http://[::1", "://", "\ud800", "http://\x00/", "a" * 100_000, 7])
def test_what_is_no_address_is_on_no_list(url) -> None:
    assert reason(Urls(domains=("a.test",), words=("x",), subwords=("yz",)), url) == ""
