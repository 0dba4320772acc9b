"""Rows of examples: the same loss packed or not, every target once, and a place to take up."""

import collections
import functools
import itertools
import json
import pathlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from llmjax import data, models, objectives, spec
from llmjax.data import config, example_loader, packing, tokenizer

BYTES = tokenizer.ByteTokenizer()
SHAPE = {"batch_size": 4, "sequence_length": 160}
COUNT = 28
KINDS = ("sft", "classification", "comparison", "judged")


@pytest.fixture(autouse=True)
def few_open_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in test_loader: more open rows take longer, and show no more."""
    monkeypatch.setattr(packing, "_OPEN_ROWS", 4)


def records(kind: config.Kind, count: int) -> list[dict[str, Any]]:
    draw = random.Random(0)

    def words(most: int) -> str:
        return " ".join(
            draw.choices(["storm", "sea", "of", "a", "naît", "42"], k=draw.randint(1, most))
        )

    made: list[dict[str, Any]] = []
    for i in range(count):
        asked = f"{i}? {words(4)}"
        if kind == "sft":
            turns = [asked, words(4), words(2), words(4)][: 2 + 2 * (i % 2)]
            roles = itertools.cycle(("user", "assistant"))
            made.append(
                {
                    "messages": [
                        {"role": r, "content": t} for r, t in zip(roles, turns, strict=False)
                    ]
                }
            )
        elif kind == "classification":
            made.append({"text": asked, "label": i % 3})
        elif kind == "comparison":
            responses = [f"{i} {letter} {words(1)}" for letter in "abc"[: 2 + i % 2]]
            made.append(
                {"prompt": asked, "responses": responses, "scores": [1.5, 3, -1][: 2 + i % 2]}
            )
        elif kind == "judged":
            made.append({"prompt": f"{i // 2}?", "completion": f"{i} {words(1)}", "label": i % 2})
        else:
            made.append({"prompt": asked, "answer": i})
    return made


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """Twenty-eight examples of every kind, some of them held out; of prompts two sources."""
    root = tmp_path_factory.mktemp("examples")
    for kind in (*KINDS, "prompt"):
        lines = [json.dumps(record) + "\n" for record in records(kind, COUNT)]
        for name, part in (("one", lines[:20]), ("other", lines[20:])):
            (root / f"{kind}.{name}.jsonl").write_text("".join(part))
        sources = tuple(
            config.ExampleSource(name, str(root / f"{kind}.{name}.jsonl"))
            for name in ("one", "other")
        )
        # One fold of four: 7 examples, or of judged ones 6, as their prompts have two each.
        settings = config.ExampleConfig(sources, kind=kind, max_length=150, folds=4, fold=1)
        data.prepare_examples(settings, root / kind, BYTES)
    return {kind: root / kind for kind in (*KINDS, "prompt")}


def load(prepared: dict[str, pathlib.Path], kind: str, **settings: Any) -> Any:
    if kind == "prompt":
        return data.prompt_batches(
            prepared[kind], **{"split": "train", "batch_size": 4, **settings}
        )
    shape = {**SHAPE, "sequence_length": 240 if kind == "comparison" else 160}
    return data.example_batches(prepared[kind], kind, **{"split": "train", **shape, **settings})


def assert_equal(left: Iterable[dict], right: Iterable[dict]) -> None:
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            if isinstance(one[name], list):
                assert list(map(str, one[name])) == list(map(str, other[name]))
            else:
                np.testing.assert_array_equal(one[name], other[name])
                assert one[name].dtype == other[name].dtype


def join(parts: Iterable[Iterable[dict]]) -> Iterator[dict]:
    """The global batches from those of each process."""
    for step in zip(*parts, strict=True):
        batch = {}
        for name in step[0]:
            shares = [part[name] for part in step]
            lists = isinstance(shares[0], list)
            batch[name] = [*itertools.chain(*shares)] if lists else np.concatenate(shares)
        yield batch


def segments(batches: Iterable[packing.Batch]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(tokens, targets) of every segment of every row."""
    found = []
    for batch in batches:
        for row in range(len(batch["tokens"])):
            ids = batch["segment_ids"][row]
            for segment in range(1, ids.max() + 1):
                places = np.flatnonzero(ids == segment)
                assert (np.diff(places) == 1).all()
                assert batch["positions"][row][places].tolist() == list(range(len(places)))
                parts = (tuple(batch[name][row][places].tolist()) for name in ("tokens", "targets"))
                found.append(tuple(parts))
            assert (batch["targets"][row][ids == 0] == -1).all()
    return found


def targets(segments: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[str]:
    return [BYTES.decode(t for t in targets if t >= 0) for _, targets in segments]


def test_packed_rows_have_the_loss_of_unpacked_ones(prepared: dict[str, pathlib.Path]) -> None:
    """Token for token: by the sum of the losses, its weight, and the gradient."""
    model = models.llama(vocab_size=260, num_layers=1, embed_dim=16, num_heads=2, mlp_dim=16)
    params = spec.init(jax.random.key(0), models.spec(model))
    loss = objectives.clm(model)

    @jax.jit
    def measure(batch):
        def total(params):
            weighted, _ = loss(params, batch, None)
            return weighted.sum, weighted.weight

        return jax.value_and_grad(total, has_aux=True)(params)

    def whole(kind):
        batches = list(load(prepared, "sft", epochs=1, packing=kind))
        parts = [measure(batch) for batch in batches]
        sums = jax.tree.map(lambda *values: sum(values), *parts)
        return len(batches), *sums[0], sums[1]

    packed, unpacked = whole("best_fit"), whole("none")
    assert packed[0] < unpacked[0]
    assert packed[2] == unpacked[2] > 100
    np.testing.assert_allclose(packed[1], unpacked[1], rtol=1e-6)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, packed[3], unpacked[3])


@pytest.mark.parametrize("kind", ["best_fit", "none"])
def test_every_trained_token_is_trained_once_an_epoch(
    prepared: dict[str, pathlib.Path], kind: str
) -> None:
    said = collections.Counter(
        "".join(m["content"] for m in record["messages"] if m["role"] == "assistant")
        for record in records("sft", COUNT)
    )
    held_out = collections.Counter(
        targets(segments(load(prepared, "sft", split="validation", packing=kind)))
    )
    assert held_out < said
    for source in ("one", "other"):
        stream = load(prepared, "sft", epochs=2, packing=kind, weights={source: 1.0})
        found = collections.Counter(targets(segments(stream)))
        once = collections.Counter({text: count // 2 for text, count in found.items()})
        assert found == once + once
        said -= once
    assert said == held_out
    # Each answer ends with eos, which is trained, and is the only token without bytes that is.
    batches = list(load(prepared, "sft", split="validation", packing=kind))
    ends = sum(int((batch["targets"] == BYTES.eos_id).sum()) for batch in batches)
    tokens = [t for _, marks in segments(batches) for t in marks if t >= 0]
    assert ends == sum(t < 4 for t in tokens) >= len(held_out)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((kind, {}) for kind in (*KINDS, "prompt")),
        *((kind, {"split": "validation"}) for kind in ("sft", "judged", "prompt")),
        *((kind, {"epochs": 2}) for kind in ("sft", "judged")),
        ("sft", {"packing": "none"}),
        *((kind, {"weights": {"one": 0.2, "other": 0.8}}) for kind in ("sft", "judged", "prompt")),
    ],
    ids=str,
)
def test_a_step_has_the_same_batch_for_any_number_of_processes(
    prepared: dict[str, pathlib.Path], kind: str, settings: dict[str, Any]
) -> None:
    """And goes on with it when it is killed, with another number of processes too."""

    whole = list(itertools.islice(load(prepared, kind, **settings), 8))
    half = len(whole) // 2
    assert whole
    states: list[Any] = []
    for count in (2, 4):
        streams = [
            iter(load(prepared, kind, process_index=i, process_count=count, **settings))
            for i in range(count)
        ]
        parts = [list(itertools.islice(stream, half)) for stream in streams]
        assert_equal(join(parts), whole[:half])
        states = states or [json.loads(json.dumps(stream.get_state())) for stream in streams]
    for count in (1, 2, 4):
        parts = []
        for i in range(count):
            stream = iter(load(prepared, kind, process_index=i, process_count=count, **settings))
            stream.set_state(states[i] if count == 2 else {"processes": states})
            parts.append(list(itertools.islice(stream, len(whole) - half)))
        assert_equal(join(parts), whole[half:])


@pytest.mark.parametrize("kind", KINDS)
def test_validation_is_one_pass_and_the_rest_is_padding(
    prepared: dict[str, pathlib.Path], kind: str
) -> None:
    documents = data.load_manifest(prepared[kind]).split("validation").documents
    batches = list(load(prepared, kind, split="validation", packing="none"))
    assert len(batches) == -(-documents // 4)
    real = np.concatenate([batch["segment_ids"].any(axis=1) for batch in batches])
    assert real.tolist() == [True] * documents + [False] * (len(real) - documents)
    assert documents % 4  # so the last batch has padding
    if kind in ("classification", "judged"):
        labels = np.concatenate([batch["labels"] for batch in batches])
        assert (labels[real] >= 0).all()
        assert (labels[~real] == -1).all()
    assert_equal(batches, load(prepared, kind, split="validation", packing="none", seed=5))


def test_a_comparison_is_a_row(prepared: dict[str, pathlib.Path]) -> None:
    about = data.load_manifest(prepared["comparison"]).examples
    assert about is not None
    assert (about.responses, about.margins) == (3, True)
    wanted = {
        tuple(r["responses"][i] for i in ((1, 0, 2), (1, 0))[len(r["responses"]) == 2]): (
            r["prompt"], 1.5 * (len(r["responses"]) == 2)
        )
        for r in records("comparison", COUNT)
    }  # fmt: skip
    seen = 0
    for split in data.SPLITS:
        for batch in load(prepared, "comparison", split=split, epochs=1, weights={"one": 1.0}):
            assert batch["margin"].dtype == np.float32
            for row in np.flatnonzero(batch["segment_ids"].any(axis=1)):
                found = segments([{k: v[row : row + 1] for k, v in batch.items()}])
                prompt, margin = wanted[tuple(targets(found))]
                assert margin == batch["margin"][row]
                assert all(prompt in BYTES.decode(tokens) for tokens, _ in found)
                seen += 1
    assert seen > 20


def test_labels_stand_by_their_texts(prepared: dict[str, pathlib.Path]) -> None:
    wanted = {r["text"]: r["label"] for r in records("classification", COUNT)}
    for batch in load(prepared, "classification", split="validation"):
        assert (batch["targets"] == -1).all()
        for row in np.flatnonzero(batch["labels"] >= 0):
            tokens = batch["tokens"][row][batch["segment_ids"][row] == 1]
            assert batch["labels"][row] == wanted[BYTES.decode(tokens)]


@pytest.mark.parametrize("split", data.SPLITS)
def test_judged_rows_have_an_unrelated_answer(
    prepared: dict[str, pathlib.Path], split: data.SplitName
) -> None:
    asked = {record["completion"]: record for record in records("judged", COUNT)}
    pairs = set()
    for batch in load(prepared, "judged", split=split, epochs=2 if split == "train" else None):
        for row in np.flatnonzero(batch["labels"] >= 0):
            own, unrelated = segments([{k: v[row : row + 1] for k, v in batch.items()}])
            (answer, other) = targets([own, unrelated])
            assert batch["labels"][row] == asked[answer]["label"]
            assert asked[answer]["prompt"] != asked[other]["prompt"]
            start = next(i for i, target in enumerate(own[1]) if target >= 0)
            assert own[0][: start + 1] == unrelated[0][: start + 1]
            pairs.add((answer, other))
    if split == "train":  # another epoch, other neighbours
        assert len(pairs) > len({answer for answer, _ in pairs})


def test_prompts_keep_their_fields(prepared: dict[str, pathlib.Path]) -> None:
    wanted = {record["prompt"]: record["answer"] for record in records("prompt", COUNT)}
    batches = list(load(prepared, "prompt", split="validation"))
    tokens = [ids for batch in batches for ids in batch["tokens"]]
    fields = [extra for batch in batches for extra in batch["fields"]]
    count = data.load_manifest(prepared["prompt"]).split("validation").documents
    assert None not in fields[:count]
    assert fields[count:] == [None] * (-count % 4) != []
    for ids, extra in zip(tokens[:count], fields, strict=False):
        text = BYTES.decode(ids)
        assert text.endswith("### Assistant\n")
        (answer,) = [answer for prompt, answer in wanted.items() if f"\n{prompt}\n" in text]
        assert extra == {"answer": answer}
    assert all(np.array_equal(ids, tokens[count - 1]) for ids in tokens[count:])


def test_the_seed_decides_the_order(prepared: dict[str, pathlib.Path]) -> None:
    runs = [list(load(prepared, "sft", epochs=1, seed=seed)) for seed in (0, 0, 1)]
    assert_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0][0]["tokens"], runs[2][0]["tokens"])


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("sft", {"packing": "concat"}, "packing is 'concat' for examples of kind 'sft'"),
        ("judged", {"packing": "best_fit"}, "packing is 'best_fit' for examples of kind 'judged'"),
        ("sft", {"sequence_length": 64}, r"longest example needs \d+ tokens"),
        ("judged", {"sequence_length": 60}, r"longest example needs \d+ tokens"),
        ("sft", {"split": "test"}, "split is 'test'"),
        ("sft", {"process_count": 3}, "3 processes cannot share"),
        ("sft", {"weights": {"news": 1.0}}, "names 'news'"),
    ],
)
def test_arguments_are_checked(
    prepared: dict[str, pathlib.Path], kind: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(prepared, kind, **settings)


def test_the_kind_is_checked(prepared: dict[str, pathlib.Path]) -> None:
    with pytest.raises(ValueError, match="holds examples of kind 'sft', not examples of kind 'ju"):
        example_loader.example_batches(prepared["sft"], "judged", split="train", **SHAPE)
    with pytest.raises(ValueError, match="read them with `prompt_batches`"):
        example_loader.example_batches(prepared["prompt"], "prompt", split="train", **SHAPE)
