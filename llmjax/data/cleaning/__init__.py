"""From raw documents to text worth training on: pure steps, each on one document.

In short:

    document = cleaning.Document(text, id="crawl.jsonl:12", source="crawl")
    result = cleaning.clean(document, steps)  # Document, or Rejected(document, reason, score, step)
"""

from llmjax.data.cleaning.c4 import C4Quality
from llmjax.data.cleaning.document import Document, Rejected, Step, clean, name_of
from llmjax.data.cleaning.fineweb import FineWebQuality
from llmjax.data.cleaning.gopher import STOP_WORDS, GopherQuality, GopherRepetition

__all__ = [
    "STOP_WORDS",
    "C4Quality",
    "Document",
    "FineWebQuality",
    "GopherQuality",
    "GopherRepetition",
    "Rejected",
    "Step",
    "clean",
    "name_of",
]
