"""How examples are written anew."""

from llmjax.data.augmentation import (
    AugmentationConfig,
    ControlConfig,
    Noise,
)


def usual() -> AugmentationConfig:
    """Synonyms, sentences built anew and some noise, a copy by each."""
    return AugmentationConfig()


def translated() -> AugmentationConfig:
    """Into Spanish and back, by Apertium; and synonyms."""
    return AugmentationConfig(methods=("back_translation", "synonyms"))


def noisy() -> AugmentationConfig:
    """Many misspellings, for models that will read what people type and scanners read."""
    return AugmentationConfig(
        methods=("noise",),
        copies=3,
        noise=Noise(rate=0.2),
        control=ControlConfig(similarity=0.6),
    )
