"""Attention over sequences that are split over devices (ring attention, Liu et al. 2023).

Each device keeps its queries, while keys and values go around the ring of devices; a device
combines its results for all parts of the keys by their log-sum-exps. The backward pass sends keys
and values around again, together with their gradients. So no device holds more than two parts of
the keys and values.

With a causal mask, later parts of a sequence attend to more keys. To balance the work, sequences
are split into two parts per device: device i of C has the parts i and 2C - 1 - i, so that exactly
two pairs of parts attend for any two devices (as in Llama 3, Dubey et al. 2024, section 3.3.2).
`balance` puts a sequence into this order, and `restore` inverts it.
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
        query: index among the device's own parts.
        key: index among the visiting parts.
        query_number: index of the query part in the whole sequence.
        key_number: index of the key part in the whole sequence.
        same: whether the two indices in the sequence are equal.
    """

    query: Index
    key: Index
    query_number: Index
    key_number: Index
    same: bool


class Ring(NamedTuple):
    """Attention on every device of the ring, within `parts.on_parts`.

    Attributes:
        implementation: attention for one pair of parts.
        devices: C.
    """

    implementation: Implementation
    devices: int

    def forward(self, query, key, value, mask: Mask, draw: Draw, options: Options) -> Result:
        """See `attend.Implementation`; for a device's parts."""
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
        """See `attend.Implementation`; for a device's parts."""
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
    """The layout of sequences over the devices.

    Args:
        devices: C.
        length: length of a device's one or two parts together.
        whole: the mask of whole sequences, with the device's segments.
    """

    def __init__(self, devices: int, length: int, whole: Mask) -> None:
        self.devices, self.whole = devices, whole
        self.count = 2 if whole.causal else 1
        self.length = length // self.count
        self.here = jax.lax.axis_index(AXIS)

    def pairs(self, hop: Index) -> list[_Pair]:
        """The pairs of parts of this device and the device `hop` hops back."""
        there = (self.here - hop) % self.devices
        own, other = self._numbers(self.here), self._numbers(there)
        home = isinstance(hop, int) and hop == 0
        if self.count == 1:
            return [_Pair(0, 0, own[0], other[0], home)]
        later = _Pair(1, 0, own[1], other[0], False)
        if home:
            return [_Pair(part, part, own[part], own[part], True) for part in (0, 1)] + [later]
        # The first parts attend too if the other device is before this one, else the second parts.
        which = (there > self.here).astype(jnp.int32)
        own_number, number = (jnp.where(which, *pair[::-1]) for pair in (own, other))
        return [later, _Pair(which, which, own_number, number, False)]

    def _numbers(self, device: Index) -> tuple[Index, ...]:
        return (device, 2 * self.devices - 1 - device)[: self.count]

    def at(self, x: jax.Array, part: Index, axis: int = 2) -> jax.Array:
        """One of a device's parts of [B, H, S, ...]; `axis` is that of the sequence."""
        return jax.lax.dynamic_slice_in_dim(x, part * self.length, self.length, axis)

    def both(self, result: Result, part: Index) -> Result:
        """One part of a result."""
        out, log_sum = result
        return self.at(out, part), self.at(log_sum, part)

    def add(self, x: jax.Array, more: jax.Array, part: Index) -> jax.Array:
        """x with `more` added to one part."""
        return self.put(x, self.at(x, part) + more, part)

    def put(self, x: jax.Array, new: jax.Array, part: Index) -> jax.Array:
        """x with one part replaced."""
        return jax.lax.dynamic_update_slice_in_dim(x, new, part * self.length, 2)

    def mask(self, pair: _Pair, rows: int, visiting: jax.Array | None) -> Mask:
        """The mask of a pair in `rows` rows, with the segments that came with the keys."""
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
        """The `Draw` of a pair."""
        return draw.at(pair.query_number * self.length, pair.key_number * self.length)

    def hops(self) -> Sequence[int]:
        """The hops to all devices, or to those that a window reaches on either side."""
        devices = range(self.devices)
        if not self.whole.window:
            return devices
        reach = -(-(self.whole.window - 1) // self.length)
        return [hop for hop in devices if min(hop, self.devices - hop) <= reach]

    def visit(self, body: Callable, state: Any, given: Any, found: Any) -> tuple[Any, Any]:
        """Runs `body` on every device for every device's `given`.

        Args:
            body: (state, given, found, hop) to the next state and the updated `found`.
            state: stays on its device.
            given: goes around the ring.
            found: goes around with `given`, accumulates, and returns to its device.

        Returns:
            The last state, and `found` after all devices.
        """
        hops = self.hops()
        state, found = body(state, given, found, 0)
        if len(hops) == self.devices > 3:
            # The next `given` is in flight while the body runs.
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
        """Sends x to the device `hops` hops ahead."""
        if not hops:
            return x
        ring = [(device, (device + hops) % self.devices) for device in range(self.devices)]
        return jax.lax.ppermute(x, AXIS, ring)


def _join(old: Result, new: Result) -> Result:
    """Combines attention over two sets of keys."""
    (out, log_sum), (more, other) = old, new
    total = jnp.logaddexp(log_sum, other)
    # Both are -inf for queries that have seen no key yet.
    of_old, of_new = (
        jnp.where(total == -jnp.inf, 0.0, jnp.exp(x - total))[..., None] for x in (log_sum, other)
    )
    return out * of_old + more.astype(jnp.float32) * of_new, total


def balance(x: jax.Array, axes: mesh.Axes) -> jax.Array:
    """Reorders x [B, S, ...] so that devices have equal shares of causal attention."""
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
    """(source, target) of the parts 2i, and of the parts 2i + 1, of every device i, in `balance`.

    Every device receives one part of each list.
    """
    return tuple(
        [(part // 2, min(part, 2 * devices - 1 - part)) for part in range(odd, 2 * devices, 2)]
        for odd in (0, 1)
    )


def _spread(devices: int, x):
    even, odd = (
        jax.lax.ppermute(part, AXIS, route)
        for part, route in zip(jnp.split(x, 2, axis=1), _routes(devices), strict=True)
    )
    first = jax.lax.axis_index(AXIS) % 2 == 0  # whether the device's first part is an even one
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
