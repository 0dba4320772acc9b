"""Cleaning a corpus: every document is accounted for, and how the work was done does not show."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Mapping

import pytest
import zstandard

from llmjax import data
from llmjax.data import documents
from llmjax.data.cleaning import engines, pipeline, stored, task
from llmjax.data.cleaning.config import CleaningConfig
from llmjax.data.cleaning.counts import Counts
from llmjax.data.cleaning.document import Document, Rejected
from llmjax.data.cleaning.gopher import GopherQuality
from llmjax.data.cleaning.length import Length
from llmjax.data.cleaning.minhash import MinHash
from tests.data.cleaning.corpus import line, made, settings, texts, write


@pytest.fixture
def corpus(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two sources in three files, with malformed lines."""
    said = texts(160)
    lines = [line(text, url=f"http://site/{i}") for i, text in enumerate(said)]
    write(tmp_path / "in" / "books" / "a.jsonl", [*lines[:50], b"{broken", *lines[50:80]])
    packed = b"".join(row + b"\n" for row in [*lines[80:110], b'{"text": "\xff"}', b"[]"])
    (tmp_path / "in" / "books" / "b.jsonl.zst").write_bytes(zstandard.compress(packed))
    write(tmp_path / "in" / "web" / "c.ndjson", lines[110:])
    return tmp_path / "in"


def shards(directory: pathlib.Path) -> dict[str, str]:
    """What training reads."""
    return {name: hash_ for name, hash_ in made(directory).items() if ".zst" not in name}


def times(directory: pathlib.Path) -> Mapping[str, int]:
    return {
        str(path.relative_to(directory)): path.stat().st_mtime_ns
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_every_document_comes_out_once(corpus: pathlib.Path, tmp_path: pathlib.Path) -> None:
    manifest = data.prepare(settings(corpus), tmp_path / "out")
    kept = list(pipeline.read_cleaned(tmp_path / "out"))
    gone = list(pipeline.read_rejected(tmp_path / "out"))
    ids = collections.Counter((d.source, d.id) for d in [*kept, *(r.document for r in gone)])
    assert len(ids) == sum(ids.values()) == 163
    assert collections.Counter(r.step for r in gone if r.step == "read") == {"read": 3}
    # By what the steps say they do, worked out without them.
    seen: set[str] = set()
    wanted = []
    for number, text in enumerate(texts(160)):
        if len(text) >= 20:
            same = " ".join(text.split()).casefold()
            wanted += [(number, text)] if same not in seen else []
            seen.add(same)
    assert [(d.metadata["url"], d.text) for d in kept] == [
        (f"http://site/{number}", text) for number, text in wanted
    ]
    counts = pipeline.load_counts(tmp_path / "out")
    total = counts["books"] + counts["web"]
    assert (total.documents, total.kept) == (163, len(kept))
    assert sum(row.documents - row.kept for row in total.rows()) == len(gone)
    assert sum(manifest.split(split).documents for split in data.SPLITS) == len(kept)
    assert sum(sum(source.rejected.values()) for source in manifest.sources) == len(gone)
    assert manifest.sources[0].rejected["not JSON"] == 1


@pytest.mark.parametrize("part_bytes", [900, 5000, 1 << 20])
def test_how_text_is_cut_does_not_show(
    corpus: pathlib.Path, tmp_path: pathlib.Path, part_bytes: int
) -> None:
    data.prepare(settings(corpus), tmp_path / "out")
    data.prepare(settings(corpus, part_bytes=part_bytes), tmp_path / "other")
    assert shards(tmp_path / "out") == shards(tmp_path / "other")


def test_processes_do_not_show(corpus: pathlib.Path, tmp_path: pathlib.Path) -> None:
    data.prepare(settings(corpus), tmp_path / "out")
    data.prepare(settings(corpus), tmp_path / "other", engine=engines.Local(2))
    assert made(tmp_path / "out") == made(tmp_path / "other")


def test_again_changes_nothing_and_new_files_are_added(
    corpus: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    wanted = settings(corpus, steps=("length",))
    data.prepare(wanted, tmp_path / "out")
    before = times(tmp_path / "out")
    data.prepare(wanted, tmp_path / "out")
    assert times(tmp_path / "out") == before
    write(corpus / "web" / "d.jsonl", [line("something that was not there before")])
    data.prepare(wanted, tmp_path / "out", overwrite=True)
    after = times(tmp_path / "out")
    changed = {name for name in after if name.startswith("cleaned/") and "/0" in name}
    changed = {name for name in changed if before.get(name) != after[name]}
    last = max(name for name in after if name.startswith("cleaned/web/0")).split(".")[0]
    assert changed == {f"{last}.json", f"{last}.jsonl.zst"}
    assert pipeline.load_counts(tmp_path / "out")["web"].documents == 51


def test_a_run_that_breaks_off_goes_on(
    corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.prepare(settings(corpus), tmp_path / "whole")
    runs: list[str] = []
    run = task.Task.run

    def breaks(self: task.Task, report: task.Report = lambda: None) -> None:
        if len(runs) == 3:
            raise KeyboardInterrupt
        runs.append(f"{self.phase.number}/{self.part.source.name}/{self.part.name}")
        run(self, report)

    monkeypatch.setattr(task.Task, "run", breaks)
    with pytest.raises(KeyboardInterrupt):
        data.prepare(settings(corpus), tmp_path / "out")
    first = list(runs)
    monkeypatch.setattr(task.Task, "run", lambda s, r: runs.append("x") or run(s, r))
    data.prepare(settings(corpus), tmp_path / "out")
    parts = len(list((tmp_path / "out" / "cleaned").glob("*/*.json")))
    assert len(first) == 3
    assert len(runs) == 2 * parts  # two phases, and nothing was done again
    assert shards(tmp_path / "out") == shards(tmp_path / "whole")
    assert not list((tmp_path / "out").rglob("*.partial-*"))


def test_too_much_damage_is_said_where_it_is(corpus: pathlib.Path, tmp_path: pathlib.Path) -> None:
    wanted = dataclasses.replace(settings(corpus), max_rejected_share=0.02)
    single = dataclasses.replace(wanted, cleaning=CleaningConfig(("length",), part_bytes=2000))
    for given in (wanted, wanted, single, single):  # nor does a second run let it pass
        with pytest.raises(ValueError, match=r"source 'books': 3 of 113 documents are malf") as e:
            data.prepare(given, tmp_path / "out")
        assert "1 × not JSON (first: a.jsonl" in str(e.value)
        assert not (tmp_path / "out" / "manifest.json").exists()
    accepted = dataclasses.replace(single, max_rejected_share=0.2)
    before = times(tmp_path / "out" / "rejected")
    data.prepare(accepted, tmp_path / "out")
    assert times(tmp_path / "out" / "rejected") == before  # no part was cleaned again


def test_what_is_rejected_can_be_read_back(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_LINE_BYTES", 1000)
    for text, title in (("😀" * 500, ""), ("a", "é" * 500), ("\ud800", "b")):
        rejected = Rejected(Document(text, "f:1", "s", {"title": title}), "why", 0.5, "step")
        writer = stored.Writer(tmp_path / "a.jsonl.zst")
        writer.write(stored.encode_rejected(rejected, 3))
        writer.close()
        ((found, count),) = stored.read_rejected(tmp_path / "a.jsonl.zst", "s")
        assert (found.document.id, found.reason, found.score, count) == ("f:1", "why", 0.5, 3)
        assert text.startswith(found.document.text)
        assert found.document.text


def test_what_a_step_fails_on_is_set_aside(
    corpus: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Length, document: object) -> object:
        if "gull" in document.text:  # type: ignore[attr-defined]
            raise RecursionError
        return document.with_text(" ") if "rope" in document.text else document  # type: ignore

    monkeypatch.setattr(Length, "__call__", fails)
    wanted = dataclasses.replace(settings(corpus, steps=("length",)), max_rejected_share=1.0)
    data.prepare(wanted, tmp_path / "out")
    gone = collections.Counter(r.reason for r in pipeline.read_rejected(tmp_path / "out"))
    assert gone["failed: RecursionError"] == sum("gull" in text for text in texts(160))
    assert gone["empty text"] > 0
    assert all("rope" not in d.text for d in pipeline.read_cleaned(tmp_path / "out"))

    def misses(self: Length, document: object) -> object:
        raise ImportError("no such library")

    monkeypatch.setattr(Length, "__call__", misses)
    with pytest.raises(ImportError, match="no such library"):
        data.prepare(wanted, tmp_path / "other")


def test_counts_that_do_not_add_up_are_an_error() -> None:
    counts = Counts(["read"])
    counts.documents, counts.kept = 3, 2
    with pytest.raises(RuntimeError, match="1 of 3 documents are unaccounted for"):
        counts.check()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (("lenght",), "use 'length'"),
        (("qqq",), "use some of standard, urls, html, "),
        (("length", "standard"), "a step twice"),
    ],
)
def test_wrong_steps(steps: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CleaningConfig(steps)


def test_every_step_goes_by_its_name(tmp_path: pathlib.Path) -> None:
    """All steps that need no model, in one run, in phases; and pages come out as text."""
    pytest.importorskip("presidio_analyzer")
    story = "The keeper of the light went down to the boat, and the wind was with him. "
    ends = [f"It was the year {1800 + i}, and he wrote to a{i}@sea.org." for i in range(9)]
    told = [story * 3 + end for end in ends]
    leak = "What is the least number that is not the sum of two squares of whole numbers at all?"
    pages = [f"<html><body><article><p>{text}</p></article></body></html>" for text in told]
    for i, page in enumerate([*pages, "<html></html>"]):
        write(tmp_path / "in" / "web" / f"{i}.html", [page.encode()])
    write(tmp_path / "in" / "tests" / "a.jsonl", [line(f"{story * 9}{leak} {story * 9}")])
    write(tmp_path / "evaluation.jsonl", [json.dumps({"question": leak}).encode()])
    fields = {field.name for field in dataclasses.fields(CleaningConfig)}
    names = fields - {"steps", "part_bytes", "evaluation_sets", "quality_model", "perplexity"}
    judging = {"gopher_repetition", "c4_quality", "fineweb_quality", "harmful_content"}
    last = (
        "near_duplicates",
        "exact_duplicates",
        "repeated_passages",
        "decontamination",
        "personal_data",
    )
    first = names - {"html", *last}
    wanted = settings(
        tmp_path / "in",
        steps=("html", *sorted(first - judging), *last, *sorted(judging)),
        evaluation_sets=(str(tmp_path / "evaluation.jsonl"),),
        near_duplicates=MinHash(similarity=0.9),
        gopher_quality=GopherQuality(min_words=5),
    )
    counts = pipeline.clean_sources(
        wanted,
        {source.name: documents.find_files(source) for source in wanted.sources},
        tmp_path / "out",
    )
    steps = {row.step: row for source in counts.values() for row in source.rows()}
    assert list(steps) == ["read", *wanted.cleaning.names]
    reasons = {r.document.id: (r.step, r.reason) for r in pipeline.read_rejected(tmp_path / "out")}
    assert reasons["9.html:0"][0] == "html"
    assert not {step for step, reason in reasons.values() if reason.startswith("failed")}
    everything = [*pipeline.read_cleaned(tmp_path / "out")]
    everything += [r.document for r in pipeline.read_rejected(tmp_path / "out")]
    assert len(everything) == 11
    assert not any(leak in document.text for document in pipeline.read_cleaned(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("phases"))
