"""Two real processes over loopback: checkpoints in parts, one killed while the other saves."""

import os
import socket
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax.train.checkpoint import Checkpointer

PRELUDE = """
    import os, signal, sys, time
    import jax
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    folder, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
    jax.distributed.initialize(f"localhost:{port}", 2, index, heartbeat_timeout_seconds=10)
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    from llmjax.mesh import MeshConfig, make_mesh
    from llmjax.train.checkpoint import Checkpointer
    from llmjax.train.loop import Every, fit
    from llmjax.train.preemption import SaveOnSignal
    from llmjax.train.state import TrainState

    mesh = make_mesh(MeshConfig(data=1, fsdp=2))
    jax.set_mesh(mesh)
    rows, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())

    def make(step):
        def begin():
            w = jnp.arange(4096, dtype=jnp.float32).reshape(64, 64) + step
            return TrainState(jnp.int32(step), {"w": w}, {}, jax.random.key(step))
        shape = jax.eval_shape(begin)
        places = jax.tree.map(lambda x: rows if x.shape == (64, 64) else whole, shape)
        return jax.jit(begin, out_shardings=places)()
"""

KILLED = """
    checkpointer = Checkpointer(folder)
    checkpointer.save(make(1), data={"streams": {str(index): 7 + index}})
    checkpointer.wait()
    if index == 1:
        checkpointer._orbax.wait_until_finished = lambda: os.kill(os.getpid(), signal.SIGKILL)
    checkpointer.save(make(2), data={"streams": {str(index): 9}})
    checkpointer.wait()
"""

TRAINED = """
    class Batches:
        def __iter__(self): return self
        def __next__(self):
            time.sleep(0.1 if index == 1 else 0.0)
            return {"tokens": np.full((1, 4), index, np.int32)}

    @jax.jit(donate_argnums=0)
    def step(state, batch):
        return state.replace(step=state.step + 1), {"loss": state.params["w"].mean()}

    ticks = []
    with Checkpointer(folder) as saves:
        hook = SaveOnSignal(saves, "go on")
        def poke(tick):
            ticks.append(tick.metrics)
            if tick.step == 6 and index == 1:
                os.kill(os.getpid(), signal.SIGINT)
        try:
            fit(make(0), step, Batches(), steps=2000, hooks=[poke, hook])
        finally:
            late = [tick["slowest_process"] for tick in ticks[2:]]
            assert set(late) == {1.0}, late
            assert all(tick["host_seconds_max"] > 0.1 for tick in ticks[2:])
            print("last", ticks[-1]["host_seconds_median"])
"""


def run(code: str, folder) -> list[tuple[int, str]]:
    """Exit codes and what was said, of two processes with a device each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    program = textwrap.dedent(PRELUDE) + textwrap.dedent(code)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder), port, str(index)],
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for index in range(2)
    ]
    said = [process.communicate(timeout=200)[1] for process in processes]
    return [(p.returncode, text) for p, text in zip(processes, said, strict=True)]


@pytest.mark.filterwarnings("ignore:skipped", "ignore:.*set aside")
def test_one_killed_while_the_other_saves_leaves_the_last_one_for_any_number(tmp_path):
    ended = run(KILLED, tmp_path)
    assert ended[1][0] == -9, ended[1][1]
    assert ended[0][0] != 0, "the other one cannot have completed the save"
    target = {"params": {"w": jax.ShapeDtypeStruct((64, 64), jnp.bfloat16)}}
    with Checkpointer(tmp_path) as checkpointer:
        restored = checkpointer.restore_latest(target, set_aside=True)
    assert restored.step == 1
    expected = (np.arange(4096, dtype=np.float32).reshape(64, 64) + 1).astype(jnp.bfloat16)
    np.testing.assert_array_equal(restored.state["params"]["w"], expected)
    # One process takes up what two had.
    assert restored.data == {"processes": [{"streams": {"0": 7}}, {"streams": {"1": 8}}]}
    # The survivor may have had the time to give the other one up, but not to complete it.
    assert {path.name for path in tmp_path.iterdir()} <= {"1", "2.unfinished"}


def test_a_signal_to_one_saves_both_and_the_slow_one_is_named(tmp_path):
    for code, said in run(TRAINED, tmp_path):
        assert code == 0, said
    with Checkpointer(tmp_path) as checkpointer:
        (step,) = checkpointer.steps()
        assert step >= 6
        target = {"params": {"w": jax.ShapeDtypeStruct((64, 64), jnp.float32)}}
        assert checkpointer.restore_latest(target).step == step
