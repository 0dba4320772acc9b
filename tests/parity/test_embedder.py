"""Sentence embeddings are those of transformers: its tokenizer, model, and Sentence-BERT's mean."""

import pathlib

import numpy as np
import pytest

from llmjax.data import augmentation

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = [
    "the",
    "storm",
    "came",
    "over",
    "sea",
    "and",
    "island",
    "at",
    "night",
    "##s",
    "##ing",
    "rain",
    "?",
    ",",
    ".",
    "naive",
    "cafe",
]
TEXTS = [
    "The storms came, raining over Sea and island?",
    "Naïve CAFÉ",
    "zebra at night",  # an unknown word
    "the rain came and " * 40,  # is truncated
    ".",
]


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {piece: i for i, piece in enumerate([*special, *WORDS])}
    tokenizer = transformers.BertTokenizer(vocab=vocabulary)
    tokenizer.save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(tmp_path)
    return tmp_path


def test_embeddings_are_those_of_transformers(directory: pathlib.Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory).eval()
    expected = []
    for text in TEXTS:
        batch = tokenizer(text, truncation=True, max_length=48, return_tensors="pt")
        with torch.inference_mode():
            mean = model(**batch).last_hidden_state[0].mean(0)
        expected.append((mean / mean.norm()).numpy())
    found = augmentation.Embedder(str(directory), max_length=48)(TEXTS)
    np.testing.assert_allclose(found, np.stack(expected), atol=2e-6)
