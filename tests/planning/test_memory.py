"""Memory from a trace: by hand where that is possible, by the compiler's count of what comes in."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from llmjax import mesh, models, objectives, optim, planning, train
from llmjax import spec as specs
from llmjax.mesh import MeshConfig
from llmjax.planning import liveness, traces

ROWS, LENGTH = 8, 16
# Nothing of it is ever there, so it may be of a size that people train.
LARGE = models.llama(
    vocab_size=4096, num_layers=16, embed_dim=1024, num_heads=8, mlp_dim=4096, max_length=1024
)
V5P = planning.chip("v5p")


def held(function, *shapes: tuple[int, ...], dtype=jnp.bfloat16) -> float:
    """Bytes that a function of arrays holds at the most, beside them."""
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    found = traces.program(jax.jit(function).trace(*arguments).jaxpr)
    return sum(liveness.peak(liveness.Meter(tiled=False).spans(found)).values())


def test_products_are_written_and_what_lies_between_is_not() -> None:
    def chain(x, a, b):
        return jnp.tanh(jnp.tanh(x @ a) * 2) @ b

    # x a [4, 8] stays until the result [4, 2] is there.
    assert held(chain, (4, 3), (3, 8), (8, 2)) == 2 * (4 * 8 + 4 * 2)


def test_what_nobody_reads_any_more_is_gone() -> None:
    def chain(x, a, b, c):
        return ((x @ a) @ b) @ c

    wide, narrow = 2 * 4 * 100, 2 * 4 * 3
    assert held(chain, (4, 3), (3, 100), (100, 3), (3, 100)) == wide + narrow
    assert held(chain, (4, 3), (3, 3), (3, 3), (3, 3)) == 2 * narrow


def test_equal_steps_are_done_once() -> None:
    def twice(x, a):
        return jnp.reshape(x @ a, (8, 4)), jnp.reshape(x @ a, (8, 4))

    assert held(twice, (4, 3), (3, 8)) == 2 * 4 * 8


def test_a_loop_stacks_what_its_backward_pass_needs() -> None:
    """A gradient of L layers sin(x w): each keeps a cosine [B, D] and its input."""
    layers, rows, width = 10, 64, 8

    def loss(stack, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, stack)
        return jnp.sum(x.astype(jnp.float32))

    found = held(jax.grad(loss), (layers, width, width), (rows, width))
    kept = 2 * layers * rows * width  # bytes of one array for each layer
    # Beside them a few [B, D], and the gradients.
    assert 2 * kept < found < 3 * kept


def test_weights_are_rounded_once_for_all_loops() -> None:
    def loss(stack, x):
        def layer(x, w):
            return x @ w.astype(jnp.bfloat16), None

        return jnp.sum(jax.lax.scan(layer, x.astype(jnp.bfloat16), stack)[0].astype(jnp.float32))

    shape = (10, 64, 64)
    found = held(loss, shape, (1, 64), dtype=jnp.float32)
    rounded = 2 * math.prod(shape)
    assert rounded <= found < 1.01 * rounded


def step_memory(
    config: models.ModelConfig, over: MeshConfig, count: int, **options
) -> planning.StepMemory:
    optimizer_config = optim.OptimizerConfig(name=options.pop("optimizer", "adamw"))
    with jax.sharding.use_abstract_mesh(
        mesh.abstract_mesh(over, count, V5P.kinds[-1], V5P.platform)
    ):
        spec = models.spec(config)
        optimizer = optim.make(optimizer_config, spec, 1000)
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = jax.eval_shape(lambda key: train.init_state(key, spec, optimizer), key)
        step = train.make_step(objectives.clm(config), optimizer, **options)
        length = LENGTH if config.embed_dim < LARGE.embed_dim else LARGE.max_length
        batch = planning.abstract_batch(ROWS, length)
        return planning.step_memory(step, state, batch)


def test_what_comes_in_is_what_the_compiler_counts(llama) -> None:
    over = MeshConfig(data=1, fsdp=2, tensor=2)
    planned = step_memory(llama, over, 4)
    with jax.set_mesh(mesh.make_mesh(over, jax.devices()[:4])):
        spec = models.spec(llama)
        optimizer = optim.make(optim.OptimizerConfig(), spec, 1000)
        key = jax.eval_shape(lambda: jax.random.key(0))
        state = jax.eval_shape(lambda key: train.init_state(key, spec, optimizer), key)
        batch = planning.abstract_batch(ROWS, LENGTH)
        step = train.make_step(objectives.clm(llama), optimizer)
        compiled = step.lower(state, batch).compile()
    assert planned.arguments == compiled.memory_analysis().argument_size_in_bytes


def test_sixteen_bytes_a_parameter_and_two_for_products() -> None:
    """Mixed-precision Adam (Rajbhandari et al. 2020, section 3.1, with float32 parameters)."""
    count = specs.count(models.spec(LARGE))
    found = step_memory(dataclasses.replace(LARGE, remat="full"), MeshConfig(), 1)
    assert found.parameters == found.all_gradients == 4 * count
    assert found.optimizer == pytest.approx(8 * count, abs=64)
    layers = specs.count(models.spec(LARGE)["layers"])
    assert found.weights == pytest.approx(2 * layers, rel=0.01)
    assert found.gradients <= found.all_gradients


def test_muon_has_one_moment_where_adam_has_two(llama) -> None:
    adam, muon = (step_memory(llama, MeshConfig(), 1, optimizer=name) for name in ("adamw", "muon"))
    matrices = 4 * sum(
        math.prod(param.shape)
        for param in jax.tree.leaves(models.spec(llama)["layers"], is_leaf=specs.is_param)
        if "embed" in param.axes
    )
    assert adam.optimizer - muon.optimizer == pytest.approx(matrices, abs=64)


def test_fsdp_divides_what_data_repeats() -> None:
    repeated = step_memory(LARGE, MeshConfig(data=8), 8)
    divided = step_memory(LARGE, MeshConfig(data=1, fsdp=8), 8)
    assert repeated.parameters == 4 * specs.count(models.spec(LARGE))
    # Scales of norms have no axis to be divided along.
    scales = 4 * (2 * LARGE.num_layers + 1) * LARGE.embed_dim
    assert divided.parameters == (repeated.parameters - scales) / 8 + scales
    assert divided.total < repeated.total


def test_remat_keeps_less() -> None:
    none, dots, full = (
        step_memory(dataclasses.replace(LARGE, remat=remat), MeshConfig(), 1).activations
        for remat in ("none", "dots", "full")
    )
    assert none > 1.5 * dots > 3 * full
    stream = ROWS * LARGE.max_length * LARGE.embed_dim * 2  # of the residual stream in bfloat16
    assert LARGE.num_layers * stream <= full <= (LARGE.num_layers + 2) * stream


def test_micro_batches_hold_less() -> None:
    whole, parts = (
        step_memory(LARGE, MeshConfig(), 1, accumulate=parts).activations for parts in (1, 4)
    )
    assert parts < 0.3 * whole
