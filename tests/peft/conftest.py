"""What tests of adapters share."""

from collections.abc import Callable

import numpy as np
import pytest

from llmjax import hf, models
from llmjax.spec import map_params
from tools.make_goldens import draw_weight


@pytest.fixture(scope="session")
def draw_golden() -> Callable[[models.ModelConfig], object]:
    """Parameters by the names that weights have in checkpoints, as in the goldens."""

    def draw(config):
        spec = models.spec(config)
        names = hf.to_state(spec, map_params(lambda param: np.zeros(param.shape), spec))
        weights = {name: draw_weight(name, value.shape) for name, value in names.items()}
        return hf.from_state(spec, weights)

    return draw
