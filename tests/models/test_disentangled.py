"""DeBERTa's parts are those of the papers and of the released models, on packed rows and meshes."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from llmjax import mesh, models, tree
from llmjax.kernels.disentangled_attention import xla
from llmjax.kernels.flash_attention import Mask
from llmjax.models import blocks, disentangled
from llmjax.models.attention import attention_spec
from llmjax.spec import is_param
from tests.models import deberta_oracle as oracle

B, S, D, H = 4, 10, 8, 2
BOTH = ("c2p", "p2c")
OPTIONS = {
    "both, shared, buckets": models.Disentangled(BOTH, 8, 6, norm=True),
    "both, of their own": models.Disentangled(BOTH, 4, shared=False),
    "c2p": models.Disentangled(("c2p",), 16, shared=False, norm=True),
    "p2c": models.Disentangled(("p2c",), 3, shared=False),
    "p2c first, shared": models.Disentangled(("p2c", "c2p"), 9, 4),
}
SEGMENTS = np.array(
    [
        [1, 1, 1, 1, 2, 2, 2, 2, 2, 0],
        [1, 1, 1, 2, 2, 2, 2, 3, 3, 3],
        [0, 0, 1, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ],
    np.int32,
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Three blocks of rows, the last one shorter."""
    monkeypatch.setattr(xla, "MIN_BLOCK", 4)


def make_config(options, **fields):
    sizes = {"vocab_size": 32, "num_layers": 2, "embed_dim": D, "num_heads": H, "mlp_dim": 12}
    fields = {"dtype": "float64", "scan_layers": False, "norm_epsilon": 1e-6} | fields
    return models.deberta(disentangled=options, dropout=models.Dropout(), **sizes | fields)


def attention_params(config, draw):
    spec = {
        "attention": attention_spec(config) | disentangled.disentangled_spec(config),
        "relative": disentangled.relative_spec(config),
    }
    return float64(draw(spec))


def float64(values):
    return jax.tree.map(lambda value: np.asarray(value, np.float64), values)


def states(seed, rows=B):
    return np.random.default_rng(seed).normal(size=(rows, S, D))


def allowed(segments):
    return (segments[:, :, None] == segments[:, None]) & (segments[:, :, None] != 0)


def run(config, params, x, segments, queries=None, key=None):
    relative = disentangled.relative_states(params["relative"], config)
    context = {"mask": Mask(segments, causal=False), "relative": relative, "queries": queries}
    return disentangled.disentangled_attention(
        params["attention"], None, x, config, key=key, **context
    )


def run_oracle(config, params, x, segments, queries=None):
    table = params["relative"]["table"]
    if config.disentangled.norm:
        table = oracle.norm(params["relative"]["norm"], table, config.norm_epsilon)
    rows = zip(x, x if queries is None else queries, allowed(segments), strict=True)
    attend = functools.partial(oracle.attention, params["attention"], config.disentangled, table)
    return np.stack([attend(*row) for row in rows])


@pytest.mark.parametrize("name", OPTIONS)
def test_attention_is_the_papers(name, draw):
    config = make_config(OPTIONS[name])
    params, x, queries = attention_params(config, draw), states(0), states(1)
    with jax.enable_x64(True):
        actual = jax.jit(functools.partial(run, config))(params, x, SEGMENTS)
        other = jax.jit(functools.partial(run, config))(params, x, SEGMENTS, queries)
    expected = run_oracle(config, params, x, SEGMENTS)
    # Rounding is 5e-16 in most processes and has been 5e-12 in some, on a loaded machine.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10)
    other_expected = run_oracle(config, params, x, SEGMENTS, queries)
    np.testing.assert_allclose(other, other_expected, rtol=0, atol=1e-10)
    assert np.abs(expected - other_expected).max() > 0.1


@pytest.mark.parametrize("name", ["both, shared, buckets", "both, of their own"])
@pytest.mark.parametrize("remat", ["none", "dots"])
def test_gradients_are_the_papers(name, remat, draw):
    """By central differences of the oracle, at the largest entry of every parameter's gradient."""
    config = make_config(OPTIONS[name], remat=remat)
    segments, weights = SEGMENTS[1:], states(2, 3)
    given = attention_params(config, draw) | {"x": states(0, 3), "queries": states(1, 3)}

    def loss(run, given):
        return (weights * run(config, given, given["x"], segments, given["queries"])).sum()

    with jax.enable_x64(True):
        gradients = jax.device_get(jax.jit(jax.grad(functools.partial(loss, run)))(given))

    def check(path, gradient, value):
        place = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
        # The bias of a position's key adds as much to all scores of a query: nothing depends on it.
        assert (abs(gradient[place]) > 1e-3) == (path != "attention/position_key_bias"), path
        ends, kept = [], value[place]
        for step in (1e-5, -1e-5):
            value[place] = kept + step
            ends.append(loss(run_oracle, given))
        value[place] = kept
        slope = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(gradient[place], slope, rtol=1e-6, atol=1e-8, err_msg=path)

    tree.map_with_path(check, gradients, given)


def test_a_padded_row_has_no_attention_and_no_gradient_of_nan(draw):
    config = make_config(OPTIONS["both, shared, buckets"], dtype="float32")
    params, x = attention_params(config, draw), states(0).astype(np.float32)

    def total(x):
        out = run(config, params, x, SEGMENTS)
        return out.sum(), out

    gradient, out = jax.jit(jax.grad(total, has_aux=True))(x)
    bias = params["attention"]["out_bias"].astype(np.float32)
    np.testing.assert_array_equal(out[3], np.tile(bias, (S, 1)))
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[SEGMENTS == 0].any()


def test_rows_of_the_table_by_distance():
    config = make_config(models.Disentangled(BOTH, 40, 12))
    rows = disentangled.relative_rows(60, config)
    expected = [oracle.delta(59, j, config.disentangled) for j in range(119)]
    np.testing.assert_array_equal(rows, expected)
    assert (rows[0], rows[59], rows[-1]) == (23, 12, 0)


@pytest.mark.parametrize(("buckets", "distance"), [(1, 8), (8, 5), (12, 6)])
def test_buckets_that_leave_no_room_for_a_logarithm_are_named(buckets, distance):
    config = make_config(models.Disentangled(BOTH, distance, buckets))
    with pytest.raises(ValueError, match=f"buckets={buckets}, max_distance={distance}"):
        disentangled.relative_rows(4, config)


def test_options_without_meaning_here_are_named():
    attention = models.Attention(causal=False, cap=50.0)
    config = make_config(OPTIONS["c2p"], attention=attention)
    with pytest.raises(ValueError, match=r"attention\.cap=50\.0"):
        disentangled.disentangled_spec(config)


def test_parameters_beside_those_of_attention():
    both, one = (make_config(OPTIONS[name]) for name in ("both, of their own", "p2c"))
    sides = {"position_key", "position_query"}
    assert set(disentangled.disentangled_spec(both)) == sides | {f"{side}_bias" for side in sides}
    assert set(disentangled.disentangled_spec(one)) == {"position_query", "position_query_bias"}
    unbiased = dataclasses.replace(one, bias="none")
    assert set(disentangled.disentangled_spec(unbiased)) == {"position_query"}
    assert not disentangled.disentangled_spec(make_config(OPTIONS["p2c first, shared"]))


def convolve(config, params, inputs, outputs, segments):
    return disentangled.convolution(params, inputs, outputs, config, segment_ids=segments)


@pytest.mark.parametrize("width", [1, 3, 5])
def test_convolution_is_the_oracles(width, draw):
    config = make_config(models.Disentangled(BOTH, convolution=width))
    params = float64(draw(disentangled.convolution_spec(config)))
    with jax.enable_x64(True):
        actual = jax.jit(functools.partial(convolve, config))(
            params, states(0), states(1), SEGMENTS
        )
        whole = convolve(config, params, states(0), states(1), None)
    for segments, results in ((SEGMENTS, actual), (np.ones_like(SEGMENTS), whole)):
        expected = [
            oracle.convolution(params, *row, np.tanh, config.norm_epsilon)
            for row in zip(states(0), states(1), segments, strict=True)
        ]
        np.testing.assert_allclose(results, expected, rtol=0, atol=1e-12)


def test_packed_documents_are_as_alone(draw):
    """Attention and convolution, against rows that hold one document each, from their start."""
    config = make_config(models.Disentangled(BOTH, 8, 6, convolution=3))
    params = attention_params(config, draw)
    kernel = float64(draw(disentangled.convolution_spec(config)))
    x, row = states(0), 1

    def both(x, segments):
        mixed = run(config, params, x, segments)
        return mixed, convolve(config, kernel, x, mixed, segments)

    alone, alone_segments = np.zeros((B, S, D)), np.zeros_like(SEGMENTS)
    places = [np.flatnonzero(SEGMENTS[row] == segment) for segment in (1, 2, 3)]
    for index, place in enumerate(places):
        alone[index, : len(place)] = x[row, place]
        alone[index, len(place) :] = 7.0  # padding, which nothing may see
        alone_segments[index, : len(place)] = 1
    with jax.enable_x64(True):
        both = jax.jit(both)
        packed, separate = both(x, SEGMENTS), both(alone, alone_segments)
    for result, expected in zip(packed, separate, strict=True):
        for index, place in enumerate(places):
            np.testing.assert_allclose(
                result[row, place], expected[index, : len(place)], rtol=0, atol=1e-12
            )


@pytest.mark.parametrize("applications", [1, 2, 3])
def test_mask_decoder_is_the_papers(applications, draw):
    options = dataclasses.replace(OPTIONS["both, of their own"], mask_decoder=applications)
    config = make_config(options)
    spec = {"layer": blocks.block_spec(config), "relative": disentangled.relative_spec(config)}
    params = float64(draw(spec))
    hidden, positions = states(0), states(1, 1)

    def decode(params, hidden, positions):
        relative = disentangled.relative_states(params["relative"], config)
        context = blocks.Context(Mask(SEGMENTS, causal=False), None, relative)
        layer = {"params": params["layer"], "key": None, "cache": None}

        def block(queries, seen):
            return blocks.block(config, queries, layer, context, seen)[0]

        return disentangled.mask_decoder(block, positions, hidden, config)

    with jax.enable_x64(True):
        actual = jax.jit(decode)(params, hidden, positions)
    table = params["relative"]["table"]
    for result, *row in zip(actual, hidden, allowed(SEGMENTS), strict=True):
        expected = oracle.mask_decoder(
            params["layer"], options, table, positions[0], *row, config.norm_epsilon
        )
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-11)


def test_a_mesh_equals_one_device(draw, monkeypatch):
    """Values and gradients, with dropout; the mesh also computes activations again."""
    monkeypatch.setattr(xla, "MIN_BLOCK", 8)
    options = models.Disentangled(BOTH, 8, 6, shared=False, norm=True, convolution=3)
    config = dataclasses.replace(
        make_config(options, dtype="float32"),
        dropout=models.Dropout(attention=0.2, hidden=0.2),
    )
    spec = {
        "attention": attention_spec(config) | disentangled.disentangled_spec(config),
        "relative": disentangled.relative_spec(config),
        "convolution": disentangled.convolution_spec(config),
    }
    params = draw(spec)
    batch = {"x": states(0), "queries": states(1), "weights": states(2)}
    batch = {name: value.astype(np.float32) for name, value in batch.items()}

    def loss(config, params, batch, segments, key):
        keys = jax.random.split(key)
        mixed = run(config, params, batch["x"], segments, batch["queries"], keys[0])
        out = disentangled.convolution(
            params["convolution"], batch["x"], mixed, config, segment_ids=segments, key=keys[1]
        )
        return (batch["weights"] * out).sum()

    def gradients(config, place):
        placed = jax.tree.map(
            lambda param, value: place(value, param.axes), spec, params, is_leaf=is_param
        )
        rows = {name: place(value, ("batch", None, None)) for name, value in batch.items()}
        segments = place(SEGMENTS, ("batch", None))
        step = jax.jit(jax.value_and_grad(functools.partial(loss, config), argnums=(0, 1)))
        return jax.device_get(step(placed, rows, segments, jax.random.key(3)))

    expected = gradients(config, lambda value, axes: value)
    recomputing = dataclasses.replace(config, remat="dots")
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(2, 2, 2))):
        actual = gradients(
            recomputing, lambda value, axes: jax.device_put(value, mesh.named_sharding(axes))
        )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), actual, expected
    )


@pytest.fixture
def deberta():
    """The module of transformers, and torch in float64."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.deberta_v2 import modeling_deberta_v2

    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield modeling_deberta_v2
    torch.set_default_dtype(kept)


def their_config(config):
    from transformers import DebertaV2Config

    options = config.disentangled
    return DebertaV2Config(
        hidden_size=D,
        num_attention_heads=H,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=config.norm_epsilon,
        relative_attention=True,
        max_relative_positions=options.max_distance,
        position_buckets=options.buckets or -1,
        pos_att_type=list(options.terms),
        share_att_key=options.shared,
        conv_kernel_size=options.convolution,
        conv_act=options.convolution_activation,
    )


@pytest.mark.parity
@pytest.mark.parametrize("buckets, distance", [(256, 512), (32, 100), (7, 40), (2, 9), (0, 50)])
def test_rows_of_the_table_are_transformers(buckets, distance, deberta):
    import torch

    torch.set_default_dtype(torch.float32)  # as models are made: ties of the logarithm round so
    config = make_config(models.Disentangled(BOTH, distance, buckets))
    length, span = 600, config.disentangled.span
    x = torch.zeros(1, length, 1)
    theirs = deberta.build_relative_position(x, x, buckets or -1, distance)[0]
    theirs = torch.clamp(theirs + span, 0, 2 * span - 1).numpy()
    rows = disentangled.relative_rows(length, config)
    ours = rows[length - 1 - np.arange(length)[:, None] + np.arange(length)]
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parity
@pytest.mark.parametrize("name", OPTIONS)
def test_attention_is_transformers(name, deberta, draw):
    """With the identity behind the heads, which transformers' module has not."""
    import torch

    config = make_config(OPTIONS[name])
    params, x, queries = attention_params(config, draw), states(0), states(1)
    params["attention"]["out"] = np.eye(D).reshape(H, D // H, D)
    params["attention"]["out_bias"][:] = 0
    module = deberta.DisentangledSelfAttention(their_config(config))
    for theirs, linear in module.named_children():
        if not theirs.endswith("_proj"):
            continue
        ours = theirs.removesuffix("_proj").replace("pos_", "position_")
        linear.weight.data = torch.tensor(params["attention"][ours].reshape(D, D)).T
        linear.bias.data = torch.tensor(params["attention"][f"{ours}_bias"].reshape(D))
    with jax.enable_x64(True):
        relative = disentangled.relative_states(params["relative"], config)
        actual = jax.jit(functools.partial(run, config))(params, x, SEGMENTS, queries)
    expected, _ = module(
        torch.tensor(x),
        torch.tensor(allowed(SEGMENTS))[:, None],
        query_states=torch.tensor(queries),
        rel_embeddings=torch.tensor(np.array(relative)),
    )
    real = SEGMENTS != 0
    # They take the square root of the channels in float32.
    np.testing.assert_allclose(
        np.asarray(actual)[real], expected.detach().numpy()[real], rtol=0, atol=1e-6
    )


@pytest.mark.parity
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_convolution_is_transformers(activation, deberta, draw):
    import torch

    options = models.Disentangled(BOTH, convolution=3, convolution_activation=activation)
    config = make_config(options)
    params = float64(draw(disentangled.convolution_spec(config)))
    module = deberta.ConvLayer(their_config(config))
    module.conv.weight.data = torch.tensor(params["kernel"].transpose(2, 1, 0).copy())
    module.conv.bias.data = torch.tensor(params["bias"])
    module.LayerNorm.weight.data = torch.tensor(params["norm"]["scale"])
    module.LayerNorm.bias.data = torch.tensor(params["norm"]["bias"])
    segments = np.minimum(SEGMENTS, 1)
    # transformers embeds padding as zeros; here the convolution takes it for zeros.
    inputs = np.where(segments[..., None] == 0, 0.0, states(0))
    expected = module(torch.tensor(inputs), torch.tensor(states(1)), torch.tensor(segments))
    with jax.enable_x64(True):
        actual = convolve(config, params, states(0), states(1), segments)
    np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=0, atol=1e-12)
