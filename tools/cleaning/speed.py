"""Compares the speed of deduplication and detection steps with other libraries."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llmjax.data import cleaning
from llmjax.data.cleaning import Document, decontamination, exact, minhash, passages, pieces
from tools import corpora
from tools.cleaning import leaks

DOCUMENTS, PEERS = 10_000, 1_000
Run = Callable[[Sequence[Document]], object]


def judge() -> Iterator[dict[str, object]]:
    """Documents and megabytes per CPU second on Debian's descriptions."""
    records = corpora.read(corpora.fetch("debian"), "en")
    documents = [
        Document(record["text"], id=f"debian:{i}")
        for i, record in enumerate(itertools.islice(records, DOCUMENTS))
    ]
    for name, run in {**_ours(documents), **_peers()}.items():
        some = documents[:PEERS] if name in _peers() else documents
        run(documents[:20])  # one-time loading
        start = time.process_time()
        run(some)
        seconds = time.process_time() - start
        size = sum(len(document.text.encode()) for document in some)
        yield {"step": name, "documents/s": len(some) / seconds, "MB/s": size / seconds / 1e6}


def _ours(documents: Sequence[Document]) -> Mapping[str, Run]:
    near, repeated = minhash.MinHash(), passages.Passages()
    steps: dict[str, cleaning.Step] = {
        "exact duplicates, step": exact.step([exact.index(documents)]),
        "near duplicates, step": minhash.step([minhash.index(documents, near)], near),
        "repeated passages, step": passages.step([passages.index(documents, repeated)], repeated),
        "decontamination": decontamination.step(leaks.examples(), cleaning.Decontamination()),
        "personal data": cleaning.PersonalData(),
        "harmful content": cleaning.HarmfulContent(),
    }
    return {
        "exact duplicates, index": exact.index,
        "near duplicates, index": lambda some: minhash.index(some, near),
        "repeated passages, index": lambda some: passages.index(some, repeated),
        **{name: _each(step) for name, step in steps.items()},
    }


def _peers() -> Mapping[str, Run]:
    return {
        "datatrove's signatures": _datatrove,
        "datasketch's signatures": _datasketch,
        "presidio's engine": _presidio,
        "alt-profanity-check": _profanity,
    }


def _each(step: cleaning.Step) -> Run:
    return lambda documents: [step(document) for document in documents]


def _datatrove(documents: Sequence[Document]) -> None:
    from datatrove.pipeline.dedup import MinhashDedupSignature

    signer = MinhashDedupSignature("/tmp")
    for document in documents:
        shingles = signer.get_shingles(document.text)
        if shingles.size:
            signer.get_signature(shingles)


def _datasketch(documents: Sequence[Document]) -> None:
    import datasketch

    settings = minhash.MinHash()
    for document in documents:
        signature = datasketch.MinHash(num_perm=settings.bands * settings.rows)
        grams = minhash.ngrams(document.text, settings)
        signature.update_batch([gram.tobytes() for gram in grams])


def _presidio(documents: Sequence[Document]) -> None:
    """Presidio with a blank spaCy pipeline, for the entities that ours detects."""
    import presidio_analyzer
    import spacy
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    pipeline: Any = SpacyNlpEngine()
    pipeline.nlp = {"en": spacy.blank("en")}
    engine = presidio_analyzer.AnalyzerEngine(nlp_engine=pipeline, supported_languages=["en"])
    entities = ["EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS", "US_SSN"]
    for document in documents:
        engine.analyze(document.text, language="en", entities=entities)


def _profanity(documents: Sequence[Document]) -> None:
    import profanity_check

    for document in documents:
        profanity_check.predict_prob(pieces.cut(document.text, "sentence"))
