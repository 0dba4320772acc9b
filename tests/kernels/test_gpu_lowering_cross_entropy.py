"""Cross entropy's kernels become Triton's intermediate code without a GPU, and without CUDA."""

import functools
import re

import jax
import pytest

from llmjax import mesh
from llmjax.kernels.linear_cross_entropy import linear_cross_entropy, linear_log_probs

KERNELS = [f"linear_cross_entropy_{name}_kernel" for name in ("statistics", "gradient")]

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")


@pytest.mark.parametrize(
    ("tokens", "channels", "vocab", "dtype", "biased", "call"),
    [
        (8192, 4096, 128256, "bfloat16", False, linear_cross_entropy),
        (300, 768, 50258, "bfloat16", True, functools.partial(linear_cross_entropy, cap=30.0)),
        (3, 100, 40, "bfloat16", True, functools.partial(linear_log_probs, entropy=True)),
        (40, 128, 3000, "float32", False, functools.partial(linear_cross_entropy, z_loss=0.01)),
    ],
)
@pytest.mark.parametrize("tensor", [1, 2])
def test_forward_and_backward(tokens, channels, vocab, dtype, biased, call, tensor):
    """Of ragged lengths too, of a whole vocabulary and of one in two parts."""

    def run(hidden, weight, targets, bias):
        found = call(hidden, weight, targets, bias=bias, implementation="pallas_gpu")
        return sum(x.sum() for x in found)

    with on_gpus(mesh.MeshConfig(data=2, tensor=tensor)):
        program = jax.jit(jax.grad(run, (0, 1, 3) if biased else (0, 1))).trace(
            array((2, tokens, channels), dtype, "batch", None, None),
            array((vocab, channels), "float32", "vocab", "embed"),
            array((2, tokens), "int32", "batch", None),
            array((vocab,), "float32", "vocab") if biased else None,
        )
        text = program.lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r'@__gpu\$xla\.gpu\.triton\(.*name = "(\w+)"', text)
    assert calls == KERNELS


def array(sizes, dtype, *axes) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=mesh.named_sharding(axes))


def on_gpus(config: mesh.MeshConfig):
    """In it, the mesh is of GPUs that are not here."""
    here = mesh.make_mesh(config, jax.devices()[: config.data * config.tensor])
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu")
    shape = here.axis_sizes, here.axis_names, here.axis_types
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh(*shape, abstract_device=device))
