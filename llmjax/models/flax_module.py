"""A Flax NNX module that wraps a model, for use with Flax trainers and tools.

Both forms share the same weight arrays, and a module that was trained, resharded or restored gives
them back:

    module = Transformer(config, params)
    optimizer = nnx.Optimizer(module, optax.adamw(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer, batch, rngs):
        def loss(module):
            logits = module(batch["tokens"], segment_ids=batch["segment_ids"], rngs=rngs)
            return cross_entropy(logits, batch["targets"])

        value, grads = nnx.value_and_grad(loss)(module)
        optimizer.update(module, grads)
        return value

    hf.save(directory, module.config, module.params)

The losses of this library need no logits: `objectives.clm(config)(module.params, batch, key)`
inside `loss` is differentiable with respect to the module, too. Weight paths are those of
`models.spec`.
"""

import dataclasses
from typing import Any

import jax
from flax import nnx

from llmjax import mesh, tree
from llmjax.models import heads, transformer
from llmjax.models.config import ModelConfig
from llmjax.spec import Param, is_param
from llmjax.weights import is_kind


class Weights(nnx.Module):
    """A node of the parameter tree; its attributes are `nnx.Param` and further nodes."""

    def __init__(self, declared: dict[str, Any], values: dict[str, Any], rules: mesh.Rules):
        # Listed by name, as tools such as qwix attach state of their own to modules.
        self.names = tuple(declared)
        for name, child in declared.items():
            setattr(self, name, _node(child, values[name], rules))

    def __call__(self) -> dict[str, Any]:
        """The tree of arrays below, as `models.apply` reads it."""
        return {name: _arrays(getattr(self, name)) for name in self.names}


class Transformer(nnx.Module):
    """An NNX view of any model, made from (config, params).

    Every weight is an `nnx.Param` with the metadata `out_sharding`, its logical axes, and
    `sharding_rules`, the mesh axes they map to: `nnx.get_partition_spec` agrees with
    `spec.shardings`. Weights are neither copied nor moved. Flax optimizers copy the metadata to
    their own state.

    Args:
        config: model configuration.
        params: as declared by `models.spec`, of arrays or `jax.ShapeDtypeStruct`;
            `params["layers"]` may be stacked or a list of L trees, whatever `config.scan_layers`.
        rules: from logical axes to mesh axes.

    Raises:
        TypeError: a leaf type of `llmjax.weights`, which Flax would see as several parts.
        ValueError: weights are missing, unexpected or of the wrong shape.
    """

    def __init__(self, config: ModelConfig, params: Any, rules: mesh.Rules = mesh.RULES):
        self.config = config
        listed = isinstance(params["layers"], list)
        spec = transformer.spec(dataclasses.replace(config, scan_layers=not listed))
        _check(spec, params)
        self.names = tuple(spec)
        for name, declared in spec.items():
            setattr(self, name, _node(declared, params[name], rules))

    @property
    def params(self) -> dict[str, Any]:
        """The current parameter tree, as `models.apply` reads it."""
        return {name: _arrays(getattr(self, name)) for name in self.names}

    def __call__(
        self,
        tokens: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        rngs: nnx.Rngs | jax.Array | None = None,
    ) -> jax.Array:
        """Computes the outputs of the model's head from tokens, as `models.logits` does.

        Args:
            tokens: int32 [B, S].
            segment_ids: int32 [B, S]; tokens attend within equal ones, 0 is padding.
            positions: int32 [B, S]; by default 0, 1, … from the row's start.
            token_types: int32 [B, S], for models with token types.
            rngs: for dropout: an `nnx.Rngs`, whose `dropout` stream is used, or a key; None
                disables dropout. `Module.train` and `Module.eval` have no effect.

        Returns:
            [B, S, V] for heads lm and mlm; see `models.logits` for the others.

        Raises:
            ValueError: the model has no head, or as in `models.apply`.
        """
        key, head_key = _key(rngs), None
        if key is not None and self.config.head.kind not in ("lm", "mlm"):
            key, head_key = jax.random.split(key)  # as the objectives do
        params = self.params
        hidden, _ = transformer.apply(
            params,
            tokens,
            self.config,
            segment_ids=segment_ids,
            positions=positions,
            token_types=token_types,
            key=key,
        )
        return heads.logits(params, hidden, self.config, segment_ids=segment_ids, key=head_key)

    def forward(
        self,
        tokens: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        token_types: jax.Array | None = None,
        rngs: nnx.Rngs | jax.Array | None = None,
    ) -> transformer.Output:
        """Computes hidden states [B, S, D] and the routing of experts, without the head.

        Arguments and errors are those of `__call__`.
        """
        return transformer.forward(
            self.params,
            tokens,
            self.config,
            segment_ids=segment_ids,
            positions=positions,
            token_types=token_types,
            key=_key(rngs),
        )


def _key(rngs: nnx.Rngs | jax.Array | None) -> jax.Array | None:
    return rngs.dropout() if isinstance(rngs, nnx.Rngs) else rngs


def _node(declared: Any, value: Any, rules: mesh.Rules) -> Any:
    """The NNX form of a tree of arrays."""
    if isinstance(declared, Param):
        return _variable(declared, value, rules)
    if isinstance(declared, list):
        return nnx.List([_node(*pair, rules) for pair in zip(declared, value, strict=True)])
    return Weights(declared, value, rules)


def _variable(declared: Param, value: Any, rules: mesh.Rules) -> nnx.Param:
    meaning = {axis: mesh.partition_spec((axis,), rules)[0] for axis in declared.axes if axis}
    # Eager sharding would move the array; it stays the same array, where its maker put it.
    return nnx.Param(
        value,
        out_sharding=declared.axes,
        sharding_rules=tuple(meaning.items()),
        eager_sharding=False,
    )


def _arrays(node: Any) -> Any:
    """Inverts `_node`; whatever a tool put in place of a weight is left unchanged."""
    if isinstance(node, nnx.Variable):
        return node.get_value()
    if isinstance(node, nnx.List):
        return [_arrays(child) for child in node]
    # Called, because `nnx.tabulate` only lists modules that were called.
    return node() if isinstance(node, Weights) else node


def _check(spec: Any, params: Any) -> None:
    """Raises unless `params` are arrays as declared by `spec`."""
    leaves = jax.tree.leaves(params, is_leaf=is_kind)
    given = dict(zip(tree.paths(params, is_leaf=is_kind), leaves, strict=True))
    for path, leaf in given.items():
        if is_kind(leaf):
            raise TypeError(
                f"{path} has type {type(leaf).__name__}, but a Flax view holds arrays: convert it "
                "with weights.materialize"
            )
    declared = dict(
        zip(
            tree.paths(spec, is_leaf=is_param), jax.tree.leaves(spec, is_leaf=is_param), strict=True
        )
    )
    missing, unexpected = sorted(declared.keys() - given), sorted(given.keys() - declared)
    if missing or unexpected:
        raise ValueError(
            f"params do not match the config: missing {missing}, unexpected {unexpected}"
        )
    for path, param in declared.items():
        if given[path].shape != param.shape:
            raise ValueError(
                f"{path}: shape {given[path].shape}, but the config declares {param.shape}"
            )
