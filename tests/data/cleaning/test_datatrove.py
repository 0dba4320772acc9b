"""Our steps in datatrove's pipeline do what they do in ours, and it does the rest."""

import gzip
import json
import pathlib

import pytest

from llmjax.data.cleaning.datatrove import Cleaning
from llmjax.data.cleaning.document import Document, Rejected, clean
from llmjax.data.cleaning.length import Length
from tests.data.cleaning.corpus import line, texts, write


def test_steps_between_readers_and_writers(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("datatrove")
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.readers.jsonl import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter

    said = texts(40)
    write(tmp_path / "raw" / "a.jsonl", [line(t, id=f"n{i}", n=i) for i, t in enumerate(said)])
    steps = [lambda document: document.with_metadata(seen=True), Length(60, 150)]
    removed = JsonlWriter(str(tmp_path / "removed"))
    LocalPipelineExecutor(
        [
            JsonlReader(str(tmp_path / "raw")),
            Cleaning(steps, removed),
            JsonlWriter(str(tmp_path / "clean")),
        ],
        workers=1,
        logging_dir=str(tmp_path / "logs"),
    ).run()

    def records(folder: str) -> list[dict]:
        rows = gzip.decompress((tmp_path / folder / "00000.jsonl.gz").read_bytes()).splitlines()
        return [json.loads(row) for row in rows]

    results = [clean(Document(text), steps) for text in said]
    kept = [(i, r.text) for i, r in enumerate(results) if isinstance(r, Document)]
    gone = [(i, r.reason, r.score) for i, r in enumerate(results) if isinstance(r, Rejected)]
    assert [(r["metadata"]["n"], r["text"]) for r in records("clean")] == kept
    assert all(
        r["metadata"]["seen"] and r["id"] == f"n{r['metadata']['n']}" for r in records("clean")
    )
    known = [r["metadata"] for r in records("removed")]
    assert [(m["n"], m["filter_reason"], m["filter_score"]) for m in known] == gone
    assert {m["filter_step"] for m in known} == {"length"}
