"""Checks that a model and a batch fit the current mesh."""

from llmjax import mesh
from llmjax.models import pipeline
from llmjax.models.config import ModelConfig


def require_fits(config: ModelConfig, rows: int, length: int, *, cached: bool = False) -> None:
    """Raises ValueError unless the current mesh can run the model on rows [B, S].

    Args:
        config: model configuration.
        rows: B.
        length: S.
        cached: whether the model runs with a cache.
    """
    stages, devices = mesh.size("layers"), mesh.size("sequence")
    if cached and (stages > 1 or devices > 1):
        raise ValueError(
            f"a cache supports neither stages (mesh.stage={stages}) nor context parallelism "
            f"(mesh.context={devices}): decode with a mesh from `mesh.for_decoding`"
        )
    if stages > 1:
        _require_stages(config, rows, stages)
    if devices == 1:
        return
    if config.disentangled.terms:
        raise ValueError(
            f"mesh.context={devices}: DeBERTa's attention and convolution need whole sequences; "
            "set mesh.context=1"
        )
    parts = devices * (2 if config.attention.causal else 1)
    if length % parts:
        raise ValueError(
            f"sequences of {length} tokens do not divide into {parts} equal parts, for "
            f"mesh.context={devices}: choose a sequence_length that {parts} divides"
        )


def _require_stages(config: ModelConfig, rows: int, stages: int) -> None:
    decodes = config.disentangled.mask_decoder and config.head.kind == "mlm"
    if decodes or not config.scan_layers:
        raise ValueError(
            f"mesh.stage={stages}: stages need identical, stacked layers without DeBERTa's mask "
            "decoder; set model.scan_layers=True, or mesh.stage=1"
        )
    pipeline.schedule(config.pipeline, rows, config.num_layers, len(config.attention.pattern))
