"""Writes a trained model as a Hugging Face checkpoint: config.json and safetensors.

    python -m experiments.export --run_dir=runs/bert_tiny --output=exported/bert_tiny
    python -m experiments.export --run_dir=runs/electra_tiny --part=generator --output=exported/g

Of a run with replaced tokens (rtd) the discriminator is written unless --part says otherwise. The
tokenizer's files come along.
"""

import pathlib

import jax
from absl import flags as absl_flags

from experiments import flags, objective, runs
from llmjax import data, hf

RUN_DIR = absl_flags.DEFINE_string("run_dir", None, "Folder of the run.")
OUTPUT = absl_flags.DEFINE_string("output", None, "Folder to write; it has no checkpoint yet.")
CHECKPOINT = absl_flags.DEFINE_enum("checkpoint", "best", ["best", "last"], "Which one to read.")
PART = absl_flags.DEFINE_enum(
    "part", None, ["discriminator", "generator"], "Of a run with replaced tokens, which model."
)
DTYPE = absl_flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Precision of the tensors."
)


def main(argv: list[str]) -> None:
    """The entry point."""
    del argv
    if not RUN_DIR.value:
        raise flags.FlagError("--run_dir is missing: name the folder of a run")
    if not OUTPUT.value:
        raise flags.FlagError("--output is missing: name a folder to write to")
    run_dir, output = pathlib.Path(RUN_DIR.value), pathlib.Path(OUTPUT.value)
    saved = runs.saved_recipe(run_dir)
    if saved is None:
        raise flags.FlagError(f"--run_dir={run_dir}: no run there (it has no config.json)")
    with jax.set_mesh(runs.make_mesh(saved)):
        model = runs.load(run_dir, best=CHECKPOINT.value == "best")
        export(model, output, part=PART.value, dtype=DTYPE.value)
    hf.copy_tokenizer(runs.data_directory(run_dir, saved), output)
    print(f"{run_dir}, step {model.step}: wrote {output}")


def export(
    model: runs.TrainedModel, output: pathlib.Path, *, part: str | None = None, dtype: str
) -> None:
    """Writes one of the models of a run; `part` None is the one that is wanted.

    Raises:
        FlagError: the run has no such part, the folder has a checkpoint already, or the family has
            no such checkpoints.
    """
    parts = objective.trained_models(model.recipe, model.params)
    if part is not None and part not in parts:
        raise flags.FlagError(
            f"--part={part}: a run with objective={model.recipe.objective} has one model; leave "
            "it out"
        )
    config, params = parts[part or next(iter(parts))]
    try:
        hf.save(output, config, params, dtype=dtype, progress=True, extra=_ids(model.tokenizer))
    except (ValueError, OSError) as error:
        raise flags.FlagError(f"--output={output}: {error}") from error


def _ids(tokenizer: data.Tokenizer) -> dict[str, int]:
    """The special tokens, by the names that config.json has for them."""
    names = ("pad", "bos", "eos")
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_id") for name in names}


if __name__ == "__main__":
    flags.run(main)
