"""A mixture of experts is the sum over experts that its formula says, on every mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh, models, weights
from llmjax.models import experts as moe
from llmjax.models import grouped
from llmjax.spec import count, is_param

B, S, D, E, F, K = 8, 6, 8, 4, 6, 2
IMPLEMENTATIONS = ("blocks", "ragged", "gathered")

mix = jax.jit(moe.experts, static_argnames=("config", "limited", "implementation"))


def config_of(**fields) -> models.ModelConfig:
    options = {"count": E, "per_token": K, "dim": F}
    mixture = models.Experts(**options | {k: fields.pop(k) for k in list(fields) if k in FIELDS})
    sizes = {"vocab_size": 16, "num_layers": 2, "embed_dim": D, "num_heads": 2}
    return models.llama(**sizes | {"experts": mixture} | fields)


FIELDS = {field.name for field in dataclasses.fields(models.Experts)}


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(B, S, D)).astype(np.float32)


@pytest.fixture(scope="module")
def params(draw):
    return draw(moe.experts_spec(config_of()))


def softmax(logits):
    logits = np.exp(logits - logits.max(-1, keepdims=True))
    return logits / logits.sum(-1, keepdims=True)


def by_hand(params, x, config):
    """Token by token, expert by expert, in float64: the sum, and probabilities and choices."""
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    x = x.astype(np.float64)
    probabilities = softmax(x @ params["router"])
    chosen = np.argsort(-probabilities, axis=-1)[..., : config.experts.per_token]
    out = np.zeros_like(x)
    for place in np.ndindex(x.shape[:2]):
        shares = probabilities[place][chosen[place]]
        shares = shares / shares.sum() if config.experts.normalized else shares
        for e, share in zip(chosen[place], shares, strict=True):
            gate = x[place] @ params["gate"][e]
            inner = gate / (1 + np.exp(-gate)) * (x[place] @ params["up"][e])
            out[place] += share * (inner @ params["down"][e])
    return out, probabilities, chosen


def run(params, x, config, **options):
    """The sum, the routing, and the gradients of a function of both by weights and tokens."""

    def total(params, x):
        out, routing = mix(params, None, x, config=config, **options)
        loss = jnp.sum(jnp.sin(out)) + moe.balance_loss(routing, config)
        return loss, (out, routing)

    return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(params, x)


def check(actual, expected, tolerance=2e-5):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance),
        actual,
        expected,
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("fields", [{}, {"normalized": False, "per_token": 3}, {"per_token": 1}])
def test_equals_a_loop_over_tokens_and_experts(fields, implementation, x, params):
    config = config_of(**fields)
    out, _ = mix(params, None, x, config=config, implementation=implementation)
    np.testing.assert_allclose(out, by_hand(params, x, config)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("remat", ["none", "dots"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_are_slopes(implementation, remat, draw):
    """Along random directions, by central differences in float64 of the loop by hand."""
    config = config_of(remat=remat, dtype="float64")
    random = np.random.default_rng(1)
    point = draw(moe.experts_spec(config)), random.normal(size=(1, 5, D))
    direction = jax.tree.map(lambda a: random.normal(size=a.shape), point)

    def loss(step):
        there = jax.tree.map(lambda a, d: a + step * d, point, direction)
        return np.sum(np.sin(by_hand(*there, config)[0]))

    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    with jax.enable_x64(True):
        values = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), point)
        run = functools.partial(
            moe.experts, norm=None, config=config, implementation=implementation
        )
        gradients = jax.grad(lambda p, x: jnp.sum(jnp.sin(run(p, x=x)[0])), (0, 1))(*values)
        found = sum(
            np.sum(g * d)
            for g, d in zip(jax.tree.leaves(gradients), jax.tree.leaves(direction), strict=True)
        )
    np.testing.assert_allclose(found, slope, rtol=1e-6)


def test_no_token_is_dropped_where_all_choose_one_expert(x, params):
    """And experts without a token have a gradient of zero."""
    config = config_of(per_token=1)
    x = np.abs(x)
    params = params | {"router": np.zeros((D, E), np.float32)}
    params["router"][:, 2] = 10.0
    for implementation in IMPLEMENTATIONS:
        (_, (out, routing)), (gradients, _) = run(params, x, config, implementation=implementation)
        np.testing.assert_allclose(out, by_hand(params, x, config)[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(routing.copies, [0, 0, B * S, 0])
        for name in ("gate", "up", "down"):
            assert [bool(np.any(part)) for part in gradients[name]] == [False, False, True, False]


def first_come(chosen, there, capacity):
    """Which copies an expert takes: of each row first choices first, then earlier tokens."""
    kept = np.zeros(chosen.shape, bool)
    for row in range(len(chosen)):
        taken = np.zeros(E, int)
        for choice in range(chosen.shape[2]):
            for position in np.flatnonzero(there[row]):
                expert = chosen[row, position, choice]
                kept[row, position, choice] = taken[expert] < capacity
                taken[expert] += 1
    return kept


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_an_expert_takes_no_more_than_its_capacity(remat, x, params):
    """Of a row 6 · 2 / 4 · 0.6, rounded up, are 2 tokens; padding takes nobody's place."""
    config = config_of(capacity=0.6, remat=remat)
    segment_ids = np.ones((B, S), np.int32)
    segment_ids[::2, 1] = 0
    (_, (out, routing)), gradients = run(params, x, config, segment_ids=segment_ids)
    _, _, chosen = by_hand(params, x, config)
    there = segment_ids != 0
    kept = first_come(chosen, there, 2)
    assert routing.dropped == there.sum() * K - kept.sum() > 0
    np.testing.assert_array_equal(routing.copies, np.bincount(chosen[there].ravel(), minlength=E))

    def by_expert(params, x):
        """All experts of all tokens, most of them weighted by 0."""
        chances = jax.nn.softmax(x @ params["router"])
        shares = jnp.take_along_axis(chances, chosen, axis=-1)
        shares = shares / shares.sum(-1, keepdims=True) * kept
        weight = jnp.einsum("bsk,bske->bse", shares, jax.nn.one_hot(chosen, E))
        gate, up = (jnp.einsum("bsd,edf->bsef", x, params[name]) for name in ("gate", "up"))
        every = jnp.einsum("bsef,efd->bsed", jax.nn.silu(gate) * up, params["down"])
        total = jnp.einsum("bsed,bse->bsd", every, weight)
        share = np.bincount(chosen[there].ravel(), minlength=E) / there.sum()
        balance = E * jnp.sum(share * (chances * there[..., None]).sum((0, 1)) / there.sum())
        return jnp.sum(jnp.sin(total)) + balance, total

    expected_gradients, expected = jax.grad(by_expert, (0, 1), has_aux=True)(params, x)
    check(out, expected)
    check(gradients, expected_gradients)


def test_a_capacity_that_nobody_exceeds_changes_nothing(x, params):
    whole = run(params, x, config_of())
    check(run(params, x, config_of(capacity=float(E))), whole)
    limited, _ = mix(params, None, x, config=config_of(capacity=0.1), limited=False)
    check(limited, whole[0][1][0])


def test_places_are_given_in_the_order_of_positions(x, params):
    """Of sequences that devices share, in another order than they are read."""
    config, order = config_of(capacity=0.5), np.array([3, 0, 5, 1, 2, 4])
    out, routing = mix(params, None, x, config=config)
    positions = jnp.asarray(order, jnp.int32)
    mixed, again = mix(params, None, x[:, order], config=config, positions=positions)
    check(mixed, out[:, order])
    assert again.dropped == routing.dropped > 0


@pytest.mark.parametrize("size", [1, 2, 8])
def test_blocks_hold_each_copy_once_and_one_expert(size):
    random = np.random.default_rng(2)
    chosen = np.argsort(random.random((7, 5)), axis=1)[:, :3].astype(np.int32) - 1
    plan = jax.device_get(grouped.plan(jnp.asarray(chosen), 3, size))
    for (token, _), row, expert in zip(np.ndindex(7, 3), plan.rows.flat, chosen.flat, strict=True):
        if 0 <= expert < 3:
            assert plan.tokens[row] == token and plan.owners[row // size] == expert
        else:
            assert row == len(plan.tokens)
    here = (chosen >= 0) & (chosen < 3)
    assert len(np.unique(plan.rows[here])) == here.sum() == np.sum(plan.tokens < 7)
    assert sum(plan.sizes) <= len(plan.tokens)


def test_few_tokens_as_in_decoding(x, params):
    config = config_of()
    for implementation in IMPLEMENTATIONS:
        out, _ = mix(params, None, x[:1, :1], config=config, implementation=implementation)
        expected = by_hand(params, x[:1, :1], config)[0]
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_the_norm_comes_first(x, params):
    config = config_of()
    scale = np.linspace(0.5, 1.5, D, dtype=np.float32)
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * scale
    out, _ = mix(params, {"scale": scale}, x, config=config)
    expected = by_hand(params, normed, config)[0]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_keeps_its_type(x, params):
    config = config_of()
    out, routing = mix(params, None, x.astype(jnp.bfloat16), config)
    assert out.dtype == jnp.bfloat16 and routing.probabilities.dtype == jnp.float32
    expected = by_hand(params, np.asarray(x.astype(jnp.bfloat16), np.float32), config)[0]
    np.testing.assert_allclose(out, expected, rtol=0.05, atol=0.02 * np.abs(expected).max())


def test_quantised_weights(x, params):
    config = config_of()
    small = {
        name: weights.quantize(value, 2) if value.ndim == 3 else value
        for name, value in params.items()
    }
    whole = {name: np.asarray(weights.materialize(value)) for name, value in small.items()}
    out, _ = mix(small, None, x, config=config)
    np.testing.assert_allclose(out, by_hand(whole, x, config)[0], rtol=1e-5, atol=1e-5)


def test_routing_counts_all_but_padding(x, params):
    config = config_of()
    segment_ids = np.zeros((B, S), np.int32)
    segment_ids[:3, 1:4] = [1, 1, 2]
    _, routing = mix(params, None, x, config=config, segment_ids=segment_ids)
    _, probabilities, chosen = by_hand(params, x, config)
    there = segment_ids != 0
    assert routing.tokens == 9
    np.testing.assert_array_equal(routing.copies, np.bincount(chosen[there].ravel(), minlength=E))
    np.testing.assert_allclose(routing.probabilities, probabilities[there].sum(0), rtol=1e-5)


def test_balance_is_k_where_tokens_are_spread_evenly_and_e_where_one_has_all():
    even = moe.Routing(
        jnp.full(E, 10.0 * K / E), jnp.full(E, 10.0 / E), jnp.float32(10), jnp.float32(0)
    )
    assert moe.balance_loss(even, config_of()) == pytest.approx(K)
    one = jnp.zeros(E).at[1].set(10.0)
    assert moe.balance_loss(
        moe.Routing(one, one, jnp.float32(10), jnp.float32(0)), config_of()
    ) == pytest.approx(E)
    none = jax.tree.map(jnp.zeros_like, even)
    assert moe.balance_loss(none, config_of()) == 0.0
    twice = jax.tree.map(lambda a: 2 * a, even)  # of two layers alike
    assert moe.balance_loss(twice, config_of()) == pytest.approx(K)


# Devices for data, fsdp, tensor and expert.
MESHES = [(2, 1, 2, 2), (1, 2, 2, 2), (2, 2, 1, 2), (1, 1, 1, 4), (1, 1, 1, 1)]


@pytest.mark.parametrize(
    ("sizes", "implementation"),
    [(sizes, "blocks") for sizes in MESHES]
    + [(MESHES[0], "ragged"), (MESHES[1], "gathered"), (MESHES[2], "limited")],
)
def test_every_mesh_equals_one_device(sizes, implementation, x, params):
    """Tokens travel to the devices that have their experts, however many choose one."""
    capacity, implementation = (1.0, None) if implementation == "limited" else (0, implementation)
    config = config_of(remat="dots" if sizes[0] == 2 else "none", capacity=capacity)
    spec = moe.experts_spec(config)
    segment_ids = np.tile(np.arange(S, dtype=np.int32) % 3, (B, 1))
    alone = run(params, x, config, segment_ids=segment_ids, implementation="blocks")
    assert (alone[0][1][1].dropped > 0) == bool(capacity)
    devices = jax.devices()[: int(np.prod(sizes))]
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(*sizes), devices)):
        placed = jax.tree.map(
            lambda param, value: jax.device_put(value, mesh.named_sharding(param.axes)),
            spec,
            params,
            is_leaf=is_param,
        )
        there = jax.device_put(x, mesh.named_sharding(("batch", "sequence", None)))
        segments = mesh.shard_batch({"segment_ids": segment_ids})["segment_ids"]
        spread = run(placed, there, config, segment_ids=segments, implementation=implementation)
        gate = spread[1][0]["gate"].sharding.spec
        assert gate == mesh.named_sharding(spec["gate"].axes).spec
    check(jax.device_get(spread), alone)


def test_a_mesh_without_the_axis_has_all_experts_everywhere(x, params):
    config = config_of()
    alone = run(params, x, config)
    with jax.set_mesh(jax.make_mesh((4, 2), ("data", "tensor"))):
        placed = jax.tree.map(
            lambda param, value: jax.device_put(value, mesh.named_sharding(param.axes)),
            moe.experts_spec(config),
            params,
            is_leaf=is_param,
        )
        there = jax.device_put(x, mesh.named_sharding(("batch", "sequence", None)))
        check(jax.device_get(run(placed, there, config)), alone)


def test_what_experts_declare():
    spec = moe.experts_spec(config_of())
    assert {name: param.shape for name, param in spec.items()} == {
        "router": (D, E),
        "gate": (E, D, F),
        "up": (E, D, F),
        "down": (E, F, D),
    }
    assert count(spec) == D * E + 3 * E * D * F
    assert moe.experts_spec(config_of(dim=0, mlp_dim=10))["up"].shape == (E, D, 10)


@functools.cache
def torch_block(normalized: bool):
    """The mixture of transformers in float64 with weights of its own, and its config."""
    import torch
    from transformers.models.qwen3_moe import modeling_qwen3_moe as theirs

    settings = theirs.Qwen3MoeConfig(
        hidden_size=D,
        num_experts=E,
        num_experts_per_tok=K,
        moe_intermediate_size=F,
        norm_topk_prob=normalized,
    )
    settings._experts_implementation = "eager"
    block = theirs.Qwen3MoeSparseMoeBlock(settings).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
    return block


@pytest.mark.parity
@pytest.mark.parametrize("normalized", [False, True])
def test_values_and_gradients_are_those_of_transformers(normalized, x):
    torch = pytest.importorskip("torch")
    block = torch_block(normalized)
    given = torch.from_numpy(x).double().requires_grad_()
    block.zero_grad()
    out = block(given)
    torch.sin(out).sum().backward()

    def ours(named):
        gate, up = np.split(named["experts.gate_up_proj"], 2, axis=1)
        tree = {"router": named["gate.weight"].T, "gate": gate.swapaxes(1, 2)}
        tree |= {"up": up.swapaxes(1, 2), "down": named["experts.down_proj"].swapaxes(1, 2)}
        return {name: value.astype(np.float32) for name, value in tree.items()}

    named = {name: p.detach().numpy() for name, p in block.named_parameters()}
    slopes = {name: p.grad.numpy() for name, p in block.named_parameters()}
    config = config_of(normalized=normalized)

    def total(params, x):
        out, _ = mix(params, None, x, config=config)
        return jnp.sum(jnp.sin(out)), out

    gradients, found = jax.grad(total, (0, 1), has_aux=True)(ours(named), x)
    np.testing.assert_allclose(found, out.detach().numpy(), rtol=1e-4, atol=1e-4)
    check(gradients, (ours(slopes), given.grad.numpy().astype(np.float32)), 2e-4)


@pytest.mark.parity
@pytest.mark.parametrize("masked", [False, True])
def test_the_balance_loss_is_that_of_transformers(masked, x, params):
    """Of two layers, whose sums add up."""
    torch = pytest.importorskip("torch")
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    config = config_of()
    segment_ids = np.tile(np.arange(S, dtype=np.int32) % 3, (B, 1)) if masked else None
    layers = [x, 2 * x[::-1]]
    total = jax.tree.map(
        lambda *sums: sum(sums),
        *(mix(params, None, y, config=config, segment_ids=segment_ids)[1] for y in layers),
    )
    logits = tuple(torch.from_numpy((y @ params["router"]).reshape(-1, E)) for y in layers)
    mask = torch.from_numpy((segment_ids != 0).astype(np.int64)) if masked else None
    expected = load_balancing_loss_func(logits, E, K, mask)
    np.testing.assert_allclose(moe.balance_loss(total, config), expected.numpy(), rtol=1e-6)
