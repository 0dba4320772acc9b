"""Law 10: what a family does not have, or options that contradict each other, are named."""

import dataclasses
import typing

import jax
import numpy as np
import pytest

from llmjax import models
from llmjax import spec as specs
from llmjax.models import Attention, Disentangled, Embedding, Experts, Head, Rope
from llmjax.objectives import MaskingConfig, clm, mlm
from tools.golden_models import CONFIGS

KINDS = typing.get_args(typing.get_type_hints(Head)["kind"])
WITHOUT_TYPES = [name for name, config in CONFIGS.items() if not config.embedding.token_types]
WITH_POSITIONS = [name for name, config in CONFIGS.items() if config.position == "learned"]


def trace(config, shape, **given):
    """`models.apply`, without computing anything."""
    given = {name: jax.ShapeDtypeStruct(size, np.int32) for name, size in given.items()}
    return jax.eval_shape(
        lambda params, tokens, given: models.apply(params, tokens, config, **given)[0],
        specs.abstract(models.spec(config)),
        jax.ShapeDtypeStruct(shape, np.int32),
        given,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_heads_that_a_family_has_not(name):
    config = CONFIGS[name]
    has = models.FAMILIES[config.family].heads
    assert len(has) < len(KINDS)
    for kind in {*KINDS, "poem"} - set(has):
        with pytest.raises(ValueError, match=f"{config.family} has no head '{kind}'; it has none"):
            models.with_head(config, kind)


@pytest.mark.parametrize("name", WITHOUT_TYPES)
def test_token_types_of_a_model_without(name):
    with pytest.raises(ValueError, match=r"token_types are given.*model\.embedding\.token_types"):
        trace(CONFIGS[name], (2, 8), token_types=(2, 8))


@pytest.mark.parametrize("name", WITH_POSITIONS)
def test_more_tokens_than_positions(name):
    config = CONFIGS[name]
    longest = config.max_length
    assert trace(config, (1, longest)).shape == (1, longest, config.embed_dim)
    message = f"{longest + 1} tokens exceed the {longest} learned positions"
    with pytest.raises(ValueError, match=message):
        trace(config, (1, longest + 1))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_length_has_hidden_states(name):
    """Down to a single token, and around the blocks that attention is computed in."""
    config = dataclasses.replace(CONFIGS[name], max_length=300)
    for length in (1, 2, 128, 129, 257):
        assert trace(config, (1, length)).shape == (1, length, config.embed_dim)


@pytest.mark.parametrize("name", CONFIGS)
def test_segments_of_another_shape(name):
    with pytest.raises(ValueError, match="segment_ids"):
        trace(CONFIGS[name], (2, 8), segment_ids=(2, 7))


@pytest.mark.parametrize("name", CONFIGS)
def test_objectives_of_another_head(name):
    config = CONFIGS[name]
    if config.head.kind != "lm":
        with pytest.raises(ValueError, match=r"clm needs a causal model with head\.kind=lm"):
            clm(config)
    if config.head.kind != "mlm":
        with pytest.raises(ValueError, match=r"mlm needs a model with head\.kind=mlm"):
            mlm(config, MaskingConfig(), mask_id=3, special_ids=(0,))
    if not config.attention.causal:
        with pytest.raises(ValueError, match=r"attention\.causal=False"):
            clm(dataclasses.replace(config, head=Head("lm")))


def test_no_head_has_no_logits():
    config = models.with_head(CONFIGS["gpt2"], "none")
    with pytest.raises(ValueError, match=r"head\.kind=none: the model has no head"):
        models.logits({}, np.zeros((1, 2, 16), np.float32), config)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Attention(pattern=()), r"attention\.pattern=: name one or more"),
        (lambda: Attention(pattern=("global", "near")), r"attention\.pattern=global,near"),
        (lambda: Attention(pattern=("local",)), r"attention\.window=0: local layers need"),
        (lambda: Attention(window=-1), r"attention\.window=-1"),
        (lambda: Attention(qk_norm="heads"), r"attention\.qk_norm='heads'"),
        (lambda: Rope(scaling="yarn"), r"rope\.scaling='yarn'"),
        (lambda: Rope(theta=0.0), r"rope\.theta=0"),
        (lambda: Rope(factor=8.0), r"rope\.factor=8\.0: nothing is stretched"),
        (lambda: Rope(scaling="llama3", high_frequency=1.0), r"rope\.high_frequency=1"),
        (lambda: Experts(count=2, per_token=3), r"experts\.per_token=3: must be in \[1, count=2"),
        (lambda: Embedding(offset=-1), r"embedding\.offset=-1"),
        (lambda: Disentangled(("p2p",)), r"disentangled\.terms=p2p"),
        (lambda: Disentangled(("c2p", "c2p")), r"disentangled\.terms=c2p,c2p"),
        (lambda: Disentangled(("c2p",), convolution=2), r"disentangled\.convolution=2"),
        (lambda: Head("poem"), r"head\.kind='poem'"),
        (lambda: Head("mlm", norm=True), r"head\.norm=True: the norm follows a dense layer"),
        (lambda: change("llama", head_dim=5), r"head_dim=5: rotary positions need an even one"),
        (lambda: change("llama", num_kv_heads=3), r"num_heads=4 is not a multiple of"),
        (lambda: change("modernbert", scan_layers=True), r"the first layer differs from"),
        (lambda: change("bert", first_norm=False, scan_layers=False), r"norm_order=post no norm"),
        (lambda: change("deberta", position="rope"), r"without rotary"),
        (lambda: change("deberta", num_kv_heads=2), r"without shared key heads"),
        (lambda: change("deberta", attention=Attention()), r"attention is bidirectional"),
        (
            lambda: change("bert", disentangled=Disentangled(mask_decoder=2)),
            r"disentangled\.mask_decoder needs disentangled\.terms",
        ),
    ],
)
def test_options_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def change(name, **changes):
    return dataclasses.replace(CONFIGS[name], **changes)
