"""Cleans raw documents for training: pure steps, each a function of one document.

In short:

    document = cleaning.Document(text, id="crawl.jsonl:12", source="crawl")
    result = cleaning.clean(document, steps)  # Document, or Rejected(document, reason, score, step)
"""

from llmjax.data.cleaning import decontamination, exact, minhash, passages
from llmjax.data.cleaning.c4 import C4Quality
from llmjax.data.cleaning.config import CleaningConfig
from llmjax.data.cleaning.decontamination import Decontamination
from llmjax.data.cleaning.document import Document, Rejected, Step, clean, name_of
from llmjax.data.cleaning.fineweb import FineWebQuality
from llmjax.data.cleaning.gopher import STOP_WORDS, GopherQuality, GopherRepetition
from llmjax.data.cleaning.harm import HarmfulContent
from llmjax.data.cleaning.html import Html
from llmjax.data.cleaning.language import Language, LanguageMinimum
from llmjax.data.cleaning.length import Length
from llmjax.data.cleaning.minhash import MinHash
from llmjax.data.cleaning.passages import Passages
from llmjax.data.cleaning.perplexity import Perplexity
from llmjax.data.cleaning.personal import PersonalData
from llmjax.data.cleaning.quality_model import QualityModel
from llmjax.data.cleaning.repair import Repair
from llmjax.data.cleaning.urls import Urls

__all__ = [
    "STOP_WORDS",
    "C4Quality",
    "CleaningConfig",
    "Decontamination",
    "Document",
    "FineWebQuality",
    "GopherQuality",
    "GopherRepetition",
    "HarmfulContent",
    "Html",
    "Language",
    "LanguageMinimum",
    "Length",
    "MinHash",
    "Passages",
    "Perplexity",
    "PersonalData",
    "QualityModel",
    "Rejected",
    "Repair",
    "Step",
    "Urls",
    "clean",
    "decontamination",
    "exact",
    "minhash",
    "name_of",
    "passages",
]
