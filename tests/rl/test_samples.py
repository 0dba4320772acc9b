"""Rows of what a policy wrote: everything about a token stands one place before it."""

import numpy as np
import pytest

from llmjax.rl import Prompt, Sample, repetition
from llmjax.rl.samples import parts, rows


def sample(prompt: list[int], tokens: list[int], log_probs: list[float]) -> Sample:
    arrays = np.array(prompt, np.int32), np.array(tokens, np.int32)
    return Sample(
        Prompt(arrays[0], "?"), arrays[1], "!", np.array(log_probs, np.float32), ended=True
    )


def test_places_of_targets_and_log_probs():
    found = rows([sample([5, 6, 7], [8, 9], [-0.5, -1.5]), sample([4], [2, 0, 3], [-1, -2, -3])], 6)
    expected = {
        "tokens": [[5, 6, 7, 8, 9, 0], [4, 2, 0, 3, 0, 0]],
        "targets": [[-1, -1, 8, 9, -1, -1], [2, 0, 3, -1, -1, -1]],
        "segment_ids": [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]],
        "positions": [[0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 0, 0]],
        "old_log_probs": [[0, 0, -0.5, -1.5, 0, 0], [-1, -2, -3, 0, 0, 0]],
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
        assert found[name].dtype == (np.float32 if name == "old_log_probs" else np.int32)


def test_a_row_may_be_full_and_not_more():
    samples = [sample([1, 2], [3, 4], [-1, -1])]
    np.testing.assert_array_equal(rows(samples, 4)["targets"], [[-1, 3, 4, -1]])
    with pytest.raises(ValueError, match="sample 0 has 4 tokens, more than sequence_length=3"):
        rows(samples, 3)


def test_first_tokens_need_a_prompt():
    """One token would silently have no target."""
    with pytest.raises(ValueError, match="sample 1 has an empty prompt"):
        rows([sample([1], [2], [-1]), sample([], [2], [-1])], 4)


def test_parts_have_one_size():
    found = [part["x"].tolist() for part in parts({"x": np.arange(5)}, 2)]
    assert found == [[0, 1], [2, 3], [4, 4]]


def test_repetition_is_the_share_of_runs_that_were_there_before():
    once, again = [1, 2, 3, 4, 5], [1, 2, 3, 1, 2, 3]  # 0 of 3 runs, and 1 of 4
    short = [1, 2]
    for tokens, share in ((once, 0.0), (again, 0.25), (short, 0.0), ([7] * 12, 0.9)):
        assert repetition([sample([1], tokens, [0.0] * len(tokens))]) == pytest.approx(share)
    both = [sample([1], tokens, [0.0] * len(tokens)) for tokens in (once, again)]
    assert repetition(both) == pytest.approx(0.125)
