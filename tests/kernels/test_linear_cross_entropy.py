"""Law 8: cross entropy by chunks equals its reference, and holds no B·S×V array."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from llmjax.kernels.linear_cross_entropy import linear_cross_entropy, xla

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
    assert xla.chunks(B, S, V) == 4


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_reference(options):
    expected = program(implementation="reference", **OPTIONS[options])(*inputs())
    assert_equal(program(implementation="xla", **OPTIONS[options])(*inputs()), expected)


@pytest.mark.parametrize("options", ["plain", "both", "capped", "biased"])
def test_chunked_equals_reference(options, chunks_of_3):
    expected = program(implementation="reference", **OPTIONS[options])(*inputs())
    assert_equal(program(**OPTIONS[options])(*inputs()), expected)


def test_without_gradient_equals_reference(chunks_of_3):
    actual = jax.jit(linear_cross_entropy)(*inputs())
    assert_equal(actual, linear_cross_entropy(*inputs(), implementation="reference"))


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
        total = jax.jit(
            lambda h, w: linear_cross_entropy(
                h, w, targets, **OPTIONS["capped"], implementation=implementation
            )[0]
        )
        check_grads(total, (hidden, weight), order=1, modes=("rev",), rtol=1e-6, atol=1e-6)


def test_targets_of_minus_one_cost_nothing(chunks_of_3):
    hidden, weight, targets = inputs()
    (grad_hidden, _), (_, losses) = program(**OPTIONS["both"])(hidden, weight, targets)
    assert np.array_equal(np.asarray(losses) == 0.0, targets < 0)
    assert not np.any(np.asarray(grad_hidden)[targets < 0])
    # Nor does it matter what their hidden states are.
    hidden[targets < 0] = 1e4
    again = program(**OPTIONS["both"])(hidden, weight, targets)
    assert_equal(again[0][1], program(**OPTIONS["both"])(*inputs())[0][1])


def test_no_target_at_all_gives_zeros():
    hidden, weight, targets = inputs()
    grads, (total, losses) = program(z_loss=0.01)(hidden, weight, np.full_like(targets, -1))
    assert not any(np.any(x) for x in (*grads, total, losses))


def test_large_logits_do_not_overflow():
    hidden, weight, targets = inputs()
    grads, (total, losses) = program()(1e3 * hidden, weight, targets)
    assert all(np.all(np.isfinite(x)) for x in (*grads, total, losses))


def test_bfloat16_stays_near_float32(chunks_of_3):
    """Logits of bfloat16 products are summed in float32, so only inputs and results are rounded."""
    hidden, weight, targets = inputs()
    hidden, rounded = hidden.astype(jnp.bfloat16), weight.astype(jnp.bfloat16).astype(np.float32)
    (grad_hidden, grad_weight), (total, losses) = program()(hidden, rounded, targets)
    assert (grad_hidden.dtype, grad_weight.dtype) == (jnp.bfloat16, jnp.float32)
    exact = program(implementation="reference")(hidden.astype(np.float32), rounded, targets)
    assert_equal((total, losses), exact[1], rtol=1e-4, atol=1e-4)
    assert_equal((grad_hidden.astype(np.float32), grad_weight), exact[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("length", [1, 12, 13, 64])
@pytest.mark.parametrize("fits", [1, 3, 10**6])
def test_chunks_divide_the_sequence_and_fit(length, fits, monkeypatch):
    monkeypatch.setattr(xla, "CHUNK_BYTES", fits * 4 * B * V)
    count = xla.chunks(B, length, V)
    assert length % count == 0
    assert length // count <= fits


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
