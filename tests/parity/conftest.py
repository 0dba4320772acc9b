"""What llmjax computes where tools/make_goldens.py asks transformers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llmjax import hf, models
from llmjax.objectives import MaskingConfig, classification, clm, mlm
from llmjax.spec import map_params
from tools.make_goldens import draw_weight

Results = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def draw_params() -> Callable[[models.ModelConfig], object]:
    """Parameters by `draw_weight`, through the declared names and layouts."""

    def draw(config):
        spec = models.spec(config)
        names = hf.to_state(spec, map_params(lambda param: np.zeros(param.shape), spec))
        weights = {name: draw_weight(name, value.shape) for name, value in names.items()}
        return hf.from_state(spec, weights)

    return draw


@pytest.fixture(scope="session")
def apply() -> Callable[..., np.ndarray]:
    """`apply(config, params, batch)`: logits."""

    def logits(config, params, batch):
        hidden, _ = models.apply(
            params,
            batch["tokens"],
            config,
            segment_ids=batch["segment_ids"],
            positions=batch["positions"],
            token_types=batch.get("token_types"),
        )
        return models.logits(params, hidden, config, segment_ids=batch["segment_ids"])

    return logits


@pytest.fixture(scope="session")
def compute(draw_params, apply) -> Callable[[models.ModelConfig, Results], Results]:
    """`compute(config, batch)`: logits, mean loss, and gradients by the names of weights there."""

    def results(config, batch):
        spec, params = models.spec(config), draw_params(config)

        @jax.jit
        def run(params):
            loss = jax.value_and_grad(lambda params: mean_loss(config, params, batch, apply))
            return apply(config, params, batch), *loss(params)

        logits, loss, grads = jax.device_get(run(params))
        gradients = hf.to_state(spec, grads)
        return {"logits": logits, "loss": loss} | {
            f"gradient/{name}": value for name, value in gradients.items()
        }

    return results


def mean_loss(config, params, batch, apply) -> jax.Array:
    """Over the targets; through the objective of the head where there is one."""
    kind, targets = config.head.kind, batch["targets"]
    if kind in ("reward", "rtd"):
        logits = apply(config, params, batch)
        if kind == "reward":
            return jnp.mean(logits)
        losses = optax.sigmoid_binary_cross_entropy(logits, jnp.maximum(targets, 0))
        return jnp.sum(losses, where=targets >= 0) / np.sum(targets >= 0)
    if kind == "lm":
        objective, rest = clm(config), {"targets": targets}
    elif kind == "mlm":
        objective = mlm(config, MaskingConfig(), mask_id=3, special_ids=(0,))
        rest = masked_batch(batch["tokens"], targets)
    else:
        objective = classification(config)
        rest = {"spans" if kind == "span" else "labels": targets}
    total, _ = objective(params, batch | rest, None)
    return total.sum / total.weight


def masked_batch(tokens: np.ndarray, targets: np.ndarray) -> Results:
    """What `mlm` draws, for targets [B, S] that are given."""
    places = np.tile(np.arange(targets.shape[1], dtype=np.int32), (len(targets), 1))
    return {
        "masked_tokens": tokens,
        "masked_positions": places,
        "masked_targets": targets.astype(np.int32),
    }


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """Everything that is expected agrees to 2e-5 of its largest entry, of Gemma to 1e-4.

    Logits agree to 1e-4 and losses to 1e-5 at any size; padding has no logits. Gemma's scales are
    drawn near 1 and used as near 2, four in a layer: rounding grows with depth, and transformers
    computes norms in float32 as well.
    """

    def check(config, actual: Results, expected: Results, batch: Results) -> None:
        tolerance = 1e-4 if config.norm == "rmsnorm1p" else 2e-5
        for name, value in expected.items():
            found = actual[name]
            if name == "logits" and value.shape[:2] == batch["tokens"].shape:
                value, found = (x[batch["segment_ids"] != 0] for x in (value, found))
            # A gradient that is zero in exact arithmetic is rounding in both.
            limit = tolerance * max(np.abs(value).max(), 1e-2)
            limit = min(limit, {"logits": 1e-4, "loss": 1e-5}.get(name, limit))
            np.testing.assert_allclose(found, value, rtol=0, atol=limit, err_msg=name)

    return check
