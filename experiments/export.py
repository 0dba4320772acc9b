"""Writes a trained model as a Hugging Face checkpoint: config.json and safetensors.

    python -m experiments.export --run_dir=runs/modernbert_tiny --output=exported/modernbert_tiny
    python -m experiments.export --run_dir=runs/deberta_tiny --part=generator --output=exported/g
    python -m experiments.export --run_dir=runs/lora --adapter --output=exported/adapter

For replaced-token detection (rtd) it writes the discriminator unless --part says otherwise, and for
reinforcement learning the policy. Adapters are merged into the weights; --adapter writes only the
adapter, in PEFT's format. It also writes the tokenizer and the run's chat template.
"""

import pathlib

import jax
from absl import flags as absl_flags

from experiments import flags, runs

RUN_DIR = absl_flags.DEFINE_string("run_dir", None, "Folder of the run.")
OUTPUT = absl_flags.DEFINE_string("output", None, "Output folder, without a checkpoint so far.")
CHECKPOINT = absl_flags.DEFINE_enum("checkpoint", "best", ["best", "last"], "Checkpoint to load.")
PART = absl_flags.DEFINE_enum(
    "part", None, ["discriminator", "generator"], "Model to write, for replaced-token detection."
)
ADAPTER = absl_flags.DEFINE_bool("adapter", False, "Write only the adapter, in PEFT's format.")
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
    with jax.set_mesh(task.make_mesh_to_serve()):
        model = runs.load(run_dir, best=CHECKPOINT.value == "best")
        if ADAPTER.value:
            runs.export_adapter(model, output, dtype=DTYPE.value)
        else:
            left_out = runs.export(model, output, part=PART.value, dtype=DTYPE.value)
    runs.export_tokenizer(model, output)
    print(f"{run_dir}, step {model.step}: wrote {output}")
    if left_out:
        print(f"left out its head ({left_out}), which this family's checkpoints cannot hold")


if __name__ == "__main__":
    flags.run(main)
