"""The MLP of a block."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from llmjax.models import layers, remat
from llmjax.models.config import ModelConfig
from llmjax.spec import Param
from llmjax.weights import einsum


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """x·Φ(x), where Φ is the standard normal CDF (Hendrycks & Gimpel 2016)."""
    return jax.nn.gelu(x, approximate=False)


@gelu.defjvp
def _gelu_slope(primals, tangents):
    """Φ(x) + x·φ(x), explicit because jax 0.12 cannot differentiate erf within a `shard_map`."""
    (x,), (tangent,) = primals, tangents
    below = 0.5 * jax.lax.erfc(-x * math.sqrt(0.5))
    density = jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return x * below, (below + x * density) * tangent


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}
INNER = ("batch", "sequence", "mlp")


def mlp_spec(config: ModelConfig) -> dict[str, Param]:
    """The MLP's parameters."""
    width, inner = config.embed_dim, config.hidden_dim
    normal = initializers.normal(config.init_std)
    into = Param((width, inner), ("embed", "mlp"), normal, inputs=1)
    back = Param((inner, width), ("mlp", "embed"), layers.residual_init(config), inputs=1)
    spec = {"up": into, "down": back} | ({"gate": into} if config.gated else {})
    if config.bias == "all":
        spec["up_bias"] = Param((inner,), ("mlp",), initializers.zeros)
        spec["down_bias"] = Param((width,), (None,), initializers.zeros)
    return spec


def mlp(
    params: dict[str, Any], norm: dict[str, Any] | None, x: jax.Array, config: ModelConfig
) -> jax.Array:
    """down(activation(up y)), or down(activation(gate y) · up y), with y = norm x [B, S, D]."""
    activation = ACTIVATIONS[config.activation]
    again = remat.at_level(config, "dots")

    def widen(x, params, norm):
        x = layers.from_stream(layers.norm(norm, x, config))
        up = einsum("bsd,df->bsf", x, params["up"], INNER)
        gate = einsum("bsd,df->bsf", x, params["gate"], INNER) if "gate" in params else None
        return up, gate

    def narrow(wide, params):
        up, gate = wide
        up = layers.add_bias(up, params, "up")
        inner = activation(up) if gate is None else activation(gate) * up
        out = einsum("bsf,fd->bsd", inner, params["down"], layers.HIDDEN)
        return layers.add_bias(layers.to_stream(out), params, "down")

    return again(narrow)(again(widen)(x, params, norm), params)
