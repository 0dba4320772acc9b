"""The command line: a flag for every field, mistakes answered with what would be right."""

import dataclasses
import os
import shlex
import sys
from typing import Literal

import pytest
from absl import flags as absl_flags

from experiments import flags


@dataclasses.dataclass(frozen=True)
class Model:
    """A network.

    Attributes:
        num_layers: how deep.
        num_heads: must divide embed_dim.
        embed_dim: how wide.
        tied: whether one table serves both ends.
    """

    num_layers: int = 2
    num_heads: int = 2
    embed_dim: int = 8
    tied: bool = True

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"model.embed_dim={self.embed_dim} is not a multiple of num_heads")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How it learns.

    Attributes:
        learning_rate: at the peak.
        schedule: how the rate falls.
    """

    learning_rate: float = 1e-3
    schedule: Literal["cosine", "linear"] = "cosine"


@dataclasses.dataclass(frozen=True)
class Toy:
    """A run.

    Attributes:
        name: what it is called.
        model: the network.
        optimizer: how it learns.
        steps: how long it learns.
    """

    name: str
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    steps: int = 10


def small() -> Toy:
    """A small one.

    More about it, which the list of recipes leaves out.
    """
    return Toy("small")


def large() -> Toy:
    """A large one."""
    return Toy("large", Model(num_layers=12, embed_dim=96), steps=1000)


def flag_values(default: str | None = None) -> absl_flags.FlagValues:
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string("run_dir", None, "Where to write.", flag_values=values)
    flags.define({"small": small, "large": large}, default, values)
    return values


def resolved(*arguments: str, base: Toy | None = None) -> Toy:
    values = flag_values()
    assert flags.parse(["program", *arguments], values) == ["program"]
    return flags.resolve(base, values)


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is printed on a command line that is refused."""
    with pytest.raises(SystemExit) as exit_:
        flags.parse(["program", *arguments], flag_values())
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert not printed.out
    return printed.err


def test_without_overrides_it_is_the_recipe() -> None:
    assert resolved("--recipe=large") == large()


def test_overrides_at_any_depth() -> None:
    recipe = resolved(
        "--recipe=large", "--steps", "3", "--model.num_layers=4", "--optimizer.schedule=linear"
    )
    assert recipe == Toy("large", Model(4, 2, 96), Optimizer(schedule="linear"), 3)


def test_booleans_both_ways() -> None:
    assert not resolved("--recipe=small", "--nomodel.tied").model.tied
    assert not resolved("--recipe=small", "--model.tied=false").model.tied
    assert resolved("--recipe=small", "--model.tied").model.tied


def test_an_override_equal_to_a_default_is_still_one() -> None:
    assert resolved("--recipe=large", "--steps=10").steps == 10


def test_a_saved_config_is_the_start_unless_a_recipe_is_named() -> None:
    saved = Toy("saved", steps=77)
    assert resolved("--model.num_layers=1", base=saved) == dataclasses.replace(
        saved, model=Model(num_layers=1)
    )
    assert resolved("--recipe=small", base=saved) == small()


def test_a_saved_config_of_another_entry_point_is_refused() -> None:
    """Its fields are not those of the flags."""
    with pytest.raises(flags.FlagError, match="another kind .Optimizer, not Toy.: use the entry"):
        resolved("--model.num_layers=1", base=Optimizer())
    assert resolved("--recipe=small", base=Optimizer()) == small()


def test_no_recipe() -> None:
    with pytest.raises(flags.FlagError, match="choose one of small, large"):
        resolved("--steps=3")


def test_fields_that_do_not_fit_together() -> None:
    with pytest.raises(flags.FlagError, match=r"model\.embed_dim=8 is not a multiple"):
        resolved("--recipe=small", "--model.num_heads=3")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--stesp=3", "--stesp: no such flag; nearest: --steps\n"),
        ("--learning_rate=1", "--learning_rate: no such flag; nearest: --optimizer.learning_rate"),
        ("--notied", "nearest: --model.tied"),
        ("--qqqqqq", "--qqqqqq: no such flag; see --help"),
        ("--recipe=smal", "--recipe=smal: no such recipe; nearest: small; there are small, large"),
        ("--steps=many", "--steps=many: expected int"),
        ("--optimizer.learning_rate=", "--optimizer.learning_rate=: expected float"),
        ("--optimizer.schedule=sine", "expected one of cosine, linear"),
        ("--steps", "steps"),
        ("steps=3", "'steps=3' is not a flag; flags are written --name=value"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], argument: str, message: str) -> None:
    printed = complaint(capsys, argument)
    assert message in printed
    assert "--help" in printed
    assert "Traceback" not in printed


def test_help_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        flags.parse(["program", "--recipe=large", "--help"], flag_values())
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert "small A small one." in lines
    assert "--model.num_layers int how deep. [12]" in lines
    assert "--optimizer.schedule cosine|linear" in lines
    assert "--[no]model.tied whether one table serves both ends. [true]" in lines
    assert "which the list of recipes leaves out" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_absls_own_words_are_not_shown() -> None:
    values = flag_values()
    absl_flags.DEFINE_enum("device", "one", ["one", "two"], "Kind.", flag_values=values)
    absl_flags.DEFINE_multi_string("runs", [], "Where from. Repeat it.", flag_values=values)
    values.mark_as_parsed()
    lines = [" ".join(flags._entry(values[name], values[name].value).split()) for name in
             ("device", "runs", "run_dir")]  # fmt: skip
    assert lines == [
        "--device one|two Kind. [one]",
        "--runs text Where from. Repeat it.",
        "--run_dir text Where to write.",
    ]


def test_help_folds_large_groups_and_shows_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "_MOST", 3)
    values = flag_values("large")
    values.mark_as_parsed()
    overview, group, every = (flags.help_text("program", values, t) for t in ("", "model", "all"))
    assert "--steps int" in overview
    assert "  optimizer                       how it learns." in overview
    assert "--optimizer.schedule" not in overview
    assert "--help=model shows one" in overview
    assert "--model.num_heads int           must divide embed_dim. [2]" in group
    assert "--steps" not in group
    assert all(f"--{name}" in every for name in ("steps", "optimizer.schedule", "[no]model.tied"))
    with pytest.raises(flags.FlagError, match="--help=modle: no such group .*nearest: model"):
        flags.help_text("program", values, "modle")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [(["--help=optimizer"], "Fields of optimizer"), (["--recipe=small", "--helpfull"], "Recipes")],
)
def test_every_way_of_asking_for_help(arguments, shown, capsys) -> None:
    with pytest.raises(SystemExit) as exit_:
        flags.parse(["program", *arguments], flag_values())
    assert exit_.value.code == 0
    assert shown in capsys.readouterr().out


def test_help_may_be_cut_short_by_its_reader(monkeypatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout, pytest.raises(SystemExit) as exit_:
        monkeypatch.setattr(sys, "stdout", stdout)
        flags.parse(["program", "--help"], flag_values())
    assert exit_.value.code == 0


def test_help_without_a_recipe_shows_no_values() -> None:
    values = flag_values()
    values.mark_as_parsed()
    text = flags.help_text("program", values)
    assert "how deep." in text
    assert "how deep. [" not in text


def test_the_command_line_can_be_typed_again(monkeypatch):
    typed = ["pretrain.py", "--recipe=tiny", "--noresume", "-resume=false", "--run_dir=a b"]
    monkeypatch.setattr(sys, "argv", typed)
    said = shlex.split(flags.command_line(without=("resume", "profile")))
    assert said[-2:] == ["--recipe=tiny", "--run_dir=a b"]
    assert not any("resume" in part for part in said)


def test_the_command_line_of_another_program_leaves_out_values_too(monkeypatch):
    typed = ["sweep.py", "--steps", "40", "--trials", "8", "--mesh.data", "-1", "--sweep=seed=0:9"]
    monkeypatch.setattr(sys, "argv", typed)
    said = flags.command_line(without=("trials", "sweep"), program="python -m other")
    assert said == "python -m other --steps 40 --mesh.data -1"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([], "pretrain"),
        (["--stage=reward", "--trials=3"], "reward"),
        (["--trials", "3", "--stage", "reward"], "reward"),
        (["-stage", "reward", "--stage=finetune"], "finetune"),
    ],
)
def test_a_flag_can_be_read_before_the_others_are_defined(monkeypatch, typed, expected):
    monkeypatch.setattr(sys, "argv", ["sweep.py", *typed])
    assert flags.peek("stage", ("pretrain", "finetune", "reward"), "pretrain") == expected


@pytest.mark.parametrize("typed", [["--stage=no"], ["--stage", "no"], ["--stage"]])
def test_a_flag_read_before_the_others_is_checked(monkeypatch, capsys, typed):
    monkeypatch.setattr(sys, "argv", ["sweep.py", *typed])
    with pytest.raises(SystemExit, match="2"):
        flags.peek("stage", ("pretrain", "finetune"), "pretrain")
    assert "choose one of pretrain, finetune" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["9", "9:", ":9", "0:3", "5:4", "a:b", "1:2:3", "-1:4"])
def test_a_range_of_steps_to_trace_is_two_numbers(text):
    with pytest.raises(flags.FlagError, match=f"--profile={text}: must be two step numbers"):
        flags.step_range("profile", text, 9)
    assert flags.step_range("profile", "7:70", 7) == (7, 70)
    with pytest.raises(flags.FlagError, match="--profile=7:70: the run ends with step 6"):
        flags.step_range("profile", "7:70", 6)
