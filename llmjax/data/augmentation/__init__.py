"""Augments examples: rewrites texts while keeping their meaning.

In short:

    method = augmentation.SynonymReplacement(rate=0.2)
    text = augmentation.augment("The film was great.", method, seed=0)

and for files, with quality control:

    settings = augmentation.AugmentationConfig(methods=("synonyms", "noise"), copies=2)
    report = augmentation.augment_examples(
        source, "more.jsonl", settings.make_methods(), kind="classification",
        copies=settings.copies, checks=settings.make_checks(),
    )
"""

from llmjax.data.augmentation.config import AugmentationConfig, ControlConfig, TranslationConfig
from llmjax.data.augmentation.control import (
    Check,
    LabelAgreement,
    LengthRatio,
    Pair,
    Similarity,
    judge,
)
from llmjax.data.augmentation.encoders import Classifier, Embedder
from llmjax.data.augmentation.files import Report, augment_examples
from llmjax.data.augmentation.method import Method, augment, generator
from llmjax.data.augmentation.noise import Noise
from llmjax.data.augmentation.restructuring import Restructuring
from llmjax.data.augmentation.synonyms import SynonymReplacement
from llmjax.data.augmentation.thesaurus import Meaning, Thesaurus
from llmjax.data.augmentation.translation import Apertium, BackTranslation
from llmjax.data.augmentation.wordnet import WordNet

__all__ = [
    "Apertium",
    "AugmentationConfig",
    "BackTranslation",
    "Check",
    "Classifier",
    "ControlConfig",
    "Embedder",
    "LabelAgreement",
    "LengthRatio",
    "Meaning",
    "Method",
    "Noise",
    "Pair",
    "Report",
    "Restructuring",
    "Similarity",
    "SynonymReplacement",
    "Thesaurus",
    "TranslationConfig",
    "WordNet",
    "augment",
    "augment_examples",
    "generator",
    "judge",
]
