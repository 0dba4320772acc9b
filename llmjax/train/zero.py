"""What devices that share a batch split of a model for it: ZeRO's stages (Rajbhandari et al. 2020).

Parameters, moments and gradients lie split over the mesh axes fsdp and expert between steps. At
stage 3 the weights are gathered for each product and their gradients scattered behind it. At stage
2 the weights of layers are gathered once a step, and held whole in compute precision. At stage 1
their gradients are held whole too, in float32, and summed once a step: the least to send where a
batch is cut into many parts, and the most to hold. What lies outside of the layers, and experts,
are used once or are too large, and gathered where they are used at every stage.

Replicas, which split nothing, need the sum of their gradients once a step only. Where a batch is
cut into parts, or into micro-batches of a pipeline, that sum waits for the last at every stage.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from llmjax import collectives, mesh
from llmjax.checks import require_choices
from llmjax.spec import Param, is_param
from llmjax.weights import Held


@dataclasses.dataclass(frozen=True)
class Sharding:
    """What is split in a step, on the mesh that is set when it is compiled.

    Attributes:
        spec: of the parameters.
        dtype: in which weights are held: that of the model's products.
        stage: of ZeRO.
        cut: whether a batch is cut into parts.
    """

    spec: Any
    dtype: Any
    stage: mesh.ZeroStage
    cut: bool = False

    def __post_init__(self) -> None:
        require_choices(self, "sharding")

    def gathers(self) -> bool:
        """Whether weights are held whole."""
        return self.stage < 3 and mesh.size("embed") > 1

    def waiting(self) -> dict[str, int]:
        """The mesh axes over which gradients are summed once a step, and their sizes."""
        sharing = _sharing()
        if self.stage == 1:
            return sharing
        waits = self.cut or mesh.size("layers") > 1
        return {name: size for name, size in sharing.items() if waits and name == "data"}

    def gather(self, params: Any) -> Any:
        """Whole weights; None for what is not held."""

        def one(param: Param, value: jax.Array) -> jax.Array | None:
            if not (self.gathers() and is_held(param)):
                return None
            return collectives.gathered(value.astype(self.dtype), frozenset(mesh.RULES["embed"]))

        return jax.tree.map(one, self.spec, params, is_leaf=is_param)

    def terms(self, params: Any, whole: Any) -> Any:
        """Zeros in place of gradients that are not summed yet; None where they are at once."""
        names = self.waiting()

        def one(param: Param, split: jax.Array, whole: jax.Array | None) -> jax.Array | None:
            if not (names and is_held(param)):
                return None
            like = split if whole is None or self.stage > 1 else whole
            at, shape, spec = _place(param), list(like.shape), collectives.split(like)
            shape.insert(at, math.prod(names.values()))
            spec.insert(at, tuple(names))
            entries = [axes or None for axes in spec]
            return jnp.zeros(shape, jnp.float32, out_sharding=jax.P(*entries))

        return jax.tree.map(one, self.spec, params, whole, is_leaf=is_param)

    def give(self, params: Any, whole: Any, terms: Any) -> Any:
        """Parameters as a model takes them."""

        def one(param, split, whole, terms):
            return split if whole is None and terms is None else Held(split, whole, terms)

        return jax.tree.map(one, self.spec, params, whole, terms, is_leaf=is_param)

    def add(self, grads: Any, terms: Any) -> Any:
        """Gradients, with the sums of what each device has of its own."""

        def one(param: Param, grad: jax.Array, own: jax.Array | None) -> jax.Array:
            if own is None:
                return grad
            at, like = _place(param), jax.typeof(grad).sharding.spec

            def term(own: jax.Array) -> jax.Array:
                return jnp.squeeze(own, at).astype(self.dtype)

            summed = collectives.sum_of_parts(term, (own,), frozenset(self.waiting()), like)
            return grad + summed.astype(grad.dtype)

        return jax.tree.map(one, self.spec, grads, terms, is_leaf=is_param)


def value_and_grad(loss: Callable, sharding: Sharding | None, params: Any) -> tuple[Callable, Any]:
    """(f, finish): as `jax.value_and_grad` of a loss by parameters, with sums that may wait.

    f(*rest) is ((value, extra), what it found of the gradient), which adds up over parts of a
    batch; finish(found) is the gradient.

    Args:
        loss: (params, *rest) to (value, extra).
        sharding: what is held whole; None: nothing.
        params: by which.
    """
    if sharding is None or not (sharding.gathers() or sharding.waiting()):
        pull = jax.value_and_grad(loss, has_aux=True)
        return lambda *rest: pull(params, *rest), lambda found: found
    whole = sharding.gather(params)
    terms = sharding.terms(params, whole)

    def of_both(both, *rest):
        params, terms = both
        return loss(sharding.give(params, whole, terms), *rest)

    both = jax.value_and_grad(of_both, has_aux=True)
    return lambda *rest: both((params, terms), *rest), lambda found: sharding.add(*found)


def is_held(param: Param) -> bool:
    """Whether stages 1 and 2 hold a weight whole, and sums of its gradient may wait."""
    return "embed" in param.axes


def _sharing() -> dict[str, int]:
    """The mesh axes along which devices have rows, or parts of them, of their own; their sizes."""
    names = (*mesh.RULES["batch"], *mesh.RULES["sequence"])
    current = mesh.current_mesh()
    shape = {} if current is None else current.shape
    sizes = {name: shape.get(name, 1) for name in names if name not in mesh.RULES["layers"]}
    return {name: size for name, size in sizes.items() if size > 1}


def _place(param: Param) -> int:
    """The axis of terms: behind that of layers."""
    return int("layers" in param.axes)
