"""Law 2: packed sequences equal unpacked ones, token by token."""

import jax
import numpy as np
import pytest

from llmjax import models
from llmjax.kernels.linear_cross_entropy import linear_cross_entropy


def unpack(batch):
    """Each document in a row of its own, from the left, junk behind it; and where it came from.

    Without segments or positions: what makes packing work has no part in the judge.
    """
    rows, places = [], []
    for row, segments in enumerate(batch["segment_ids"]):
        for segment in np.unique(segments[segments > 0]):
            here = np.flatnonzero(segments == segment)
            alone = {"tokens": np.full(len(segments), 5, np.int32)}
            alone["targets"] = np.full(len(segments), -1, np.int32)
            for name, values in alone.items():
                values[: len(here)] = batch[name][row, here]
            rows.append(alone)
            places.append((row, here))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}, places


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_packed_equals_unpacked(family, request, draw, packed):
    config = request.getfixturevalue(family)
    params = draw(models.spec(config))

    @jax.jit
    def run(batch):
        hidden, _ = models.apply(
            params,
            batch["tokens"],
            config,
            segment_ids=batch.get("segment_ids"),
            positions=batch.get("positions"),
        )
        head = models.lm_weight(params, config)
        return hidden, linear_cross_entropy(hidden, head, batch["targets"])[1]

    unpacked, places = unpack(packed)
    hidden, losses = run(packed)
    alone_hidden, alone_losses = run(unpacked)
    assert len(places) > 15
    for index, (row, here) in enumerate(places):
        size = len(here)
        np.testing.assert_allclose(hidden[row, here], alone_hidden[index, :size], 1e-4, 1e-5)
        np.testing.assert_allclose(losses[row, here], alone_losses[index, :size], 1e-4, 1e-5)
    # Nothing else is counted.
    np.testing.assert_allclose(np.sum(losses), np.sum(alone_losses), rtol=1e-5)
