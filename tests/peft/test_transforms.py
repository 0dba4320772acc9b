"""Law 5: at step 0 the base model, merged equals unmerged, and what is frozen stays bit for bit."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llmjax import mesh, models, peft, tree
from llmjax import spec as specs
from llmjax.objectives import clm
from llmjax.peft import Ia3Config, LoraConfig, LoraRule, ia3, lora
from llmjax.spec import is_param
from llmjax.train import TrainState
from llmjax.train.checkpoint import Checkpointer
from llmjax.weights import Dora, Lora

SIZES = {"vocab_size": 64, "num_layers": 2, "embed_dim": 16, "num_heads": 4}
CONFIGS = {
    "scanned": models.llama(**SIZES, num_kv_heads=2, mlp_dim=32),
    "unrolled, tied": models.gpt2(
        **SIZES, max_length=16, scan_layers=False, dropout=models.Dropout()
    ),
    "experts": models.qwen3_moe(
        **SIZES, num_kv_heads=2, experts=models.Experts(count=4, per_token=2, dim=8)
    ),
}
TABLES = r"^(embedding|head)$|/attention/"
METHODS = {
    "lora": LoraConfig(3, 6.0),
    "every matrix": LoraConfig(3, targets=r"^(embedding|head)$|/(query|out|gate|up|down)$"),
    "dora": LoraConfig(3, dora=True),
    "ia3": Ia3Config(targets=r"/(key|value|down)$", inputs=r"/down$"),
}
CASES = [
    ("scanned", "lora"),
    ("scanned", "every matrix"),
    ("scanned", "dora"),
    ("unrolled, tied", "every matrix"),
    ("unrolled, tied", "ia3"),
    ("experts", "every matrix"),
]


def adapt(config, method):
    module = lora if isinstance(method, LoraConfig) else ia3
    return module.spec(models.spec(config), method)


@functools.cache
def adapted(name, method):
    """Spec, base, parameters as `add` makes them, and with what trains moved away from there."""
    spec = adapt(CONFIGS[name], METHODS[method])
    base = specs.init(jax.random.key(0), models.spec(CONFIGS[name]))
    fresh = peft.add(base, spec, jax.random.key(1))
    return spec, base, fresh, moved(fresh, spec)


def moved(params, spec):
    trained, frozen = tree.partition(params, peft.trained(spec))

    def move(path, leaf):
        step = np.random.RandomState(tree.path_hash(path)).randn(*leaf.shape)
        return leaf + jnp.asarray(0.2 * step, leaf.dtype)

    return tree.combine(tree.map_with_path(move, trained), frozen)


@functools.cache
def losses(name):
    """(sum of the losses, logits) of parameters, compiled once for a model."""

    def run(params, tokens):
        config = CONFIGS[name]
        batch = {"tokens": tokens, "targets": jnp.roll(tokens, -1, 1)}
        hidden, _ = models.apply(params, tokens, config)
        return clm(config)(params, batch, None)[0].sum, models.logits(params, hidden, config)

    return jax.jit(run)


def tokens(rows=2):
    return jnp.asarray(np.random.RandomState(0).randint(0, 64, (rows, 8)), jnp.int32)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_step_0_is_the_base_and_merged_is_unmerged(name, method):
    _, base, fresh, params = adapted(name, method)
    run = functools.partial(losses(name), tokens=tokens())
    at_start, of_base, after = run(fresh), run(base), run(params)
    for actual, expected in zip(at_start, of_base, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
    assert np.abs(after[1] - of_base[1]).max() > 1e-2
    merged = peft.merge(params)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    for actual, expected in zip(run(merged), after, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_the_base_is_there_without_a_copy_and_adapters_change_places(name, method):
    spec, base, fresh, params = adapted(name, method)
    for found in (peft.without(params, spec), peft.without(fresh, spec)):
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, found, base)))
    adapter = peft.extract(params, spec)
    leaves = jax.tree.leaves(adapter)
    declared = jax.tree.leaves(spec, is_leaf=is_param)
    assert len(leaves) == sum(param.added for param in declared)
    for host in (base, fresh):
        again = peft.attach(host, adapter)
        assert jax.tree.structure(again) == jax.tree.structure(params)
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, again, params)))


def test_gradients_are_those_through_the_whole_weight():
    """By a, b and magnitudes, of stacked matrices with several axes, dense autodiff agrees."""
    spec, _, _, params = adapted("scanned", "dora")
    rows = tokens()
    trained, frozen = tree.partition(params, peft.trained(spec))

    def whole(node):
        if not isinstance(node, Dora):
            return node
        a, b = node.base.a, node.base.b
        behind = node.base.base.shape[a.ndim - 1 :]
        flat = jnp.matmul(
            a.reshape(len(a), -1, a.shape[-1]), b.reshape(len(b), b.shape[1], -1)
        ).reshape(*a.shape[:-1], *behind)
        weight = node.base.base + node.base.scale * flat
        over = tuple(range(1, a.ndim - 1))
        size = jax.lax.stop_gradient(
            jnp.linalg.norm(weight.reshape(len(a), -1, int(np.prod(behind))), axis=1)
        ).reshape(len(a), *(1 for _ in over), *behind)
        return weight * node.magnitude / size

    def loss(trained, change):
        params = tree.combine(trained, frozen)
        dense = jax.tree.map(change, params, is_leaf=lambda node: isinstance(node, Dora))
        return losses("scanned")(dense, rows)[0]

    actual = jax.jit(jax.grad(lambda trained: loss(trained, lambda node: node)))(trained)
    expected = jax.jit(jax.grad(lambda trained: loss(trained, whole)))(trained)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max()),
        actual,
        expected,
    )


def test_a_step_changes_what_trains_and_nothing_else(assert_bitwise):
    spec, base, fresh, _ = adapted("scanned", "lora")
    trained, frozen = tree.partition(fresh, peft.trained(spec))
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(trained, frozen, state):
        grads = jax.grad(lambda t: losses("scanned")(tree.combine(t, frozen), tokens())[0])(trained)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(trained, updates), state

    state = optimizer.init(trained)
    # Of each moment there is one for what trains, and none for what does not.
    assert len(jax.tree.leaves(state)) == 1 + 2 * len(jax.tree.leaves(trained))
    for _ in range(2):
        trained, state = step(trained, frozen, state)
    after = tree.combine(trained, frozen)
    assert_bitwise(peft.without(after, spec), base)
    changed = jax.tree.map(
        lambda a, b: bool(np.any(a != b)), trained, tree.partition(fresh, peft.trained(spec))[0]
    )
    assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize("method", ["every matrix", "ia3"])
def test_adapted_weights_decode(method):
    name = "scanned"
    config = CONFIGS[name]
    *_, params = adapted(name, method)
    rows = tokens()
    ready = models.for_decoding(params, config)
    assert models.for_decoding(ready, config) is ready
    cache = models.empty_cache(config, len(rows), 8)

    def apply(rows, cache):
        return jax.jit(models.apply, static_argnums=2)(ready, rows, config, cache=cache)

    first, cache = apply(rows[:, :7], cache)
    last, _ = apply(rows[:, 7:], cache)
    hidden = jnp.concatenate([first, last], axis=1)
    np.testing.assert_allclose(
        models.logits(ready, hidden, config), losses(name)(params, rows)[1], rtol=1e-4, atol=1e-4
    )


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("scanned", "every matrix"),
        slow("scanned", "dora"),
        slow("scanned", "ia3"),
        slow("experts", "every matrix"),
    ],
)
def test_a_mesh_equals_one_device(name, method):
    """In what is drawn, in the loss, and in the gradients of what trains."""
    config, spec = CONFIGS[name], adapt(CONFIGS[name], METHODS[method])
    base = specs.init(jax.random.key(0), models.spec(config))
    rows = {"tokens": np.asarray(tokens(8)), "targets": np.asarray(tokens(8))[:, ::-1]}

    def run():
        params = moved(
            peft.add(specs.move(base, models.spec(config)), spec, jax.random.key(1)), spec
        )
        trained, frozen = tree.partition(params, peft.trained(spec))
        batch = mesh.shard_batch(rows)

        @jax.jit
        def grad(trained, frozen):
            def loss(trained):
                return clm(config)(tree.combine(trained, frozen), batch, None)[0].sum

            return jax.value_and_grad(loss)(trained)

        return jax.device_get((params, *grad(trained, frozen)))

    expected = run()
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(data=2, fsdp=2, tensor=2))):
        actual = run()
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, actual, expected))
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=1e-3, atol=1e-5 * max(np.abs(b).max(), 1)
        ),
        (actual[0], actual[2]),
        (expected[0], expected[2]),
    )


def products(config, spec, predicate):
    """The shapes of all products in the compiled gradient by what the predicate picks."""
    params = jax.eval_shape(lambda: peft.add(None, spec, jax.random.key(0)))
    trained, frozen = tree.partition(params, predicate)
    batch = {"tokens": jnp.zeros((3, 8), jnp.int32), "targets": jnp.zeros((3, 8), jnp.int32)}

    def loss(trained, frozen):
        return clm(config)(tree.combine(trained, frozen), batch, None)[0].sum

    program = jax.jit(jax.grad(loss)).lower(trained, frozen).compile().as_text()
    return {
        tuple(sorted(map(int, re.findall(r"\d+", shape))))
        for shape in re.findall(r" = \w+\[([\d,]+)\]\S* dot\(", program)
    }


WIDE = {"vocab_size": 96, "num_layers": 1, "embed_dim": 40, "num_heads": 4}


@pytest.mark.usefixtures("optimizing_compiler")
def test_no_gradient_of_a_frozen_weight_is_computed():
    """No product in the compiled program has the shape of one, the head's neither."""
    config = models.llama(**WIDE, mlp_dim=56)
    spec, whole = adapt(config, LoraConfig(3)), {(40, 40), (40, 56), (40, 96)}
    # The search finds such products where all weights train.
    assert whole <= products(config, models.spec(config), lambda path, leaf: True)
    found = products(config, spec, peft.trained(spec))
    assert found
    assert not whole & found


@pytest.mark.slow
@pytest.mark.usefixtures("optimizing_compiler")
def test_nor_is_one_of_a_frozen_expert():
    config = models.qwen3_moe(**WIDE, experts=models.Experts(count=4, per_token=2, dim=12))
    spec = adapt(config, LoraConfig(3, targets="/experts/(gate|up|down)$"))
    assert (12, 40) in products(config, models.spec(config), lambda path, leaf: True)
    assert (12, 40) not in products(config, spec, peft.trained(spec))


def test_what_is_derived_from_specs_knows_leaf_types():
    spec, _, fresh, params = adapted("scanned", "dora")
    abstract = specs.abstract(spec)
    assert jax.tree.structure(abstract) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, abstract, params))
    assert specs.count(spec) == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert jax.tree.structure(specs.shardings(spec)) == jax.tree.structure(params)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, specs.move(fresh, spec), fresh)))


def test_checkpoints_hold_leaf_types(tmp_path, assert_bitwise):
    """Of a whole tree of quantised weights, corrections and magnitudes; and of an adapter alone."""
    config = models.llama(vocab_size=64, num_layers=2, embed_dim=64, num_heads=2, mlp_dim=64)
    base = specs.init(jax.random.key(0), models.spec(config))
    base, declared = peft.quantize(base, models.spec(config), "nf4", "/mlp/")
    spec = lora.spec(declared, LoraConfig(2, dora=True))
    params = moved(peft.add(base, spec, jax.random.key(1)), spec)
    adapter = peft.extract(params, spec)
    state = TrainState(jnp.int32(3), params, opt_state=adapter, key=jax.random.key(2))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(state)
        checkpointer.wait()
        restored = checkpointer.restore_latest({"params": specs.abstract(spec)}).state
        again = checkpointer.restore_latest(jax.eval_shape(lambda: state)).state
    assert jax.tree.structure(restored["params"]) == jax.tree.structure(params)
    assert_bitwise(restored["params"], params)
    assert_bitwise(peft.attach(base, again.opt_state), params)


def test_ranks_scales_and_first_values():
    config = CONFIGS["scanned"]
    method = LoraConfig(
        4,
        8.0,
        targets=r"/(query|down)$|^embedding$",
        rules=(LoraRule("down$", 2), LoraRule("query", alpha=2.0)),
    )
    spec = adapt(config, method)
    params = peft.add(specs.init(jax.random.key(0), models.spec(config)), spec, jax.random.key(1))
    query, down = (params["layers"][m][n] for m, n in (("attention", "query"), ("mlp", "down")))
    assert (query.a.shape, query.b.shape, query.scale) == ((2, 16, 4), (2, 4, 4, 4), 0.5)
    assert (down.a.shape, down.b.shape, down.scale) == ((2, 32, 2), (2, 2, 16), 4.0)
    assert not np.any(query.b)
    assert not np.any(params["embedding"].a)
    bound = np.abs(query.a).max()
    assert 0.9 / 4 < bound <= 1 / 4  # ±1/√16
    np.testing.assert_allclose(np.std(down.a), 1 / np.sqrt(3 * 32), rtol=0.2)
    rslora = adapt(config, dataclasses.replace(method, rslora=True))
    assert rslora["layers"]["mlp"]["down"].scale == pytest.approx(8 / np.sqrt(2))
    assert isinstance(rslora["embedding"], Lora)
    # A key for every path: adding more leaves others' values as they were.
    more = peft.add(
        specs.init(jax.random.key(0), models.spec(config)),
        adapt(config, LoraConfig(4)),
        jax.random.key(1),
    )
    np.testing.assert_array_equal(more["layers"]["attention"]["query"].a, query.a)


BAD = {
    "nothing": (
        LoraConfig(targets="qeury"),
        r"lora.targets='qeury' matches nothing.*layers/attention/query",
    ),
    "no matrix": (
        LoraConfig(targets="attention"),
        r"matches layers/attention_norm/scale.*not matri",
    ),
    "unused rank": (
        LoraConfig(rules=(LoraRule("head", 3),)),
        r"lora.rules: 'head' matches none.*mlp/up",
    ),
    "table": (LoraConfig(targets="embedding$", dora=True), r"lora.dora=True: embedding is a table"),
    "ia3 of a table": (Ia3Config(targets="embedding$"), r"ia3.targets: embedding is a table"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_adapted_is_named(case):
    method, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        adapt(CONFIGS["scanned"], method)


def test_bad_configs_and_parameters_are_named():
    with pytest.raises(ValueError, match="lora.rank=0"):
        LoraConfig(rank=0)
    for alpha in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="lora.alpha="):
            LoraConfig(alpha=alpha)
    with pytest.raises(ValueError, match=r"lora.targets='\(' is not a regular expression"):
        LoraConfig(targets="(")
    spec, base, _, _ = adapted("scanned", "lora")
    with pytest.raises(ValueError, match="already have an adapter: merge it first"):
        lora.spec(spec, LoraConfig())
    with pytest.raises(ValueError, match=r"spare, which the spec does not declare"):
        peft.add(base | {"spare": base["embedding"]}, spec, jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"^embedding is \(64, 8\), but the spec declares \(64, 16\)"
    ):
        peft.add(base | {"embedding": base["embedding"][:, :8]}, spec, jax.random.key(0))
    with pytest.raises(ValueError, match="the model has an array"):
        peft.attach(base, {"embedding": {"a": base["embedding"]}})
