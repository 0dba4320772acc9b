"""Training states on meshes, for the laws."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from llmjax import mesh
from llmjax.spec import is_param
from llmjax.train import TrainState

Sizes = tuple[int, int, int] | None


@pytest.fixture(scope="session")
def on_mesh() -> Callable[[Sizes], contextlib.AbstractContextManager]:
    """`with on_mesh((2, 2, 2)):` sets a mesh of data × fsdp × tensor devices; None sets none."""

    @contextlib.contextmanager
    def on(sizes: Sizes) -> Iterator[None]:
        if sizes is None:
            yield
        else:
            devices = jax.devices()[: math.prod(sizes)]
            with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(*sizes), devices)):
                yield

    return on


@pytest.fixture(scope="session")
def start() -> Callable[[Any, Any, optax.GradientTransformation], TrainState]:
    """`start(spec, params, optimizer)`: a state with these parameters on the current mesh."""

    def state(spec: Any, params: Any, optimizer: optax.GradientTransformation) -> TrainState:
        def place(param, value):
            # A copy: JAX may use the memory of host arrays, and a step gives its state away.
            return jax.device_put(value.copy(), mesh.named_sharding(param.axes))

        placed = jax.tree.map(place, spec, params, is_leaf=is_param)
        return TrainState(
            jnp.zeros((), jnp.int32), placed, jax.jit(optimizer.init)(placed), jax.random.key(7)
        )

    return state
