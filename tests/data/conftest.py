"""Small corpora, and data prepared from them."""

import json
import pathlib
import random
from collections.abc import Callable, Sequence

import pytest

from llmjax import data

BYTES = data.TokenizerConfig(kind="bytes")


def write_jsonl(path: pathlib.Path, texts: Sequence[str]) -> pathlib.Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="session")
def corpus() -> dict[str, list[str]]:
    """Two sources of distinct documents, one of short ones, one of long ones."""
    draw = random.Random(0)
    words = ["la", "tempête", "naît", "storm", "日本", "sea", "of", "a", "I", "42"]
    sizes = {"short": (1, 6), "long": (20, 90)}
    return {
        name: [
            f"{name} {i} " + " ".join(draw.choices(words, k=draw.randint(*size))) for i in range(60)
        ]
        for name, size in sizes.items()
    }


@pytest.fixture(scope="session")
def prepared(
    corpus: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """Both sources of `corpus` as bytes, a fifth of them held out, in several shards."""
    root = tmp_path_factory.mktemp("prepared")
    sources = tuple(
        data.Source(name, str(write_jsonl(root / f"{name}.jsonl", texts)))
        for name, texts in corpus.items()
    )
    settings = data.DataConfig(sources, BYTES, validation_share=0.2, shard_tokens=2000)
    data.prepare(settings, root / "data")
    return root / "data"


@pytest.fixture
def jsonl(tmp_path: pathlib.Path) -> Callable[[Sequence[str]], str]:
    """Writes texts as JSON lines and tells where."""
    return lambda texts: str(write_jsonl(tmp_path / "texts.jsonl", texts))
