"""Parameter declarations: one `Param` per weight, from which everything else is derived.

A model declares a tree of `Param`. Initial values, shardings, abstract shapes, counts, names and
layouts in Hugging Face checkpoints, weight-decay groups and adapter targets are all derived from
that tree, so they cannot disagree.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from llmjax import mesh
from llmjax import tree as trees

Tree = Any  # a nested dict; the type of its leaves depends on the use
STACKING = ("layers", "experts")  # logical axes along which matrices are stacked


@dataclasses.dataclass(frozen=True)
class Param:
    """The declaration of one weight.

    Attributes:
        shape: its dimensions.
        axes: a logical axis name (a key of `mesh.RULES`) or None for each dimension.
        init: draws its initial value, as `jax.nn.initializers` do.
        hf: its name in a Hugging Face checkpoint; each `{}` stands for an index along one of the
            leading axes, in order: the layer of a stacked weight, the expert. Empty if it has no
            counterpart in checkpoints.
        layout: an einops pattern from the checkpoint's layout to ours, such as "(h c) d -> d h c",
            without the indexed axes.
        part: (i, n, a) for the i-th of n equal parts of the checkpoint's tensor along axis a.
        inputs: number of axes, after those of stacking, that form the rows of the weight as a
            matrix; the rest form its columns. 0 for norms and biases. Products contract the rows,
            or, for a table [V, D], the columns.
        table: "input" for a look-up table, "output" for the table of a vocabulary's logits; empty
            for a projection.
        dtype: its own dtype; None means the one of the other parameters.
        added: whether a method of `llmjax.peft` added it to the model.
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
            raise ValueError(
                f"Param {self.hf or self.shape}: axes {self.axes} must name each dimension of "
                f"{self.shape}"
            )
        unknown = [axis for axis in self.axes if axis is not None and axis not in mesh.RULES]
        if unknown:
            raise ValueError(
                f"Param {self.hf or self.shape}: unknown logical axes {unknown}: choose from "
                f"{', '.join(mesh.RULES)}, or None"
            )

    @property
    def stacked(self) -> int:
        """The number of leading axes that stack matrices: layers, experts."""
        return sum(axis in STACKING for axis in self.axes)

    def stack(self, count: int) -> "Param":
        """The same weight for `count` layers, stacked along a new leading axis."""
        return dataclasses.replace(
            self, shape=(count, *self.shape), axes=("layers", *self.axes), init=_stacked(self.init)
        )


def _stacked(init: Initializer) -> Initializer:
    """Draws one layer at a time, so that fan-in is computed within a layer."""

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
    """Draws initial parameters, created sharded on the current mesh.

    Every weight's key is derived from its path, so adding a parameter to a model does not change
    the values of the others. Values do not depend on the mesh.

    Raises:
        ValueError: an axis does not divide evenly over the devices that split it.
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
                f"{mesh.size(axis)} devices (mesh {' × '.join(mesh.RULES[axis])}); change the "
                "mesh or the model"
            )


def abstract(spec: Tree, dtype: Any = jnp.float32) -> Tree:
    """The shapes (`jax.ShapeDtypeStruct`, with shardings under a mesh) of the parameters."""

    def one(param: Param) -> jax.ShapeDtypeStruct:
        sharding = mesh.named_sharding(param.axes)
        return jax.ShapeDtypeStruct(param.shape, param.dtype or dtype, sharding=sharding)

    return map_params(one, spec)


def move(params: Tree, spec: Tree) -> Tree:
    """Moves parameters, from another mesh for example, to their shardings on the current one."""

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
