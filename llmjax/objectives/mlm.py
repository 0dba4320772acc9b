"""Masked language modeling: predict masked tokens."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmjax import lookup, models, tree
from llmjax.kernels.linear_cross_entropy import linear_cross_entropy
from llmjax.objectives.loss import Batch, Params, Prepare, PreparedLoss, Weighted
from llmjax.objectives.masking import MaskingConfig, mask_tokens, word_starts


def mlm(
    config: models.ModelConfig,
    masking: MaskingConfig,
    *,
    mask_id: int,
    special_ids: tuple[int, ...],
    starts_word: np.ndarray | None = None,
) -> PreparedLoss:
    """-Σ log P(x_i | masked x) over the masked tokens (Devlin et al. 2019, section 3.1).

    Masks are drawn anew from the key of every step (Liu et al. 2019, section 4.1), and the head is
    only computed at the masked positions.

    Args:
        config: configuration of a model with a head of kind mlm.
        masking: masking options.
        mask_id: the mask token.
        special_ids: tokens that are never masked.
        starts_word: bool [V], whether a token begins a word, for whole-word masking.

    Returns:
        A loss over batches with int32 [B, S] "tokens", and optionally "segment_ids", "positions"
        and "token_types". Its weight is the number of masked tokens.

    Raises:
        ValueError: the model has another head.
    """
    if config.head.kind != "mlm":
        raise ValueError(f"mlm needs a model with head.kind=mlm, not {config.head.kind}")
    prepare = masks(
        masking,
        mask_id=mask_id,
        vocab_size=config.vocab_size,
        special_ids=special_ids,
        starts_word=starts_word,
    )

    def loss(params, batch: Batch, key):
        hidden = run(params, batch["masked_tokens"], config, batch, key)
        states = lookup.gather_positions(hidden, batch["masked_positions"])
        states = models.heads.mlm_states(params, states, config)
        targets = batch["masked_targets"]
        total, _ = linear_cross_entropy(
            states,
            models.lm_weight(params, config),
            targets,
            bias=params["head"]["bias"] if config.head.bias else None,
            cap=config.head.cap,
        )
        return Weighted(total, jnp.sum(targets >= 0, dtype=jnp.float32)), {}

    return PreparedLoss(prepare, loss, "masked_tokens")


def masks(
    masking: MaskingConfig,
    *,
    mask_id: int,
    vocab_size: int,
    special_ids: tuple[int, ...],
    starts_word: np.ndarray | None = None,
) -> Prepare:
    """Makes a function that draws masks for a batch; arguments as in `mask_tokens` and `mlm`.

    Adds "masked_tokens" [B, S], "masked_positions" and "masked_targets" [B, P], which `Masked`
    calls tokens, positions and targets_at.
    """

    def prepare(batch: Batch, key: jax.Array | None) -> Batch:
        tokens = jnp.asarray(batch["tokens"])
        starts = None
        if masking.whole_word and starts_word is not None:
            starts = word_starts(tokens, jnp.asarray(starts_word))
        masked = mask_tokens(
            key_for("masks", key),
            tokens,
            masking,
            mask_id=mask_id,
            vocab_size=vocab_size,
            special_ids=special_ids,
            segment_ids=batch.get("segment_ids"),
            word_starts=starts,
        )
        return dict(batch) | {
            "masked_tokens": masked.tokens,
            "masked_positions": masked.positions,
            "masked_targets": masked.targets_at,
        }

    return prepare


def key_for(purpose: str, key: jax.Array | None) -> jax.Array:
    """A key for one purpose; always the same one if `key` is None.

    It folds in a hash, as small numbers could repeat keys that `jax.random.split` makes for
    micro-batches and layers.
    """
    return jax.random.fold_in(jax.random.key(0) if key is None else key, tree.path_hash(purpose))


def run(
    params: Params,
    tokens: jax.Array,
    config: models.ModelConfig,
    batch: Batch,
    key: jax.Array | None,
) -> jax.Array:
    """Hidden states [B, S, D] for tokens [B, S] that replace the batch's own."""
    rest: dict[str, Any] = {
        name: batch.get(name) for name in ("segment_ids", "positions", "token_types")
    }
    if not config.embedding.token_types:
        del rest["token_types"]
    hidden, _ = models.apply(params, tokens, config, **rest, key=key)
    return hidden
