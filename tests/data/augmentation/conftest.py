"""A thesaurus made by hand."""

import pathlib

import pytest

THESAURUS = """UTF-8
movie|1
(noun)|film|picture show|show (generic term)
film|2
(noun)|movie|flick
(verb)|shoot
flick|2
(noun)|click
(noun)|film
watch|2
(noun)|ticker
(verb)|view|look on
view|1
(verb)|watch
play|2
(noun)|drama
(verb)|perform
drama|1
(noun)|play
perform|1
(verb)|play
fast|1
(adj)|quick|unhurried (antonym)
quick|1
(adj)|fast
error|1
(noun)|mistake|oversight
mistake|1
(noun)|error
oversight|1
(noun)|error
put|1
(verb)|set
set|1
(verb)|put
"""


@pytest.fixture(scope="session")
def thesaurus_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: pathlib.Path = tmp_path_factory.mktemp("mythes") / "th_en_US_v2.dat"
    path.write_text(THESAURUS)
    return str(path)
