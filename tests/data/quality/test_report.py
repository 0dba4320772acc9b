"""The report adds up, is the same however a corpus is cut, and its page says what its JSON says."""

import collections
import json
import pathlib
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import zstandard

pytest.importorskip("rensa")
pytest.importorskip("sklearn")
pytest.importorskip("spacy")
pytest.importorskip("spellchecker")


from experiments import measuring
from llmjax import data
from llmjax.data import quality
from llmjax.data.cleaning import clean
from llmjax.data.cleaning.counts import Counts
from llmjax.data.cleaning.document import Document, Rejected
from llmjax.data.quality import files
from tests.pages import Page, check_charts, check_self_contained

NASTY = "<script>alert('x')</script> & \"quotes\" https://example.org/a.js"
WORDS = ("river", "stone", "light", "water", "paper", "garden", "music", "winter", "letter")
ROOT = pathlib.Path(__file__).parents[3]
STEPS = ("no_spam", "long_enough", "trimmed")

# So small that every sketch and sample is full.
SMALL = quality.QualityConfig(
    duplication=quality.DuplicationSizes(documents=32, passages=32, near=16),
    diversity=quality.DiversitySizes(vocabulary=32, sample=40, characters=60),
    word_bits=6,
    topics=3,
)


def no_spam(document):
    share = document.text.count("BUY") / max(len(document.text.split()), 1)
    return Rejected(document, "shouts", share) if share else document


def long_enough(document):
    count = len(document.text.split())
    return Rejected(document, "too few words", count) if count < 6 else document


def trimmed(document):
    return document.with_text(document.text.replace("Click here. ", ""))


def corpus(count=240, seed=0):
    rng = random.Random(seed)
    documents = []
    for number in range(count):
        words = [*rng.choices(WORDS, k=rng.choice((3, 12, 25))), f"word{rng.randrange(900)}"]
        kind = rng.random()
        text = " ".join(words).capitalize() + "."
        if kind < 0.2:
            text = f"BUY NOW BUY {text}"
        elif kind < 0.4:
            text = f"Click here. {text}"
        documents.append(Document(text, f"f:{number}", rng.choice(("web", "books"))))
    return documents


def cleaned(documents):
    results = [clean(document, (no_spam, long_enough, trimmed)) for document in documents]
    kept = [result for result in results if isinstance(result, Document)]
    return kept, [result for result in results if isinstance(result, Rejected)]


@pytest.fixture(scope="module")
def documents():
    return corpus()


@pytest.fixture(scope="module")
def report(documents):
    return quality.report(documents, *cleaned(documents), steps=STEPS, config=SMALL)


def test_what_is_left_behind_each_step_is_measured(documents, report):
    """The merged counts are those of the documents themselves, step by step."""
    kept, rejected = cleaned(documents)
    assert [stage.name for stage in report.total.stages] == ["raw", *STEPS]
    later = [r.document for r in rejected if r.step == "long_enough"]
    expected = [documents, kept + later, kept, kept]
    for source in (report.total, *report.sources):
        for stage, left in zip(source.stages, expected, strict=True):
            own = [one for one in left if source.name in ("", one.source)]
            found = quality.measure(own, SMALL)
            for part in ("amount", "language", "density", "duplication", "lengths", "growth"):
                assert getattr(stage.quality, part) == getattr(found, part), (stage.name, part)
        assert source.unaccounted == 0
    assert [source.name for source in report.sources] == ["books", "web"]


def test_steps_and_reasons_are_counted(documents, report):
    _, rejected = cleaned(documents)
    counts = collections.Counter((r.step, r.reason, r.document.source) for r in rejected)
    for step in report.steps:
        by_source = {source: n for (of, _, source), n in counts.items() if of == step.name}
        assert step.documents == by_source
        for reason in step.reasons:
            assert reason.documents == sum(by_source.values())
            turned_away = {r.document.id: r for r in rejected if r.step == step.name}
            assert len(reason.examples) == SMALL.examples
            for example in reason.examples:
                assert example.score == turned_away[example.id].score
                assert example.text == turned_away[example.id].document.text
    assert not report.steps[2].reasons


def test_edits_are_shown(documents, report):
    kept, _ = cleaned(documents)
    before = {document.id: document.text for document in documents}
    assert report.edits.compared == len(kept)  # all, as there are fewer than the sample holds
    assert report.edits.edited == sum(before[d.id] != d.text for d in kept)
    for edit in report.edits.examples:
        assert edit.before == f"Click here. {edit.after}"


def test_documents_of_two_sources_may_have_one_id(tmp_path):
    before = [Document(f"{source} text", "data.jsonl:1", source) for source in ("a", "b")]
    after = [before[0], before[1].with_text("b")]
    far = Rejected(
        Document("c", "data.jsonl:2", "a"), "perplexity too high", float("inf"), "perplexity"
    )
    report = quality.report([*before, far.document], after, [far], config=SMALL)
    assert (report.edits.compared, report.edits.edited) == (2, 1)
    assert [(e.source, e.before, e.after) for e in report.edits.examples] == [("b", "b text", "b")]
    quality.write(report, tmp_path)  # JSON has no name for an infinite score


def test_it_is_the_same_however_the_corpus_is_cut(documents, report):
    kept, rejected = cleaned(documents)
    pieces = [*(("before", d) for d in documents), *(("after", d) for d in kept)]
    pieces += [("rejected", r) for r in rejected]
    rng = random.Random(3)
    for count in (1, 2, 7):
        rng.shuffle(pieces)
        whole = quality.Survey(SMALL)
        for shard in range(count):
            part = quality.Survey(SMALL)
            for kind, item in pieces[shard::count]:
                getattr(part, f"add_{kind}")(item)
            whole.merge(pickle.loads(pickle.dumps(part)))
        assert whole.report(STEPS) == report


def test_memory_does_not_grow_with_the_corpus():
    """Once every sketch is full, ten times the documents take the same room."""
    sizes = []
    for count in (300, 3000):
        survey = quality.Survey(SMALL)
        for document in corpus(count, seed=7):
            survey.add_before(document)
            survey.add_rejected(Rejected(document, "reason", step="step"))
        sizes.append(len(pickle.dumps(survey)))
    assert sizes[1] < 1.25 * sizes[0]


def test_sums_do_not_depend_on_the_order():
    """Of numbers that are not whole, which round differently in another order."""
    rng = np.random.default_rng(0)
    scores = {f"text {i}": float(np.exp(rng.lognormal(sigma=2))) for i in range(100)}
    config = quality.QualityConfig(scorer=lambda texts: [scores[text] for text in texts])
    texts = [Document(text) for text in scores]
    found = {
        quality.language_quality(random.Random(seed).sample(texts, 100), config).perplexity
        for seed in range(20)
    }
    assert len(found) == 1


def test_what_was_cleaned_can_be_measured_without_what_came(documents):
    """Unless steps edited it, what came is what was kept and what was turned away."""
    results = [clean(document, (no_spam, long_enough)) for document in documents]
    kept = [result for result in results if isinstance(result, Document)]
    rejected = [result for result in results if isinstance(result, Rejected)]
    without = quality.report(None, kept, rejected, steps=STEPS[:2], config=SMALL)
    given = quality.report(documents, kept, rejected, steps=STEPS[:2], config=SMALL)
    assert without.total == given.total
    assert without.steps == given.steps
    assert without.topics == given.topics


def test_a_lost_document_is_missed(documents):
    kept, rejected = cleaned(documents)
    found = quality.report(documents, kept[1:], rejected, config=SMALL)
    assert found.total.unaccounted == 1
    assert sorted(source.unaccounted for source in found.sources) == [0, 1]
    assert [step.name for step in found.steps] == ["long_enough", "no_spam"]


def test_raw_documents_alone(documents, tmp_path):
    found = quality.report(documents, config=SMALL)
    assert [stage.name for stage in found.total.stages] == ["raw"]
    assert found.steps == ()
    text = quality.write(found, tmp_path).read_text("utf-8")
    check_self_contained(text)
    assert "What was removed" not in Page(text).text


@pytest.fixture(scope="module")
def written(report, tmp_path_factory):
    return quality.write(report, tmp_path_factory.mktemp("report") / "new")


def test_the_page_says_what_the_json_says(report, written):
    record = json.loads((written.parent / quality.REPORT_FILE).read_text("utf-8"))
    assert record["total"]["stages"][0]["quality"]["amount"]["documents"] == 240
    page = Page(written.read_text("utf-8"))
    stages = record["total"]["stages"]
    for family, ones in record["metrics"].items():
        for one in ones:
            assert one["title"] in page.text
            assert one["meaning"] in page.text
            for stage in (stages[0], stages[-1]):
                value = stage["quality"][family][one["name"]]
                assert ("–" if value is None else format(value, one["form"])) in page.text
    for step in record["steps"]:
        for reason in step["reasons"]:
            assert reason["reason"] in page.text
            assert all(example["text"] in page.text for example in reason["examples"])
    assert page.text.count("Click here. ") >= len(record["edits"]["examples"])


def test_the_page_needs_nothing_else(written):
    text = written.read_text("utf-8")
    check_self_contained(text)
    check_charts(text)
    assert Page(text).tags.count("svg") > 6


def test_what_a_document_says_is_no_html(tmp_path):
    names = f"{NASTY}'", "$x_1^2$"
    texts = [NASTY, f"{NASTY} again", "half a \ud800 pair", "\x00\x0b bell"]
    before = [Document(text, f"{names[0]}{i}", names[i % 2]) for i, text in enumerate(texts)]
    rejected = [Rejected(before[0], NASTY, 0.5, NASTY)]
    after = [before[1].with_text(f"{NASTY} edited"), *before[2:]]
    page = quality.write(quality.report(before, after, rejected), tmp_path)
    text = page.read_text("utf-8")
    assert "script" not in Page(text).tags
    assert NASTY in Page(text).text
    json.loads((tmp_path / quality.REPORT_FILE).read_text("utf-8"))


def test_nothing_at_all_has_a_page(tmp_path):
    found = quality.report([], [], [])
    assert "Documents" in Page(quality.write(found, tmp_path).read_text("utf-8")).text


@pytest.fixture
def folder(documents, tmp_path):
    """What cleaning leaves of two sources."""
    kept, rejected = cleaned(documents)
    lines = collections.defaultdict(list)
    for number, document in enumerate(kept):
        record = {"text": document.text, "id": document.id, "metadata": {}}
        lines["cleaned", document.source, number % 2].append(record)
    for one in rejected:
        record = {"step": one.step, "reason": one.reason, "score": one.score, "count": 1}
        record |= {"text": one.document.text, "id": one.document.id, "metadata": {}}
        lines["rejected", one.document.source, 0].append(record)
    unread = {"step": "read", "reason": "invalid UTF-8", "score": None, "count": 3, "text": ""}
    lines["rejected", "web", 0].append(unread | {"id": "f:9", "metadata": {}})
    for (kind, source, part), records in lines.items():
        path = tmp_path / kind / source / f"0000{part}.jsonl.zst"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = "".join(json.dumps(record) + "\n" for record in records).encode()
        path.write_bytes(zstandard.compress(data))
    counts = {"web": Counts(("read", *STEPS)).plain()}
    (tmp_path / "cleaned" / "counts.json").write_text(json.dumps(counts))
    return tmp_path


def test_what_cleaning_left_in_a_folder(documents, folder):
    kept, rejected = cleaned(documents)
    pieces, steps = files.find([str(folder)])
    assert steps == ("read", *STEPS)
    assert len(pieces) == 6
    found = measuring.measured(pieces, workers=1).report(steps)
    expected = quality.report(None, kept, rejected, steps=STEPS)
    assert found.total.stages == expected.total.stages
    assert found.steps[1:] == expected.steps
    assert found.steps[0].documents == {"web": 3}
    assert (found.total.unaccounted, found.total.unreadable) == (0, 3)
    assert "raw" in {column.header for column in measuring.table(found).columns}


def test_raw_files_and_what_is_wrong_with_them(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        lines = [b'{"text": "One two three."}', b"not JSON", b'{"text": "Four five."}']
        (tmp_path / name / "my texts.jsonl").write_bytes(b"\n".join(lines))
    paths = [str(tmp_path / name / "my texts.jsonl") for name in ("a", "b")]
    pieces, steps = files.find(paths)
    survey = measuring.measured(pieces, workers=1)
    found = survey.report(steps, cleaned=False)
    assert [source.name for source in found.sources] == ["my-texts-0", "my-texts-1"]
    assert found.total.raw.amount == quality.Amount(documents=4, bytes=48, words=10)
    with pytest.raises(FileNotFoundError, match="nothing to read"):
        files.find([str(tmp_path / "c")])
    settings = data.DataConfig(
        (data.Source("a", paths[0]),),
        data.TokenizerConfig(kind="bytes"),
        validation_share=0.0,
        max_rejected_share=0.5,
    )
    data.prepare(settings, tmp_path / "tokens")
    with pytest.raises(ValueError, match="name the text that it was made from"):
        files.find([str(tmp_path / "tokens")])


def test_the_command(folder, tmp_path):
    """In a process of its own, as every entry point has flags of the same names."""
    options = (f"--data={folder}", f"--output={tmp_path / 'out'}", "--workers=1")
    command = (sys.executable, "-m", "experiments.quality", *options)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Near copies" in done.stdout
    record = json.loads((tmp_path / "out" / quality.REPORT_FILE).read_text("utf-8"))
    assert [stage["name"] for stage in record["total"]["stages"]] == ["raw", *STEPS]
    assert folder.name in Page((tmp_path / "out" / quality.PAGE_FILE).read_text("utf-8")).text


def test_pieces_can_be_measured_in_other_processes(folder):
    pieces, steps = files.find([str(folder)])
    survey = quality.Survey()
    for piece in pieces[::-1]:
        sent = pickle.loads(pickle.dumps(piece.measure))
        survey.merge(pickle.loads(pickle.dumps(sent())))
    assert survey.report(steps) == measuring.measured(pieces, workers=1).report(steps)
