"""What is written is what transformers writes: greedy texts, and the logits that are drawn from."""

import numpy as np
import pytest

from llmjax import sampling
from llmjax.sampling import SamplerConfig, samplers
from tools.golden_models import CONFIGS
from tools.make_goldens import torch_model

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

DECODERS = [name for name, config in CONFIGS.items() if config.head.kind == "lm"]
LENGTHS = (8, 3, 1, 5)
NEW = 8


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_texts_are_those_of_generate(name, draw_params):
    """Token for token, of prompts of unequal lengths; behind a row's end both have 0."""
    import jax

    config = CONFIGS[name]
    random = np.random.RandomState(5)
    prompts = [random.randint(1, config.vocab_size, length) for length in LENGTHS]
    padded = np.zeros((len(prompts), max(LENGTHS)), np.int64)
    for row, prompt in zip(padded, prompts, strict=True):
        row[-len(prompt) :] = prompt  # transformers continues behind padding on the left
    there = np.arange(max(LENGTHS)) >= max(LENGTHS) - np.array(LENGTHS)[:, None]
    settings = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=NEW, eos_token_id=0, pad_token_id=0
    )
    with torch.no_grad():
        expected = torch_model(config).generate(
            torch.from_numpy(padded),
            attention_mask=torch.from_numpy(there.astype(np.int64)),
            generation_config=settings,
        )
    found = sampling.generate(
        draw_params(config),
        prompts,
        config,
        jax.random.key(0),
        max_new_tokens=NEW,
        sampler=SamplerConfig(temperature=0.0),
        stop_tokens=(0,),
    )
    np.testing.assert_array_equal(found.tokens, expected[:, max(LENGTHS) :])


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.6},
        {"top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"repetition_penalty": 1.4},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.2},
    ],
    ids=lambda changes: "+".join(changes),
)
def test_the_logits_are_those_of_the_processors(changes):
    """In the order in which `generate` applies them."""
    random = np.random.RandomState(6)
    logits = random.normal(scale=2.0, size=(3, 64)).astype(np.float32)
    text = random.randint(0, 64, (3, 10))
    settings = transformers.GenerationConfig(do_sample=True, **{"top_k": 0} | changes)
    model = torch_model(CONFIGS["llama"])
    processors = model._get_logits_processor(settings, input_ids_seq_length=10)
    expected = processors(torch.from_numpy(text), torch.from_numpy(logits)).numpy()
    seen = np.zeros((3, 64), bool)
    np.put_along_axis(seen, text, True, axis=1)
    found = np.asarray(samplers.warp(logits, SamplerConfig(**changes), seen))
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
