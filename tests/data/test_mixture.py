"""Shares of sources are those of closed forms, and caps hold to the letter."""

import dataclasses
import math
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmjax import data
from llmjax.data import mixture
from llmjax.data.mixture import MixtureConfig, shares

SIZES = {"web": 900.0, "books": 90.0, "code": 10.0}
EVEN = dict.fromkeys(SIZES, 1.0)


def by_tokens(temperature: float) -> dict[str, float]:
    return shares(EVEN, SIZES, MixtureConfig("tokens", temperature))


def test_temperature_one_is_proportional() -> None:
    assert by_tokens(1.0) == pytest.approx({"web": 0.9, "books": 0.09, "code": 0.01})


def test_temperature_two_takes_roots() -> None:
    total = 30 + math.sqrt(90) + math.sqrt(10)
    wanted = {name: math.sqrt(size) / total for name, size in SIZES.items()}
    assert by_tokens(2.0) == pytest.approx(wanted)


def test_limits_of_temperature() -> None:
    assert by_tokens(1e9) == pytest.approx(dict.fromkeys(SIZES, 1 / 3))
    assert by_tokens(1e-3) == pytest.approx({"web": 1.0, "books": 0.0, "code": 0.0})


def test_weights_alone_do_not_ask_for_sizes() -> None:
    given_ = {"web": 3.0, "books": 1.0, "code": 0.0}
    assert shares(given_, SIZES) == {"web": 0.75, "books": 0.25, "code": 0.0}


def test_a_weight_multiplies_tokens() -> None:
    found = shares({"web": 1.0, "books": 10.0, "code": 0.0}, SIZES, MixtureConfig("tokens"))
    assert found == pytest.approx({"web": 0.5, "books": 0.5, "code": 0.0})


def test_what_a_cap_takes_goes_to_the_others() -> None:
    # A third of 600 tokens is 200, and two epochs of code are 20; web and books share the rest,
    # 290 each, until books' two epochs, 180, are reached as well.
    found = shares(EVEN, SIZES, MixtureConfig(max_epochs=2.0), tokens=600)
    assert found == pytest.approx({"web": 400 / 600, "books": 180 / 600, "code": 20 / 600})
    assert mixture.epochs(found, SIZES, 600) == pytest.approx(
        {"web": 400 / 900, "books": 2.0, "code": 2.0}
    )


positive = st.floats(1.0, 1e9)


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(positive, positive), min_size=1),
    st.floats(0.3, 20.0),
    st.floats(0.1, 40.0),
    st.floats(0.01, 1.0),
)
def test_laws_of_caps(
    sources: dict[str, tuple[float, float]], temperature: float, cap: float, part: float
) -> None:
    """Shares sum to 1, no source is over its cap, and the others keep their proportions."""
    given_ = {name: weight for name, (weight, _) in sources.items()}
    sizes = {name: size for name, (_, size) in sources.items()}
    tokens = part * cap * sum(sizes.values())
    settings = MixtureConfig("tokens", temperature, cap)
    found = shares(given_, sizes, settings, tokens)
    free = shares(given_, sizes, dataclasses.replace(settings, max_epochs=0.0))
    assert sum(found.values()) == pytest.approx(1.0)
    read = mixture.epochs(found, sizes, tokens)
    assert max(read.values()) <= cap * (1 + 1e-6)
    scales = [found[n] / free[n] for n in sources if read[n] < cap * (1 - 1e-6) and free[n] > 1e-9]
    assert scales == pytest.approx([max(scales, default=0.0)] * len(scales), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "tokens", "message"),
    [
        (MixtureConfig(max_epochs=1.0), None, "say how many"),
        (MixtureConfig(max_epochs=1.0), 1001.0, "max_epochs=1 of all sources are 1e[+]03 tokens"),
    ],
)
def test_what_cannot_be_mixed(settings: MixtureConfig, tokens: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shares(EVEN, SIZES, settings, tokens)


def test_a_mixture_of_nothing() -> None:
    with pytest.raises(ValueError, match="no source of .* has both weight and text"):
        shares(dict.fromkeys(SIZES, 0.0), SIZES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"by": "size"}, "by is 'size'"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"max_epochs": -1.0}, "max_epochs is -1.0"),
    ],
)
def test_settings_that_cannot_be(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureConfig(**changes)


def test_prepared_data_keep_when_the_mixture_changes(tmp_path: pathlib.Path, jsonl) -> None:
    source = data.Source("one", jsonl([f"text {i}" for i in range(50)]))
    settings = data.DataConfig((source,), data.TokenizerConfig("bytes"), validation_share=0.2)
    made = data.prepare(settings, tmp_path / "data")
    other = dataclasses.replace(settings, mixture=MixtureConfig("tokens", 3.0))
    assert data.prepare(other, tmp_path / "data") == made


def test_the_loader_reads_the_shares(prepared: pathlib.Path) -> None:
    manifest = data.load_manifest(prepared)
    sizes = {source.name: source.train.tokens for source in manifest.sources}
    wanted = mixture.weights(manifest, MixtureConfig("tokens"))
    total = sum(sizes.values())
    assert wanted == pytest.approx({name: size / total for name, size in sizes.items()})
    stream = iter(
        data.batches(prepared, split="train", batch_size=4, sequence_length=64, weights=wanted)
    )
    tokenizer = data.load_tokenizer(prepared)
    text = "".join(
        tokenizer.decode(row.tolist()) for _ in range(30) for row in next(stream)["tokens"]
    )
    # By tokens every document is as likely as every other: as many short ones as long ones.
    assert text.count("short ") / text.count("long ") == pytest.approx(1.0, abs=0.35)
