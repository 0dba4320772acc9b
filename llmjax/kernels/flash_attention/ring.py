"""Attention over sequences that several devices share (ring attention, Liu et al. 2023).

Each device keeps its queries, and keys and values go around the ring of devices; what a device
finds with each part of the keys adds up by the log-sum-exps. The backward pass sends keys and
values around again, and their gradients with them. So no device holds more than two parts of them.

Of a causal mask the last parts of a sequence have most to do. Sequences are therefore cut into two
parts a device, and device i of C has the parts i and 2C - 1 - i, of which, with each other
device's, exactly two pairs attend (as in Llama 3, Dubey et al. 2024, section 3.3.2). `balance`
brings a sequence into this order, and `restore` back.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llmjax import mesh
from llmjax.kernels.dropout import Draw
from llmjax.kernels.flash_attention.attend import Implementation
from llmjax.kernels.flash_attention.mask import Mask
from llmjax.kernels.flash_attention.tiles import Gradients, Options, Result
from llmjax.parts import on_parts

(AXIS,) = mesh.RULES["sequence"]
Index = Any  # an int, or an int32 scalar


class _Pair(NamedTuple):
    """A part of the queries and a part of the keys that attend.

    Attributes:
        query: which of the device's own parts.
        key: which of the visiting ones.
        query_number: which part of the whole sequence that is.
        key_number: likewise.
        same: whether the numbers are equal.
    """

    query: Index
    key: Index
    query_number: Index
    key_number: Index
    same: bool


class Ring(NamedTuple):
    """Attention on every device of the ring, within `parts.on_parts`.

    Attributes:
        implementation: of a pair of parts.
        devices: C.
    """

    implementation: Implementation
    devices: int

    def forward(self, query, key, value, mask: Mask, draw: Draw, options: Options) -> Result:
        """As `attend.Implementation`, of a device's parts."""
        parts = _Parts(self.devices, query.shape[2], mask)
        out = jnp.zeros_like(query, dtype=jnp.float32)
        log_sum = jnp.full(query.shape[:3], -jnp.inf)

        def add(state, given, found, hop):
            key, value, segments = given
            for pair in parts.pairs(hop):
                new = self.implementation.forward(
                    parts.at(query, pair.query),
                    parts.at(key, pair.key),
                    parts.at(value, pair.key),
                    parts.mask(pair, len(query), segments),
                    parts.draw(draw, pair),
                    options,
                )
                joined = _join(parts.both(state, pair.query), new)
                out, log_sum = (
                    parts.put(x, y, pair.query) for x, y in zip(state, joined, strict=True)
                )
                state = out, log_sum
            return state, found

        given = (key, value, mask.segment_ids)
        (out, log_sum), _ = parts.visit(add, (out, log_sum), given, ())
        return out.astype(query.dtype), log_sum

    def backward(
        self, query, key, value, mask: Mask, draw: Draw, result: Result, grads: Result, options
    ) -> Gradients:
        """As `attend.Implementation`, of a device's parts."""
        parts = _Parts(self.devices, query.shape[2], mask)
        zeros = functools.partial(jnp.zeros_like, dtype=jnp.float32)

        def add(total, given, found, hop):
            key, value, segments = given
            for pair in parts.pairs(hop):
                by_query, *by_key = self.implementation.backward(
                    parts.at(query, pair.query),
                    parts.at(key, pair.key),
                    parts.at(value, pair.key),
                    parts.mask(pair, len(query), segments),
                    parts.draw(draw, pair),
                    parts.both(result, pair.query),
                    parts.both(grads, pair.query),
                    options,
                )
                total = parts.add(total, by_query, pair.query)
                found = tuple(
                    parts.add(x, new, pair.key) for x, new in zip(found, by_key, strict=True)
                )
            return total, found

        given = (key, value, mask.segment_ids)
        found = (zeros(key), zeros(value))
        total, (by_key, by_value) = parts.visit(add, zeros(query), given, found)
        return total.astype(query.dtype), by_key.astype(key.dtype), by_value.astype(value.dtype)


class _Parts:
    """How sequences lie on the devices.

    Args:
        devices: C.
        length: of a device's part, or two.
        whole: the mask of whole sequences, with the device's segments.
    """

    def __init__(self, devices: int, length: int, whole: Mask) -> None:
        self.devices, self.whole = devices, whole
        self.count = 2 if whole.causal else 1
        self.length = length // self.count
        self.here = jax.lax.axis_index(AXIS)

    def pairs(self, hop: Index) -> list[_Pair]:
        """Those of this device and the one so many hops back."""
        there = (self.here - hop) % self.devices
        own, other = self._numbers(self.here), self._numbers(there)
        home = isinstance(hop, int) and hop == 0
        if self.count == 1:
            return [_Pair(0, 0, own[0], other[0], home)]
        later = _Pair(1, 0, own[1], other[0], False)
        if home:
            return [_Pair(part, part, own[part], own[part], True) for part in (0, 1)] + [later]
        # With a device before it its first part attends too, with one behind it its second.
        which = (there > self.here).astype(jnp.int32)
        own_number, number = (jnp.where(which, *pair[::-1]) for pair in (own, other))
        return [later, _Pair(which, which, own_number, number, False)]

    def _numbers(self, device: Index) -> tuple[Index, ...]:
        return (device, 2 * self.devices - 1 - device)[: self.count]

    def at(self, x: jax.Array, part: Index, axis: int = 2) -> jax.Array:
        """One part of a device's, of [B, H, S, ...] or, along another axis, of others."""
        return jax.lax.dynamic_slice_in_dim(x, part * self.length, self.length, axis)

    def both(self, result: Result, part: Index) -> Result:
        """One part of a result."""
        out, log_sum = result
        return self.at(out, part), self.at(log_sum, part)

    def add(self, x: jax.Array, more: jax.Array, part: Index) -> jax.Array:
        """x with something added to one part."""
        return self.put(x, self.at(x, part) + more, part)

    def put(self, x: jax.Array, new: jax.Array, part: Index) -> jax.Array:
        """x with one part replaced."""
        return jax.lax.dynamic_update_slice_in_dim(x, new, part * self.length, 2)

    def mask(self, pair: _Pair, rows: int, visiting: jax.Array | None) -> Mask:
        """Of a pair in so many rows, with segments that came with the keys."""
        whole, own, other = self.whole, self.whole.segment_ids, visiting
        if own is not None and other is not None:
            own, other = self.at(own, pair.query, 1), self.at(other, pair.key, 1)
        make = functools.partial(Mask, own, key_segment_ids=other)
        if pair.same:
            return make(causal=whole.causal, window=whole.window)
        if not whole.window:
            return make(causal=False)
        ahead = (pair.query_number - pair.key_number) * self.length
        offset = jnp.full(rows, ahead, jnp.int32)
        return make(offset, causal=whole.causal, window=whole.window)

    def draw(self, draw: Draw, pair: _Pair) -> Draw:
        """Of a pair."""
        return draw.at(pair.query_number * self.length, pair.key_number * self.length)

    def hops(self) -> Sequence[int]:
        """To all devices, or those that a window reaches from here, on both sides."""
        devices = range(self.devices)
        if not self.whole.window:
            return devices
        reach = -(-(self.whole.window - 1) // self.length)
        return [hop for hop in devices if min(hop, self.devices - hop) <= reach]

    def visit(self, body: Callable, state: Any, given: Any, found: Any) -> tuple[Any, Any]:
        """Lets every device work on what each device has been given.

        Args:
            body: (state, given, found, hop) to the next state, and what was found, with that added
                which belongs to what was given.
            state: what stays.
            given: what goes around.
            found: what goes around, is added to, and comes home.

        Returns:
            The last state, and what all devices found.
        """
        hops = self.hops()
        state, found = body(state, given, found, 0)
        if len(hops) == self.devices > 3:
            # What is needed next is on its way while the body works.
            def step(carry, hop):
                state, given, found = carry
                following = self._move(given, 1)
                state, found = body(state, given, self._move(found, 1), hop)
                return (state, following, found), None

            carry = (state, self._move(given, 1), found)
            (state, given, found), _ = jax.lax.scan(step, carry, jnp.arange(1, self.devices - 1))
            state, found = body(state, given, self._move(found, 1), self.devices - 1)
        else:
            for before, hop in itertools.pairwise(hops):
                given, found = self._move(given, hop - before), self._move(found, hop - before)
                state, found = body(state, given, found, hop)
        return state, self._move(found, -hops[-1])

    def _move(self, x: Any, hops: int) -> Any:
        """To the device so many hops on."""
        if not hops:
            return x
        ring = [(device, (device + hops) % self.devices) for device in range(self.devices)]
        return jax.lax.ppermute(x, AXIS, ring)


def _join(old: Result, new: Result) -> Result:
    """Attention over two sets of keys together."""
    (out, log_sum), (more, other) = old, new
    total = jnp.logaddexp(log_sum, other)
    # Of what sees nothing yet, both are -inf.
    of_old, of_new = (
        jnp.where(total == -jnp.inf, 0.0, jnp.exp(x - total))[..., None] for x in (log_sum, other)
    )
    return out * of_old + more.astype(jnp.float32) * of_new, total


def balance(x: jax.Array, axes: mesh.Axes) -> jax.Array:
    """x [B, S, ...] in the order in which devices have equal shares of causal attention."""
    return _reorder(x, axes, _spread)


def restore(x: jax.Array, axes: mesh.Axes) -> jax.Array:
    """Inverts `balance`."""
    return _reorder(x, axes, _collect)


def _reorder(x, axes, how):
    devices = mesh.size("sequence")
    if devices == 1:
        return x
    return on_parts(functools.partial(how, devices), (axes,), axes)(x)


def _routes(devices: int) -> tuple[list[tuple[int, int]], ...]:
    """Who has the parts 2i, and 2i + 1, of device i then: each other device's one of both."""
    return tuple(
        [(part // 2, min(part, 2 * devices - 1 - part)) for part in range(odd, 2 * devices, 2)]
        for odd in (0, 1)
    )


def _spread(devices: int, x):
    even, odd = (
        jax.lax.ppermute(part, AXIS, route)
        for part, route in zip(jnp.split(x, 2, axis=1), _routes(devices), strict=True)
    )
    first = jax.lax.axis_index(AXIS) % 2 == 0  # whether the first of both numbers is even
    parts = [jnp.where(first, even, odd), jnp.where(first, odd, even)]
    return jnp.concatenate(parts, axis=1)


def _collect(devices: int, x):
    one, other = jnp.split(x, 2, axis=1)
    first = jax.lax.axis_index(AXIS) % 2 == 0
    parts = [
        jax.lax.ppermute(part, AXIS, [(to, origin) for origin, to in route])
        for part, route in zip(
            (jnp.where(first, one, other), jnp.where(first, other, one)),
            _routes(devices),
            strict=True,
        )
    ]
    return jnp.concatenate(parts, axis=1)
