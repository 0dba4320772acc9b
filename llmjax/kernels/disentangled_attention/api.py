"""The public operation of disentangled attention."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from llmjax import mesh
from llmjax.kernels import dropout, implementations
from llmjax.kernels.disentangled_attention import pallas_gpu, pallas_tpu, reference, xla
from llmjax.kernels.disentangled_attention.tables import by_distance
from llmjax.kernels.flash_attention import Mask
from llmjax.kernels.flash_attention.tiles import Options
from llmjax.parts import on_parts

Implementation = Literal["xla", "pallas_tpu", "pallas_gpu", "reference"]
KERNELS = {"pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu}


def disentangled_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    rows: np.ndarray,
    mask: Mask,
    *,
    c2p: jax.Array | None = None,
    p2c: jax.Array | None = None,
    scale: float,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    dropout_rows: jax.Array | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Attention by content and relative position (He et al. 2021, equation 4).

    The score of query i and key j is, scaled, Q_i · K_j + Q_i · c2p_δ(i-j) + K_j · p2c_δ(i-j).

    Args:
        query: [B, H, S, C].
        key: [B, H, S, C].
        value: [B, H, S, C].
        rows: int [2·S - 1], δ: the row of c2p and p2c for each distance from S - 1 down to 1 - S.
        mask: which pairs attend, without offset and key_segment_ids. Queries without keys give 0.
        c2p: keys of relative positions, [H, R, C]; None leaves the term out.
        p2c: queries of relative positions, [H, R, C]; None leaves the term out.
        scale: factor on the sum.
        dropout_rate: dropout rate of the attention weights.
        dropout_key: dropout key; None disables dropout.
        dropout_rows: int32 [B], the number of each row in the whole batch; by default 0, 1, …
        implementation: "xla" (the weights of all pairs in memory), "pallas_tpu" (TPUs),
            "pallas_gpu" (NVIDIA GPUs), or "reference", which gathers a position for every pair.
            Pallas kernels are interpreted, slowly, on other devices. The default is "pallas_tpu" on
            TPUs and "xla" elsewhere: "pallas_gpu" compiles for GPUs and saves more memory for
            longer rows, but has not been timed.

    Returns:
        [B, H, S, C].

    Raises:
        ValueError: shapes do not match, or the mask has an offset or key_segment_ids.
    """
    implementations.check("disentangled_attention", implementation, get_args(Implementation))
    _check(query, key, value, rows, mask, c2p, p2c)
    rate = 0.0 if dropout_key is None else dropout_rate
    if implementation == "reference":
        if rate:
            raise ValueError("disentangled_attention: 'reference' takes no dropout key")
        return reference.attention(query, key, value, rows, mask, c2p, p2c, scale)
    batch, heads = query.shape[:2]
    draw = dropout.draw(dropout_key if rate else None, dropout_rows, batch, heads, 1)
    arrays, rows = (query, key, value), np.asarray(rows)
    implementation = implementation or ("pallas_tpu" if mesh.platform() == "tpu" else "xla")
    if implementation == "xla":
        return xla.attention(*arrays, mask, draw, by_distance(c2p, p2c, rows), scale, rate)
    kernel = KERNELS[implementation]
    tables = by_distance(c2p, p2c, rows, kernel.padding(query))
    options = Options(scale, 0.0, rate, implementations.interpreted(implementation))
    return _on_parts(kernel, *arrays, mask, draw, tables, options)


def _on_parts(kernel, query, key, value, mask, draw, tables, options) -> jax.Array:
    """Runs a Pallas kernel on every device's rows and heads."""
    rest, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, (mask, tables)))

    def attend(query, key, value, seeds, heads, *rest):
        mask, tables = jax.tree.unflatten(structure, rest)
        draw = dropout.Draw(seeds, heads)
        return kernel.attention(query, key, value, mask, draw, tables, options)

    states = ("batch", "heads", None, None)
    by_rank = {2: ("batch", None), 3: ("heads", None, None)}  # segments, and tables
    axes = (states, states, states, (None,), ("batch", "heads"), *(by_rank[x.ndim] for x in rest))
    attend = on_parts(attend, axes, states, check=not options.interpret)
    return attend(query, key, value, *draw, *rest)


def _check(query, key, value, rows, mask, c2p, p2c) -> None:
    if query.ndim != 4 or not query.shape == key.shape == value.shape:
        raise ValueError(
            "disentangled_attention needs query, key and value [B,H,S,C], not "
            f"{query.shape}, {key.shape} and {value.shape}"
        )
    batch, heads, length, channels = query.shape
    if rows.shape != (2 * length - 1,):
        raise ValueError(
            f"disentangled_attention: rows {rows.shape} must have shape {(2 * length - 1,)}"
        )
    for name, table in (("c2p", c2p), ("p2c", p2c)):
        if table is not None and (table.ndim, *table.shape[::2]) != (3, heads, channels):
            raise ValueError(
                f"disentangled_attention: {name} {table.shape} must have shape "
                f"({heads}, R, {channels})"
            )
    if mask.offset is not None or mask.key_segment_ids is not None:
        raise ValueError(
            "disentangled_attention does not support a cache: leave the mask's offset and "
            "key_segment_ids out"
        )
    if mask.segment_ids is not None and mask.segment_ids.shape != (batch, length):
        raise ValueError(
            f"disentangled_attention: segment_ids {mask.segment_ids.shape} must have shape "
            f"{(batch, length)}"
        )
