"""What llmjax computes where tools/make_goldens.py asks transformers."""

from collections.abc import Callable

import jax
import numpy as np
import pytest

from llmjax import hf, models
from llmjax.objectives import clm
from llmjax.spec import map_params
from tools.make_goldens import draw_weight

Results = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def compute() -> Callable[[models.ModelConfig, np.ndarray], Results]:
    """`compute(config, tokens)`: logits, mean loss, and gradients by the names of weights there.

    The weights come in, and their gradients go out, through the declared names and layouts.
    """

    def results(config: models.ModelConfig, tokens: np.ndarray) -> Results:
        spec = models.spec(config)
        zeros = map_params(lambda param: np.zeros(param.shape), spec)
        names = hf.to_state(spec, zeros)
        weights = {name: draw_weight(name, value.shape) for name, value in names.items()}
        params = hf.from_state(spec, weights)
        targets = np.concatenate([tokens[:, 1:], np.full_like(tokens[:, :1], -1)], axis=1)

        @jax.jit
        def run(params):
            def mean(params):
                total, _ = clm(config)(params, {"tokens": tokens, "targets": targets}, None)
                return total.sum / total.weight

            hidden, _ = models.apply(params, tokens, config)
            return models.logits(params, hidden, config), *jax.value_and_grad(mean)(params)

        logits, loss, grads = jax.device_get(run(params))
        gradients = hf.to_state(spec, grads)
        return {"logits": logits, "loss": loss} | {
            f"gradient/{name}": value for name, value in gradients.items()
        }

    return results


@pytest.fixture(scope="session")
def assert_close() -> Callable[[Results, Results], None]:
    """Everything that is expected agrees to 1e-5 of its largest entry."""

    def check(actual: Results, expected: Results) -> None:
        for name, value in expected.items():
            limit = 1e-5 * np.abs(value).max()
            np.testing.assert_allclose(actual[name], value, rtol=0, atol=limit, err_msg=name)

    return check
