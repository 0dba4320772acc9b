"""Parameter declarations: one `Param` per weight, from which everything else is derived.

A model declares a tree of `Param`. Initial values, shardings, abstract shapes, counts, names and
layouts in Hugging Face checkpoints, weight-decay groups and adapter targets all read that tree,
so none of them can disagree with another.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from llmjax import mesh
from llmjax import tree as trees

Tree = Any  # a nested dict; which leaves it has is said where it is used
STACKING = ("layers", "experts")  # logical axes along which matrices lie side by side


@dataclasses.dataclass(frozen=True)
class Param:
    """The declaration of one weight.

    Attributes:
        shape: its dimensions.
        axes: a logical axis name (a key of `mesh.RULES`) or None for each dimension.
        init: draws its initial value, as `jax.nn.initializers` do.
        hf: its name in a Hugging Face checkpoint; each `{}` stands for a number along one of the
            leading axes, in order: the layer's of a stacked weight, the expert's. Empty when it
            has no counterpart there.
        layout: an einops pattern from the layout there to the one here, "(h c) d -> d h c" say,
            without the numbered axes.
        part: (i, n, a) for the i-th of n equal parts, along axis a, of the tensor there.
        inputs: how many axes, behind those of stacking, are the rows of the matrix that products
            read it as, the rest being its columns; 0 of what is no matrix: norms and biases.
            Products contract the rows; of a table, [V, D], they contract the columns.
        table: "input" where rows are looked up by number, "output" where they are of a vocabulary's
            logits; empty for a projection.
        dtype: of its values, whatever the others' precision; None: as the others.
        added: whether it belongs to no model, and a method of `llmjax.peft` added it.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer
    hf: str = ""
    layout: str = ""
    part: tuple[int, int, int] = (0, 1, -1)
    inputs: int = 0
    table: Literal["", "input", "output"] = ""
    dtype: Any = None
    added: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes):
            raise ValueError(f"Param {self.hf or self.shape}: {self.shape} needs an axis name each")

    @property
    def stacked(self) -> int:
        """How many leading axes number matrices: of layers, of experts."""
        return sum(axis in STACKING for axis in self.axes)

    def stack(self, count: int) -> "Param":
        """The same weight for `count` layers, stacked along a new leading axis."""
        return dataclasses.replace(
            self, shape=(count, *self.shape), axes=("layers", *self.axes), init=_stacked(self.init)
        )


def _stacked(init: Initializer) -> Initializer:
    """Draws one layer at a time, so that fan-in is counted within a layer."""

    def stacked(key, shape, dtype=jnp.float32, out_sharding=None):
        keys = jax.random.split(key, shape[0])
        values = jax.vmap(lambda k: init(k, shape[1:], dtype))(keys)
        return values if out_sharding is None else jax.reshard(values, out_sharding)

    return stacked


def is_param(node: Any) -> bool:
    """Whether `node` is a declaration, and so a leaf of a spec tree."""
    return isinstance(node, Param)


def map_params(function, spec: Tree) -> Tree:
    """`jax.tree.map` over the declarations of a spec tree."""
    return jax.tree.map(function, spec, is_leaf=is_param)


def init(key: jax.Array, spec: Tree, dtype: Any = jnp.float32) -> Tree:
    """Draws initial parameters, each sharded from birth on the current mesh.

    Every weight has a key of its own, derived from its path, so that adding a parameter to a
    model leaves the others' values as they were. Values do not depend on the mesh.

    Raises:
        ValueError: an axis that does not divide over the devices that split it.
    """
    trees.map_with_path(_check_divides, spec, is_leaf=is_param)

    @jax.jit
    def draw(key):
        def one(path: str, param: Param):
            subkey = jax.random.fold_in(key, trees.path_hash(path))
            return mesh.sharded(param.init, param.axes)(subkey, param.shape, param.dtype or dtype)

        return trees.map_with_path(one, spec, is_leaf=is_param)

    return draw(key)


def _check_divides(path: str, param: Param) -> None:
    for axis, length in zip(param.axes, param.shape, strict=True):
        if axis is not None and length % mesh.size(axis):
            raise ValueError(
                f"{path} {param.shape}: its axis {axis!r} of {length} does not divide over "
                f"{mesh.size(axis)} devices (mesh {' × '.join(mesh.RULES[axis])}); choose a "
                "mesh or a model that does"
            )


def abstract(spec: Tree, dtype: Any = jnp.float32) -> Tree:
    """The shapes (`jax.ShapeDtypeStruct`, with shardings under a mesh) of the parameters."""

    def one(param: Param) -> jax.ShapeDtypeStruct:
        sharding = mesh.named_sharding(param.axes)
        return jax.ShapeDtypeStruct(param.shape, param.dtype or dtype, sharding=sharding)

    return map_params(one, spec)


def move(params: Tree, spec: Tree) -> Tree:
    """Parameters that lie anywhere, on another mesh say, to where the current one has them."""

    def one(param: Param, value: jax.Array) -> jax.Array:
        return jax.device_put(value, mesh.named_sharding(param.axes))

    return jax.tree.map(one, spec, params, is_leaf=is_param)


def shardings(spec: Tree, rules: mesh.Rules = mesh.RULES) -> Tree:
    """The `PartitionSpec` of every parameter under `rules`."""
    return map_params(lambda param: mesh.partition_spec(param.axes, rules), spec)


def count(spec: Tree) -> int:
    """The number of parameters."""
    leaves = jax.tree.leaves(spec, is_leaf=is_param)
    return sum(math.prod(param.shape) for param in leaves)
