"""What the comparison of LoRA with full fine-tuning says and draws."""

import numpy as np

from tools import low_rank


def test_the_excess_is_paired_by_seed():
    """LoRA 1 % and 3 % above: 2 %, with Student's t for one degree of freedom, 12.706."""
    full, lora = ([(2, 3.0), (4, 2.0)], [(2, 3.0), (4, 1.0)]), ([(4, 2.02)], [(4, 1.03)])
    text = low_rank.markdown({"trained": 0.009, "losses": {"full": full, "lora": lora}})
    assert "LoRA, 0.90% of the parameters | 2.0200 | 1.0300 |" in text
    half = 12.706 * 0.01  # the standard error of 1 and 3 is 1
    assert f"+2.00% ({0.02 - half:+.2%} to {0.02 + half:+.2%}, 95 %)" in text


def test_a_curve_is_the_mean_over_seeds():
    losses = {
        "full": [[(1, 2.0), (2, 1.0)], [(1, 4.0), (2, 2.0)]],
        "lora": [[(1, 1.0)], [(1, 2.0)]],
    }
    full, lora = low_rank.chart({"trained": 0.01, "losses": losses}).curves
    np.testing.assert_allclose(full.y, [3.0, 1.5])
    np.testing.assert_allclose(full.x, [1, 2])
    low, high = full.band
    np.testing.assert_allclose(high - full.y, [12.706, 12.706 / 2], rtol=1e-4)
    np.testing.assert_allclose(full.y - low, high - full.y)
    assert lora.label == "LoRA, 1.00% of the parameters"
