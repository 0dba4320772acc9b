"""The format of MyThes is read as it is described, and what is not that is named."""

import pytest

from llmjax.data.augmentation import Meaning, Thesaurus, thesaurus


def test_entries_meanings_and_relations(thesaurus_file: str) -> None:
    found = thesaurus.load(thesaurus_file)
    assert len(found) == 15
    assert found["movie"] == (
        Meaning("NOUN", ("film", "picture show"), (("show", "generic term"),)),
    )
    assert [m.part for m in found["film"]] == ["NOUN", "VERB"]
    assert found["fast"][0].related == (("unhurried", "antonym"),)
    assert "movie" in found
    assert found["nowhere"] == ()


def test_other_encodings_and_parts_without_a_name() -> None:
    data = "ISO8859-1\nété|1\n-|saison (terme générique)|chaleur\n".encode("latin-1")
    found = Thesaurus(data)
    assert found["été"] == (Meaning("", ("chaleur",), (("saison", "terme générique"),)),)
    assert found["日本"] == ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "its first line does not name an encoding"),
        (b"no encoding at all\na|1\n", "its first line does not name an encoding"),
        (b"UTF-8\na|1\n(noun)|b\nc|2\n(noun)|d\n", "mine.dat, line 4: expected WORD"),
        (b"UTF-8\na|1\n(noun)|b\n(noun)|c\n", "mine.dat, line 4: expected WORD"),
    ],
)
def test_what_is_no_thesaurus(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Thesaurus(data, "mine.dat")


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match="apt-get install mythes-en-us"):
        thesaurus.load("/nowhere/th.dat")
