"""Writes a trained model as a Hugging Face checkpoint: config.json and safetensors.

    python -m experiments.export --run_dir=runs/modernbert_tiny --output=exported/modernbert_tiny
    python -m experiments.export --run_dir=runs/deberta_tiny --part=generator --output=exported/g

Of a run with replaced tokens (rtd) the discriminator is written unless --part says otherwise. The
tokenizer's files come along.
"""

import pathlib

import jax
from absl import flags as absl_flags

from experiments import flags, runs
from llmjax import hf

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
    task = runs.saved_task(run_dir)
    with jax.set_mesh(task.make_mesh()):
        model = runs.load(run_dir, best=CHECKPOINT.value == "best")
        left_out = runs.export(model, output, part=PART.value, dtype=DTYPE.value)
    hf.copy_tokenizer(task.directory(), output)
    print(f"{run_dir}, step {model.step}: wrote {output}")
    if left_out:
        print(f"without its head ({left_out}), for which such checkpoints have no place")


if __name__ == "__main__":
    flags.run(main)
