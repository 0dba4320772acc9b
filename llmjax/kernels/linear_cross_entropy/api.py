"""The public operations from hidden states to losses and log-probabilities."""

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from llmjax import collectives, mesh
from llmjax.kernels import implementations
from llmjax.kernels.linear_cross_entropy import pallas_gpu, pallas_tpu, reference, xla
from llmjax.kernels.linear_cross_entropy.statistics import (
    Options,
    Statistics,
    TokenLoss,
    Wanted,
    combine,
)
from llmjax.kernels.linear_cross_entropy.together import gradients_together
from llmjax.kernels.tiling import pad
from llmjax.parts import on_parts
from llmjax.weights import Weight, of_replicas, parted

IGNORE = -1  # the target of a position without a loss

Implementation = Literal["xla", "pallas_tpu", "pallas_gpu", "reference"]
KERNELS: dict[Implementation, Any] = {"pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu}


def linear_cross_entropy(
    hidden: jax.Array,
    weight: Weight,
    targets: jax.Array,
    *,
    bias: jax.Array | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    cap: float = 0.0,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of softmax(hidden · weightᵀ) against targets, without B·S×V logits in memory.

    The loss of a token with log-sum-exp Z, logit of the target y and label smoothing ε is
    Z - (1-ε) y - ε mean(logits) + z_loss · Z² (Szegedy et al. 2016, section 7; Chowdhery et al.
    2022, section 5), in nats.

    Args:
        hidden: [B, S, D], in the compute precision.
        weight: [V, D], one row per token: an embedding table or a head of its shape, of any leaf
            type.
        targets: int32 [B, S]; -1 for positions without a loss.
        bias: [V], added to the products, before the cap.
        label_smoothing: ε.
        z_loss: weight of Z², which keeps log-sum-exps near 0 (1e-4 is usual).
        cap: soft-caps logits by cap·tanh(logit / cap); 0 disables it.
        implementation: "xla" (chunks of tokens), "pallas_tpu" or "pallas_gpu" (kernels for TPUs
            and GPUs; interpreted, slowly, on other devices), or "reference". The default is
            "pallas_tpu" on TPUs if the width allows it, and "xla" elsewhere, even on GPUs, where
            the kernel needs less memory but one more product, and has not been timed yet.

    Returns:
        The float32 sum of the losses, which is differentiable, and the loss of every token, float32
        [B, S], for logging: it may have no gradient.

    Raises:
        ValueError: shapes do not match, or numbers are out of range.
    """
    if not 0.0 <= label_smoothing < 1.0 or z_loss < 0.0:
        raise ValueError(
            f"linear_cross_entropy: label_smoothing={label_smoothing} must be in [0, 1) and "
            f"z_loss={z_loss} at least 0"
        )
    weight = _ready(weight)
    _check("linear_cross_entropy", hidden, weight, targets, bias, cap, implementation)
    if implementation == "reference":
        weight, _ = parted(weight)
        losses = reference.token_losses(hidden, weight, bias, targets, label_smoothing, z_loss, cap)
        return jnp.sum(losses), losses
    loss = TokenLoss(parted(weight)[0].shape[0], label_smoothing, z_loss)
    hidden, weight, bias, targets = _on_device(hidden, weight, bias, targets)
    hidden, targets, unfold = _fold(hidden, targets)
    chosen = implementation or _fastest(hidden)
    if chosen == "xla":
        total, losses = xla.token_losses(hidden, weight, bias, targets, loss, cap)
        return total, unfold(losses)
    losses = loss(_by_kernel(chosen, hidden, weight, bias, targets, loss.wanted, cap), targets)
    return jnp.sum(losses), unfold(losses)


def linear_log_probs(
    hidden: jax.Array,
    weight: Weight,
    targets: jax.Array,
    *,
    bias: jax.Array | None = None,
    cap: float = 0.0,
    entropy: bool = False,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """log P(target) and, optionally, entropy of every token, without B·S×V logits in memory.

    For training policies: PPO's ratio is exp(log P - old log P), and an entropy bonus uses the
    second result. Both are differentiable.

    Args:
        hidden: as in `linear_cross_entropy`; divide it by the temperature to apply one.
        weight: as in `linear_cross_entropy`.
        targets: as in `linear_cross_entropy`.
        bias: as in `linear_cross_entropy`.
        cap: as in `linear_cross_entropy`.
        entropy: whether to compute entropies.
        implementation: as in `linear_cross_entropy`.

    Returns:
        Float32 [B, S], 0 where a target is -1: log P(target) in nats, and -Σ p·log p over the
        vocabulary, or None.

    Raises:
        ValueError: as in `linear_cross_entropy`.
    """
    weight = _ready(weight)
    _check("linear_log_probs", hidden, weight, targets, bias, cap, implementation)
    if implementation == "reference":
        weight, _ = parted(weight)
        log_probs, entropies = reference.log_probs(hidden, weight, bias, targets, cap)
        return log_probs, entropies if entropy else None
    hidden, weight, bias, targets = _on_device(hidden, weight, bias, targets)
    hidden, targets, unfold = _fold(hidden, targets)
    chosen = implementation or _fastest(hidden)
    statistics = xla.statistics if chosen == "xla" else functools.partial(_by_kernel, chosen)
    found = statistics(hidden, weight, bias, targets, Wanted(expected=entropy), cap)
    there = targets >= 0
    log_probs = unfold(jnp.where(there, found.target - found.log_sum, 0.0))
    if found.expected is None:
        return log_probs, None
    return log_probs, unfold(jnp.where(there, found.log_sum - found.expected, 0.0))


def _ready(weight: Weight) -> Any:
    """A `Held` weight if it has terms, which get its gradient; otherwise an array."""
    array, terms = parted(weight)
    return array if terms is None else weight


def _fold(hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, Callable]:
    """Folds the split sequence axis into rows, and returns a function that inverts it.

    Tokens stay on their devices. The results are split by rows only.
    """
    devices, length = mesh.size("sequence"), targets.shape[1]
    if devices == 1:
        return hidden, targets, lambda x: x

    def move(x, before, after):
        rest = (None,) * (x.ndim - 2)
        return on_parts(lambda part: part, ((*before, *rest),), (*after, *rest))(x)

    def unfold(x):
        x = move(x, ("tokens", None), ("batch", "sequence"))
        return x if x.shape[1] == length else mesh.place(x, ("batch", None))[:, :length]

    # The number of positions may not divide evenly, for example that of masked tokens.
    padded = pad(hidden, 1, devices), pad(targets, 1, devices, IGNORE)
    hidden, targets = (move(x, ("batch", "sequence"), ("tokens", None)) for x in padded)
    return hidden, targets, unfold


def _fastest(hidden: jax.Array) -> Implementation:
    """On TPUs the kernel, which needs less memory at a similar estimated speed (BENCH.md)."""
    fits = hidden.shape[2] <= pallas_tpu.widest(hidden.dtype)
    return "pallas_tpu" if mesh.platform() == "tpu" and fits else "xla"


def _by_kernel(
    name: Implementation, hidden, weight, bias, targets, wanted: Wanted, cap: float
) -> Statistics:
    """Runs one of `KERNELS` on every device's tokens and part of the vocabulary."""
    widest = pallas_tpu.widest(hidden.dtype)
    if name == "pallas_tpu" and hidden.shape[2] > widest:
        raise ValueError(
            f"linear_cross_entropy: implementation='pallas_tpu' supports up to {widest} channels "
            f"of {hidden.dtype}, not {hidden.shape[2]}"
        )
    # The weight is cast before its gather, and its gradient before its scatter.
    weight, table = of_replicas(weight, hidden.dtype, ("vocab", "outer_embed"))
    parts = mesh.size("vocab")
    starts = jnp.arange(parts, dtype=jnp.int32) * (weight.shape[1] // parts)
    options = Options(wanted, cap, implementations.interpreted(name))

    def local(hidden, targets, starts, weight, *bias):
        weight = collectives.gather(jnp.squeeze(weight, 0), (None, "outer_embed"))
        found = KERNELS[name].statistics(
            hidden.reshape(-1, hidden.shape[2]),
            weight,
            bias[0] if bias else None,
            targets.reshape(-1) - starts[0],
            options,
        )
        leaves = jnp.stack(jax.tree.leaves(found))
        return leaves.reshape(1, len(leaves), *targets.shape)

    biases = () if bias is None else (bias,)
    arrays = (hidden, targets, starts, weight, *biases)
    rows, head = ("tokens", None), (table, *[("vocab",) for _ in biases])
    axes = ((*rows, None), rows, ("vocab",), *head)
    out = ("vocab", None, *rows)
    run = gradients_together(on_parts(local, axes, out, check=not options.interpret))
    leaves = run(*arrays)
    return combine(wanted.statistics(jnp.moveaxis(leaves, 1, 0)))


def _on_device(*arrays: Any) -> Any:
    """Moves host arrays to the device, because NumPy's indexing takes no `out_sharding`."""
    return jax.tree.map(jnp.asarray, arrays)


def _check(name: str, hidden, weight, targets, bias, cap: float, implementation) -> None:
    implementations.check(name, implementation, get_args(Implementation))
    weight, _ = parted(weight)
    if hidden.ndim != 3 or weight.ndim != 2 or hidden.shape[2] != weight.shape[1]:
        raise ValueError(
            f"{name} needs hidden [B,S,D] and weight [V,D], not {hidden.shape} and {weight.shape}"
        )
    if targets.shape != hidden.shape[:2]:
        raise ValueError(f"{name}: targets {targets.shape} must have shape {hidden.shape[:2]}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{name}: bias {bias.shape} must have shape {weight.shape[:1]}")
    if cap < 0.0:
        raise ValueError(f"{name}: cap={cap} must be at least 0")
