"""Encoder models as functions from texts to embeddings or labels."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmjax import hf, models
from llmjax.data.tokenizer import Tokenizer, load_tokenizer

_ROWS = 32  # per call of the model
_STEP = 32  # row lengths are multiples of this number of tokens


@dataclasses.dataclass(frozen=True)
class Embedder:
    """Sentence embeddings of a BERT, as in Sentence-BERT (Reimers & Gurevych 2019).

    An embedding is the mean of the last hidden states over a text's tokens, normalised to length 1.
    Texts of similar length share a padded batch; a text's embedding does not depend on the others.

    Attributes:
        directory: folder of a Hugging Face checkpoint with its tokenizer.
        max_length: maximum number of tokens; longer texts are truncated.
    """

    directory: str
    max_length: int = 256

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [N, D]."""
        config, params, tokenizer = _loaded(self.directory)
        found = np.zeros((len(texts), config.embed_dim), np.float32)
        for places, tokens, segments in rows(tokenizer, texts, self.max_length):
            found[places] = np.asarray(_embeddings(params, tokens, segments, config))[: len(places)]
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A model with a classification head, as a function from texts to labels.

    Attributes:
        config: the model's configuration.
        params: the model's parameters.
        tokenizer: the model's tokenizer.
        labels: names by number.
        max_length: maximum number of tokens; longer texts are truncated.
    """

    config: models.ModelConfig
    params: Any
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    max_length: int = 256

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """The most likely label of each text."""
        found = np.zeros(len(texts), int)
        for places, tokens, segments in rows(self.tokenizer, texts, self.max_length):
            logits = np.asarray(_logits(self.params, tokens, segments, self.config))
            found[places] = logits[: len(places)].argmax(axis=-1)
        return [self.labels[number] for number in found]


def rows(
    tokenizer: Tokenizer, texts: Sequence[str], max_length: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches texts as padded rows for an encoder, shortest first.

    Args:
        tokenizer: the encoder's tokenizer.
        texts: any number of texts.
        max_length: maximum tokens of a row; longer texts lose their last tokens, but not the end
            marker.

    Returns:
        For each call of a model, the indices of its texts, int [n]; and int32 [B, S] tokens and
        segments (0: padding), of which the first n ≤ B rows are in use. There are few distinct S.
    """
    room = max_length - len(tokenizer.opening) - 1
    encoded = [
        [*tokenizer.opening, *ids[:room], tokenizer.eos_id]
        for ids in tokenizer.encode_batch(list(texts))
    ]
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
    for start in range(0, len(order), _ROWS):
        places = order[start : start + _ROWS]
        longest = min(-(-len(encoded[places[-1]]) // _STEP) * _STEP, max_length)
        tokens = np.full((_ROWS, longest), tokenizer.pad_id, np.int32)
        segments = np.zeros((_ROWS, longest), np.int32)
        for row, i in enumerate(places):
            tokens[row, : len(encoded[i])] = encoded[i]
            segments[row, : len(encoded[i])] = 1
        segments[len(places) :, 0] = 1  # a row of padding alone would attend to nothing
        yield np.array(places), tokens, segments


@functools.lru_cache(maxsize=2)
def _loaded(directory: str) -> tuple[models.ModelConfig, Any, Tokenizer]:
    config, params = hf.load(directory, dtype="float32")
    if config.attention.causal:
        raise ValueError(
            f"{directory!r} holds a {config.family}, which reads from left to right: give the "
            "folder of an encoder trained for embeddings, such as all-MiniLM-L6-v2."
        )
    return config, params, load_tokenizer(directory)


@functools.partial(jax.jit, static_argnames="config")
def _embeddings(params, tokens, segments, config):
    hidden, _ = models.apply(params, tokens, config, segment_ids=segments)
    there = (segments > 0)[..., None]
    means = jnp.sum(hidden * there, axis=1) / jnp.sum(there, axis=1)
    return means / jnp.linalg.norm(means, axis=-1, keepdims=True)


@functools.partial(jax.jit, static_argnames="config")
def _logits(params, tokens, segments, config):
    hidden, _ = models.apply(params, tokens, config, segment_ids=segments)
    return models.logits(params, hidden, config, segment_ids=segments)
