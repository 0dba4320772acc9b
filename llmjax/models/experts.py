"""The mixture of experts of a block, in place of its MLP."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax.nn import initializers

from llmjax import mesh
from llmjax.models import layers, remat
from llmjax.models.config import ModelConfig
from llmjax.models.mlp import ACTIVATIONS
from llmjax.parts import on_parts
from llmjax.spec import Param
from llmjax.weights import einsum, materialize

MAX_BLOCK = 128  # rows of a block on CPUs; longer ones pad more and multiply no faster

INTO = ("experts", "embed", "mlp")
BACK = ("experts", "mlp", "embed")

Implementation = Literal["blocks", "ragged", "gathered"]


@struct.dataclass
class Routing:
    """Where tokens went, as sums: those of layers and of parts of a batch add up.

    Attributes:
        copies: float32 [E], tokens that each expert was chosen for.
        probabilities: float32 [E], the router's probabilities, summed over tokens.
        tokens: float32, their number; padding is not counted.
    """

    copies: jax.Array
    probabilities: jax.Array
    tokens: jax.Array


def experts_spec(config: ModelConfig) -> dict[str, Param]:
    """The parameters of the router and of E gated MLPs."""
    count, width, inner = config.experts.count, config.embed_dim, config.expert_dim
    normal = initializers.normal(config.init_std)
    into = Param((count, width, inner), INTO, normal)
    return {
        # Every device chooses among all experts.
        "router": Param((width, count), ("embed", None), normal),
        "gate": into,
        "up": into,
        "down": Param((count, inner, width), BACK, layers.residual_init(config)),
    }


def experts(
    params: dict[str, Any],
    norm: dict[str, Any] | None,
    x: jax.Array,
    config: ModelConfig,
    *,
    segment_ids: jax.Array | None = None,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, Routing]:
    """Σ p_e · down_e(activation(gate_e y) · up_e y) over the experts e chosen for y = norm x.

    The k experts with the largest probabilities p, a softmax of the router's logits, are chosen
    (Shazeer et al. 2017, equation 2, without noise). No expert is ever full: no token is dropped.

    Args:
        params: as `experts_spec` declares; weights that are not arrays are made into arrays.
        norm: of the norm before; None has none.
        x: [B, S, D].
        config: the model's.
        segment_ids: int32 [B, S]; 0 is padding, which `Routing` does not count.
        implementation: of the products: "blocks" (a loop over blocks of rows with one expert),
            the default on CPUs; elsewhere "ragged" (`jax.lax.ragged_dot`), or, where tokens are
            so few that most experts' weights are not needed, "gathered".

    Returns:
        The sum [B, S, D], and where the tokens went.
    """
    y = layers.norm(norm, jnp.asarray(x), config)
    probabilities, weights, chosen = _route(params["router"], y, config)
    routing = _count(probabilities, chosen, segment_ids)
    copies = chosen.size // mesh.size("batch")
    implementation = implementation or _implementation(copies, config.experts.count)
    compute = on_parts(
        functools.partial(_compute, config=config, implementation=implementation),
        (
            *(layers.HIDDEN,) * 3,
            ("experts",),
            # A device needs all of its experts' width.
            ("experts", None, "mlp"),
            ("experts", None, "mlp"),
            ("experts", "mlp", None),
        ),
        layers.HIDDEN,
    )
    numbers = jnp.arange(config.experts.count, dtype=jnp.int32)
    # Converted before they are gathered, which halves what travels.
    arrays = [jnp.asarray(materialize(params[name]), y.dtype) for name in ("gate", "up", "down")]
    return compute(y, weights, chosen, numbers, *arrays), routing


def balance_loss(routing: Routing, config: ModelConfig) -> jax.Array:
    """E · Σ_e f_e P_e, as small as k where tokens are spread evenly.

    f_e is the share of tokens that go to an expert and P_e its mean probability, over all tokens
    and layers (Fedus et al. 2022, equations 4 to 6, where k is 1). Only P has a gradient.

    Args:
        routing: the sum over layers.
        config: the model's.

    Returns:
        A float32 number; 0 without any token.
    """
    tokens = jnp.maximum(routing.tokens, 1.0)
    shares = jax.lax.stop_gradient(routing.copies) / tokens
    return config.experts.count * jnp.sum(shares * (routing.probabilities / tokens))


def _route(router, y, config):
    """Probabilities [B, S, E]; weights and numbers of the chosen experts [B, S, k]."""
    wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
    probabilities = jax.nn.softmax(einsum("bsd,de->bse", wide, router, layers.HIDDEN))
    weights, chosen = jax.lax.top_k(probabilities, config.experts.per_token)
    if config.experts.normalized:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return probabilities, weights.astype(y.dtype), chosen


def _count(probabilities, chosen, segment_ids) -> Routing:
    counted = jnp.ones(chosen.shape[:2]) if segment_ids is None else segment_ids != 0
    there = mesh.place(counted.astype(jnp.float32), layers.HIDDEN[:2])[..., None]
    chosen_by = jnp.sum(jax.nn.one_hot(chosen, probabilities.shape[-1]), axis=2)
    return Routing(
        jnp.sum(chosen_by * there, axis=(0, 1)),
        jnp.sum(probabilities * there, axis=(0, 1), dtype=jnp.float32),
        jnp.sum(there),
    )


def _implementation(copies: int, count: int) -> Implementation:
    if mesh.platform() == "cpu":
        return "blocks"
    return "gathered" if copies < count else "ragged"


def _compute(y, weights, chosen, numbers, gate, up, down, *, config, implementation):
    """What the experts `numbers`, which a device has, add to its tokens."""
    count, k = len(numbers), chosen.shape[-1]
    tokens, chosen = y.reshape(-1, y.shape[-1]), chosen.reshape(-1, k)
    size = _block_size(chosen.size, count) if implementation == "blocks" else 1
    plan = _plan(chosen - numbers[0], count, size)
    product = {"blocks": _in_blocks, "ragged": _ragged, "gathered": _gathered}[implementation]
    activation = ACTIVATIONS[config.activation]
    again = remat.at_level(config, "dots")

    def widen(tokens, gate, up, plan):
        rows = tokens.at[plan.tokens].get(mode="fill", fill_value=0)
        return product(rows, gate, plan), product(rows, up, plan)

    def narrow(wide, down, plan):
        gate, up = wide
        return product(activation(gate) * up, down, plan)

    rows = again(narrow)(again(widen)(tokens, gate, up, plan), down, plan)
    copies = rows.at[plan.rows].get(mode="fill", fill_value=0)
    return jnp.einsum("tkd,tk->td", copies, weights.reshape(-1, k)).reshape(y.shape)


@struct.dataclass
class _Plan:
    """Rows in order of their experts, of whom each begins a block of rows.

    Attributes:
        tokens: int32 [N], the token of each row; beyond the last token where a row has none.
        rows: int32 [T, k], the row of each copy; beyond the last row where others have the expert.
        owners: int32 [blocks], the expert of each block.
        sizes: int32 [E], rows of each expert, those that fill its last block too.
    """

    tokens: jax.Array
    rows: jax.Array
    owners: jax.Array
    sizes: jax.Array


def _block_size(copies: int, count: int) -> int:
    """A power of two, up to an expert's mean number of rows."""
    return min(MAX_BLOCK, 1 << max(copies // count, 1).bit_length() - 1)


def _plan(chosen: jax.Array, count: int, size: int) -> _Plan:
    """For experts [T, k], of which those in [0, count) are here, and blocks of `size` rows."""
    flat = chosen.reshape(-1)
    flat = jnp.where((flat >= 0) & (flat < count), flat, count)
    order = jnp.argsort(flat)
    ordered = flat[order]
    ends = jnp.searchsorted(ordered, jnp.arange(1, count + 1, dtype=flat.dtype))
    copies = jnp.diff(ends, prepend=0)
    sizes = -(-copies // size) * size
    last = jnp.cumsum(sizes)
    blocks = (flat.size + min(count, flat.size) * (size - 1)) // size
    # A copy's row: where its expert's rows begin, and its rank among them.
    shift = jnp.append(last - sizes - (ends - copies), blocks * size)
    row = jnp.minimum(jnp.arange(flat.size) + shift[ordered], blocks * size)
    rows = jnp.zeros_like(flat).at[order].set(row.astype(flat.dtype))
    token = (order // chosen.shape[1]).astype(flat.dtype)
    tokens = jnp.full_like(flat, len(chosen), shape=blocks * size).at[row].set(token, mode="drop")
    owners = jnp.searchsorted(last, size * jnp.arange(blocks), side="right")
    return _Plan(tokens, rows.reshape(chosen.shape), owners, sizes)


def _ragged(rows: jax.Array, weight: jax.Array, plan: _Plan) -> jax.Array:
    product = jax.lax.ragged_dot(rows, weight, plan.sizes)
    # What lies behind the last expert's rows is not defined.
    return jnp.where(jnp.arange(len(rows))[:, None] < jnp.sum(plan.sizes), product, 0)


def _gathered(rows: jax.Array, weight: jax.Array, plan: _Plan) -> jax.Array:
    return jnp.einsum("nd,ndf->nf", rows, weight.at[plan.owners].get(mode="clip"))


def _in_blocks(rows: jax.Array, weight: jax.Array, plan: _Plan) -> jax.Array:
    used = jnp.sum(plan.sizes) // (len(rows) // len(plan.owners))
    return _loop(rows, weight, plan.owners, used)


@jax.custom_vjp
def _loop(rows: jax.Array, weight: jax.Array, owners: jax.Array, used: jax.Array) -> jax.Array:
    """Each block of rows [N, D] times its owner's weight of [E, D, F], for the first `used` blocks.

    XLA:CPU makes of `ragged_dot` one product of all rows with every expert, and of a gather of
    weights a slow copy; here it slices. The loop ends with the last block that holds rows, so a
    device with few of the experts does only its share of the work.
    """
    size = len(rows) // len(owners)

    def one(block, out):
        part = _block(rows, block, size) @ _expert(weight, owners, block)
        return jax.lax.dynamic_update_slice_in_dim(out, part, block * size, axis=0)

    out = jax.lax.full_like(rows, 0, shape=(len(rows), weight.shape[2]))
    return jax.lax.fori_loop(0, used, one, out)


def _forward(rows, weight, owners, used):
    return _loop(rows, weight, owners, used), (rows, weight, owners, used)


def _backward(kept, cotangent):
    """In place: the transpose of a slice within a loop would add all weights' zeros each time."""
    rows, weight, owners, used = kept
    size = len(rows) // len(owners)

    def one(block, gradients):
        of_rows, of_weight = gradients
        given = _block(cotangent, block, size)
        part = given @ _expert(weight, owners, block).T
        added = jnp.matmul(_block(rows, block, size).T, given, preferred_element_type=wide)
        return (
            jax.lax.dynamic_update_slice_in_dim(of_rows, part, block * size, axis=0),
            of_weight.at[owners[block]].add(added),
        )

    wide = jnp.promote_types(weight.dtype, jnp.float32)
    zeros = jnp.zeros_like(rows), jnp.zeros_like(weight, dtype=wide)
    of_rows, of_weight = jax.lax.fori_loop(0, used, one, zeros)
    return of_rows, of_weight.astype(weight.dtype), None, None


def _block(rows, block, size):
    return jax.lax.dynamic_slice_in_dim(rows, block * size, size, axis=0)


def _expert(weight, owners, block):
    return jax.lax.dynamic_index_in_dim(weight, owners[block], keepdims=False)


_loop.defvjp(_forward, _backward)
