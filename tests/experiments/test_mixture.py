"""A recipe's mixture reaches the rows that it trains on."""

import json
import pathlib

import numpy as np
import pytest

from experiments import fields
from experiments.flags import FlagError
from experiments.recipes import mixture as recipes
from experiments.recipes import small
from experiments.tasks.pretraining import Pretraining
from llmjax import data

# The chapter's table of data sources, in percent.
CHAPTER = {
    "web": (60, 70),
    "books": (10, 15),
    "academic": (5, 10),
    "news": (5, 10),
    "reference": (2, 5),
    "code": (5, 10),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Nine documents of `a` for one of `b`, of equal lengths, in bytes."""
    root = tmp_path_factory.mktemp("mixed")
    sources = []
    for name, count in (("a", 180), ("b", 20)):
        lines = (json.dumps({"text": name * 20 + f"{i:04d}"}) for i in range(count))
        (root / f"{name}.jsonl").write_text("\n".join(lines))
        sources.append(data.Source(name, str(root / f"{name}.jsonl")))
    config = data.DataConfig(tuple(sources), data.TokenizerConfig("bytes"), validation_share=0.0)
    data.prepare(config, root / "data")
    return root / "data"


def share_of_b(folder: pathlib.Path, **mixture: object) -> float:
    changes = {("data", "mixture", name): value for name, value in mixture.items()}
    recipe = fields.replace(small.tiny(), {("data", "directory"): str(folder), **changes})
    stream = iter(Pretraining(recipe, folder).batches("train", batch_size=16))
    tokenizer = data.load_tokenizer(folder)
    rows = np.concatenate([next(stream)["tokens"] for _ in range(4)])
    text = "".join(tokenizer.decode(row.tolist()) for row in rows)
    return text.count("b") / (text.count("a") + text.count("b"))


def test_rows_have_the_shares_that_were_asked_for(folder: pathlib.Path) -> None:
    assert share_of_b(folder) == pytest.approx(0.5, abs=0.08)
    assert share_of_b(folder, by="tokens") == pytest.approx(0.1, abs=0.05)
    # √9 : 1
    assert share_of_b(folder, by="tokens", temperature=2.0) == pytest.approx(0.25, abs=0.07)


def test_too_little_text_for_the_cap_is_said(folder: pathlib.Path) -> None:
    with pytest.raises(FlagError, match="--data.mixture: max_epochs=1 of all sources are"):
        share_of_b(folder, max_epochs=1.0)


def test_the_recipe_keeps_to_the_chapters_table() -> None:
    assert recipes.SHARES.keys() == CHAPTER.keys()
    for name, (low, high) in CHAPTER.items():
        assert low <= 100 * recipes.SHARES[name] <= high
    shares = {s.name: s.weight for s in recipes.chapter_mixture().data.sources}
    assert shares == recipes.SHARES
