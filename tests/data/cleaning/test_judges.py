"""The steps that compare documents or find what is in them, on corpora that are fetched."""

import pytest

from tools import corpora
from tools.cleaning import leaks, private, similar

pytestmark = pytest.mark.slow

pytest.importorskip("rensa")
pytest.importorskip("presidio_analyzer")


@pytest.fixture(autouse=True)
def fetched() -> None:
    for name in ("debian", "mails", "udhr"):
        try:
            corpora.fetch(name)
        except corpora.UnavailableError as error:
            pytest.skip(f"{name}: {error}")


def test_pairs_are_at_least_those_of_datasketch() -> None:
    pytest.importorskip("datasketch")
    rows = {row["method"]: row for row in similar.judge()}
    theirs = rows["datasketch 0.8, 128"]
    for name in ("ours 14x8, verified", "ours 32x6, verified"):
        assert rows[name]["precision"] == 1
        assert rows[name]["recall"] >= theirs["recall"]
    assert rows["ours 32x6, verified"]["recall"] > 0.99


@pytest.mark.parametrize("texts", [private.planted_texts, private.mails])
def test_personal_data_by_kind(texts) -> None:
    rows = [row for row in private.judge(texts()) if row.get("labels")]
    assert rows
    for row in rows:
        assert row["recall"] >= 0.98, row
        assert row["precision"] >= 0.95, row
        assert row["recall"] == 1 or row["kind"] not in {"card", "iban"}


def test_leaks_are_found_and_clean_documents_stay() -> None:
    for row in leaks.judge():
        assert row["found"] == row["removed"] == row["leaks"] == leaks.LEAKS
        assert row["lost"] == 0
