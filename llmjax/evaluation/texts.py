"""Perplexity of each of many texts."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from llmjax import mesh, models
from llmjax.data.packing import Batch, pad, stack, with_targets
from llmjax.data.tokenizer import Tokenizer
from llmjax.objectives import log_probs
from llmjax.objectives.log_probs import require_language_model


@dataclasses.dataclass(frozen=True)
class TextScorer:
    """Perplexities of texts under a language model, exp(-Σ log P(token) / tokens), with the end.

    A text longer than a row continues in the next row without its earlier context, as in training.
    Short texts share a row but do not attend to each other.

    Attributes:
        params: the model's parameters.
        config: the model's configuration; it predicts next tokens.
        tokenizer: the model's tokenizer.
        sequence_length: S, tokens in a row.
        rows: B, rows in a batch. All batches have this size, so that nothing is compiled twice.
    """

    params: Any
    config: models.ModelConfig
    tokenizer: Tokenizer
    sequence_length: int = 512
    rows: int = 8

    def __post_init__(self) -> None:
        require_language_model("TextScorer", self.config)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """The perplexity of each text; infinite for a text without targets.

        Raises:
            ValueError: a text is not valid Unicode.
        """
        nats, counts = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
        rows = self._rows(self.tokenizer.encode_batch(texts))
        while batch := list(itertools.islice(rows, self.rows)):
            owners = [row.pop("owners") for row in batch]
            stacked = stack(batch, self.rows)
            found = jax.device_get(_log_probs(self.params, mesh.shard_batch(stacked), self.config))
            for row, owner, values in zip(batch, owners, found, strict=False):
                trained = row["targets"] >= 0
                np.subtract.at(nats, owner[trained], values[trained].astype(np.float64))
                np.add.at(counts, owner[trained], 1)
        means = np.divide(nats, counts, out=np.full(len(texts), np.inf), where=counts > 0)
        return np.exp(np.minimum(means, 700.0), where=counts > 0, out=means).tolist()

    def _rows(self, encoded: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """Rows [S] as in training, plus "owners": the index of the text at each position."""
        pieces: list[Batch] = []
        length = 0
        for owner, ids in enumerate(encoded):
            tokens = np.array([*self.tokenizer.opening, *ids, self.tokenizer.eos_id], np.int32)
            whole = with_targets(tokens)
            for start in range(0, len(tokens), self.sequence_length):
                piece = {k: v[start : start + self.sequence_length] for k, v in whole.items()}
                size = len(piece["tokens"])
                if length + size > self.sequence_length:
                    yield self._row(pieces)
                    pieces, length = [], 0
                length += size
                segment = np.full(size, len(pieces) + 1, np.int32)
                positions = np.arange(size, dtype=np.int32)
                owners = np.full(size, owner, np.int32)
                found = {"segment_ids": segment, "positions": positions, "owners": owners}
                pieces.append(piece | found)
        if pieces:
            yield self._row(pieces)

    def _row(self, pieces: list[Batch]) -> Batch:
        row = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        return pad(row, self.sequence_length - len(row["tokens"]))


@functools.partial(jax.jit, static_argnums=2)
def _log_probs(
    params: Any, batch: Mapping[str, jax.Array], config: models.ModelConfig
) -> jax.Array:
    return log_probs(params, batch, config).targets
