"""A recipe's mixture reaches the rows that it trains on."""

import itertools
import json
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

from experiments import fields
from experiments.flags import FlagError
from experiments.recipes import comparing, finetuning, reinforcing, small
from experiments.recipes import mixture as recipes
from experiments.tasks.comparing import RewardTask
from experiments.tasks.finetuning import AnswerTask
from experiments.tasks.policy import PolicyTask
from experiments.tasks.pretraining import Pretraining
from llmjax import data
from llmjax.data.tokenizer import ByteTokenizer

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


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """Nine examples of `a` for one of `b`, of equal lengths, of kinds that stages train on."""
    root = tmp_path_factory.mktemp("examples")
    made = {
        "sft": lambda text: {"instruction": text, "output": text},
        "comparison": lambda text: {"prompt": text, "chosen": text, "rejected": text + "!"},
        "prompt": lambda text: {"prompt": text},
    }
    for kind, record in made.items():
        sources = []
        for name, count in (("a", 180), ("b", 20)):
            path = root / f"{kind}.{name}.jsonl"
            texts = (name.upper() * 20 + f"{i:04d}" for i in range(count))
            path.write_text("".join(json.dumps(record(text)) + "\n" for text in texts))
            sources.append(data.ExampleSource(name, str(path)))
        settings = data.ExampleConfig(tuple(sources), kind=kind, validation_share=0.0)
        data.prepare_examples(settings, root / kind, ByteTokenizer())
    return {kind: root / kind for kind in made}


STAGES = {
    "sft": (finetuning.small_talk, AnswerTask),
    "comparison": (comparing.friendly, RewardTask),
    "prompt": (reinforcing.friendlier, PolicyTask),
}


def texts_of(kind: str, changes: dict[tuple[str, ...], object]) -> Iterator[str]:
    """What a stage reads of its data, for which it needs no model."""
    recipe, stage = STAGES[kind]
    task = object.__new__(stage)
    task.recipe = fields.replace(recipe(), changes)
    if kind == "prompt":
        return (prompt.text for prompts in task._prompts("train", 20, None) for prompt in prompts)
    batches = task.batches("train", batch_size=20)
    return (ByteTokenizer().decode(row.tolist()) for batch in batches for row in batch["tokens"])


@pytest.mark.parametrize("kind", STAGES)
def test_stages_after_pretraining_mix_by_the_same_words(
    kind: str, examples: dict[str, pathlib.Path]
) -> None:
    def share(**mixture: object) -> float:
        changes = {("data", "mixture", name): value for name, value in mixture.items()}
        changes |= {("sequence_length",): 512, ("data", "directory"): str(examples[kind])}
        text = "".join(itertools.islice(texts_of(kind, changes), 100))
        return text.count("B" * 20) / (text.count("A" * 20) + text.count("B" * 20))

    assert share() == pytest.approx(0.5, abs=0.03)
    assert share(by="tokens") == pytest.approx(0.1, abs=0.03)
    assert share(by="tokens", temperature=2.0) == pytest.approx(0.25, abs=0.03)
    with pytest.raises(FlagError, match="--data.mixture: max_epochs=0.01 of all sources are"):
        share(max_epochs=0.01)


def test_the_recipe_keeps_to_the_chapters_table() -> None:
    assert recipes.SHARES.keys() == CHAPTER.keys()
    for name, (low, high) in CHAPTER.items():
        assert low <= 100 * recipes.SHARES[name] <= high
    shares = {s.name: s.weight for s in recipes.chapter_mixture().data.sources}
    assert shares == recipes.SHARES
