"""Floating-point operations of a model, by the convention of utilisation figures (MFU).

A token costs 2 operations for every parameter that it is multiplied with, and attention on top
(Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B). Attention counts the pairs
that the mask allows in a sequence that fills its row: causal ones half of the full square, others
all of it, local layers their window. The backward pass costs twice the forward one. Recomputation
(remat) does not count, nor do look-ups, softmax and activations.
"""

import math

import jax

from llmjax import models, tree
from llmjax.objectives import MaskingConfig
from llmjax.objectives.masking import BERT, ELECTRA
from llmjax.spec import is_param

_TABLES = ("positions", "token_types", "relative")  # only looked up, or projected once a batch
_UNUSED = ("head/pooler", "head/next_sentence")  # kept for checkpoints, never run


def matmul_params(config: models.ModelConfig) -> int:
    """Parameters that every token is multiplied with: all but the tables it only looks up.

    Those of the head count, a tied table too; of experts, only the chosen ones. DeBERTa's mask
    decoder counts its layer each time that it is applied.
    """
    return _body_params(config) + _head_params(config)


def active_params(config: models.ModelConfig) -> int:
    """Parameters that a token has to do with, N of the 6·N rule: all but experts not chosen."""
    return int(sum(_sizes(config).values()))


def forward_flops(
    config: models.ModelConfig, sequence_length: int, predictions: float | None = None
) -> float:
    """Operations of a forward pass for each token of sequences of this length.

    2N and attention: 2·L·S·H·C where it is causal, and twice that where it is not.

    Args:
        config: the model's.
        sequence_length: S.
        predictions: share of the tokens whose states the head reads. By default all; one for each
            sequence where the head is of sequences.
    """
    if predictions is None:
        of_sequences = config.head.kind in models.heads.SEQUENCE_KINDS
        predictions = 1 / sequence_length if of_sequences else 1
    read = predictions * _head_params(config)
    return 2 * (_body_params(config) + read) + _attention(config, sequence_length)


def training_flops(
    config: models.ModelConfig, sequence_length: int, predictions: float | None = None
) -> float:
    """Operations of a training step for each token: three times those of `forward_flops`."""
    return 3 * forward_flops(config, sequence_length, predictions)


def mlm_flops(
    config: models.ModelConfig, sequence_length: int, masking: MaskingConfig = BERT
) -> float:
    """Operations of a training step of `objectives.mlm` for each token.

    The head is computed at `max_predictions` positions of a row.
    """
    return training_flops(config, sequence_length, _share(masking, sequence_length))


def rtd_flops(
    generator: models.ModelConfig,
    discriminator: models.ModelConfig,
    sequence_length: int,
    masking: MaskingConfig = ELECTRA,
) -> float:
    """Operations of a training step of `objectives.rtd` for each token, of both models."""
    found = training_flops(discriminator, sequence_length)
    return found + mlm_flops(generator, sequence_length, masking)


def _share(masking: MaskingConfig, sequence_length: int) -> float:
    return masking.max_predictions(sequence_length) / sequence_length


def _sizes(config: models.ModelConfig) -> dict[str, float]:
    """Parameters that a token is multiplied with, by path; of experts, the chosen ones' share."""
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
    """Operations of scores and mixing for each token.

    A pair costs 2·H·C for its score and as much for its part of the mix. Each term of DeBERTa's
    positions costs as much as the scores: a product with a vector of the pair's distance.
    """
    pattern = config.attention.pattern
    kinds = [pattern[layer % len(pattern)] for layer in range(config.num_layers)]
    kinds += kinds[-1:] * _repeats(config)
    products = 2 + len(config.disentangled.terms)
    pairs = sum(_pairs(config, kind, length) for kind in kinds)
    return products * 2 * config.num_heads * config.channels * pairs


def _pairs(config: models.ModelConfig, kind: str, length: int) -> float:
    """Tokens that a token attends to on average; a causal one's own place counts as half."""
    window = min(config.attention.window, length) if kind == "local" else length
    # 2·window - 1 within the window of both sides, fewer near the ends.
    both = 2 * window - 1 - window * (window - 1) / length
    return both / 2 if config.attention.causal else both
