"""The command line of the entry points: a recipe by name, and a flag for each of its fields.

    # experiments/pretrain.py
    RUN_DIR = absl_flags.DEFINE_string("run_dir", None, "Folder that the run writes to.")
    flags.define(RECIPES)

    def main(argv: list[str]) -> None:
        recipe = flags.resolve()
        ...

    if __name__ == "__main__":
        flags.run(main)

`--recipe=tiny --model.num_layers=4` is the recipe `tiny` with one field changed. Errors suggest the
nearest names for unknown flags, and the type for invalid values. `--help` folds large groups of
fields, `--help=model` shows one, `--helpfull` all; other libraries' flags are left out.
"""

import dataclasses
import itertools
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NoReturn, cast

from absl import app, logging
from absl import flags as absl_flags
from absl.flags import FLAGS, FlagValues

from experiments import fields
from llmjax.checks import nearest

Recipes = Mapping[str, Callable[[], Any]]

_COLUMN = 34  # column of help texts
_MOST = 40  # fields that help shows without folding groups
_ALL = "all"


class FlagError(ValueError):
    """The command line is invalid; the message says why, and what is possible."""


class _RecipeParser(absl_flags.ArgumentParser):
    """Parses the name of a recipe, and holds the recipes."""

    def __init__(self, recipes: Recipes) -> None:
        self.recipes = recipes

    def parse(self, argument: str) -> str:
        """The name itself.

        Raises:
            ValueError: there is no such recipe.
        """
        if argument not in self.recipes:
            raise ValueError(
                f"no such recipe; {_nearest(argument, self.recipes)}there are "
                f"{', '.join(self.recipes)}"
            )
        return argument

    def flag_type(self) -> str:
        """A word for people."""
        return "name"


class _LeafParser(absl_flags.ArgumentParser):
    """Reads the value of one field of a recipe."""

    def __init__(self, leaf: fields.Leaf) -> None:
        self.leaf = leaf

    def parse(self, argument: Any) -> Any:
        """The value; absl itself gives True and False for --name and --noname."""
        if isinstance(argument, bool):
            return argument
        return fields.parse(self.leaf.annotation, argument)

    def flag_type(self) -> str:
        """A word for people."""
        return fields.describe(self.leaf.annotation)


def define(recipes: Recipes, default: str | None = None, flag_values: FlagValues = FLAGS) -> None:
    """Defines `--recipe` and one flag for each leaf of the recipes' type.

    Args:
        recipes: functions that return a recipe, by name; all of the same dataclass type.
        default: the default recipe.
        flag_values: where the flags are defined.
    """
    chooser: absl_flags.Flag = absl_flags.Flag(
        _RecipeParser(recipes), None, "recipe", default, "Settings to start from, see below."
    )
    absl_flags.DEFINE_flag(chooser, flag_values)
    sample = next(iter(recipes.values()))()
    for leaf in fields.leaves(type(sample)):
        absl_flags.DEFINE_flag(_flag(leaf), flag_values)


def _flag(leaf: fields.Leaf) -> absl_flags.Flag:
    several = fields.element(leaf.annotation) is not None
    kind = absl_flags.MultiFlag if several else absl_flags.Flag
    flag: absl_flags.Flag = kind(_LeafParser(leaf), None, leaf.name, None, leaf.doc)
    flag.help = f"{leaf.doc} Repeat the flag for each." if several else leaf.doc
    flag.boolean = leaf.annotation is bool
    return flag


def resolve(base: Any = None, flag_values: FlagValues = FLAGS) -> Any:
    """The recipe that the command line describes.

    Args:
        base: starting point if `--recipe` is not given, such as the config saved with a run.
        flag_values: the parsed flags.

    Raises:
        FlagError: there is no recipe to start from, or one of another type than these flags
            describe, or the fields do not fit together.
    """
    if base is None or flag_values["recipe"].present:
        base = _chosen(flag_values)
    if base is None:
        names = ", ".join(_recipes(flag_values))
        raise FlagError(f"--recipe is missing: choose one of {names}")
    if not isinstance(base, kind := _kind(flag_values)):
        raise FlagError(
            f"the run there is of another kind ({type(base).__name__}, not {kind.__name__}): use "
            "the entry point that began it, or another --run_dir"
        )
    given = {leaf.path: flag.value for leaf, flag in _leaf_flags(flag_values) if flag.present}
    try:
        return fields.replace(base, given)
    except ValueError as error:
        raise FlagError(str(error)) from error


def changed(flag_values: FlagValues = FLAGS) -> list[str]:
    """The names of the fields that the command line changes."""
    return [leaf.name for leaf, flag in _leaf_flags(flag_values) if flag.present]


def run(main: Callable[[list[str]], int | None]) -> None:
    """Parses the command line and runs `main`; errors in flags are reported in one line."""

    def checked(argv: list[str]) -> int | None:
        logging.set_verbosity(logging.WARNING)  # Orbax logs every file
        try:
            return main(argv)
        except FlagError as error:
            _exit(argv, error)

    app.run(checked, flags_parser=parse)


def parse(argv: Sequence[str], flag_values: FlagValues = FLAGS) -> list[str]:
    """Parses flags; `--help` prints the help and exits with 0, an error exits with 2.

    Returns:
        Only the program's name: the entry points take flags and no other arguments.
    """
    try:
        topics = {argument: _topic(argument) for argument in argv[1:]}
        asked = [topic for topic in topics.values() if topic is not None]
        if asked:
            # Other flags select the recipe whose values the help shows.
            flag_values([a for a in argv if topics.get(a) is None], known_only=True)
            _print_to_pipe(help_text(argv[0], flag_values, asked[0]))
            sys.exit(0)
        rest = flag_values(list(argv))
    except FlagError as error:
        _exit(argv, error)
    except absl_flags.UnrecognizedFlagError as error:
        name = error.flagname
        names = [flag.name for flag in _own(argv[0], flag_values)]
        near = _nearest(name, names, "--") or _nearest(name.removeprefix("no"), names, "--")
        _exit(argv, f"--{name}: no such flag; {near.rstrip(' ;') or 'see --help'}")
    except absl_flags.Error as error:
        _exit(argv, str(error).removeprefix("flag "))
    if len(rest) > 1:
        _exit(argv, f"{rest[1]!r} is not a flag; flags are written --name=value")
    return rest


def _topic(argument: str) -> str | None:
    """What an argument wants to know: a group of fields, all, or "" for an overview."""
    name, _, group = argument.partition("=")
    if name.lstrip("-") == "helpfull" and argument.startswith("-"):
        return _ALL
    return group if name in ("-h", "-help", "--help", "--helpshort") else None


def peek(name: str, choices: Collection[str], default: str) -> str:
    """The value of --NAME before flags are parsed, as it determines which flags exist.

    Exits with 2 if it is not one of the choices.
    """
    value = default
    for argument, following in itertools.pairwise([*sys.argv[1:], ""]):
        flag, equals, said = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            value = said if equals else following
    if value not in choices:
        _exit(sys.argv, f"--{name}={value}: choose one of {', '.join(choices)}")
    return value


def command_line(*, without: Collection[str] = (), program: str = "") -> str:
    """The command line of this program, or of `program`, without some flags."""
    dropped = {f"--{prefix}{name}" for name in without for prefix in ("", "no")}
    given, skips = [], False
    for argument in sys.argv[1:]:
        name, equals, _ = argument.partition("=")
        if argument.startswith("-"):
            skips = "--" + name.lstrip("-") in dropped
            if not skips:
                given.append(argument)
            skips &= not equals  # its value is the next one
        elif not skips:
            given.append(argument)
    return f"{program or _program(sys.argv[0])} {shlex.join(given)}".strip()


def step_range(name: str, text: str, steps: int) -> tuple[int, int]:
    """The first and the last step of a flag's START:STOP, for a run of `steps` steps.

    Raises:
        FlagError: it is no such range, or begins after the run.
    """
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise FlagError(f"--{name}={text}: must be two step numbers from 1 on, such as 10:12")
    if int(first) > steps:
        raise FlagError(f"--{name}={text}: the run ends with step {steps}")
    return int(first), int(last)


def _print_to_pipe(text: str) -> None:
    """Prints to what may stop reading, such as a pager or head."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit


def _exit(argv: Sequence[str], message: object) -> NoReturn:
    print(f"{message}\nTry: {_program(argv[0])} --help", file=sys.stderr)
    sys.exit(2)


def _nearest(name: str, names: Sequence[str] | Mapping[str, Any], prefix: str = "") -> str:
    near = nearest(name, list(names))
    return f"nearest: {', '.join(prefix + other for other in near)}; " if near else ""


def _program(script: str) -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else script


def _leaf_flags(flag_values: FlagValues) -> Iterator[tuple[fields.Leaf, absl_flags.Flag]]:
    for name in flag_values:
        flag = flag_values[name]
        if isinstance(flag.parser, _LeafParser):
            yield flag.parser.leaf, flag


def _own(script: str, flag_values: FlagValues) -> list[absl_flags.Flag]:
    """The flags of this project, without those of libraries."""
    return [
        flag
        for module, flags in flag_values.flags_by_module_dict().items()
        for flag in flags
        if module == script or module.startswith("experiments.")
    ]


def _chosen(flag_values: FlagValues) -> Any:
    name = flag_values["recipe"].value
    return None if name is None else _recipes(flag_values)[name]()


def _recipes(flag_values: FlagValues) -> Recipes:
    return cast(_RecipeParser, flag_values["recipe"].parser).recipes


def _kind(flag_values: FlagValues) -> type:
    """The type of the recipes."""
    return type(next(iter(_recipes(flag_values).values()))())


def help_text(script: str, flag_values: FlagValues = FLAGS, topic: str = "") -> str:
    """The text of `--help`: purpose, flags with types and values, recipes, fields by group.

    Args:
        script: the program.
        flag_values: the parsed flags.
        topic: a group of fields, such as "model", to show only these; "all" folds no group.

    Raises:
        FlagError: there is no such group.
    """
    has_fields = "recipe" in flag_values
    if topic not in ("", _ALL):
        return "\n\n".join(_fields_help(flag_values, topic)) + "\n"
    description = (sys.modules["__main__"].__doc__ or "").strip()
    parts = [description, f"Usage: {_program(script)} [--FLAG=VALUE ...]"]
    if has_fields and "--recipe=" not in description:
        parts.append(f"Example: {_program(script)} --recipe=tiny --steps=120")
    settings = [f for f in _own(script, flag_values) if not isinstance(f.parser, _LeafParser)]
    parts.append("Flags\n" + "\n".join(_entry(f, f.value) for f in settings))
    if has_fields:
        parts.append(_recipes_help(_recipes(flag_values)))
        parts.extend(_fields_help(flag_values, topic))
    return "\n\n".join(part for part in parts if part) + "\n"


def _recipes_help(recipes: Recipes) -> str:
    lines = (
        _columns(f"  {name}", (recipe.__doc__ or "").partition("\n")[0])
        for name, recipe in recipes.items()
    )
    return "Recipes\n" + "\n".join(lines)


def _fields_help(flag_values: FlagValues, topic: str) -> Iterator[str]:
    """The fields of a topic by group; if they are many, groups within it are folded."""
    recipe = _chosen(flag_values)
    leaves = dict(_leaf_flags(flag_values)) if "recipe" in flag_values else {}
    docs = fields.groups(_kind(flag_values)) if leaves else {}
    root = () if topic in ("", _ALL) else tuple(topic.split("."))
    if root and root not in docs:
        names = [".".join(path) for path in docs]
        near = _nearest(topic, names) or f"there are {', '.join(n for n in names if '.' not in n)}"
        raise FlagError(f"--help={topic}: no such group of fields; {near.rstrip(' ;')}")
    below: dict[fields.Path, list[tuple[fields.Leaf, absl_flags.Flag]]] = {root: []}
    for leaf, flag in leaves.items():
        if leaf.path[: len(root)] == root:
            below.setdefault(leaf.path[:-1], []).append((leaf, flag))
    inner = {".".join(path): doc for path, doc in docs.items() if path[:-1] == root}
    folds = inner and topic != _ALL and sum(map(len, below.values())) > _MOST

    def entry(leaf: fields.Leaf, flag: absl_flags.Flag) -> str:
        return _entry(flag, fields.get(recipe, leaf.path) if recipe else None)

    for path, entries in below.items():
        if entries and (path == root or not folds):
            title = f"Fields of {'.'.join(path) or 'the recipe'}"
            title += f"; values of {flag_values['recipe'].value} in brackets" if recipe else ""
            yield "\n".join([title, *itertools.starmap(entry, entries)])
    if folds:
        title = f"Groups of fields; --help={next(iter(inner))} shows one, --helpfull all"
        yield "\n".join([title, *(_columns(f"  {name}", doc) for name, doc in inner.items())])


def _entry(flag: absl_flags.Flag, value: Any) -> str:
    kind, text = flag.parser.flag_type(), flag.help
    if isinstance(flag.parser, absl_flags.EnumParser):
        kind = "|".join(flag.parser.enum_values)
        text = text.removeprefix(f"<{kind}>: ")
    text = text.partition(";\n    repeat this option")[0]  # absl's words, which follow our own
    kind = "text" if kind == "string" else kind
    left = f"  --[no]{flag.name}" if flag.boolean else f"  --{flag.name} {kind}"
    given = value not in (None, "", (), [])
    return _columns(left, text + (f" [{_show(value)}]" if given else ""))


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return " ".join(map(_show, value))
    if dataclasses.is_dataclass(value):
        return str(getattr(value, dataclasses.fields(value)[0].name))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _columns(left: str, right: str) -> str:
    """`left` and, from a fixed column on, `right`, wrapped to the terminal's width."""
    width = max(60, min(100, shutil.get_terminal_size((100, 24)).columns))
    indent = " " * _COLUMN
    body = textwrap.fill(right, width, initial_indent=indent, subsequent_indent=indent)
    return f"{left}\n{body}" if len(left) > _COLUMN - 2 else left + body[len(left) :]
