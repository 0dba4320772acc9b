"""From raw documents to text worth training on: pure steps, each on one document.

In short:

    document = cleaning.Document(text, id="crawl.jsonl:12", source="crawl")
    result = cleaning.clean(document, steps)  # Document, or Rejected(document, reason, score, step)
"""

from llmjax.data.cleaning.document import Document, Rejected, Step, clean, name_of

__all__ = ["Document", "Rejected", "Step", "clean", "name_of"]
