"""WordNet's database is read as wndb(5WN) describes it, and serves as a thesaurus does."""

import pathlib
import re

import pytest

from llmjax.data.augmentation import (
    Meaning,
    SynonymReplacement,
    Thesaurus,
    WordNet,
    augment,
    thesaurus,
)

LICENCE = "  1 This is a licence, by the rules of one.  \n  2 It goes on.  \n"
# synset_offset lex_filenum ss_type w_cnt word lex_id … p_cnt [symbol offset pos ends] [f_cnt …] |
# gloss, where counts of words and ends of pointers are hexadecimal. In place of an offset stands
# the name of a synset, in angle brackets where it is pointed to.
DATA = {
    "noun": """
film 10 n 03 movie 0 film 0 picture_show 0 002 @ <show> n 0000 ~ <talkie> n 0000 | moving | pictures
show 10 n 01 show 3 001 ~ <film> n 0000 | what is shown
talkie 10 n 0b talkie 0 a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 Talking_Picture 0 talkies 0 001 @ <film> n 0000 | eleven words
Paris 15 n 01 Paris 0 001 @i <show> n 0000 | one of its kind
""",  # noqa: E501
    "verb": """
shoot 36 v 02 film 1 shoot 4 000 02 + 08 00 + 09 00 | with frames behind the pointers
watch 39 v 02 watch 0 view 1 001 ! <shoot> v 0102 01 + 08 00 | an antonym of the first word only
""",
    "adj": """
fast 00 a 02 fast(p) 0 quick 1 002 & <speedy> a 0000 ^ <slow> a 0000 | with a mark
speedy 00 s 01 speedy 0 001 & <fast> a 0000 | a satellite
slow 00 a 01 slow 0 000 | no pointers
""",
}
# lemma pos synset_cnt p_cnt [ptr_symbol…] sense_cnt tagsense_cnt synset_offset…
INDEX = {
    "noun": """
film n 1 2 @ ~ 1 1 <film>
movie n 1 2 @ ~ 1 1 <film>
paris n 1 1 @i 1 0 <Paris>
picture_show n 1 2 @ ~ 1 1 <film>
show n 1 1 ~ 1 1 <show>
talkie n 1 1 @ 1 0 <talkie>
talking_picture n 1 1 @ 1 0 <talkie>
""",
    "verb": """
film v 2 0 2 1 <shoot> <watch>
shoot v 1 0 1 1 <shoot>
view v 1 1 ! 1 1 <watch>
watch v 1 1 ! 1 1 <watch>
""",
    "adj": """
fast a 1 2 & ^ 1 1 <fast>
quick a 1 2 & ^ 1 1 <fast>
slow a 1 0 1 1 <slow>
speedy a 1 1 & 1 1 <speedy>
""",
}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """The database above, each name replaced by the byte at which its line begins."""
    places: dict[str, str] = {}
    for text in DATA.values():
        place = len(LICENCE)
        for line in text.strip().splitlines():
            name, _, rest = line.partition(" ")
            places[name] = f"{place:08}"
            place += 8 + 1 + len(re.sub(r"<\w+>", "0" * 8, rest)) + len("  \n")
    for kind, files in (("data", DATA), ("index", INDEX)):
        for part, text in files.items():
            lines = [re.sub(r"<(\w+)>", lambda m: places[m[1]], line) for line in text.split("\n")]
            if kind == "data":
                lines = [re.sub(r"^\w+", lambda m: places[m[0]], line) for line in lines]
            content = LICENCE + "".join(f"{line}  \n" for line in lines if line)
            (tmp_path / f"{kind}.{part}").write_text(content)
    return tmp_path


def test_words_meanings_and_pointers(folder: pathlib.Path) -> None:
    found = WordNet(folder)
    assert len(found) == 14  # film is a noun and a verb
    show = ("show", "generic term")
    assert found["movie"] == (Meaning("NOUN", ("film", "picture show"), (show,)),)
    assert found["picture show"] == (Meaning("NOUN", ("movie", "film"), (show,)),)
    # By part of speech, and within it in the index' order.
    assert found["film"] == (
        Meaning("NOUN", ("movie", "picture show"), (show,)),
        Meaning("VERB", ("shoot",)),
        Meaning("VERB", ("watch", "view")),
    )
    # 0b words, and another way to write the one that was asked for.
    (talking,) = found["talking picture"]
    assert talking.synonyms == ("talkie", *"abcdefgh", "talkies")
    assert talking.related == tuple((w, "generic term") for w in ("movie", "film", "picture show"))
    assert found["paris"] == (Meaning("NOUN", (), (show,)),)
    assert found["nowhere"] == found["日本"] == ()
    assert "picture show" in found
    assert "Nowhere" not in found


def test_pointers_of_single_words_and_marks(folder: pathlib.Path) -> None:
    found = WordNet(folder)
    assert found["watch"] == (Meaning("VERB", ("view",), (("shoot", "antonym"),)),)
    assert found["view"] == (Meaning("VERB", ("watch",)),)
    near = (("speedy", "similar term"), ("slow", "related term"))
    assert found["fast"] == (Meaning("ADJ", ("quick",), near),)
    assert found["quick"] == (Meaning("ADJ", ("fast",), near),)
    both = (("fast", "similar term"), ("quick", "similar term"))
    assert found["speedy"] == (Meaning("ADJ", (), both),)


def test_it_serves_in_place_of_a_file_of_mythes(folder: pathlib.Path, tmp_path) -> None:
    """Synonyms are exchanged alike whichever of the two says what means the same."""
    lines = ["UTF-8"]
    words = ["film", "movie", "picture show", "watch", "view", "fast", "quick", "shoot"]
    wordnet = thesaurus.load(str(folder))
    names = {"NOUN": "(noun)", "VERB": "(verb)", "ADJ": "(adj)"}
    for word in words:
        meanings = wordnet[word]
        lines.append(f"{word}|{len(meanings)}")
        lines += ["|".join([names[m.part], *m.synonyms]) for m in meanings]
    same = tmp_path / "same.dat"
    same.write_text("\n".join(lines) + "\n")
    assert isinstance(thesaurus.load(str(same)), Thesaurus)
    texts = ["We watched a movie.", "It was a quick film.", "They view the movies."]
    made = [augment(text, SynonymReplacement(1.0, str(folder))) for text in texts]
    assert made == [augment(text, SynonymReplacement(1.0, str(same))) for text in texts]
    assert made[0] == "We viewed a film."


def test_what_is_no_database_is_named(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no index\.noun.*wordnet"):
        thesaurus.load(str(tmp_path / "empty"))
    index = folder / "index.adj"
    sound = index.read_text()
    for wrong in ("fast a 2 0 1 1 00000078", "fast a", "fast a one 0 1 1 00000078", ""):
        index.write_text(sound + wrong + "\n")
        with pytest.raises(ValueError, match=r"index\.adj, line 7: not an entry of"):
            WordNet(folder)
    index.write_text(sound)
    (folder / "data.adj").unlink()
    with pytest.raises(FileNotFoundError, match="data.adj"):
        WordNet(folder)


def test_data_of_another_release_are_noticed(folder: pathlib.Path) -> None:
    data = folder / "data.adj"
    sound = data.read_bytes()
    for wrong in (
        sound.replace(b"\n", b"\r\n"),
        sound[:90],
        LICENCE.encode(),
        b"",
        sound.replace(b" a 0000", b" x 0000"),
    ):
        data.write_bytes(wrong)
        found = WordNet(folder)
        with pytest.raises(ValueError, match=r"data\.adj: at byte \d+ is no synset"):
            _ = found["slow"], found["speedy"]
        assert found["watch"]
    index = folder / "index.adj"  # without one the others do, and pointers into it say nothing
    index.unlink()
    assert WordNet(folder)["fast"] == ()
