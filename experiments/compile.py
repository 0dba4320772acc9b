"""Compiles a recipe's training step for (absent) chips, and reports what it needs.

    python -m experiments.compile --recipe=llama3_8b --target=v5p:4x4x4
    python -m experiments.compile --recipe=llama3_8b --target=v6e:16x16 --mesh.tensor=4 --json
    python -m experiments.compile --recipe=gpt2_small --target=h100:8 --model.remat=full

Per chip it reports memory by item and the available memory, operations, the compiler's estimate of
the step time, communication by collective and mesh axis compared with the minimum, and advice. If
the step does not fit, it says so and exits with status 1.
"""

import json
import pathlib

import jax
from absl import flags as absl_flags

from experiments import compile_tables, compiler, flags, planner
from experiments.recipes import RECIPES
from llmjax import planning

TARGET = absl_flags.DEFINE_string(
    "target", None, "Kind and number of chips: v5p:4x4x4, v6e:16x16, h100:8."
)
HLO = absl_flags.DEFINE_string("hlo", None, "File for the text of the compiled program.")
AS_JSON = absl_flags.DEFINE_bool("json", False, "Print one JSON object instead of tables.")

flags.define(RECIPES)


def main(argv: list[str]) -> int:
    """The entry point."""
    del argv
    if not TARGET.value:
        raise flags.FlagError("--target is missing: for example v5p:4x4x4 or h100:8")
    recipe = flags.resolve()
    # Nothing runs on this machine's accelerators.
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
