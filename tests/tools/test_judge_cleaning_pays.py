"""What the judge of cleaning reads, trains on and says."""

import itertools
import json
import random

import numpy as np
import pytest

pytest.importorskip("datatrove")
pytest.importorskip("rensa")

from llmjax.pages import drawing
from tools import corpora
from tools import judge_cleaning_pays as judge

WIKITEXT = """{{Infobox|a={{nested|b}}}}
'''Stone''' is a [[Rock (geology)|rock]]<ref name="x">A [http://a.b book]</ref> of [[mineral]]s.
[[File:a.jpg|thumb|A [[stone]]]]
== Use ==
* a list
It is used, <!-- not --> [http://example.org as said], in ''walls''.
{| class="wikitable"
| cell
|}
== References ==
{{reflist}} A text.
"""


def test_prose_of_wikitext():
    text = "Stone is a rock of minerals.\n\nUse\n\nIt is used, as said, in walls."
    assert corpora.prose(WIKITEXT) == text


def test_chunks_are_the_article():
    paragraphs = [f"{number} " + "word " * 150 for number in range(20)]
    text = "\n\n".join(paragraphs)
    found = list(judge.chunks(text))
    assert "\n\n".join(found) == text
    assert all(judge.CHUNK <= len(chunk) < 2 * judge.CHUNK for chunk in found[:-1])


@pytest.fixture(scope="module")
def task():
    rng = random.Random(0)
    words = ["river", "stone", "light", "water", "paper", "garden", "music", "winter", "letter"]
    texts = [" ".join(rng.choices(words, k=60)) for _ in range(40)]
    settings = judge.Settings(290, 1, 16, 2, 16, 4, steps=4, evaluations=2)
    return judge.Task.of({"raw": texts, "cleaned": texts[:5]}, texts[-3:], settings)


def test_batches_are_windows_of_all_documents(task):
    """A pass has every window once; the next begins in another order."""
    tokens = sum(map(len, task.texts["cleaned"]))
    rows = (tokens - 1) // 16
    batches = itertools.islice(task.batches("cleaned", 0), rows // 4)
    found = np.concatenate(list(batches))
    assert found.shape == (rows // 4 * 4, 17)
    joined = " ".join(map(str, itertools.chain(*task.texts["cleaned"])))
    inner = [row for row in found.tolist() if task.encoder.eos_id not in row]
    assert inner
    assert all(" ".join(map(str, row)) in joined for row in inner)
    assert len({tuple(row) for row in found.tolist()}) == len(found)


def test_every_held_out_token_is_a_target_once(task):
    targets = np.concatenate([np.asarray(b["targets"]).ravel() for b in judge._held_out(task)])
    np.testing.assert_array_equal(targets[targets >= 0], task.held_out[1:])


@pytest.mark.slow
def test_runs_and_what_is_said_of_them(task, tmp_path):
    results = judge.results_of(task, 2, lambda _: None)
    results = json.loads(json.dumps(results))
    assert [list(run) for run in results["runs"]["raw"]] == [["2", "4"]] * 2
    # An untrained model spends the logarithm of the vocabulary on a token.
    most = np.log2(task.encoder.vocab_size) * (len(task.held_out) - 1) / task.held_out_bytes
    assert 0.5 * most < results["runs"]["raw"][0]["2"] < 1.1 * most
    results["runs"] = {
        "raw": [{"2": 3.0, "4": bits} for bits in (2.0, 2.2, 2.1)],
        "cleaned": [{"2": 3.0, "4": bits} for bits in (1.5, 1.6, 1.7)],
    }
    text = judge.markdown(results)
    assert "Cleaning pays: 0.5000 bits per byte less (0.2516 to 0.7484" in text
    assert "| raw | 40 |" in text
    curves = judge.chart(results).curves
    assert [curve.y[-1] for curve in curves] == pytest.approx([2.1, 1.6])
    drawing.write(judge.chart(results), tmp_path / "pays.svg")
    assert (tmp_path / "pays.svg").read_text().count("million tokens") == 1
