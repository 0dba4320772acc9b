"""Compiles a recipe's training step for chips that need not be there, and says what it takes.

    python -m experiments.compile --recipe=llama3_8b --target=v5p:4x4x4
    python -m experiments.compile --recipe=llama3_8b --target=v6e:16x16 --mesh.tensor=4 --json
    python -m experiments.compile --recipe=gpt2_small --target=h100:8 --model.remat=full

Of one chip: memory by item against what there is, operations, the compiler's estimate of a step's
time, what the chips send each other by kind and mesh axis beside the least that they must, and what
would help. A step that does not fit is an answer too; the exit status is then 1.
"""

import json
import pathlib

import jax
from absl import flags as absl_flags

from experiments import compile_tables, compiler, flags, planner
from experiments.recipes import RECIPES
from llmjax import planning

TARGET = absl_flags.DEFINE_string(
    "target", None, "Kind of chip and how many: v5p:4x4x4, v6e:16x16, h100:8."
)
HLO = absl_flags.DEFINE_string("hlo", None, "File for the text of the compiled program.")
AS_JSON = absl_flags.DEFINE_bool("json", False, "Print one JSON object in place of tables.")

flags.define(RECIPES)


def main(argv: list[str]) -> int:
    """The entry point."""
    del argv
    if not TARGET.value:
        raise flags.FlagError("--target is missing: v5p:4x4x4 or h100:8, say")
    recipe = flags.resolve()
    # Whatever this machine has, nothing runs on it.
    jax.config.update("jax_platforms", "cpu")
    try:
        target = planning.target(TARGET.value)
    except (ValueError, ModuleNotFoundError) as error:
        raise flags.FlagError(f"--target={error}") from error
    hlo = pathlib.Path(HLO.value) if HLO.value else None
    if hlo is not None and not hlo.parent.is_dir():
        raise flags.FlagError(f"--hlo={hlo}: there is no folder {hlo.parent}")
    answer = compiler.answer(recipe, target, hlo)
    if AS_JSON.value:
        print(json.dumps(planner.finite(answer)))
    else:
        compile_tables.show(answer)
    return 0 if answer["fits"] else 1


if __name__ == "__main__":
    flags.run(main)
