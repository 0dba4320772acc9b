"""Supervised labels: of sequences, of tokens, and of where an answer starts and ends."""

import jax
import jax.numpy as jnp

from llmjax import mesh, models
from llmjax.objectives.loss import Batch, Loss, Weighted
from llmjax.objectives.mlm import run

NONE = -1  # the label of what has none


def classification(config: models.ModelConfig) -> Loss:
    """-Σ log P(label | x), by the kind of the model's head (Devlin et al. 2019, section 4).

    - classification: "labels" [B] in [0, N); -1 where a row has none.
    - tokens: "labels" [B, S] in [0, N); -1 where a token has none.
    - span: "spans" [B, 2], the places of an answer's first and last token in its row; a row with
      one of them -1, outside the row or at padding has none. The loss of a row is the mean of
      both, each over the places that are not padding.

    Returns:
        A loss over batches with these and "tokens" [B, S], and optionally "segment_ids",
        "positions" and "token_types", all int32. Its weight is the number of labels, or of spans.
        Its metric "accuracy" is of labels, or of spans with both ends right.

    Raises:
        ValueError: a model with another head.
    """
    if config.head.kind not in ("classification", "tokens", "span"):
        raise ValueError(
            f"classification needs a model whose head.kind is classification, tokens or span, not "
            f"{config.head.kind}"
        )

    def loss(params, batch: Batch, key):
        head_key = None
        if key is not None:
            key, head_key = jax.random.split(key)
        segment_ids = batch.get("segment_ids")
        hidden = run(params, batch["tokens"], config, batch, key)
        logits = models.logits(params, hidden, config, segment_ids=segment_ids, key=head_key)
        if config.head.kind == "span":
            losses, right, counted = _spans(logits, jnp.asarray(batch["spans"]), segment_ids)
        else:
            labels = jnp.asarray(batch["labels"])
            losses, right = _label_losses(logits, labels)
            counted = labels != NONE
        total = jnp.sum(jnp.where(counted, losses, 0.0))
        correct = jnp.sum(counted & right, dtype=jnp.float32)
        return Weighted(total, jnp.sum(counted, dtype=jnp.float32)), {"accuracy": correct}

    return loss


def _label_losses(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of logits [..., N] with labels [...], and whether the largest is at them."""
    log_shares = jax.nn.log_softmax(logits, axis=-1)
    at_label = labels[..., None] == jnp.arange(logits.shape[-1])
    losses = -jnp.sum(jnp.where(at_label, log_shares, 0.0), axis=-1)
    return losses, jnp.argmax(logits, axis=-1) == labels


def _spans(
    logits: jax.Array, spans: jax.Array, segment_ids: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Losses, whether both ends are right, and which rows have a span, [B] each."""
    logits = mesh.place(jnp.moveaxis(logits, 2, 1), ("batch", None, None))  # [B, 2, S]
    places = jnp.arange(logits.shape[2])
    at = spans[..., None] == places
    if segment_ids is not None:
        there = (segment_ids != 0)[:, None]
        at &= there
        logits = jnp.where(there, logits, jnp.finfo(logits.dtype).min)
    counted = jnp.all(jnp.any(at, axis=2), axis=1)
    losses, right = _label_losses(logits, spans)
    return jnp.mean(losses, axis=1), jnp.all(right, axis=1), counted
