"""Recipes of augmentation."""

from llmjax.data.augmentation import (
    AugmentationConfig,
    ControlConfig,
    Noise,
)


def usual() -> AugmentationConfig:
    """Synonyms, rearranged sentences and some noise, one copy each."""
    return AugmentationConfig()


def translated() -> AugmentationConfig:
    """Back-translation through Spanish, by Apertium, and synonyms."""
    return AugmentationConfig(methods=("back_translation", "synonyms"))


def noisy() -> AugmentationConfig:
    """Many misspellings, for models that read typed or scanned text."""
    return AugmentationConfig(
        methods=("noise",),
        copies=3,
        noise=Noise(rate=0.2),
        control=ControlConfig(similarity=0.6),
    )
