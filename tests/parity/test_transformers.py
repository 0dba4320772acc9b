"""Law 6: logits, loss and every gradient are those of transformers, on random tiny models."""

import numpy as np
import pytest

from tools.golden_models import CONFIGS, HEADS, VARIANTS
from tools.make_goldens import FOLDER, digest, draw_inputs
from tools.make_goldens import compute as transformers_compute

pytestmark = pytest.mark.parity

pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", CONFIGS | VARIANTS)
def test_equals_transformers(name, padding, compute, assert_close):
    check((CONFIGS | VARIANTS)[name], padding, compute, assert_close)


@pytest.mark.parametrize("name", HEADS)
def test_every_head_equals_that_of_transformers(name, compute, assert_close):
    check(HEADS[name], "right", compute, assert_close)


def check(config, padding, compute, assert_close):
    batch = draw_inputs(config, padding)
    expected = transformers_compute(config, batch)
    actual = compute(config, batch)
    # Both ways: every weight of the one has a gradient in the other.
    assert set(actual) == set(expected)
    assert_close(config, actual, expected, batch)


@pytest.mark.parametrize("family", CONFIGS)
def test_goldens_are_what_transformers_computes(family):
    batch = draw_inputs(CONFIGS[family], padding="right")
    expected = batch | digest(transformers_compute(CONFIGS[family], batch))
    with np.load(FOLDER / f"{family}.npz") as golden:
        assert set(golden) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(golden[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
