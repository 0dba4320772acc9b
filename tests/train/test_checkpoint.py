"""Checkpoints come back bitwise, whole or in part, on any mesh, and only the right ones stay."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from llmjax.train.checkpoint import Checkpointer
from tests.train.states import abstract, bits, flip, make_state


def test_everything_comes_back_bitwise(saved):
    state = make_state(20)
    with Checkpointer(saved) as checkpointer:
        restored = checkpointer.restore_latest(abstract(state))
    assert (restored.step, restored.data) == (20, {"position": 20})
    assert restored.metrics == {"loss": 1.5}
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), restored.state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert bits(restored.state) == bits(state)
    draw = jax.jit(lambda key: jax.random.normal(key, (3,)))
    np.testing.assert_array_equal(draw(restored.state.key), draw(state.key))


def test_a_part_comes_back_alone(saved):
    state = make_state(10)
    with Checkpointer(saved) as checkpointer:
        restored = checkpointer.restore(10, {"params": abstract(state).params})
    assert bits(restored.state) == bits({"params": state.params})


def test_iterator_state_may_be_bytes_and_must_survive_json(tmp_path):
    state = make_state(1)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(state, data=b"\x00\xff")
        checkpointer.wait()
        assert checkpointer.restore_latest(abstract(state)).data == b"\x00\xff"
        with pytest.raises(ValueError, match="JSON"):
            checkpointer.save(state, data={1: (2, 3)})


def test_shardings_are_those_asked_for(tmp_path):
    state = make_state(3)
    mesh = jax.make_mesh((8,), ("fsdp",))
    rows, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda x: rows if x.shape == (64, 32) else whole, state)
    target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(jax.device_put(state, shardings))
        checkpointer.wait()
        restored = checkpointer.restore_latest(target).state
        on_one_device = checkpointer.restore_latest(abstract(state)).state
        with jax.set_mesh(mesh):  # there, eval_shape gives shardings over an abstract mesh
            traced = jax.eval_shape(lambda state: state, restored)
            again = checkpointer.restore_latest(traced).state
    same = jax.tree.map(
        lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), restored, again
    )
    assert all(jax.tree.leaves(same))
    assert restored.params["embed"].sharding.is_equivalent_to(rows, 2)
    assert bits(restored) == bits(on_one_device) == bits(state)


def test_saved_values_are_the_steps_although_the_next_steps_take_the_buffers(tmp_path):
    step = jax.jit(
        lambda s: s.replace(step=s.step + 1, params=jax.tree.map(lambda x: x * 3 + 1, s.params)),
        donate_argnums=0,
    )
    state = make_state(0, rows=20_000)
    with Checkpointer(tmp_path, keep_last=10) as checkpointer:
        expected = {}
        for _ in range(3):
            state = step(state)
            expected[int(state.step)] = [bytes(b) for b in bits(jax.tree.map(jnp.copy, state))]
            checkpointer.save(state)
            for _ in range(3):  # while the save runs
                state = step(state)
        checkpointer.wait()
        for number, value in expected.items():
            assert bits(checkpointer.restore(number, abstract(state)).state) == value


def test_a_save_below_what_is_there_drops_the_abandoned_future(directory):
    with Checkpointer(directory, keep_last=5) as checkpointer:
        checkpointer.restore(10, abstract(make_state(10)))
        checkpointer.save(make_state(15))
        checkpointer.wait()
        assert checkpointer.steps() == [10, 15]


def test_the_metrics_of_a_training_step_are_not_those_of_an_evaluation(tmp_path):
    """A checkpoint without an evaluation has the batch's accuracy, which may be perfect."""
    evaluated = {"accuracy": 0.6, "validation_loss": 1.0}
    with Checkpointer(tmp_path, best_metric="accuracy", mode="max") as checkpointer:
        for step, metrics in {1: evaluated, 2: {"accuracy": 1.0}, 3: {}}.items():
            checkpointer.save(make_state(step), metrics=metrics)
        checkpointer.wait()
        assert checkpointer.steps() == [1, 2, 3]
        assert checkpointer.ranked([1, 2, 3]) == [1]


def test_last_and_best_are_kept(tmp_path):
    losses = {1: 5.0, 2: 3.0, 3: None, 4: 4.0, 5: float("nan"), 6: 3.5}
    with Checkpointer(tmp_path, keep_last=2, keep_best=2) as checkpointer:
        for step, loss in losses.items():
            metrics = {} if loss is None else {"validation_loss": loss}
            checkpointer.save(make_state(step), metrics=metrics)
        checkpointer.wait()
        assert checkpointer.steps() == [2, 5, 6]
        assert checkpointer.restore_best(abstract(make_state(0))).step == 2
        flip(tmp_path / "2")
        with pytest.warns(RuntimeWarning, match="damaged"):
            assert checkpointer.restore_best(abstract(make_state(0))).step == 6


def test_another_model_is_named(saved):
    state = make_state(0)
    other = dataclasses.replace(state, params={**state.params, "embed": jnp.zeros((65, 32))})
    fewer = dataclasses.replace(state, params={"embed": state.params["embed"]})
    with Checkpointer(saved) as checkpointer:
        with pytest.raises(ValueError, match=r"params/embed is float32\[64, 32\], not"):
            checkpointer.restore_latest(abstract(other))
        with pytest.raises(ValueError, match="params/half is unexpected"):
            checkpointer.restore_latest(abstract(fewer))
        with pytest.raises(ValueError, match="params/more is missing"):
            checkpointer.restore(10, {"params": {"more": jnp.zeros(3)}})
        with pytest.raises(FileNotFoundError, match=r"there are \[10, 20\]"):
            checkpointer.restore(11, abstract(state))


def test_bad_options_are_answered(tmp_path):
    for options in ({"keep_last": 0}, {"keep_best": -1}, {"mode": "lowest"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Checkpointer(tmp_path, **options)


def test_what_is_stored_is_plain_to_read(saved):
    about = json.loads((saved / "20" / "checkpoint.json").read_text())
    assert about["step"] == 20
    assert about["arrays"]["params/embed"] == ["float32", [64, 32]]
    assert about["arrays"]["key"] == ["key<fry>", []]
