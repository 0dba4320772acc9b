"""What stays split during a step: ZeRO's stages (Rajbhandari et al. 2020).

Between steps, parameters, moments and gradients are split over the mesh axes fsdp and expert. At
stage 3, weights are gathered for each product and their gradients scattered after it. At stage 2,
the weights of layers, frozen ones too, are gathered once a step and held whole in compute
precision, or as they are stored if quantized. At stage 1, gradients are held whole too, in float32,
and summed once a step: this communicates least if a batch is split into many parts, but needs most
memory. Weights outside of the layers are used once, and experts are too large, so both are gathered
at each use at every stage.

Data-parallel replicas only need the sum of their gradients once a step. If a batch is split into
parts, or into micro-batches of a pipeline, this sum is deferred to the last one at every stage, of
matrices in the layers, experts included. So is that of the tables of the vocabulary, which a
pipeline's micro-batches do not use.
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
    """What is split during a step, on the mesh that is set when it is compiled.

    Attributes:
        spec: the spec of the trained parameters, with None in place of others.
        dtype: dtype in which weights are held: that of the model's products.
        stage: the ZeRO stage.
        frozen: the spec of the frozen parameters, in the same form; None for none.
    """

    spec: Any
    dtype: Any
    stage: mesh.ZeroStage
    frozen: Any = None

    def __post_init__(self) -> None:
        require_choices(self, "sharding")

    def gathers(self) -> bool:
        """Whether weights are held whole."""
        return self.stage < 3 and mesh.size("embed") > 1

    def deferred(self, accumulate: int) -> Callable[[Param], dict[str, int]]:
        """The mesh axes over which a gradient is summed once a step, and their sizes."""
        sharing = _sharing()
        replicas = {name: size for name, size in sharing.items() if name in mesh.RULES["replicas"]}
        cut = accumulate > 1

        def of(param: Param) -> dict[str, int]:
            if not param.inputs:
                return {}  # factors and magnitudes of experts, which do not enter products
            if is_held(param) and self.stage == 1:
                return sharing
            if is_held(param) or "experts" in param.axes:
                return replicas if cut or mesh.size("layers") > 1 else {}
            return replicas if cut and "vocab" in param.axes and param.table else {}

        return of

    def gather(self, params: Any) -> Any:
        """The gathered weights; None for weights that are not held."""

        def one(param: Param, value: jax.Array) -> jax.Array | None:
            if not (self.gathers() and is_held(param)):
                return None
            return collectives.gathered(value.astype(self.dtype), frozenset(mesh.RULES["embed"]))

        return jax.tree.map(one, self.spec, params, is_leaf=is_param)

    def hold(self, frozen: Any) -> Any:
        """The frozen weights as the model uses them, with None in place of unchanged ones."""

        def one(param: Param, value: jax.Array) -> Any:
            if not is_held(param):
                return None
            over = frozenset(mesh.RULES["embed"])
            if param.dtype is not None:  # a part of a quantized weight
                return collectives.gathered(value, over)
            return Held(value, collectives.gathered(value.astype(self.dtype), over))

        if self.frozen is None or not self.gathers():
            return None
        return jax.tree.map(one, self.frozen, frozen, is_leaf=is_param)

    def terms(self, params: Any, whole: Any, accumulate: int) -> Any:
        """Zeros in place of gradients whose sum over devices is deferred; else None."""
        deferred = self.deferred(accumulate)

        def one(param: Param, split: jax.Array, whole: jax.Array | None) -> jax.Array | None:
            if not (names := deferred(param)):
                return None
            like = whole if self.stage == 1 and whole is not None else split
            at, shape, spec = _place(param), list(like.shape), collectives.split(like)
            shape.insert(at, math.prod(names.values()))
            spec.insert(at, tuple(names))
            entries = [axes or None for axes in spec]
            return jnp.zeros(shape, jnp.float32, out_sharding=jax.P(*entries))

        return jax.tree.map(one, self.spec, params, whole, is_leaf=is_param)

    def give(self, params: Any, whole: Any, terms: Any) -> Any:
        """Parameters as the model uses them, with `Held` weights."""

        def one(param, split, whole, terms):
            return split if whole is None and terms is None else Held(split, whole, terms)

        return jax.tree.map(one, self.spec, params, whole, terms, is_leaf=is_param)

    def add(self, grads: Any, terms: Any) -> Any:
        """Adds the sums of deferred terms over devices to the gradients."""

        def one(param: Param, grad: jax.Array, own: jax.Array | None) -> jax.Array:
            if own is None:
                return grad
            at, like = _place(param), jax.typeof(grad).sharding.spec
            names = frozenset(collectives.split(own)[at])

            def term(own: jax.Array) -> jax.Array:
                return jnp.squeeze(own, at).astype(self.dtype)

            summed = collectives.sum_of_parts(term, (own,), names, like)
            return grad + summed.astype(grad.dtype)

        return jax.tree.map(one, self.spec, grads, terms, is_leaf=is_param)


def value_and_grad(
    loss: Callable, sharding: Sharding | None, params: Any, accumulate: int = 1
) -> tuple[Callable, Any]:
    """(f, finish): `jax.value_and_grad` of a loss, with sums over devices that may be deferred.

    f(*rest) returns ((value, extra), partial gradient), which adds up over parts of a batch;
    finish(partial gradient) returns the gradient.

    Args:
        loss: (params, *rest) to (value, extra).
        sharding: what is held whole; None for nothing.
        params: the parameters to differentiate with respect to.
        accumulate: the parts of a batch that are added up.
    """
    whole = None if sharding is None else sharding.gather(params)
    terms = None if sharding is None else sharding.terms(params, whole, accumulate)
    if sharding is None or not jax.tree.leaves((whole, terms)):
        pull = jax.value_and_grad(loss, has_aux=True)
        return lambda *rest: pull(params, *rest), lambda found: found

    def of_both(both, *rest):
        params, terms = both
        return loss(sharding.give(params, whole, terms), *rest)

    def finish(found):
        grads, own = found
        return sharding.add(grads, own)

    both = jax.value_and_grad(of_both, has_aux=True)
    return lambda *rest: both((params, terms), *rest), finish


def replaced(params: Any, held: Any) -> Any:
    """Parameters with those from `Sharding.hold` in place of the split ones."""

    def is_leaf(node: Any) -> bool:
        return node is None or isinstance(node, Held)

    def one(held: Any, value: Any) -> Any:
        return value if held is None else held

    return params if held is None else jax.tree.map(one, held, params, is_leaf=is_leaf)


def is_held(param: Param) -> bool:
    """Whether stages 1 and 2 hold a weight whole, and the sum of its gradient may be deferred."""
    return "embed" in param.axes


def _sharing() -> dict[str, int]:
    """The mesh axes along which devices have different rows or parts of rows, and their sizes."""
    names = (*mesh.RULES["batch"], *mesh.RULES["sequence"])
    current = mesh.current_mesh()
    shape = {} if current is None else current.shape
    sizes = {name: shape.get(name, 1) for name in names if name not in mesh.RULES["layers"]}
    return {name: size for name, size in sizes.items() if size > 1}


def _place(param: Param) -> int:
    """The new axis of terms: after that of layers."""
    return int("layers" in param.axes)
