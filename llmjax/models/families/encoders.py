"""Encoder families: model configurations and names in checkpoints."""

import dataclasses
from typing import Any

from llmjax.models.config import ModelConfig
from llmjax.models.families.names import (
    INTO_HEADS,
    OUT_OF_HEADS,
    Family,
    Names,
    linear,
    norm,
)
from llmjax.models.options import Attention, Disentangled, Dropout, Embedding, Head, Rope

_BERT = "encoder.layer.{}."
_MODERN = "model.layers.{}."


def _bert_names(model: str, projections: str = "{}") -> Names:
    """Checkpoint names of a BERT-like model without its head.

    Args:
        model: prefix with its dot, such as "bert.".
        projections: pattern for the names of queries, keys and values, such as "{}_proj".
    """
    layer = f"{model}{_BERT}"
    into = {
        name: linear(
            f"layers/attention/{name}",
            f"{layer}attention.self.{projections.format(name)}",
            INTO_HEADS,
            "(h c) -> h c",
        )
        for name in ("query", "key", "value")
    }
    return {
        "embedding": (f"{model}embeddings.word_embeddings.weight", "v d -> v d"),
        "positions": (f"{model}embeddings.position_embeddings.weight", "s d -> s d"),
        "token_types": (f"{model}embeddings.token_type_embeddings.weight", "t d -> t d"),
        **norm("embedding_norm", f"{model}embeddings.LayerNorm"),
        **into["query"],
        **into["key"],
        **into["value"],
        **linear("layers/attention/out", f"{layer}attention.output.dense", OUT_OF_HEADS, "d -> d"),
        **norm("layers/attention_norm", f"{layer}attention.output.LayerNorm"),
        **linear("layers/mlp/up", f"{layer}intermediate.dense", "f d -> d f", "f -> f"),
        **linear("layers/mlp/down", f"{layer}output.dense", "d f -> f d", "d -> d"),
        **norm("layers/mlp_norm", f"{layer}output.LayerNorm"),
    }


ELECTRA_NAMES: Names = _bert_names("electra.") | {
    "embedding_projection/kernel": ("electra.embeddings_project.weight", "d e -> e d"),
    "embedding_projection/bias": ("electra.embeddings_project.bias", "d -> d"),
}

DEBERTA_NAMES: Names = {
    **_bert_names("deberta.", "{}_proj"),
    "relative/table": ("deberta.encoder.rel_embeddings.weight", "p d -> p d"),
    **norm("relative/norm", "deberta.encoder.LayerNorm"),
    **linear(
        "layers/attention/position_key",
        f"deberta.{_BERT}attention.self.pos_key_proj",
        INTO_HEADS,
        "(h c) -> h c",
    ),
    **linear(
        "layers/attention/position_query",
        f"deberta.{_BERT}attention.self.pos_query_proj",
        INTO_HEADS,
        "(h c) -> h c",
    ),
    # Checkpoints store the convolution kernel as [out, in, width].
    "layers/convolution/kernel": ("deberta.encoder.conv.conv.weight", "o i k -> k i o"),
    "layers/convolution/bias": ("deberta.encoder.conv.conv.bias", "d -> d"),
    **norm("layers/convolution/norm", "deberta.encoder.conv.LayerNorm"),
}


def _modern_third(name: str, index: int) -> Names:
    """A third of the fused projection of queries, keys and values."""
    theirs, part = f"{_MODERN}attn.Wqkv", (index, 3, 0)
    return linear(f"layers/attention/{name}", theirs, INTO_HEADS, "(h c) -> h c", part)


MODERNBERT_NAMES: Names = {
    "embedding": ("model.embeddings.tok_embeddings.weight", "v d -> v d"),
    **norm("embedding_norm", "model.embeddings.norm"),
    **norm("layers/attention_norm", f"{_MODERN}attn_norm"),
    **_modern_third("query", 0),
    **_modern_third("key", 1),
    **_modern_third("value", 2),
    **linear("layers/attention/out", f"{_MODERN}attn.Wo", OUT_OF_HEADS, "d -> d"),
    **norm("layers/mlp_norm", f"{_MODERN}mlp_norm"),
    **linear("layers/mlp/gate", f"{_MODERN}mlp.Wi", "f d -> d f", "f -> f", (0, 2, 0)),
    **linear("layers/mlp/up", f"{_MODERN}mlp.Wi", "f d -> d f", "f -> f", (1, 2, 0)),
    **linear("layers/mlp/down", f"{_MODERN}mlp.Wo", "d f -> f d", "d -> d"),
    **norm("final_norm", "model.final_norm"),
}


def _dense(theirs: str) -> Names:
    return linear("head/dense", theirs, "e d -> d e", "e -> e")


def _out(theirs: str) -> Names:
    return linear("head/out", theirs, "n d -> d n", "n -> n")


def _vocabulary(bias: str, table: str = "") -> Names:
    """Names of an untied head's table (if given) and of the bias.

    Most untied classes in transformers have a second, unused bias. Their tables therefore have no
    names, and such models cannot be exported.
    """
    rows = {"head/out": (table, "v d -> v d")} if table else {}
    return rows | {"head/bias": (bias, "v -> v")}


def _label_heads(sequence: tuple[Head, Names], tokens: tuple[Head, Names], span: Names) -> Any:
    """The classification, reward, token, value and span heads.

    Args:
        sequence: head and names for sequence labels; the kind is replaced for rewards.
        tokens: head and names for token labels.
        span: names of the span head, which has the form of the token head.
    """
    replace = dataclasses.replace
    return {
        "classification": sequence,
        "reward": (replace(sequence[0], kind="reward"), sequence[1]),
        "tokens": (replace(tokens[0], kind="tokens"), tokens[1]),
        "value": (replace(tokens[0], kind="value"), tokens[1]),
        "span": (replace(tokens[0], kind="span"), span),
    }


_MLM = Head("mlm", dense=True, norm=True, bias=True)
_PLAIN = Head("tokens", bias=True)
_FIRST = Head("classification", pool="first", dense=True, activation="tanh", bias=True)
_FIRST_GELU = dataclasses.replace(_FIRST, activation="gelu")

_BERT_MLM: Names = {
    **_dense("cls.predictions.transform.dense"),
    **norm("head/norm", "cls.predictions.transform.LayerNorm", "e -> e"),
    **_vocabulary("cls.predictions.bias"),
}

_BERT_HEADS = {
    "none": (
        Head("none", pool="first", dense=True, activation="tanh"),
        _dense("bert.pooler.dense"),
    ),
    "mlm": (
        _MLM,
        {
            **_BERT_MLM,
            **linear("head/pooler/dense", "bert.pooler.dense", "e d -> d e", "e -> e"),
            **linear("head/next_sentence/out", "cls.seq_relationship", "n d -> d n", "n -> n"),
        },
    ),
    **_label_heads(
        (_FIRST, _dense("bert.pooler.dense") | _out("classifier")),
        (_PLAIN, _out("classifier")),
        _out("qa_outputs"),
    ),
}

_ROBERTA_HEADS = {
    "none": (
        Head("none", pool="first", dense=True, activation="tanh"),
        _dense("roberta.pooler.dense"),
    ),
    "mlm": (
        _MLM,
        {
            **_dense("lm_head.dense"),
            **norm("head/norm", "lm_head.layer_norm", "e -> e"),
            **_vocabulary("lm_head.bias"),
        },
    ),
    **_label_heads(
        (_FIRST, _dense("classifier.dense") | _out("classifier.out_proj")),
        (_PLAIN, _out("classifier")),
        _out("qa_outputs"),
    ),
}

_ELECTRA_HEADS = {
    "none": (Head("none", pool="first"), {}),
    "mlm": (
        _MLM,
        {
            **_dense("generator_predictions.dense"),
            **norm("head/norm", "generator_predictions.LayerNorm", "e -> e"),
            **_vocabulary("generator_lm_head.bias"),
        },
    ),
    "rtd": (
        Head("rtd", dense=True, bias=True),
        _dense("discriminator_predictions.dense")
        | _out("discriminator_predictions.dense_prediction"),
    ),
    **_label_heads(
        (_FIRST_GELU, _dense("classifier.dense") | _out("classifier.out_proj")),
        (_PLAIN, _out("classifier")),
        _out("qa_outputs"),
    ),
}

_DEBERTA_HEADS = {
    "none": (Head("none", pool="first"), {}),
    "mlm": (_MLM, _BERT_MLM),
    "rtd": (Head("rtd", dense=True, bias=True), {}),
    **_label_heads(
        (_FIRST_GELU, _dense("pooler.dense") | _out("classifier")),
        (_PLAIN, _out("classifier")),
        _out("qa_outputs"),
    ),
}

_MODERN_DENSE = _dense("head.dense") | norm("head/norm", "head.norm", "e -> e")
_MODERN_LABELS = Head("classification", pool="first", dense=True, norm=True, bias=True)
_MODERN_HEADS = {
    "none": (Head("none", pool="first"), {}),
    "mlm": (_MLM, _MODERN_DENSE | _vocabulary("decoder.bias", "decoder.weight")),
    **_label_heads(
        (_MODERN_LABELS, _MODERN_DENSE | _out("classifier")),
        (_MODERN_LABELS, _MODERN_DENSE | _out("classifier")),
        _MODERN_DENSE | _out("classifier"),
    ),
}

FAMILIES = {
    "bert": Family(_bert_names("bert."), _BERT_HEADS, "bert.", one_activation=("mlm",)),
    "roberta": Family(_bert_names("roberta."), _ROBERTA_HEADS, "roberta."),
    "electra": Family(ELECTRA_NAMES, _ELECTRA_HEADS, "electra.", one_activation=("rtd",)),
    "modernbert": Family(MODERNBERT_NAMES, _MODERN_HEADS, "model."),
    "deberta-v2": Family(DEBERTA_NAMES, _DEBERTA_HEADS, "deberta.", one_activation=("mlm",)),
}

_BERT_MODEL: dict[str, Any] = {
    "max_length": 512,
    "embedding": Embedding(norm=True, token_types=2),
    "position": "learned",
    "attention": Attention(causal=False),
    "norm": "layernorm",
    "norm_order": "post",
    "norm_epsilon": 1e-12,
    "activation": "gelu",
    "gated": False,
    "bias": "all",
    "tied": True,
    "head": _MLM,
    "dropout": Dropout(embedding=0.1, attention=0.1, hidden=0.1, classifier=0.1),
}


def bert(**fields: Any) -> ModelConfig:
    """BERT (Devlin et al. 2019): bidirectional, learned positions, post-norm.

    Next-sentence prediction is not trained: RoBERTa did better without it (Liu et al. 2019,
    section 4.2). `Head.next_sentence` keeps the weights of a checkpoint.
    """
    return ModelConfig(family="bert", **(_BERT_MODEL | fields))


def roberta(**fields: Any) -> ModelConfig:
    """RoBERTa (Liu et al. 2019): BERT with positions that start after the padding token's row."""
    embedding = Embedding(norm=True, token_types=1, offset=2)
    defaults = _BERT_MODEL | {"embedding": embedding, "norm_epsilon": 1e-5}
    return ModelConfig(family="roberta", **(defaults | fields))


def electra(**fields: Any) -> ModelConfig:
    """ELECTRA's discriminator (Clark et al. 2020): BERT that detects replaced tokens.

    The generator is the same model with a head of kind mlm and at most a third of the width.
    """
    defaults = _BERT_MODEL | {"head": _ELECTRA_HEADS["rtd"][0]}
    return ModelConfig(family="electra", **(defaults | fields))


def modernbert(**fields: Any) -> ModelConfig:
    """ModernBERT (Warner et al. 2024): rotary positions, every third layer global, GeGLU."""
    defaults: dict[str, Any] = {
        "max_length": 8192,
        "embedding": Embedding(norm=True),
        "rope": Rope(theta=160_000.0, local_theta=10_000.0),
        "attention": Attention(causal=False, pattern=("global", "local", "local"), window=65),
        "norm": "layernorm",
        "first_norm": False,
        "activation": "gelu",
        "tied": True,
        "head": _MLM,
        "scan_layers": False,
    }
    return ModelConfig(family="modernbert", **(defaults | fields))


def deberta(**fields: Any) -> ModelConfig:
    """DeBERTa v3 (He et al. 2023): attention to content and relative positions, 256 buckets.

    v2-xlarge adds a convolution of width 3. For pretraining on masked tokens, set
    `Disentangled.mask_decoder=2`, which checkpoints in transformers lack.
    """
    defaults = _BERT_MODEL | {
        "embedding": Embedding(norm=True),
        "position": "none",
        "disentangled": Disentangled(terms=("c2p", "p2c"), buckets=256, norm=True),
        "norm_epsilon": 1e-7,
    }
    return ModelConfig(family="deberta-v2", **(defaults | fields))
