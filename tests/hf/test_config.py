"""config.json: both ways for every family, and what cannot be said or believed is refused."""

import dataclasses

import pytest

from llmjax import models
from llmjax.hf.config import config_from_hf, config_to_hf

LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "intermediate_size": 32,
}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_there_and_back(family, request):
    config = request.getfixturevalue(family)
    for changes in (
        {},
        {"tied": not config.tied, "norm_epsilon": 1e-3, "init_std": 0.5, "activation": "gelu"},
        {"mlp_dim": 24, "max_length": 33, "dropout": models.Dropout(attention=0.2)},
    ):
        changed = dataclasses.replace(config, **changes)
        assert config_from_hf(config_to_hf(changed)) == changed


def test_sizes_that_follow_from_others_are_written_out():
    config = models.llama(vocab_size=64, num_layers=2, embed_dim=16, num_heads=4)
    written = config_to_hf(config)
    sizes = ("num_key_value_heads", "head_dim", "intermediate_size")
    assert [written[name] for name in sizes] == [4, 4, 64]
    assert config_from_hf(written) == config


def test_what_older_files_leave_out():
    """Llama 1 has no grouped heads and no base of the rotation in its config.json."""
    config = config_from_hf(LLAMA | {"num_key_value_heads": None})
    assert (config.kv_heads, config.channels, config.rope.theta) == (4, 4, 10000.0)
    assert config_from_hf(LLAMA | {"rope_theta": 500.0, "rope_scaling": None}).rope.theta == 500.0
    new = {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}
    assert config_from_hf(LLAMA | new).rope.theta == 700.0


def test_what_null_means():
    """As the configurations of transformers take it in their `__post_init__`."""
    null = {"num_key_value_heads": None}
    mistral = LLAMA | {"model_type": "mistral", "hidden_size": 24, "num_attention_heads": 12}
    assert config_from_hf(mistral | null).kv_heads == 12
    qwen = LLAMA | null | {"model_type": "qwen2", "use_sliding_window": True}
    some = config_from_hf(qwen | {"max_window_layers": 1, "sliding_window": 7}).attention
    assert (some.pattern, some.window) == (("global", "local"), 7)
    none = config_from_hf(qwen | {"max_window_layers": 1, "sliding_window": None}).attention
    assert none.pattern == ("global",)


def test_activations_of_heads_are_those_of_transformers():
    """ELECTRA's discriminator has that of its MLPs; DeBERTa's pooler has one of its own."""
    electra = LLAMA | {"model_type": "electra", "hidden_act": "relu"}
    for kind, activation in (("PreTraining", "relu"), ("MaskedLM", "gelu")):
        config = config_from_hf(electra | {"architectures": [f"ElectraFor{kind}"]})
        assert config.head.activation == activation
    deberta = {"model_type": "deberta-v2", "relative_attention": True, "pos_att_type": ["c2p"]}
    with pytest.raises(ValueError, match="pooler_hidden_act='tanh' is not supported; only 'gelu'"):
        config_from_hf(LLAMA | deberta | {"pooler_hidden_act": "tanh"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "abacus"}, "model_type='abacus' is not supported; gpt2, llama, "),
        ({"model_type": None}, "model_type=None"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "16"}, "hidden_size='16' must be an integer"),
        ({"hidden_size": True}, "hidden_size=True must be an integer"),
        ({"vocab_size": 2**40}, "vocab_size=1099511627776 must be an integer in"),
        ({"vocab_size": -1}, "vocab_size=-1"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers; the limit is 10000"),
        ({"num_attention_heads": 0}, "model.num_heads=0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan must be a finite number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings=1 must be true or false"),
        ({"hidden_act": "swish"}, "'swish' is not supported"),
        ({"hidden_act": ["silu"]}, "'silu'. is not supported"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"attention_dropout": "much"}, "attention_dropout='much' must be a finite number"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type='yarn' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "factor of a linear rotation is missing"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor of the rotation='2' must"),
        ({"rope_scaling": {"type": ["linear"]}}, "rope_type=..linear.. is not supported"),
        ({"rope_parameters": [1]}, "rope_parameters=.*not supported"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": None},
            "max_window_layers=None must be an integer",
        ),
        (
            {"model_type": "gemma3_text", "sliding_window_pattern": "6"},
            "sliding_window_pattern='6' must be an integer",
        ),
        ({"architectures": ["LlamaForSorting"]}, "'LlamaForSorting'. is not supported; LlamaModel"),
        ({"architectures": "LlamaForCausalLM"}, "must be a list of class names"),
        (
            {"architectures": ["LlamaForMaskedLM"]},
            "'LlamaForMaskedLM'. is not supported; LlamaModel",
        ),
    ],
)
def test_what_cannot_be_read(fields, message):
    with pytest.raises(ValueError, match=message):
        config_from_hf(LLAMA | fields)


def test_what_cannot_be_said(llama):
    changed = dataclasses.replace(llama, bias="all", norm="layernorm")
    with pytest.raises(ValueError, match="llama cannot express norm='layernorm', bias='all'"):
        config_to_hf(changed)


def test_rates_that_a_file_leaves_open():
    """As transformers reads them: BERT drops a tenth, and before a head what it drops elsewhere."""
    bert = config_to_hf(
        models.bert(vocab_size=64, num_layers=1, embed_dim=16, num_heads=4, mlp_dim=32)
    )
    rates = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    bare = {name: value for name, value in bert.items() if name not in rates}
    assert config_from_hf(bare).dropout == models.Dropout(0.1, 0.1, 0.1, 0.1)
    null = bare | {"hidden_dropout_prob": 0.3, "classifier_dropout": None}
    assert config_from_hf(null).dropout == models.Dropout(0.3, 0.1, 0.3, 0.3)
    assert config_from_hf(null | {"classifier_dropout": 0.2}).dropout.classifier == 0.2
    assert config_from_hf(LLAMA).dropout == models.Dropout()


def test_only_language_models_have_capped_logits():
    """A Gemma 2 that classifies has the cap in its file, and transformers does not apply it."""
    gemma = models.gemma2(vocab_size=64, num_layers=2, embed_dim=16, num_heads=4, mlp_dim=32)
    fields = config_to_hf(gemma)
    assert (fields["final_logit_softcapping"], config_from_hf(fields).head.cap) == (30.0, 30.0)
    classifier = fields | {"architectures": ["Gemma2ForSequenceClassification"]}
    assert config_from_hf(classifier).head == models.with_head(gemma, "classification").head
