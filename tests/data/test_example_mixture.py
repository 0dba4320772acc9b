"""Sources of examples are mixed as those of documents are: shares, caps, and exact places."""

import collections
import dataclasses
import itertools
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmjax import data
from llmjax.data import config, mixture, packing, shards, tokenizer
from llmjax.data.mixture import MixtureConfig

BYTES = tokenizer.ByteTokenizer()
# Of `long` and of `short`; the texts of each have one length, so that shares can be counted.
COUNTS = {"long": 30, "short": 90}
WIDTHS = {"long": 60, "short": 12}
KINDS = ("sft", "comparison", "prompt")


@pytest.fixture(autouse=True)
def few_open_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in test_loader: more open rows take longer, and show no more."""
    monkeypatch.setattr(packing, "_OPEN_ROWS", 4)


def record(kind: str, name: str, number: int) -> dict[str, Any]:
    text = f"{name[0]}{number:03}" + "x" * WIDTHS[name]
    if kind == "sft":
        return {"instruction": text, "output": text}
    if kind == "comparison":
        return {"prompt": text, "chosen": text + "1", "rejected": text + "2"}
    return {"prompt": text}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    root = tmp_path_factory.mktemp("mixed")
    for kind in KINDS:
        sources = []
        for name, count in COUNTS.items():
            path = root / f"{kind}.{name}.jsonl"
            lines = (json.dumps(record(kind, name, i)) + "\n" for i in range(count))
            path.write_text("".join(lines))
            sources.append(config.ExampleSource(name, str(path), 1.0 + 2.0 * (name == "short")))
        settings = config.ExampleConfig(
            tuple(sources), kind=kind, validation_share=0.0, max_length=200
        )
        data.prepare_examples(settings, root / kind, BYTES)
    return {kind: root / kind for kind in KINDS}


def load(folder: pathlib.Path, kind: str, **settings: Any) -> Any:
    if kind == "prompt":
        return data.prompt_batches(folder, split="train", batch_size=8, **settings)
    return data.example_batches(
        folder, kind, split="train", batch_size=8, sequence_length=450, **settings
    )


def read(batches: Any, kind: str) -> tuple[collections.Counter, collections.Counter]:
    """Examples by their beginning, and tokens by source, of some batches."""
    seen: collections.Counter[str] = collections.Counter()
    tokens: collections.Counter[str] = collections.Counter()
    for batch in batches:
        if kind == "prompt":
            parts = batch["tokens"]
        else:
            ids = batch["segment_ids"]
            rows = [(t, i) for t, i in zip(batch["tokens"], ids, strict=True)]
            parts = [t[i == n] for t, i in rows for n in range(1, i.max() + 1)]
        for part in parts:
            text = BYTES.decode(part.tolist())
            start = min(p for p in (text.find("l0"), text.find("s0")) if p >= 0)
            seen[text[start : start + 4]] += 1
            tokens["long" if text[start] == "l" else "short"] += len(part)
    return seen, tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (MixtureConfig(), lambda n: 0.75),  # by the weights 1 and 3
        (MixtureConfig(temperature=2.0), lambda n: 3**0.5 / (1 + 3**0.5)),
        (MixtureConfig("tokens"), lambda n: 3 * n["short"] / (n["long"] + 3 * n["short"])),
    ],
)
def test_tokens_have_the_shares_that_were_asked_for(folders, kind, settings, wanted) -> None:
    """Within 2 %: what a cut at the end of 60 batches leaves, and rows that are still open."""
    manifest = data.load_manifest(folders[kind])
    sizes = {source.name: source.train.tokens for source in manifest.sources}
    stream = load(folders[kind], kind, weights=mixture.weights(manifest, settings))
    _, tokens = read(itertools.islice(stream, 60), kind)
    share = tokens["short"] / tokens.total()
    assert share == pytest.approx(wanted(sizes), abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_as_they_were_change_nothing(folders, kind) -> None:
    """The shares of the weights themselves give the order that no mixture at all gives."""
    manifest = data.load_manifest(folders[kind])
    mixed = load(folders[kind], kind, weights=mixture.weights(manifest, MixtureConfig()))
    for one, other in itertools.islice(zip(mixed, load(folders[kind], kind), strict=False), 10):
        assert one.keys() == other.keys()
        assert all(all(map(np.array_equal, one[name], other[name])) for name in one)


@pytest.mark.parametrize("kind", ["comparison", "prompt"])
def test_no_example_is_read_more_often_than_the_cap_allows(folders, kind) -> None:
    manifest = data.load_manifest(folders[kind])
    given = {"long": 9.0, "short": 1.0}
    sources = (dataclasses.replace(s, weight=given[s.name]) for s in manifest.sources)
    manifest = dataclasses.replace(manifest, sources=tuple(sources))
    rows = 160
    settings = MixtureConfig(max_epochs=2.0)
    weights = mixture.weights(manifest, settings, examples=rows)
    seen, _ = read(itertools.islice(load(folders[kind], kind, weights=weights), rows // 8), kind)
    often = {text: count // (1 + (kind == "comparison")) for text, count in seen.items()}
    assert sum(often.values()) == rows
    long = [count for text, count in often.items() if text[0] == "l"]
    assert sum(long) == pytest.approx(2 * COUNTS["long"], abs=1)  # else it would be 9 of 10 tokens
    assert len(long) == COUNTS["long"]
    assert max(often.values()) <= 2 + (sum(long) > 2 * COUNTS["long"])


def manifest(sources: dict[str, tuple[float, int, int]]) -> shards.Manifest:
    """Sources with (weight, examples, tokens of each)."""
    parts = tuple(
        shards.SourceManifest(
            name=name,
            weight=weight,
            train=shards.Split(documents=count, tokens=count * size),
            validation=shards.Split(),
        )
        for name, (weight, count, size) in sources.items()
    )
    return shards.Manifest("", {}, {}, "<u2", parts, {})


@given(
    st.dictionaries(
        st.sampled_from("abcdef"),
        st.tuples(st.floats(0.1, 10.0), st.integers(1, 1000), st.integers(1, 50)),
        min_size=1,
    ),
    st.floats(0.5, 8.0),
    st.floats(0.05, 1.0),
)
def test_laws_of_caps_by_examples(
    sources: dict[str, tuple[float, int, int]], cap: float, part: float
) -> None:
    """Reading so many examples by these shares of tokens reads no source beyond its cap."""
    made = manifest(sources)
    examples = part * cap * sum(count for _, count, _ in sources.values())
    settings = MixtureConfig("tokens", 2.0, cap)
    found = mixture.weights(made, settings, examples=examples)
    free = mixture.weights(made, dataclasses.replace(settings, max_epochs=0.0))
    assert sum(found.values()) == pytest.approx(1.0)
    drawn = {name: found[name] / size for name, (_, _, size) in sources.items()}
    total = sum(drawn.values())
    epochs = {n: examples * drawn[n] / total / count for n, (_, count, _) in sources.items()}
    assert max(epochs.values()) <= cap * (1 + 1e-6)
    # Those that are not at their cap keep their proportions in tokens, and none gets less for it.
    ratios = [found[n] / free[n] for n in sources if epochs[n] < cap * (1 - 1e-6)]
    assert ratios == pytest.approx([max(ratios, default=0.0)] * len(ratios), rel=1e-6)


def test_too_few_examples_for_the_cap() -> None:
    made = manifest({"a": (1.0, 10, 5), "none": (0.0, 0, 0)})
    settings = MixtureConfig(max_epochs=2.0)
    assert mixture.weights(made, settings, examples=20) == {"a": 1.0, "none": 0.0}
    with pytest.raises(ValueError, match="max_epochs=2 of all sources are 20 examples"):
        mixture.weights(made, settings, examples=21)
