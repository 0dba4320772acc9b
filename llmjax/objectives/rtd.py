"""Replaced-token detection: a generator replaces tokens, a discriminator finds them.

L_MLM is a mean over the M masked tokens of a batch and L_Disc a mean over its N tokens, while the
step divides one sum by one weight. So the sum is N/M · Σ_MLM + weight · Σ_Disc with weight N, which
gives the loss of the paper. `prepare` counts M and N over the batch before it is split, so that the
result does not depend on the split; a batch without masked tokens has an L_MLM of 0.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

from llmjax import lookup, mesh, models, tree
from llmjax.objectives.loss import Batch, Metrics, Params, Prepare, PreparedLoss, Weighted
from llmjax.objectives.masking import MaskingConfig
from llmjax.objectives.mlm import key_for, masks, run
from llmjax.objectives.replacement import sample_replacements
from llmjax.spec import Tree, is_param
from llmjax.weights import Held, Weight, materialize, parted

Sharing = Literal["none", "tied", "disentangled"]
TABLES = ("embedding", "positions", "token_types", "embedding_norm")


def rtd(
    generator: models.ModelConfig,
    discriminator: models.ModelConfig,
    masking: MaskingConfig,
    *,
    mask_id: int,
    special_ids: tuple[int, ...],
    sharing: Sharing = "tied",
    weight: float = 50.0,
    starts_word: np.ndarray | None = None,
) -> PreparedLoss:
    """L_MLM + weight · L_Disc, the joint loss of ELECTRA (Clark et al. 2020, section 2).

    The generator is trained to predict the masked tokens. Samples from its softmax replace them,
    without a gradient, and the discriminator is trained to predict, for every token that is not
    padding, whether it is the original; a sample that equals the original counts as original.

    Args:
        generator: a model with a head of kind mlm.
        discriminator: a model with a head of kind rtd.
        masking: which tokens are replaced; `masking.ELECTRA` is usual.
        mask_id: the mask token.
        special_ids: tokens that are never replaced.
        sharing: sharing of embeddings, see `rtd_spec`.
        weight: weight of the discriminator's loss.
        starts_word: bool [V], whether a token begins a word, for whole-word masking.

    Returns:
        A loss over the parameters that `rtd_spec` declares and batches with int32 [B, S] "tokens",
        and optionally "segment_ids", "positions" and "token_types". Its weight is the number of
        tokens. Its metrics, divided by that, are the paper's "generator_loss" and
        "discriminator_loss", and the shares of tokens "replaced" and classified correctly
        ("discriminator_accuracy").

    Raises:
        ValueError: the models have other heads, or do not match.
    """
    _check(generator, discriminator, sharing)
    prepare = masks(
        masking,
        mask_id=mask_id,
        vocab_size=generator.vocab_size,
        special_ids=special_ids,
        starts_word=starts_word,
    )

    def loss(params, batch: Batch, key):
        keys = (None, None) if key is None else jax.random.split(key)
        logits = _generator_logits(generator_params(params, sharing), generator, batch, keys[0])
        losses = _cross_entropy(logits, batch["masked_targets"])
        total = jnp.sum(losses * batch["rtd_scale"][:, None])
        found = discriminator_params(params, sharing)
        weighted, metrics = _discriminate(found, discriminator, batch, logits, keys[1])
        metrics |= {"generator_loss": total, "discriminator_loss": weighted.sum}
        return Weighted(total + weight * weighted.sum, weighted.weight), metrics

    return PreparedLoss(_prepare(prepare), loss, "masked_tokens")


def rtd_spec(
    generator: models.ModelConfig,
    discriminator: models.ModelConfig,
    sharing: Sharing = "tied",
) -> Tree:
    """The trained parameters: {"generator": ..., "discriminator": ...}, each a tree of `Param`.

    Args:
        generator: its configuration.
        discriminator: its configuration.
        sharing: none: each has its own embeddings. tied: the generator uses the discriminator's
            embeddings of tokens, positions and token types and their norm (Clark et al. 2020,
            section 3.2). disentangled (He et al. 2023, section 3.3): the discriminator's token
            embeddings are stop_gradient(E_G) + E_Δ, where E_G are the generator's and E_Δ, stored
            as the discriminator's "embedding", is initialized to 0.

    Raises:
        ValueError: the models have other heads, or do not match.
    """
    _check(generator, discriminator, sharing)
    ours, theirs = models.spec(generator), models.spec(discriminator)
    if sharing == "tied":
        ours = {name: node for name, node in ours.items() if name not in TABLES}
    if sharing == "disentangled":
        start = dataclasses.replace(theirs["embedding"], init=initializers.zeros)
        theirs = dict(theirs) | {"embedding": start}
    return {"generator": ours, "discriminator": theirs}


def generator_params(params: Params, sharing: Sharing) -> Params:
    """The generator's parameters, as those of an ordinary model, from a tree of `rtd_spec`."""
    if sharing != "tied":
        return params["generator"]
    shared = {name: node for name, node in params["discriminator"].items() if name in TABLES}
    return params["generator"] | shared


def discriminator_params(params: Params, sharing: Sharing) -> Params:
    """The discriminator's parameters, as those of an ordinary model; see `generator_params`.

    Disentangled embeddings are summed (He et al. 2023, equation 8); no gradient flows to the
    generator's.
    """
    if sharing != "disentangled":
        return params["discriminator"]
    generators = jax.lax.stop_gradient(materialize(params["generator"]["embedding"]))
    added, terms = parted(params["discriminator"]["embedding"])
    table: Weight = generators + added
    if terms is not None:
        table = Held(table, terms=terms)
    return params["discriminator"] | {"embedding": table}


def _check(
    generator: models.ModelConfig, discriminator: models.ModelConfig, sharing: Sharing
) -> None:
    if sharing not in ("none", "tied", "disentangled"):
        raise ValueError(f"sharing={sharing!r}: choose one of none, tied, disentangled")
    for name, config, kind in (
        ("generator", generator, "mlm"),
        ("discriminator", discriminator, "rtd"),
    ):
        if config.head.kind != kind:
            raise ValueError(
                f"rtd: the {name}'s head.kind is {config.head.kind}; it must be {kind}"
            )
    if generator.vocab_size != discriminator.vocab_size:
        raise ValueError(
            f"rtd: the generator's vocabulary of {generator.vocab_size} differs from the "
            f"discriminator's of {discriminator.vocab_size}"
        )
    if sharing == "none":
        return
    names = TABLES if sharing == "tied" else TABLES[:1]
    ours, theirs = (_shapes(config, names) for config in (generator, discriminator))
    if ours != theirs:
        raise ValueError(
            f"rtd: sharing={sharing} needs embeddings of equal shape; the generator's are {ours} "
            f"and the discriminator's {theirs} (set the generator's embedding.dim to the width of "
            "the discriminator's)"
        )


def _shapes(config: models.ModelConfig, names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    declared = {name: node for name, node in models.spec(config).items() if name in names}
    shapes: dict[str, tuple[int, ...]] = {}
    tree.map_with_path(
        lambda path, param: shapes.update({path: param.shape}), declared, is_leaf=is_param
    )
    return shapes


def _prepare(draw_masks: Prepare) -> Prepare:
    """Adds masks, a seed per row, "rtd_seeds" uint32 [B], and N/M, "rtd_scale" [B]."""

    def prepare(batch: Batch, key: jax.Array | None) -> Batch:
        batch = dict(draw_masks(batch, key))
        rows = batch["tokens"].shape[0]
        bits = mesh.sharded(jax.random.bits, ("batch",))
        seeds = bits(key_for("replacements", key), (rows,), jnp.uint32)
        masked = jnp.sum(batch["masked_targets"] >= 0, dtype=jnp.float32)
        scale = jnp.sum(_there(batch), dtype=jnp.float32) / jnp.maximum(masked, 1.0)
        spread = mesh.sharded(jnp.broadcast_to, ("batch",))
        return batch | {"rtd_seeds": seeds, "rtd_scale": spread(scale, (rows,))}

    return prepare


def _there(batch: Batch) -> jax.Array:
    """Which positions are not padding, bool [B, S]."""
    segment_ids = batch.get("segment_ids")
    tokens = jnp.asarray(batch["tokens"])
    return jnp.ones_like(tokens, bool) if segment_ids is None else jnp.asarray(segment_ids) != 0


def _generator_logits(
    params: Params, config: models.ModelConfig, batch: Batch, key: jax.Array | None
) -> jax.Array:
    """The generator's logits at the masked positions, float32 [B, P, V].

    Unlike in `mlm` they are stored, because they are also sampled from, and a second product with
    the vocabulary would cost more than the memory.
    """
    hidden = run(params, batch["masked_tokens"], config, batch, key)
    return models.logits(params, lookup.gather_positions(hidden, batch["masked_positions"]), config)


def _discriminate(
    params: Params,
    config: models.ModelConfig,
    batch: Batch,
    logits: jax.Array,
    key: jax.Array | None,
) -> tuple[Weighted, Metrics]:
    """The binary cross entropy of telling the generator's samples from original tokens."""
    keys = (None, None) if key is None else jax.random.split(key)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(
        key_for("replacements", None), batch["rtd_seeds"]
    )
    corrupted, replaced = sample_replacements(
        row_keys, logits, batch["tokens"], batch["masked_positions"], batch["masked_targets"]
    )
    hidden = run(params, corrupted, config, batch, keys[0])
    verdicts = models.logits(params, hidden, config, key=keys[1])
    there = _there(batch)
    losses = jax.nn.softplus(verdicts) - jnp.where(replaced, verdicts, 0.0)

    def count(where):
        return jnp.sum(there & where, dtype=jnp.float32)

    metrics = {
        "replaced": count(replaced),
        "discriminator_accuracy": count((verdicts > 0) == replaced),
    }
    return Weighted(jnp.sum(jnp.where(there, losses, 0.0)), count(there)), metrics


def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The loss of every target, [B, P]; 0 where it is -1. The vocabulary may be sharded."""
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    log_sum = jnp.log(jnp.sum(jnp.exp(logits - highest), axis=-1)) + highest[..., 0]
    iota = mesh.sharded(jax.lax.broadcasted_iota, ("batch", None, "vocab"))
    at_target = iota(jnp.int32, logits.shape, 2) == targets[..., None]
    picked = jnp.sum(jnp.where(at_target, logits, 0.0), axis=-1)
    return jnp.where(targets >= 0, log_sum - picked, 0.0)
