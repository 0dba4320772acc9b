"""What repeated text is worth is the paper's integral, and epochs are counted from manifests."""

import json
import math
import pathlib

import numpy as np
import pytest

from experiments import planner
from experiments.flags import FlagError
from llmjax import data, planning
from llmjax.data.mixture import MixtureConfig


@pytest.mark.parametrize("epochs", [1.5, 4.0, 16.0, 60.0])
def test_each_repeat_is_worth_less(epochs: float) -> None:
    """D' = U (1 + ∫ e^(-r/R*) dr), with R* = 15.387756 as in Muennighoff et al. 2023, table 1."""
    r = np.linspace(0, epochs - 1, 20001)
    integral = np.trapezoid(np.exp(-r / 15.387756), r)
    assert planning.worth(7e9, epochs * 7e9) == pytest.approx(7e9 * (1 + integral), rel=1e-6)


def test_what_the_paper_says_of_four_and_of_forty_epochs() -> None:
    """Four are nearly as good as new text; at forty, repeating is worth next to nothing."""
    assert planning.worth(1.0, 4.0) / 4.0 > 0.93
    more = planning.worth(1.0, 45.0) - planning.worth(1.0, 40.0)
    assert more / 5.0 < 0.1
    assert planning.worth(1.0, 0.5) == 0.5
    assert planning.worth(1.0, math.inf) == pytest.approx(1 + 15.387756)


def test_enough_is_until_the_first_source_has_four_epochs() -> None:
    sizes, shares = {"a": 100.0, "b": 10.0}, {"a": 0.5, "b": 0.5}
    assert planning.enough_for(sizes, shares) == 80.0
    found = {one.name: one.epochs for one in planning.supplies(sizes, shares, 80.0)}
    assert found == {"a": 0.4, "b": 4.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two sources, of 100 documents of 11 tokens and of 10, with the end's."""
    root = tmp_path_factory.mktemp("supply")
    sources = []
    for name, count in (("many", 100), ("few", 10)):
        path = root / f"{name}.jsonl"
        lines = (json.dumps({"text": f"{name[:1]}{i:09d}"}) for i in range(count))
        path.write_text("\n".join(lines))
        sources.append(data.Source(name, str(path)))
    config = data.DataConfig(tuple(sources), data.TokenizerConfig("bytes"), validation_share=0.0)
    data.prepare(config, root / "data")
    return root / "data"


def test_the_planner_counts_from_the_manifest(folder: pathlib.Path) -> None:
    sizes = {s.name: s.train.tokens for s in data.load_manifest(folder).sources}
    assert sizes["many"] == 10 * sizes["few"]
    work = planner.work_of(None, 100.0, 20.0 * sizes["few"])
    assert work is not None
    found = planner.supply(work, str(folder), MixtureConfig())
    assert {s["name"]: s["epochs"] for s in found["sources"]} == {"many": 1.0, "few": 10.0}
    assert found["enough_for"] == 8 * sizes["few"]
    assert [row["enough"] for row in found["needs"]] == [
        ratio * 100 <= 8 * sizes["few"] for ratio in (20, 50, 100)
    ]
    (warning,) = planner.repeated(found)
    assert warning.startswith("data: few is read 10 times")
    # A cap moves what is over to the source that has more.
    capped = planner.supply(work, str(folder), MixtureConfig(max_epochs=4.0))
    assert max(s["epochs"] for s in capped["sources"]) == pytest.approx(4.0)
    assert planner.repeated(capped) == []


def test_a_folder_without_data_is_named(tmp_path: pathlib.Path) -> None:
    work = planner.work_of(None, 100.0, 1e3)
    assert work is not None
    with pytest.raises(FlagError, match=f"--prepared={tmp_path}: no prepared data"):
        planner.supply(work, str(tmp_path), MixtureConfig())
