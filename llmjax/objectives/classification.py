"""Supervised losses for labels of sequences, labels of tokens, and answer spans."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from llmjax import mesh, models
from llmjax.objectives.loss import Batch, Loss, Metrics, Weighted
from llmjax.objectives.mlm import run

NONE = -1  # the label of unlabeled rows and tokens


@dataclasses.dataclass(frozen=True)
class ClassificationConfig:
    """Options of the classification loss.

    Attributes:
        label_smoothing: share of each label's probability that is spread over all labels (Szegedy
            et al. 2016, section 7).
        class_weights: weight of each label, N numbers; empty means 1 each. With those of
            `balanced_weights`, rare labels count as much as frequent ones.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing}: must be in [0, 1)")
        if not all(0 <= weight < math.inf for weight in self.class_weights):
            raise ValueError(f"class_weights={self.class_weights}: must be finite and not negative")


def balanced_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """Σ n / (N · n_i) for each of N labels with n_i examples (King & Zeng 2001, section 4.2).

    Labels without examples get 1, which is never used.
    """
    total, labels = sum(counts), len(counts)
    return tuple(total / (labels * count) if count else 1.0 for count in counts)


def classification(
    config: models.ModelConfig,
    options: ClassificationConfig = ClassificationConfig(),
    *,
    confusion: bool = False,
) -> Loss:
    """-Σ log P(label | x), by the kind of the model's head (Devlin et al. 2019, section 4).

    - classification: "labels" [B] in [0, N); -1 for rows without a label.
    - tokens: "labels" [B, S] in [0, N); -1 for tokens without a label.
    - span: "spans" [B, 2], the positions of an answer's first and last token in its row. A row has
      no span if one of them is -1, outside the row or at padding, or if the last is before the
      first. The loss of a row is the mean of both cross entropies, without padding positions.

    Args:
        config: model configuration.
        options: label smoothing and class weights, as in PyTorch's `cross_entropy`.
        confusion: whether the metrics include "confusion" [N, N], the counts of true label (row)
            and predicted label (column); for evaluation only, as a training step's metrics are
            scalars.

    Returns:
        A loss over batches with these arrays and "tokens" [B, S], and optionally "segment_ids",
        "positions" and "token_types", all int32. Its weight is the number of spans, or of labels,
        each counted with its class weight. Its metric "accuracy" is that of labels, weighted in the
        same way, or of spans with both ends right; "token_f1", for spans, is the mean token-level
        F1. The predicted span has the largest sum of scores with start ≤ end.

    Raises:
        ValueError: the model has another head, or the options do not apply to it.
    """
    _check(config, options, confusion)

    def loss(params, batch: Batch, key):
        head_key = None
        if key is not None:
            key, head_key = jax.random.split(key)
        segment_ids = batch.get("segment_ids")
        hidden = run(params, batch["tokens"], config, batch, key)
        logits = models.logits(params, hidden, config, segment_ids=segment_ids, key=head_key)
        if config.head.kind == "span":
            return _spans(logits, jnp.asarray(batch["spans"]), segment_ids)
        labels = jnp.asarray(batch["labels"])
        weighted, metrics = _labels(logits, labels, options)
        if confusion:
            metrics["confusion"] = _confusion(logits, labels)
        return weighted, metrics

    return loss


def _check(config: models.ModelConfig, options: ClassificationConfig, confusion: bool) -> None:
    head = config.head
    if head.kind not in ("classification", "tokens", "span"):
        raise ValueError(
            f"classification needs a model with head.kind=classification, tokens or span, not "
            f"{head.kind}"
        )
    if head.kind == "span" and (options != ClassificationConfig() or confusion):
        raise ValueError("label_smoothing, class_weights and confusion do not apply to spans")
    if options.class_weights and len(options.class_weights) != head.labels:
        raise ValueError(
            f"class_weights has {len(options.class_weights)} numbers for head.labels={head.labels}"
        )


def _labels(
    logits: jax.Array, labels: jax.Array, options: ClassificationConfig
) -> tuple[Weighted, Metrics]:
    """Cross entropy of logits [..., N] with labels [...]."""
    classes = logits.shape[-1]
    at_label = jax.nn.one_hot(labels, classes, dtype=logits.dtype)  # zeros where there is none
    by_class = np.asarray(options.class_weights or [1.0] * classes, logits.dtype)
    weights = jnp.sum(at_label * by_class, axis=-1)
    smooth = options.label_smoothing
    shares = (1 - smooth) * at_label + smooth / classes
    losses = -jnp.sum(shares * by_class * jax.nn.log_softmax(logits, axis=-1), axis=-1)
    right = jnp.argmax(logits, axis=-1) == labels
    total = jnp.sum(jnp.where(labels != NONE, losses, 0.0))
    return Weighted(total, jnp.sum(weights)), {"accuracy": jnp.sum(jnp.where(right, weights, 0.0))}


def _confusion(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The confusion matrix, float32 [N, N], exact up to 2²⁴ labels."""
    classes = logits.shape[-1]
    true = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
    taken = jax.nn.one_hot(jnp.argmax(logits, axis=-1), classes, dtype=jnp.float32)
    product = functools.partial(jnp.einsum, "...n,...m->nm")
    return mesh.sharded(product, (None, None))(true, taken)


def _spans(
    logits: jax.Array, spans: jax.Array, segment_ids: jax.Array | None
) -> tuple[Weighted, Metrics]:
    """Loss and metrics of logits [B, S, 2] for spans [B, 2]."""
    logits = mesh.place(jnp.moveaxis(logits, 2, 1), ("batch", None, None))  # [B, 2, S]
    places = jnp.arange(logits.shape[2])
    at = spans[..., None] == places
    if segment_ids is not None:
        there = (segment_ids != 0)[:, None]
        at &= there
        logits = jnp.where(there, logits, jnp.finfo(logits.dtype).min)
    counted = jnp.all(jnp.any(at, axis=2), axis=1) & (spans[:, 0] <= spans[:, 1])
    log_shares = jax.nn.log_softmax(logits, axis=-1)
    losses = jnp.mean(-jnp.sum(jnp.where(at, log_shares, 0.0), axis=-1), axis=1)
    first, last = _best_span(logits)
    overlap = jnp.minimum(last, spans[:, 1]) - jnp.maximum(first, spans[:, 0]) + 1
    sizes = (last - first + 1) + (spans[:, 1] - spans[:, 0] + 1)
    f1 = 2 * jnp.maximum(overlap, 0) / jnp.maximum(sizes, 1)
    right = counted & (first == spans[:, 0]) & (last == spans[:, 1])
    metrics = {
        "accuracy": jnp.sum(right, dtype=jnp.float32),
        "token_f1": jnp.sum(jnp.where(counted, f1, 0.0)),
    }
    total = jnp.sum(jnp.where(counted, losses, 0.0))
    return Weighted(total, jnp.sum(counted, dtype=jnp.float32)), metrics


def _best_span(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Start and end [B] that maximize the sum of their logits [B, 2, S], with start ≤ end."""
    starts, ends = logits[:, 0], logits[:, 1]
    last = jnp.argmax(jax.lax.cummax(starts, axis=1) + ends, axis=1)
    before = jnp.arange(starts.shape[1]) <= last[:, None]
    return jnp.argmax(jnp.where(before, starts, -jnp.inf), axis=1), last
