"""Writes a trained model as a Hugging Face checkpoint: config.json and safetensors.

    python -m experiments.export --run_dir=runs/modernbert_tiny --output=exported/modernbert_tiny
    python -m experiments.export --run_dir=runs/deberta_tiny --part=generator --output=exported/g
    python -m experiments.export --run_dir=runs/lora --adapter --output=exported/adapter

Of a run with replaced tokens (rtd) the discriminator is written unless --part says otherwise. What
was added to a model is multiplied into its weights, and of a policy it alone is written; --adapter
writes what was added by itself, in PEFT's files. The tokenizer's files come along, with the chat
template that the run was spoken to by.
"""

import pathlib

import jax
from absl import flags as absl_flags

from experiments import flags, runs

RUN_DIR = absl_flags.DEFINE_string("run_dir", None, "Folder of the run.")
OUTPUT = absl_flags.DEFINE_string("output", None, "Folder to write; it has no checkpoint yet.")
CHECKPOINT = absl_flags.DEFINE_enum("checkpoint", "best", ["best", "last"], "Which one to read.")
PART = absl_flags.DEFINE_enum(
    "part", None, ["discriminator", "generator"], "Of a run with replaced tokens, which model."
)
ADAPTER = absl_flags.DEFINE_bool("adapter", False, "What was added to the base, in PEFT's files.")
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
    if ADAPTER.value and PART.value:
        raise flags.FlagError("--adapter and --part: give one of them")
    run_dir, output = pathlib.Path(RUN_DIR.value), pathlib.Path(OUTPUT.value)
    task = runs.saved_task(run_dir)
    left_out = ""
    with jax.set_mesh(task.make_mesh()):
        model = runs.load(run_dir, best=CHECKPOINT.value == "best")
        if ADAPTER.value:
            runs.export_adapter(model, output, dtype=DTYPE.value)
        else:
            left_out = runs.export(model, output, part=PART.value, dtype=DTYPE.value)
    runs.export_tokenizer(model, output)
    print(f"{run_dir}, step {model.step}: wrote {output}")
    if left_out:
        print(f"without its head ({left_out}), for which such checkpoints have no place")


if __name__ == "__main__":
    flags.run(main)
