"""Law 8: cross entropy by chunks or tiles equals its reference, and holds no B·S×V array."""

import functools
import math
import re

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.test_util import check_grads

from llmjax import mesh
from llmjax.kernels.linear_cross_entropy import (
    linear_cross_entropy,
    linear_log_probs,
    pallas_gpu,
    pallas_tpu,
    xla,
)
from llmjax.weights import Held

B, S, D, V = 2, 12, 8, 40
OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 0.01},
    "both": {"label_smoothing": 0.1, "z_loss": 0.01},
    "biased": {"bias": np.random.RandomState(3).randn(40).astype(np.float32), "cap": 3.0},
    "capped": {"label_smoothing": 0.1, "z_loss": 0.01, "cap": 2.0},
}


def inputs(dtype=np.float32, length=S, vocab=V):
    random = np.random.RandomState(2)
    hidden = random.randn(B, length, D).astype(dtype)
    weight = random.randn(vocab, D).astype(dtype)
    targets = random.randint(0, vocab, (B, length)).astype(np.int32)
    targets[0, 3:6] = targets[1, -1] = -1
    return hidden, weight, targets


def program(**options):
    """A new function, so that it is traced anew: (sum, losses), gradients of 3 · sum."""

    def scaled(hidden, weight, targets):
        total, losses = linear_cross_entropy(hidden, weight, targets, **options)
        return 3.0 * total, (total, losses)

    return jax.jit(jax.grad(scaled, argnums=(0, 1), has_aux=True))


def assert_equal(actual, expected, rtol=2e-5, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), actual, expected)


@pytest.fixture
def chunks_of_3(monkeypatch):
    monkeypatch.setattr(xla, "CHUNK_BYTES", 3 * 4 * B * V)
    assert xla.chunks(np.zeros((B, S, D)), V) == 4


@pytest.fixture
def tiles_of_8(monkeypatch):
    """Several of tokens and, the last one ragged, of the vocabulary."""
    for name, size in {"LANES": 8, "FIXED": 16, "PASSING": 8}.items():
        monkeypatch.setattr(pallas_tpu, name, size)
    blocks = pallas_gpu.Blocks(tokens=16, vocab=16, width=4)
    monkeypatch.setattr(pallas_gpu, "BLOCKS", {2: blocks, 4: blocks})
    sizes = {"SMALLEST": 4, "CHUNK": 48, "GROUP": 2, "PROCESSORS": 3, "SPLITS": 2}
    for name, size in sizes.items():
        monkeypatch.setattr(pallas_gpu, name, size)


@pytest.fixture(params=["xla", "pallas_tpu", "pallas_gpu"])
def implementation(request, chunks_of_3, tiles_of_8):
    """Every one that runs here, in several pieces; Pallas' kernels are interpreted."""
    return request.param


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_reference(options, implementation):
    expected = program(implementation="reference", **OPTIONS[options])(*inputs())
    assert_equal(program(implementation=implementation, **OPTIONS[options])(*inputs()), expected)


@pytest.mark.parametrize("options", OPTIONS)
def test_in_one_piece_equals_reference(options):
    expected = program(implementation="reference", **OPTIONS[options])(*inputs())
    assert_equal(program(implementation="xla", **OPTIONS[options])(*inputs()), expected)


def test_without_gradient_equals_reference(implementation):
    run = functools.partial(linear_cross_entropy, implementation=implementation)
    assert_equal(
        jax.jit(run)(*inputs()), linear_cross_entropy(*inputs(), implementation="reference")
    )


SHAPES = {
    "sizes": st.tuples(
        st.integers(1, 2), st.integers(1, 20), st.integers(1, 9), st.integers(2, 70)
    ),
    "cap": st.sampled_from([0.0, 2.0]),
    "label_smoothing": st.sampled_from([0.0, 0.1]),
    "biased": st.booleans(),
    "seed": st.integers(0, 1000),
}


@pytest.mark.parametrize("examples", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_any_shape_equals_reference(implementation, examples):
    def check(sizes, cap, label_smoothing, biased, seed):
        batch, length, width, vocab = sizes
        random = np.random.RandomState(seed)
        hidden, weight = (
            random.randn(*shape).astype(np.float32)
            for shape in ((batch, length, width), (vocab, width))
        )
        targets = random.randint(-1, vocab, (batch, length)).astype(np.int32)
        options = {"cap": cap, "label_smoothing": label_smoothing, "z_loss": 0.01}
        options["bias"] = random.randn(vocab).astype(np.float32) if biased else None
        actual = program(implementation=implementation, **options)(hidden, weight, targets)
        expected = program(implementation="reference", **options)(hidden, weight, targets)
        assert_equal(actual, expected, atol=2e-5)

    # Every shape is compiled anew: few a run, others in each.
    settings = hypothesis.settings(max_examples=examples, deadline=None)
    settings(hypothesis.given(**SHAPES)(check))()


def log_probs(implementation, **options):
    """Log-probabilities, entropies and the gradients of a weighted sum of both."""
    random = np.random.RandomState(5)
    weights = random.randn(2, B, S).astype(np.float32)

    def weighted(hidden, weight, targets):
        found = linear_log_probs(
            hidden, weight, targets, entropy=True, implementation=implementation, **options
        )
        return sum(jnp.sum(x * w) for x, w in zip(found, weights, strict=True)), found

    return jax.jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("options", [{}, {"bias": OPTIONS["biased"]["bias"], "cap": 3.0}])
def test_log_probs_equal_reference(options, implementation):
    expected = log_probs("reference", **options)(*inputs())
    assert_equal(log_probs(implementation, **options)(*inputs()), expected)


def test_log_probs_are_the_losses_with_another_sign(implementation):
    found, entropies = linear_log_probs(*inputs(), implementation=implementation)
    _, losses = linear_cross_entropy(*inputs(), implementation=implementation)
    assert entropies is None
    np.testing.assert_allclose(-found, losses, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("tensor", [1, 4])
def test_every_device_has_its_tokens_and_its_part_of_the_vocabulary(tensor, implementation):
    hidden, weight, targets = (np.concatenate([x, x]) for x in inputs())
    weight = weight[:V]
    expected = log_probs_of_both(implementation)(hidden, weight, targets)
    config = mesh.MeshConfig(data=4 // tensor, tensor=tensor)
    with jax.set_mesh(mesh.make_mesh(config, jax.devices()[:4])):
        placed = (
            mesh.place(jnp.asarray(hidden), ("batch", None, None)),
            mesh.place(jnp.asarray(weight), ("vocab", "embed")),
            mesh.place(jnp.asarray(targets), ("batch", None)),
        )
        actual = log_probs_of_both(implementation)(*placed)
    assert_equal(actual, expected)


@pytest.mark.parametrize("name", ["xla", "pallas_tpu"])
def test_replicas_keep_their_terms_of_the_gradient(name, chunks_of_3, tiles_of_8):
    """Terms that are not summed yet add up to the gradient."""
    hidden, weight, targets = (np.concatenate([x, x]) for x in inputs())
    weight = weight[:V]

    def both(weight, hidden, targets, implementation):
        chosen = {"implementation": implementation, "cap": 3.0}
        total, _ = linear_cross_entropy(hidden, weight, targets, **chosen)
        logs, entropies = linear_log_probs(hidden, weight, targets, entropy=True, **chosen)
        return 3.0 * total + jnp.sum(logs) ** 2 / 50 - jnp.sum(entropies)

    expected = jax.grad(both)(weight, hidden, targets, "reference")
    config = mesh.MeshConfig(data=2, fsdp=2)
    with jax.set_mesh(mesh.make_mesh(config, jax.devices()[:4])):
        placed = mesh.shard_batch({"hidden": hidden, "targets": targets})
        split = mesh.place(jnp.asarray(weight), ("vocab", "outer_embed"))
        terms = jnp.zeros((2, V, D), out_sharding=jax.P("data", None, "fsdp"))

        @jax.jit
        def gradient(split, terms):
            def of_terms(terms):
                return both(Held(split, terms=terms), *placed.values(), name)

            return jax.grad(of_terms)(terms)

        found = gradient(split, terms)
        assert found.sharding.spec == terms.sharding.spec
    assert_equal(np.asarray(found).sum(axis=0), expected, atol=5e-5)


@pytest.mark.parametrize("length", [3, S])
def test_a_batch_of_one_row_on_a_mesh(length, chunks_of_3):
    """In one chunk and in several."""
    hidden, weight, targets = (x[:1, :length] if x.shape[0] == B else x for x in inputs())
    expected = program(implementation="reference")(hidden, weight, targets)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(), jax.devices()[:1])):
        placed = mesh.shard_batch({"hidden": hidden, "targets": targets})
        arrays = placed["hidden"], mesh.place(jnp.asarray(weight), ("vocab", "embed"))
        assert_equal(program(implementation="xla")(*arrays, placed["targets"]), expected)


def log_probs_of_both(implementation):
    """Losses, log-probabilities, entropies and gradients."""

    def run(hidden, weight, targets):
        found = linear_log_probs(
            hidden, weight, targets, entropy=True, implementation=implementation
        )
        total, _ = linear_cross_entropy(
            hidden, weight, targets, label_smoothing=0.1, implementation=implementation
        )
        return total + sum(jnp.sum(jnp.sin(x)) for x in found), found

    return jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("call", [linear_cross_entropy, linear_log_probs])
def test_an_unknown_implementation_is_named(call):
    with pytest.raises(ValueError, match="'fastest' is none of xla, pallas_tpu"):
        call(*inputs(), implementation="fastest")


def test_the_kernel_takes_its_room_into_account():
    hidden, weight, targets = jax.eval_shape(
        lambda: (jnp.zeros((1, 8, 2**15)), jnp.zeros((16, 2**15)), jnp.zeros((1, 8), jnp.int32))
    )
    run = functools.partial(linear_cross_entropy, implementation="pallas_tpu")
    with pytest.raises(ValueError, match=r"supports up to \d+ channels of float32, not 32768"):
        jax.eval_shape(run, hidden, weight, targets)


def test_reference_against_a_sum_over_the_vocabulary():
    """The definition, token by token in numpy: smoothed cross entropy plus z · Z²."""
    hidden, weight, targets = inputs(np.float64)
    _, losses = linear_cross_entropy(
        *inputs(), implementation="reference", label_smoothing=0.1, z_loss=0.01
    )
    for row, position in np.ndindex(B, S):
        target = targets[row, position]
        logits = weight @ hidden[row, position]
        log_sum = math.log(sum(math.exp(logit) for logit in logits))
        wanted = np.full(V, 0.1 / V) + np.where(np.arange(V) == target, 0.9, 0.0)
        loss = -(wanted * (logits - log_sum)).sum() + 0.01 * log_sum**2
        np.testing.assert_allclose(losses[row, position], loss if target >= 0 else 0.0, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_against_finite_differences(implementation, chunks_of_3):
    with jax.enable_x64(True):
        hidden, weight, targets = inputs(np.float64)
        options = {"cap": 2.0, "implementation": implementation}

        def total(hidden, weight):
            arrays = (hidden, weight, targets)
            loss, _ = linear_cross_entropy(*arrays, label_smoothing=0.1, z_loss=0.01, **options)
            found = linear_log_probs(*arrays, entropy=True, **options)
            return loss + sum(jnp.sum(jnp.sin(x)) for x in found)

        check_grads(jax.jit(total), (hidden, weight), order=1, modes=("rev",), rtol=1e-6, atol=1e-6)


def test_targets_of_minus_one_cost_nothing(implementation):
    run = program(implementation=implementation, **OPTIONS["both"])
    hidden, weight, targets = inputs()
    (grad_hidden, grad_weight), (_, losses) = run(hidden, weight, targets)
    assert np.array_equal(np.asarray(losses) == 0.0, targets < 0)
    assert not np.any(np.asarray(grad_hidden)[targets < 0])
    # Nor does it matter what their hidden states are.
    hidden[targets < 0] = 1e4
    assert_equal(run(hidden, weight, targets)[0][1], grad_weight)


def test_no_target_at_all_gives_zeros(implementation):
    hidden, weight, targets = inputs()
    run = program(z_loss=0.01, implementation=implementation)
    grads, (total, losses) = run(hidden, weight, np.full_like(targets, -1))
    assert not any(np.any(x) for x in (*grads, total, losses))


def test_large_logits_do_not_overflow(implementation):
    hidden, weight, targets = inputs()
    grads, (total, losses) = program(implementation=implementation)(1e3 * hidden, weight, targets)
    assert all(np.all(np.isfinite(x)) for x in (*grads, total, losses))


@pytest.mark.parametrize("weights", [np.float32, jnp.bfloat16])
def test_bfloat16_stays_near_float32(weights, implementation):
    """Logits of bfloat16 products are summed in float32, so only inputs and results are rounded."""
    hidden, weight, targets = inputs()
    hidden, rounded = hidden.astype(jnp.bfloat16), weight.astype(jnp.bfloat16).astype(np.float32)
    run = program(implementation=implementation)
    (grad_hidden, grad_weight), (total, losses) = run(hidden, rounded.astype(weights), targets)
    assert (grad_hidden.dtype, grad_weight.dtype) == (jnp.bfloat16, weights)
    exact = program(implementation="reference")(hidden.astype(np.float32), rounded, targets)
    assert_equal((total, losses), exact[1], rtol=1e-4, atol=1e-4)
    wide = [np.asarray(grad, np.float32) for grad in (grad_hidden, grad_weight)]
    assert_equal(tuple(wide), exact[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("length", [1, 12, 13, 64])
@pytest.mark.parametrize("fits", [1, 3, 10**6])
def test_chunks_fit_and_are_few(length, fits, monkeypatch):
    """Fewer than twice as many as must be, even of a prime length, and none is of padding alone."""
    monkeypatch.setattr(xla, "CHUNK_BYTES", fits * 4 * B * V)
    count = xla.chunks(np.zeros((B, length, D)), V)
    size = math.ceil(length / count)
    assert size <= fits
    assert count == math.ceil(length / size)
    assert count < 2 * math.ceil(length / fits)


@pytest.mark.parametrize("options", ["both", "biased"])
def test_a_prime_length_equals_reference(options, chunks_of_3):
    """Its last chunk is padded."""
    arrays = inputs(length=13)
    expected = program(implementation="reference", **OPTIONS[options])(*arrays)
    assert_equal(program(implementation="xla", **OPTIONS[options])(*arrays), expected)
    expected = log_probs_of_both("reference")(*arrays)
    assert_equal(log_probs_of_both("xla")(*arrays), expected)


def test_a_padded_chunk_on_a_mesh(monkeypatch):
    """26 positions, split in two over `context`, in 6 chunks of at most 5."""
    hidden, weight, targets = inputs(length=26)
    expected = program(implementation="reference")(hidden, weight, targets)
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(context=2), jax.devices()[:2])):
        rows = -(-B // mesh.size("tokens"))
        monkeypatch.setattr(xla, "CHUNK_BYTES", 4 * 5 * rows * V)
        assert xla.chunks(hidden, V) == 6
        placed = mesh.shard_batch({"hidden": hidden, "targets": targets})
        arrays = placed["hidden"], mesh.place(jnp.asarray(weight), ("vocab", "embed"))
        assert_equal(program(implementation="xla")(*arrays, placed["targets"]), expected)


def largest_array(compiled) -> int:
    """Elements of the largest array that a compiled program mentions."""
    shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", compiled.as_text())
    return max(math.prod(int(size) for size in shape.split(",")) for shape in shapes)


def test_no_array_of_all_logits_is_in_the_program(optimizing_compiler, monkeypatch):
    length, vocab = 64, 128
    arrays = inputs(length=length, vocab=vocab)
    logits = B * length * vocab
    whole = program().lower(*arrays).compile()
    monkeypatch.setattr(xla, "CHUNK_BYTES", 4 * logits // 8)
    chunked = program().lower(*arrays).compile()
    assert largest_array(whole) >= logits  # or the next line would show nothing
    assert largest_array(chunked) <= logits // 4
    assert chunked.memory_analysis().temp_size_in_bytes < 4 * logits


@pytest.mark.parametrize("implementation", ["xla", "pallas_tpu", "pallas_gpu"])
def test_no_gradient_of_a_frozen_head_is_computed(implementation):
    """The hidden states' is the same; a kernel whose result nobody needs would run all the same."""
    hidden, weight, targets = inputs()

    def total(hidden, weight):
        return linear_cross_entropy(hidden, weight, targets, implementation=implementation)[0]

    def work(argnums):
        """Products and kernels of the gradient."""
        traced = str(jax.make_jaxpr(jax.grad(total, argnums=argnums))(hidden, weight))
        return traced.count("= dot_general") + traced.count("pallas_call[")

    assert work((0,)) < work((0, 1))
    alone = jax.jit(jax.grad(total))(hidden, weight)
    both = jax.jit(jax.grad(total, argnums=(0, 1)))(hidden, weight)
    assert_equal(alone, both[0], rtol=1e-6, atol=1e-7)
