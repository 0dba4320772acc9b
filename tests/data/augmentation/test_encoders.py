"""Embeddings and labels of a small BERT: of one text, whatever others are read with it."""

import pathlib
import pickle

import jax
import numpy as np
import pytest

from llmjax import hf, models, spec
from llmjax.data import augmentation, load_tokenizer
from llmjax.data.augmentation.encoders import rows

hub_folders = pytest.importorskip("tests.data.hub_folders")

TEXTS = ["", "The storm", "How are you? " * 30, "of seas", *(f"text {i}" for i in range(31))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("bert")
    hub_folders.write(path, hub_folders.with_bos(hub_folders.byte_level()))
    config = models.with_head(
        models.bert(vocab_size=330, num_layers=1, embed_dim=16, num_heads=2, max_length=128), "none"
    )
    params = spec.init(jax.random.key(0), models.spec(config))
    hf.save(path, config, params)
    return path


def test_an_embedding_is_the_mean_over_the_text(folder: pathlib.Path) -> None:
    embed = augmentation.Embedder(str(folder), max_length=128)
    found = embed(TEXTS)
    assert found.shape == (len(TEXTS), 16)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)
    config, params = hf.load(folder, dtype="float32")
    tokenizer = load_tokenizer(folder)
    for text, vector in zip(TEXTS[1:3], found[1:3], strict=True):
        ids = [*[*tokenizer.opening, *tokenizer.encode(text)][:127], tokenizer.eos_id]
        hidden, _ = models.apply(params, np.array([ids]), config)
        mean = np.asarray(hidden)[0].mean(axis=0)
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-4)
    assert pickle.loads(pickle.dumps(embed)) == embed


def test_rows_hold_every_text_once(folder: pathlib.Path) -> None:
    seen: list[int] = []
    for places, tokens, segments in rows(load_tokenizer(folder), TEXTS, 64):
        assert tokens.shape == segments.shape == (32, tokens.shape[1])
        assert tokens.shape[1] in (32, 64)
        seen.extend(places.tolist())
    assert sorted(seen) == list(range(len(TEXTS)))
    assert list(rows(load_tokenizer(folder), [], 64)) == []


def test_labels_are_the_likeliest(folder: pathlib.Path) -> None:
    config = models.with_head(hf.load_config(folder), "classification", labels=3)
    params = spec.init(jax.random.key(1), models.spec(config))
    tokenizer = load_tokenizer(folder)
    classify = augmentation.Classifier(config, params, tokenizer, ("a", "b", "c"), 64)
    together = classify(TEXTS)
    assert together == [classify([text])[0] for text in TEXTS[:2]] + together[2:]
    ids = [*tokenizer.opening, *tokenizer.encode(TEXTS[1]), tokenizer.eos_id]
    hidden, _ = models.apply(params, np.array([ids]), config)
    scores = models.logits(params, hidden, config)
    assert together[1] == "abc"[int(np.argmax(np.asarray(scores)[0]))]


def test_a_model_that_reads_one_way_is_refused(tmp_path: pathlib.Path) -> None:
    config = models.llama(vocab_size=330, num_layers=1, embed_dim=16, num_heads=2)
    hf.save(tmp_path, config, spec.init(jax.random.key(0), models.spec(config)))
    hub_folders.write(tmp_path, hub_folders.byte_level())
    with pytest.raises(ValueError, match="which reads from left to right"):
        augmentation.Embedder(str(tmp_path))(["a"])
