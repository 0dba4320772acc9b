"""Tiny models of every family, on which llmjax and transformers must agree."""

from llmjax import models
from llmjax.models import Attention, Disentangled, Embedding, Experts, Head, ModelConfig, Rope

SIZES = {"vocab_size": 48, "num_layers": 2, "embed_dim": 16, "num_heads": 4, "max_length": 32}
GROUPED = SIZES | {"num_kv_heads": 2, "mlp_dim": 24}
ENCODER = SIZES | {"mlp_dim": 24, "dropout": models.Dropout()}

# One model per family, with all its distinctive features. The repository stores their goldens.
CONFIGS: dict[str, ModelConfig] = {
    "gpt2": models.gpt2(**SIZES | {"max_length": 16, "dropout": models.Dropout()}),
    "llama": models.llama(
        **GROUPED, rope=Rope(500_000.0, scaling="llama3", factor=8.0, original_length=16)
    ),
    "mistral": models.mistral(**GROUPED, attention=Attention(pattern=("local",), window=5)),
    "qwen2": models.qwen2(**GROUPED),
    "qwen3": models.qwen3(**GROUPED, head_dim=6),
    "qwen3_moe": models.qwen3_moe(
        **GROUPED, experts=Experts(count=4, per_token=2, dim=12, balance=0.1)
    ),
    "gemma2": models.gemma2(
        **GROUPED,
        head_dim=6,
        attention=Attention(pattern=("local", "global"), window=5, cap=4.0, scale_dim=9),
        head=Head(cap=3.0),
    ),
    "gemma3": models.gemma3(
        **GROUPED | {"num_layers": 3},
        head_dim=6,
        attention=Attention(pattern=("local", "global"), window=5, scale_dim=9, qk_norm="head"),
        rope=Rope(1e4, local_theta=1e2, scaling="linear", factor=4.0),
    ),
    "olmo2": models.olmo2(**GROUPED),
    "bert": models.bert(**ENCODER),
    "roberta": models.roberta(**ENCODER),
    "electra": models.electra(**ENCODER, embedding=Embedding(dim=12, norm=True, token_types=2)),
    "modernbert": models.modernbert(
        **ENCODER | {"num_layers": 4},
        attention=Attention(causal=False, pattern=("global", "local", "local"), window=3),
    ),
    "deberta": models.deberta(
        **ENCODER,
        disentangled=Disentangled(terms=("c2p", "p2c"), max_distance=16, buckets=4, norm=True),
    ),
}

# Other sizes, heads and options, compared only where transformers is installed.
VARIANTS: dict[str, ModelConfig] = {
    "gpt2, deep and untied": models.gpt2(
        vocab_size=40,
        num_layers=4,
        embed_dim=24,
        num_heads=3,
        mlp_dim=40,
        max_length=16,
        tied=False,
        dropout=models.Dropout(),
    ),
    "gpt2, one head": models.gpt2(
        vocab_size=40,
        num_layers=1,
        embed_dim=8,
        num_heads=1,
        norm_epsilon=1e-3,
        dropout=models.Dropout(),
    ),
    "llama 2": models.llama(**GROUPED),
    "llama, tied, one key head": models.llama(**GROUPED | {"num_kv_heads": 1}, tied=True),
    "llama, wide heads": models.llama(**GROUPED | {"num_kv_heads": 4}, head_dim=10),
    "llama, linear scaling": models.llama(
        **GROUPED, rope=Rope(scaling="linear", factor=3.0), norm_epsilon=1e-6
    ),
    "llama, unrolled and rematerialised": models.llama(**GROUPED, scan_layers=False, remat="full"),
    "mistral, all global": models.mistral(
        **GROUPED | {"num_layers": 3}, attention=Attention(), tied=True
    ),
    "qwen2, late windows": models.qwen2(
        **GROUPED | {"num_layers": 4},
        attention=Attention(pattern=("global",) * 3 + ("local",), window=4),
        tied=True,
    ),
    "qwen3, one key head": models.qwen3(**GROUPED | {"num_kv_heads": 1, "num_layers": 3}),
    "qwen3_moe, weights as they are": models.qwen3_moe(
        **GROUPED | {"num_layers": 3},
        experts=Experts(count=5, per_token=3, dim=8, normalized=False),
        scan_layers=False,
    ),
    "gemma2, uncapped": models.gemma2(
        **GROUPED | {"num_layers": 5},
        attention=Attention(pattern=("local", "global"), window=3),
        head=Head(),
    ),
    "gemma3, five to one": models.gemma3(
        **GROUPED | {"num_layers": 7},
        head_dim=6,
        attention=Attention(pattern=("local",) * 5 + ("global",), window=4, qk_norm="head"),
    ),
    "olmo2, tied": models.olmo2(**GROUPED | {"num_kv_heads": 4, "num_layers": 3}, tied=True),
    "bert, other epsilon": models.bert(**ENCODER | {"num_layers": 3}, norm_epsilon=1e-3),
    "bert, one layer": models.bert(
        **ENCODER | {"num_layers": 1, "num_heads": 2, "embed_dim": 10},
        activation="gelu_tanh",
        head=Head("mlm", dense=True, activation="gelu_tanh", norm=True, bias=True),
    ),
    "bert, next sentence": models.with_head(
        models.bert(**ENCODER | {"num_layers": 1}), "mlm", next_sentence=True
    ),
    "roberta, other padding": models.roberta(
        **ENCODER, embedding=Embedding(norm=True, token_types=1, offset=1), scan_layers=False
    ),
    "electra, as wide": models.electra(**ENCODER),
    "electra, other activation": models.electra(
        **ENCODER | {"num_layers": 1},
        activation="relu",
        head=Head("rtd", dense=True, activation="relu", bias=True),
    ),
    "modernbert, rematerialised": models.modernbert(
        **ENCODER | {"num_layers": 3, "embed_dim": 24},
        attention=Attention(causal=False, pattern=("global", "local"), window=2),
        remat="dots",
    ),
    "deberta, v2-xlarge": models.deberta(
        **ENCODER | {"num_layers": 3},
        disentangled=Disentangled(
            terms=("c2p", "p2c"),
            max_distance=16,
            buckets=4,
            norm=True,
            convolution=3,
            convolution_activation="gelu",
        ),
        scan_layers=False,
    ),
    "deberta, positions of their own": models.deberta(
        **ENCODER,
        position="learned",
        embedding=Embedding(norm=True, token_types=2),
        disentangled=Disentangled(terms=("c2p", "p2c"), max_distance=7, shared=False),
    ),
    "deberta, one term": models.deberta(
        **ENCODER, disentangled=Disentangled(terms=("p2c",), max_distance=5, buckets=0)
    ),
}


def _other_heads() -> dict[str, ModelConfig]:
    """Every head of a family except its usual one."""
    kinds = ("classification", "reward", "tokens", "span", "rtd", "mlm")
    return {
        f"{name}, {kind}": models.with_head(
            config, kind, **({"labels": 3} if kind in ("classification", "tokens") else {})
        )
        for name, config in CONFIGS.items()
        for kind in kinds
        if kind in models.FAMILIES[config.family].heads and kind != config.head.kind
        if (name, kind) not in NOT_IN_TRANSFORMERS
    }


# Heads that transformers lacks, or has with another kind of output.
NOT_IN_TRANSFORMERS = {
    ("deberta", "rtd"),
    ("gemma2", "span"),
    ("gemma3", "span"),
    ("gemma3", "tokens"),
    ("olmo2", "span"),
    ("olmo2", "tokens"),
}

HEADS: dict[str, ModelConfig] = _other_heads()
