"""Prompts with sampled completions, as inputs of rewards and as training rows."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llmjax.kernels.linear_cross_entropy import IGNORE


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        tokens: int32 [S], up to the start of the answer.
        text: the prompt as text.
        extra: data that a reward needs to judge an answer, such as "answer".
    """

    tokens: np.ndarray
    text: str
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One completion of a prompt.

    Attributes:
        prompt: the prompt.
        tokens: int32 [N], including the tokens that end it, if it ended.
        text: the completion as text, without those tokens.
        log_probs: float32 [N], of each token under the policy that sampled it.
        ended: whether it ended before the limit of tokens.
    """

    prompt: Prompt
    tokens: np.ndarray
    text: str
    log_probs: np.ndarray
    ended: bool


def rows(samples: Sequence[Sample], length: int) -> dict[str, np.ndarray]:
    """Makes one row per sample, padded on the right.

    Position i of a row holds token i and predicts token i + 1, so targets and log-probabilities are
    one position before their token.

    Args:
        samples: each with at most S tokens, prompt included.
        length: S.

    Returns:
        int32 [N, S] "tokens", "targets" (-1 at prompts and padding), "segment_ids", "positions",
        and float32 [N, S] "old_log_probs".

    Raises:
        ValueError: a sample is longer, or has an empty prompt, so that nothing predicts its first
            token.
    """
    shape = len(samples), length
    made = {name: np.zeros(shape, np.int32) for name in ("tokens", "segment_ids", "positions")}
    made["targets"] = np.full(shape, IGNORE, np.int32)
    made["old_log_probs"] = np.zeros(shape, np.float32)
    for row, sample in enumerate(samples):
        whole = np.concatenate([sample.prompt.tokens, sample.tokens])
        if len(whole) > length:
            raise ValueError(
                f"sample {row} has {len(whole)} tokens, more than sequence_length={length}: raise "
                "it, or lower the limit of prompt tokens or new tokens"
            )
        if not len(sample.prompt.tokens):
            raise ValueError(f"sample {row} has an empty prompt: begin it with the bos token, say")
        begin, end = len(sample.prompt.tokens) - 1, len(whole) - 1
        made["tokens"][row, : len(whole)] = whole
        made["targets"][row, begin:end] = sample.tokens
        made["segment_ids"][row, : len(whole)] = 1
        made["positions"][row, : len(whole)] = np.arange(len(whole))
        made["old_log_probs"][row, begin:end] = sample.log_probs
    return made


def parts(rows: Mapping[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `size` rows; the last batch is padded with copies of the last row."""
    count = len(next(iter(rows.values())))
    for start in range(0, count, size):
        order = np.minimum(np.arange(start, start + size), count - 1)
        yield {name: values[order] for name, values in rows.items()}


def repetition(samples: Sequence[Sample], order: int = 3) -> float:
    """The mean share of repeated n-grams in a completion; 0 for short ones.

    Args:
        samples: samples with completions.
        order: n.
    """
    shares = []
    for sample in samples:
        runs = [tuple(sample.tokens[i : i + order]) for i in range(len(sample.tokens) - order + 1)]
        shares.append(1 - len(set(runs)) / len(runs) if runs else 0.0)
    return float(np.mean(shares))
