"""Law 3: on eight devices every feature of the families computes what it does on one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmjax import mesh, models
from llmjax.spec import is_param
from tools.golden_models import CONFIGS, VARIANTS

# Programs for meshes take seconds to compile, so few models have all features between them; heads
# and the parts of DeBERTa have tests of their own. With devices for (data, fsdp, tensor, expert).
ELECTRA, DEBERTA = CONFIGS["electra"], VARIANTS["deberta, v2-xlarge"]
MODELS = {
    # A pattern with two bases, norms on both sides, shared key heads, caps, experts, and norms over
    # the width of heads that are split.
    "decoder": (
        dataclasses.replace(
            CONFIGS["gemma3"],
            num_layers=2,
            attention=dataclasses.replace(CONFIGS["gemma2"].attention, qk_norm="width"),
            experts=CONFIGS["qwen3_moe"].experts,
            head=CONFIGS["gemma2"].head,
        ),
        (1, 2, 2, 2),
    ),
    # Narrow embeddings of tokens, their types and positions, behind a projection; a head with a
    # bias of the vocabulary; norms of every head.
    "encoder": (
        dataclasses.replace(
            models.with_head(ELECTRA, "mlm"),
            attention=dataclasses.replace(ELECTRA.attention, qk_norm="head"),
        ),
        (2, 2, 2, 1),
    ),
    # A list of layers, the first of which has one norm less; rematerialised on the mesh.
    "modernbert": (
        dataclasses.replace(VARIANTS["modernbert, rematerialised"], num_layers=2),
        (2, 2, 2, 1),
    ),
    # Relative positions, the convolution, and absolute positions in the mask decoder.
    "deberta": (
        dataclasses.replace(
            DEBERTA,
            num_layers=2,
            disentangled=dataclasses.replace(DEBERTA.disentangled, mask_decoder=1),
            remat="full",
        ),
        (2, 2, 2, 1),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_eight_devices_equal_one(name, draw, documents):
    config, sizes = MODELS[name]
    spec, batch = models.spec(config), documents(config)
    params = draw(spec)

    def total(params, batch, config):
        rest = {name: values for name, values in batch.items() if name != "tokens"}
        hidden, _ = models.apply(params, batch["tokens"], config, **rest)
        logits = models.logits(params, hidden, config, segment_ids=batch["segment_ids"])
        return jnp.sum(jnp.sin(logits)), (hidden, logits)

    compute = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=2)
    alone = compute(params, batch, dataclasses.replace(config, remat="none"))
    with jax.set_mesh(mesh.make_mesh(mesh.MeshConfig(*sizes))):
        placed = jax.tree.map(
            lambda param, value: jax.device_put(value, mesh.named_sharding(param.axes)),
            spec,
            params,
            is_leaf=is_param,
        )
        spread = jax.device_get(compute(placed, mesh.shard_batch(batch), config))

    def check(actual, expected):
        limit = 2e-4 * max(np.abs(expected).max(), 0.1)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)

    jax.tree.map(check, spread, alone)
