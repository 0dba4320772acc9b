"""The Flax view holds the same arrays, computes the same, and Flax trains it to the same."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import treescope
from flax import nnx

from llmjax import mesh, models, objectives, optim, tree
from llmjax import spec as specs
from llmjax.models.flax_module import Transformer
from llmjax.train import TrainState, make_step
from llmjax.weights import quantize


@pytest.fixture(scope="module")
def variants(gpt2, llama):
    """Stacked and listed layers; tied and own heads; of tokens and of rows; experts."""
    sizes = {"vocab_size": 64, "num_layers": 2, "embed_dim": 16, "num_heads": 4, "mlp_dim": 32}
    return {
        "gpt2": gpt2,
        "gpt2, listed": dataclasses.replace(gpt2, scan_layers=False),
        "llama": llama,
        "llama, reward": dataclasses.replace(llama, head=models.Head(kind="reward")),
        "bert": models.bert(max_length=16, dropout=models.Dropout(), **sizes),
        "qwen3_moe": models.qwen3_moe(experts=models.Experts(count=4, dim=8), **sizes),
    }


NAMES = ["gpt2", "gpt2, listed", "llama", "llama, reward", "bert", "qwen3_moe"]


def same_arrays(first, second):
    """Whether two trees have one structure and the very same leaves."""
    leaves = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    same_structure = jax.tree.structure(first) == jax.tree.structure(second)
    return same_structure and all(a is b for a, b in leaves)


def by_path(values):
    """The leaves of a tree, or the values of an `nnx.State`, by their paths."""
    values = nnx.as_pure(values)
    return dict(zip(tree.paths(values), jax.tree.leaves(values), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_is_the_identity(name, variants, draw):
    config = variants[name]
    params = draw(models.spec(config))
    module = Transformer(config, params)
    assert module.config is config
    assert same_arrays(module.params, params)
    assert same_arrays(nnx.merge(*nnx.split(module)).params, params)
    # The paths of Flax are those of the spec, so rules written for one hold for the other.
    assert list(by_path(nnx.state(module, nnx.Param))) == tree.paths(params)


def test_layers_may_be_stacked_or_listed_whatever_the_config_says(llama, draw):
    stacked = draw(models.spec(llama))
    listed = {**stacked, "layers": tree.unstack(stacked["layers"])}
    for config in (llama, dataclasses.replace(llama, scan_layers=False)):
        for params in (stacked, listed):
            module = Transformer(config, params)
            assert same_arrays(module.params, params)
            query = nnx.state(module, nnx.Param)["layers"]
            query = query[1] if params is listed else query
            names = query["attention"]["query"].get_metadata("out_sharding")
            assert names == (("layers",) if params is stacked else ()) + ("embed", "heads", None)


@pytest.mark.parametrize("name", NAMES)
def test_forward_is_bitwise_that_of_the_functions(name, variants, draw, packed):
    config = variants[name]
    params = draw(models.spec(config))
    module = Transformer(config, params)
    rows = {key: packed[key] for key in ("segment_ids", "positions")}

    @jax.jit
    def expected(params):
        output = models.forward(params, packed["tokens"], config, **rows)
        hidden, segment_ids = output.hidden, rows["segment_ids"]
        return output, models.logits(params, hidden, config, segment_ids=segment_ids)

    @nnx.jit
    def seen(module):
        return module.forward(packed["tokens"], **rows), module(packed["tokens"], **rows)

    jax.tree.map(np.testing.assert_array_equal, seen(module), expected(params))


def test_dropout_is_drawn_from_a_key_or_from_rngs(gpt2, draw, packed):
    rates = models.Dropout(embedding=0.2, attention=0.2, hidden=0.2, classifier=0.2)
    config = dataclasses.replace(gpt2, dropout=rates)
    params = draw(models.spec(config))
    module = Transformer(config, params)
    tokens = jnp.asarray(packed["tokens"][:2])
    rngs = nnx.Rngs(dropout=3)
    key = nnx.Rngs(dropout=3).dropout()

    @jax.jit
    def expected(params):
        return models.logits(params, models.apply(params, tokens, config, key=key)[0], config)

    call = nnx.jit(lambda module, rngs: module(tokens, rngs=rngs))
    first, second = call(module, rngs), call(module, rngs)
    assert np.array_equal(first, expected(params))
    assert np.array_equal(first, call(module, key))
    assert not np.allclose(first, second)


def own_steps(config, params, optimizer, batches):
    """Parameters after our steps, and their losses."""
    params = jax.tree.map(jnp.array, params)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key(7))
    step = make_step(objectives.clm(config), optimizer)
    losses = []
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return state.params, losses


def cross_entropy(logits, targets):
    """The mean over the targets, from logits, by optax."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
    return jnp.sum(losses, where=targets >= 0) / jnp.sum(targets >= 0)


def flax_steps(module, optimizer, batches):
    """As `own_steps`, written as Flax's guides write it."""

    @nnx.jit
    def step(module, optimizer, batch):
        def loss(module):
            rows = {key: batch[key] for key in ("segment_ids", "positions")}
            return cross_entropy(module(batch["tokens"], **rows), batch["targets"])

        value, grads = nnx.value_and_grad(loss)(module)
        optimizer.update(module, grads)
        return value

    losses = [float(step(module, optimizer, batch)) for batch in batches]
    return module.params, losses


@pytest.fixture(scope="module")
def batches(packed):
    """Four batches with other targets each."""
    return [{key: np.roll(rows, n, axis=0) for key, rows in packed.items()} for n in range(4)]


def test_flax_trains_to_the_parameters_of_our_step(llama, draw, batches):
    """Adam divides a gradient by its size: ε keeps it from making steps of rounding."""
    config = llama
    params = draw(models.spec(config))
    chain = optax.adamw(0.01, eps=1e-3, weight_decay=0.1)
    expected, expected_losses = own_steps(config, params, chain, batches)
    module = Transformer(config, jax.tree.map(jnp.array, params))
    trained, losses = flax_steps(module, nnx.Optimizer(module, chain, wrt=nnx.Param), batches)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    assert jax.tree.structure(trained) == jax.tree.structure(expected)
    trained = by_path(trained)
    for path, value in by_path(expected).items():
        np.testing.assert_allclose(trained[path], value, atol=1e-6, err_msg=path)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), expected, params)
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_our_objective_and_optimizer_train_the_view_bitwise(gpt2, draw, batches):
    """With the loss that needs no logits, dropout, and decay by the paths of the spec."""
    config = dataclasses.replace(gpt2, dropout=models.Dropout(hidden=0.1), scan_layers=False)
    spec, objective = models.spec(config), objectives.clm(config)
    params = draw(spec)
    settings = optim.OptimizerConfig(learning_rate=0.01, warmup_steps=2)
    expected, _ = own_steps(config, params, optim.make(settings, spec, 4), batches)

    module = Transformer(config, jax.tree.map(jnp.array, params))
    # Masks of weight decay must have the structure of what they mask: here, of a state.
    declared = nnx.as_pure(nnx.state(module, nnx.Param))
    declared = jax.tree.unflatten(
        jax.tree.structure(declared), jax.tree.leaves(spec, is_leaf=specs.is_param)
    )
    optimizer = nnx.Optimizer(module, optim.make(settings, declared, 4), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer, batch, key):
        def loss(module):
            weighted, _ = objective(module.params, batch, key)
            return weighted.sum, weighted.weight

        (_, weight), grads = nnx.value_and_grad(loss, has_aux=True)(module)
        optimizer.update(module, jax.tree.map(lambda grad: grad * (1 / weight), grads))

    for number, batch in enumerate(batches):
        step(module, optimizer, batch, jax.random.fold_in(jax.random.key(7), number))
    trained = by_path(module.params)
    for path, value in by_path(expected).items():
        assert np.array_equal(trained[path], value), path


@pytest.mark.parametrize("name", ["gpt2", "gpt2, listed"])
def test_tabulate_lists_every_parameter(name, variants, draw):
    config = variants[name]
    spec = models.spec(config)
    module = Transformer(config, draw(spec))
    console = {"force_terminal": False, "width": 200}
    table = nnx.tabulate(module, np.zeros((1, 4), np.int32), console_kwargs=console)
    assert f"Total Parameters: {specs.count(spec):,} " in table
    cells = "\n".join(line.split("│")[-2] for line in table.splitlines() if line.count("│") > 2)
    shapes = re.findall(r"value: float32\[([\d,]*)\]", cells)
    declared = jax.tree.leaves(spec, is_leaf=specs.is_param)
    assert sorted(shapes) == sorted(",".join(map(str, param.shape)) for param in declared)
    for path in tree.paths(spec, is_leaf=specs.is_param):
        folder, _, leaf = path.rpartition("/")
        assert f"{folder} " in table
        assert f" {leaf}:" in cells


def test_treescope_renders_it(llama, draw):
    module = Transformer(llama, draw(models.spec(llama)))
    text = treescope.render_to_text(module)
    assert text.startswith("Transformer(")
    assert "query=Param(" in text
    assert "'heads'" in text


def test_abstract_parameters_make_an_abstract_module(llama, packed):
    """As `nnx.eval_shape` gives: for tools that plan, or restore, without any weights."""
    abstract = specs.abstract(models.spec(llama))
    module = Transformer(llama, abstract)
    assert same_arrays(module.params, abstract)
    out = nnx.eval_shape(lambda module: module(packed["tokens"]), module)
    assert out.shape == (*packed["tokens"].shape, llama.vocab_size)


@pytest.mark.parametrize("name", ["gpt2, listed", "llama"])
def test_shardings_pass_through(name, variants):
    config = variants[name]
    spec = models.spec(config)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(2, 2, 2))):
        params = specs.init(jax.random.key(0), spec)
        module = Transformer(config, params)
        assert same_arrays(module.params, params)
        state = nnx.state(module, nnx.Param)
        partitions = nnx.get_partition_spec(state)
        assert by_path(partitions) == by_path(specs.shardings(spec))
        # What the metadata says is where the arrays lie, and where Adam's moments go.
        named = nnx.get_named_sharding(state, jax.sharding.get_mesh())
        optimizer = nnx.Optimizer(module, optax.adam(1e-3), wrt=nnx.Param)
        moments = optimizer.opt_state[0].mu
        for array, sharding, moment in zip(
            jax.tree.leaves(params), jax.tree.leaves(named), jax.tree.leaves(moments), strict=True
        ):
            assert array.sharding.is_equivalent_to(sharding, array.ndim)
            assert moment.sharding.is_equivalent_to(sharding, array.ndim)
        assert by_path(nnx.get_partition_spec(nnx.state(moments))) == by_path(partitions)


def test_training_on_a_mesh_equals_one_device(llama, draw, batches):
    spec = models.spec(llama)
    chain = optax.adamw(0.01, eps=1e-3)
    params = draw(spec)

    def train():
        placed = jax.tree.map(
            lambda param, value: jax.device_put(value, mesh.named_sharding(param.axes)),
            spec,
            params,
            is_leaf=specs.is_param,
        )
        module = Transformer(llama, placed)
        optimizer = nnx.Optimizer(module, chain, wrt=nnx.Param)
        objective = objectives.clm(llama)

        @nnx.jit
        def step(module, optimizer, batch):
            def loss(module):
                weighted, _ = objective(module.params, batch, None)
                return weighted.sum / weighted.weight

            optimizer.update(module, nnx.grad(loss)(module))

        for batch in batches[:2]:
            step(module, optimizer, mesh.shard_batch(batch))
        return module.params, placed

    expected, _ = train()
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(2, 2, 2))):
        trained, placed = train()
    for one, start, other in zip(
        jax.tree.leaves(trained), jax.tree.leaves(placed), jax.tree.leaves(expected), strict=True
    ):
        assert one.sharding.is_equivalent_to(start.sharding, one.ndim)
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_what_is_not_the_models_is_refused(gpt2, draw):
    params = draw(models.spec(gpt2))
    special = {**params, "embedding": quantize(jnp.asarray(params["embedding"]))}
    with pytest.raises(TypeError, match=r"^embedding has type Int8.*materialize"):
        Transformer(gpt2, special)
    renamed = {**params, "table": params["positions"]}
    del renamed["positions"]
    with pytest.raises(ValueError, match=r"missing \['positions'\], unexpected \['table'\]"):
        Transformer(gpt2, renamed)
    short = {**params, "positions": params["positions"][:3]}
    with pytest.raises(ValueError, match=r"positions: shape \(3, 16\), .* \(16, 16\)"):
        Transformer(gpt2, short)
