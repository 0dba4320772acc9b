"""Law 6: logits, loss and gradients are those that transformers computed for the goldens."""

import numpy as np
import pytest

from tools.golden_models import CONFIGS
from tools.make_goldens import FOLDER, digest, draw_inputs


@pytest.mark.parametrize("family", CONFIGS)
def test_equals_the_golden_file(family, compute, assert_close):
    with np.load(FOLDER / f"{family}.npz") as file:
        golden = dict(file)
    batch = draw_inputs(CONFIGS[family], padding="right")
    for name, value in batch.items():
        np.testing.assert_array_equal(golden.pop(name), value)
    actual = digest(compute(CONFIGS[family], batch))
    assert set(actual) == set(golden)
    assert_close(CONFIGS[family], actual, golden, batch)
