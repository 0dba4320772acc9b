"""Floating-point operations of a model, by the convention of model FLOPs utilisation (MFU).

A token costs 2 operations per parameter that multiplies it, plus attention (Kaplan et al. 2020,
section 2.1; Chowdhery et al. 2022, appendix B). Attention counts the pairs that the mask allows in
a sequence that fills its row: half of the square for causal attention, the full square for
bidirectional attention, the window for local layers. The backward pass costs twice the forward
pass. Recomputation (remat), look-ups, softmax and activations do not count.
"""

import math

import jax

from llmjax import models, tree
from llmjax.objectives import MaskingConfig
from llmjax.objectives.masking import BERT, ELECTRA
from llmjax.spec import is_param

_TABLES = ("positions", "token_types", "relative")  # only looked up, or projected once per batch
_UNUSED = ("head/pooler", "head/next_sentence")  # kept for checkpoints, never run


def matmul_params(config: models.ModelConfig) -> int:
    """Parameters that multiply every token: all except lookup tables.

    The head counts, including a tied table. Of the experts, only the active ones count. DeBERTa's
    mask decoder counts its layer once per application.
    """
    return _body_params(config) + _head_params(config)


def active_params(config: models.ModelConfig) -> int:
    """Active parameters per token, the N of the 6·N rule: all except the inactive experts."""
    return int(sum(_sizes(config).values()))


def forward_flops(
    config: models.ModelConfig, sequence_length: int, predictions: float | None = None
) -> float:
    """Operations of a forward pass per token, for sequences of this length.

    2N plus attention, which is 2·L·S·H·C if causal and twice that otherwise.

    Args:
        config: the model's configuration.
        sequence_length: S.
        predictions: fraction of the tokens that the head reads. The default is 1, or one token
            per sequence for sequence heads.
    """
    if predictions is None:
        of_sequences = config.head.kind in models.heads.SEQUENCE_KINDS
        predictions = 1 / sequence_length if of_sequences else 1
    read = predictions * _head_params(config)
    return 2 * (_body_params(config) + read) + _attention(config, sequence_length)


def training_flops(
    config: models.ModelConfig, sequence_length: int, predictions: float | None = None
) -> float:
    """Operations of a training step per token: three times `forward_flops`."""
    return 3 * forward_flops(config, sequence_length, predictions)


def mlm_flops(
    config: models.ModelConfig, sequence_length: int, masking: MaskingConfig = BERT
) -> float:
    """Operations of a training step of `objectives.mlm` per token.

    The head is computed at `max_predictions` positions of a row.
    """
    return training_flops(config, sequence_length, _share(masking, sequence_length))


def rtd_flops(
    generator: models.ModelConfig,
    discriminator: models.ModelConfig,
    sequence_length: int,
    masking: MaskingConfig = ELECTRA,
) -> float:
    """Operations of a training step of `objectives.rtd` per token, for both models."""
    found = training_flops(discriminator, sequence_length)
    return found + mlm_flops(generator, sequence_length, masking)


def _share(masking: MaskingConfig, sequence_length: int) -> float:
    return masking.max_predictions(sequence_length) / sequence_length


def _sizes(config: models.ModelConfig) -> dict[str, float]:
    """Parameters that multiply a token, by path; experts count in proportion to active ones."""
    spec = models.spec(config)
    params = jax.tree.leaves(spec, is_leaf=is_param)
    sizes: dict[str, float] = {}
    for path, param in zip(tree.paths(spec, is_leaf=is_param), params, strict=True):
        size = math.prod(param.shape)
        if "/experts/" in path and not path.endswith("/router"):
            size = size * config.experts.per_token // config.experts.count
        sizes[path] = size
    return sizes


def _body_params(config: models.ModelConfig) -> int:
    sizes = _sizes(config)
    skipped = ("embedding", "head", *_TABLES)
    total = sum(size for path, size in sizes.items() if path.split("/")[0] not in skipped)
    total += (
        _repeats(config)
        * sum(size for path, size in sizes.items() if path.startswith("layers/"))
        // config.num_layers
    )
    return int(total)


def _head_params(config: models.ModelConfig) -> int:
    sizes = _sizes(config)
    head = sum(
        size
        for path, size in sizes.items()
        if path.split("/")[0] == "head" and not path.startswith(_UNUSED)
    )
    if config.head.kind == "none":
        return 0
    tied = config.tied and config.head.kind in ("lm", "mlm")
    return int(head + sizes["embedding"] if tied else head)


def _repeats(config: models.ModelConfig) -> int:
    """How often the last layer is applied again."""
    applied = config.disentangled.mask_decoder if config.head.kind == "mlm" else 0
    return max(applied - 1, 0)


def _attention(config: models.ModelConfig, length: int) -> float:
    """Operations of attention scores and value mixing per token.

    A pair costs 2·H·C for its score and as much for mixing its value. Each of DeBERTa's position
    terms costs as much as the scores: it is a product with the embedding of the relative distance.
    """
    pattern = config.attention.pattern
    kinds = [pattern[layer % len(pattern)] for layer in range(config.num_layers)]
    kinds += kinds[-1:] * _repeats(config)
    products = 2 + len(config.disentangled.terms)
    pairs = sum(_pairs(config, kind, length) for kind in kinds)
    return products * 2 * config.num_heads * config.channels * pairs


def _pairs(config: models.ModelConfig, kind: str, length: int) -> float:
    """Average number of tokens that a token attends to; causal attention counts itself as half."""
    window = min(config.attention.window, length) if kind == "local" else length
    # 2·window - 1 within a window on both sides, fewer near the ends.
    both = 2 * window - 1 - window * (window - 1) / length
    return both / 2 if config.attention.causal else both
