"""States and checkpoints that the tests of them share."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llmjax.train.checkpoint import Checkpointer
from llmjax.train.state import TrainState

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))


def make_state(step: int, seed: int = 0, rows: int = 64) -> TrainState:
    key = jax.random.key(seed + step)
    params = {
        "embed": jax.random.normal(key, (rows, 32)),
        "half": jax.random.normal(key, (5, 3)).astype(jnp.bfloat16),
        "blocks": {"ids": jnp.arange(7, dtype=jnp.int32) + step},
    }
    floats = {"embed": params["embed"]}
    state = OPTIMIZER.init(floats)
    _, state = OPTIMIZER.update(floats, state, floats)
    return TrainState(step=jnp.int32(step), params=params, opt_state=state, key=key)


def abstract(state: TrainState) -> TrainState:
    return jax.eval_shape(lambda: state)


def bits(state) -> list[bytes]:
    plain = jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        state,
    )
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(plain)]


def save_all(directory: pathlib.Path, *steps: int, **options) -> None:
    with Checkpointer(directory, keep_last=10, **options) as checkpointer:
        for step in steps:
            checkpointer.save(make_state(step), data={"position": step}, metrics={"loss": 1.5})


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(folder: pathlib.Path) -> None:
    path = max(files(folder / "state"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
