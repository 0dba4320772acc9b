"""Law 6: logits, loss and gradients are those that transformers computed for the goldens."""

import numpy as np
import pytest

from tools.make_goldens import CONFIGS, FOLDER, GRADIENTS


@pytest.mark.parametrize("family", CONFIGS)
def test_equals_the_golden_file(family, compute, assert_close):
    with np.load(FOLDER / f"{family}.npz") as file:
        golden = dict(file)
    tokens = golden.pop("tokens")
    assert len(golden) == 2 + len(GRADIENTS[family])
    assert_close(compute(CONFIGS[family], tokens), golden)
