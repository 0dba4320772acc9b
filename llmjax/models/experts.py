"""The mixture of experts that replaces a block's MLP."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.nn import initializers

from llmjax import collectives, mesh
from llmjax.models import dispatch, grouped, layers, remat
from llmjax.models.config import ModelConfig
from llmjax.models.grouped import Implementation, joined
from llmjax.models.mlp import ACTIVATIONS
from llmjax.parts import on_parts
from llmjax.spec import Param
from llmjax.weights import Lora, Weight, einsum, of_replicas

INTO = ("experts", "expert_embed", "mlp")
BACK = ("experts", "mlp", "expert_embed")


@struct.dataclass
class Routing:
    """Routing statistics, as sums that add up over layers and parts of a batch.

    Attributes:
        copies: float32 [E], tokens routed to each expert.
        probabilities: float32 [E], router probabilities summed over tokens.
        tokens: float32, the number of tokens without padding.
        dropped: float32, copies dropped because their expert was full.
    """

    copies: jax.Array
    probabilities: jax.Array
    tokens: jax.Array
    dropped: jax.Array


def experts_spec(config: ModelConfig) -> dict[str, Param]:
    """The parameters of the router and of E gated MLPs."""
    count, width, inner = config.experts.count, config.embed_dim, config.expert_dim
    normal = initializers.normal(config.init_std)
    into = Param((count, width, inner), INTO, normal, inputs=1)
    return {
        # Every device chooses among all experts.
        "router": Param((width, count), ("embed", None), normal, inputs=1),
        "gate": into,
        "up": into,
        "down": Param((count, inner, width), BACK, layers.residual_init(config), inputs=1),
    }


def experts(
    params: dict[str, Any],
    norm: dict[str, Any] | None,
    x: jax.Array,
    config: ModelConfig,
    *,
    segment_ids: jax.Array | None = None,
    positions: jax.Array | None = None,
    limited: bool = True,
    implementation: Implementation | None = None,
) -> tuple[jax.Array, Routing]:
    """Σ p_e · down_e(activation(gate_e y) · up_e y) over the experts e chosen for y = norm x.

    Each token chooses the k experts with the largest probabilities p, a softmax of the router's
    logits (Shazeer et al. 2017, equation 2, without noise). With a capacity, an expert takes at
    most ⌈capacity · S · k / E⌉ tokens of a row: first choices before second ones, then earlier
    tokens before later ones (Lepikhin et al. 2020, algorithm 1). Otherwise no token is dropped.

    Args:
        params: as declared by `experts_spec`; weights are materialized, except `Lora`.
        norm: parameters of the norm before the experts; None for no norm.
        x: [B, S, D].
        config: model configuration.
        segment_ids: int32 [B, S]; 0 is padding, which is not counted in `Routing` and uses no
            capacity.
        positions: int32 [S], the number of each position in its row; None means 0, 1, …
        limited: whether to apply the model's capacity; decoding does not.
        implementation: of the products without a capacity, see `grouped.fastest`.

    Returns:
        The sum [B, S, D], and the routing.
    """
    stream = layers.stream_axes(x.shape[1])
    y = layers.to_stream(layers.norm(norm, jnp.asarray(x), config))
    probabilities, weights, chosen = _route(params["router"], y, config)
    there = jnp.ones(chosen.shape[:2], bool) if segment_ids is None else segment_ids != 0
    there = mesh.place(there, stream[:2])
    sent, compute = chosen, functools.partial(_dropless, implementation=implementation)
    if limited and config.experts.capacity:
        capacity = _capacity(x.shape[1], config)
        sent = _first_come(chosen, there, positions, capacity, config.experts.count)
        compute = functools.partial(_limited, capacity=capacity)
    routing = _count(probabilities, chosen, sent, there)
    # Weights are cast before the gather, which halves its traffic.
    named = {"gate": INTO, "up": INTO, "down": BACK}
    split: list[mesh.Axes] = []
    ready = [_ready(params[name], y.dtype, axes, split) for name, axes in named.items()]
    arrays, structure = jax.tree.flatten(ready)

    def on_device(y, weights, sent, *parts):
        own = jax.tree.unflatten(structure, [jnp.squeeze(part, 0) for part in parts])
        if stream == layers.HIDDEN:
            return compute(y, weights, sent, own, config=config)
        # Devices split the experts' inner width: all see the same tokens, and have terms of a sum.
        y, weights, sent = (collectives.gather(x, (None, "mlp", None)) for x in (y, weights, sent))
        return collectives.scatter(compute(y, weights, sent, own, config=config), "mlp", 1)

    return on_parts(on_device, (*(stream,) * 3, *split), stream)(y, weights, sent, *arrays), routing


def balance_loss(routing: Routing, config: ModelConfig) -> jax.Array:
    """E · Σ_e f_e P_e, which is k for evenly spread tokens.

    f_e is the share of tokens that go to an expert and P_e its mean probability, over all tokens
    and layers (Fedus et al. 2022, equations 4 to 6, where k is 1). Only P has a gradient.

    Args:
        routing: the sum over layers.
        config: model configuration.

    Returns:
        A float32 scalar; 0 without tokens.
    """
    tokens = jnp.maximum(routing.tokens, 1.0)
    shares = jax.lax.stop_gradient(routing.copies) / tokens
    return config.experts.count * jnp.sum(shares * (routing.probabilities / tokens))


def _ready(
    weight: Weight, dtype: jnp.dtype, axes: mesh.Axes, split: list[mesh.Axes]
) -> jax.Array | Lora:
    """A weight [E, inputs, outputs] for `on_parts`; appends the axes of each array to `split`.

    `Lora` stays factored, so that its base has no gradient.
    """
    if isinstance(weight, Lora):
        experts, inputs, outputs = axes
        parts = {
            "base": (weight.base, axes),
            "a": (weight.a, (experts, inputs, None)),
            "b": (weight.b, (experts, None, outputs)),
        }
        found = {name: _ready(part, dtype, of, split) for name, (part, of) in parts.items()}
        return Lora(**found, scale=weight.scale)
    array, found_axes = of_replicas(weight, dtype, axes)
    split.append(found_axes)
    return array


def _times(product: Callable, rows, weight, plan, axes: mesh.Axes) -> jax.Array:
    """`product` of rows with a weight from `_ready`."""
    if not isinstance(weight, Lora):
        return product(rows, weight, plan, axes=axes)
    experts, inputs, outputs = axes
    low = product(rows, weight.a, plan, axes=(experts, inputs, None))
    corrected = product(weight.scale * low, weight.b, plan, axes=(experts, None, outputs))
    return _times(product, rows, weight.base, plan, axes) + corrected


def _route(router, y, config):
    """Probabilities [B, S, E]; weights and indices of the chosen experts [B, S, k]."""
    wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
    stream = layers.stream_axes(y.shape[1])
    probabilities = jax.nn.softmax(einsum("bsd,de->bse", wide, router, stream))
    weights, chosen = jax.lax.top_k(probabilities, config.experts.per_token)
    if config.experts.normalized:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    return probabilities, weights.astype(y.dtype), chosen


def _capacity(length: int, config: ModelConfig) -> int:
    """The maximum number of tokens that an expert takes from a row of this length."""
    mean = length * config.experts.per_token / config.experts.count
    return min(math.ceil(config.experts.capacity * mean), length)


def _first_come(chosen, there, positions, capacity: int, count: int) -> jax.Array:
    """The experts [B, S, k], or E for copies beyond the capacity of their row and expert."""
    _, length, k = chosen.shape
    if positions is None:
        positions = jnp.arange(length, dtype=jnp.int32)

    def choose(chosen, there, positions):
        order = jnp.argsort(positions)
        ordered = jnp.where(there[..., None], chosen, count)[:, order]
        queue = jnp.swapaxes(ordered, 1, 2).reshape(len(chosen), -1)
        ranks = jax.vmap(functools.partial(_ranks, count=count))(queue)
        kept = (ranks < capacity) & (queue < count)
        kept = jnp.swapaxes(kept.reshape(-1, k, length), 1, 2)
        return kept[:, jnp.argsort(order)]

    whole = ("batch", None, None)
    kept = on_parts(choose, (whole, whole[:2], (None,)), whole)(chosen, there, positions)
    return jnp.where(layers.to_stream(kept), chosen, count)


def _ranks(experts: jax.Array, count: int) -> jax.Array:
    """For each entry of experts [N], the number of earlier entries with the same expert."""
    order = jnp.argsort(experts)
    ordered = experts[order]
    starts = jnp.searchsorted(ordered, jnp.arange(count + 1, dtype=experts.dtype))
    numbers = jnp.arange(experts.size, dtype=experts.dtype)
    ranks = numbers - starts.astype(experts.dtype)[ordered]
    return jnp.zeros_like(experts).at[order].set(ranks)


def _count(probabilities, chosen, sent, there) -> Routing:
    counted = there.astype(jnp.float32)[..., None]
    chosen_by = jnp.sum(jax.nn.one_hot(chosen, probabilities.shape[-1]), axis=2)
    return Routing(
        jnp.sum(chosen_by * counted, axis=(0, 1)),
        jnp.sum(probabilities * counted, axis=(0, 1), dtype=jnp.float32),
        jnp.sum(counted),
        jnp.sum((sent != chosen) * counted),
    )


def _dropless(y, weights, chosen, parts, *, config, implementation):
    """The experts' outputs for a device's tokens, without a capacity."""
    tokens, chosen = y.reshape(-1, y.shape[-1]), chosen.reshape(-1, chosen.shape[-1])
    count, copies = len(jax.tree.leaves(parts)[0]), chosen.size

    def compute(rows, chosen):
        way = implementation or grouped.fastest(chosen.size, count)
        plan = grouped.plan(chosen, count, grouped.block_size(copies, count, way))

        def arrange(rows, plan):
            return rows.at[plan.tokens].get(mode="fill", fill_value=0)

        product = functools.partial(grouped.product, implementation=way)
        out = _mlps(rows, parts, plan, config, arrange, product)
        return out.at[plan.rows].get(mode="fill", fill_value=0)

    alone = dispatch.devices() == 1
    found = (compute if alone else dispatch.elsewhere(compute, count))(tokens, chosen)
    return _weighted(found, weights)


def _limited(y, weights, chosen, parts, *, config, capacity):
    """The experts' outputs for a device's tokens, with at most `capacity` per row and expert."""
    count, room = config.experts.count, min(capacity, y.shape[1])
    tokens = y.reshape(-1, y.shape[-1])
    ranks = jax.vmap(functools.partial(_ranks, count=count))(chosen.reshape(len(chosen), -1))
    row = jnp.arange(len(chosen), dtype=chosen.dtype)[:, None, None]
    slots = count * len(chosen) * room
    slot = (chosen * len(chosen) + row) * room + ranks.reshape(chosen.shape)
    slot = jnp.where(chosen < count, slot, slots).reshape(-1, chosen.shape[-1])
    numbers = jnp.broadcast_to(jnp.arange(len(tokens), dtype=slot.dtype)[:, None], slot.shape)
    token = jnp.full_like(slot, len(tokens), shape=slots).at[slot].set(numbers, mode="drop")
    rows = tokens.at[token].get(mode="fill", fill_value=0)
    rows = dispatch.to_experts(rows.reshape(count, -1, tokens.shape[-1]))

    def product(rows, part, plan, axes):
        return joined(_by_expert, rows, part, plan, axes)

    out = _mlps(rows, parts, None, config, lambda rows, plan: rows, product)
    out = dispatch.from_experts(out).reshape(slots, -1)
    return _weighted(out.at[slot].get(mode="fill", fill_value=0), weights)


def _by_expert(rows, weight, plan):
    del plan
    return jnp.einsum("ecd,edf->ecf", rows, weight)


def _mlps(rows, parts, plan, config, arrange, product):
    """down(activation(gate x) · up x) for rows x, each with its own expert's weights."""
    activation, again = ACTIVATIONS[config.activation], remat.at_level(config, "dots")
    # A device gathers the full outer width of its experts.
    into, back = (tuple(a if a == "expert_embed" else None for a in axes) for axes in (INTO, BACK))
    gate, up, down = parts

    def widen(rows, gate, up, plan):
        rows = arrange(rows, plan)
        return tuple(_times(product, rows, weight, plan, into) for weight in (gate, up))

    def narrow(wide, down, plan):
        gate, up = wide
        return _times(product, activation(gate) * up, down, plan, back)

    return again(narrow)(again(widen)(rows, gate, up, plan), down, plan)


def _weighted(copies, weights):
    """Σ weight · copy over the k copies [T, k, D] of each token, [B, S, D]."""
    out = jnp.einsum("tkd,tk->td", copies, weights.reshape(-1, weights.shape[-1]))
    return out.reshape(*weights.shape[:2], -1)
