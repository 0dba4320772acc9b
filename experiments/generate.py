"""Generates text with a trained model: from a prompt, a file of prompts, or in a conversation.

    python -m experiments.generate --run_dir=runs/quickstart
    python -m experiments.generate --run_dir=runs/tiny --prompt="The import statement"
    python -m experiments.generate --run_dir=runs/tiny --prompts_file=in.jsonl --output=out.jsonl
    python -m experiments.generate --run_dir=runs/small_talk --chat

For chat models, the prompt is the user's message, formatted by the chat template, and the output
ends with the assistant's turn. Other models, or any with --raw, continue the text. A prompts file
has one JSON object per line with a "prompt" or with "messages"; each is written back, `--samples`
times, with a "completion", its number of tokens, and their mean log-probability under the model.
Without prompts it starts a conversation: /reset clears it, /quit exits, Ctrl-C stops a reply.
"""

import contextlib
import pathlib
import sys
from collections.abc import Iterator

import jax
from absl import flags as absl_flags

from experiments import flags, runs, writing
from llmjax import mesh, sampling

RUN_DIR = absl_flags.DEFINE_string("run_dir", None, "Folder of the run.")
CHECKPOINT = absl_flags.DEFINE_enum("checkpoint", "best", ["best", "last"], "Checkpoint to load.")
PROMPT = absl_flags.DEFINE_string("prompt", None, "The user's message, or text to continue.")
PROMPTS_FILE = absl_flags.DEFINE_string("prompts_file", None, "JSON lines, each with a prompt.")
CHAT = absl_flags.DEFINE_bool("chat", False, "Start a conversation, also from a pipe.")
RAW = absl_flags.DEFINE_bool("raw", False, "Continue plain text, ignoring the chat template.")
OUTPUT = absl_flags.DEFINE_string("output", None, "File for --prompts_file; by default stdout.")
BATCH_SIZE = absl_flags.DEFINE_integer("batch_size", 8, "Number of texts generated at a time.")
SAMPLES = absl_flags.DEFINE_integer("samples", 1, "Completions per prompt of a file.")
MAX_NEW_TOKENS = absl_flags.DEFINE_integer("max_new_tokens", 128, "Maximum tokens of a text.")
TEMPERATURE = absl_flags.DEFINE_float("temperature", 0.8, "0 takes the most likely token.")
TOP_K = absl_flags.DEFINE_integer("top_k", 0, "Sample from the k most likely tokens; 0 for all.")
TOP_P = absl_flags.DEFINE_float(
    "top_p", 0.95, "Sample from the most likely tokens with this total probability."
)
MIN_P = absl_flags.DEFINE_float(
    "min_p", 0.0, "Sample from tokens with at least this share of the highest probability."
)
PENALTY = absl_flags.DEFINE_float(
    "repetition_penalty", 1.0, "Above 1, makes tokens already in the text less likely."
)
STOP = absl_flags.DEFINE_multi_string(
    "stop", None, "Text that stops generation and is left out; \\n is a line break."
)
SEED = absl_flags.DEFINE_integer("seed", 0, "Seed of sampling.")


def main(argv: list[str]) -> None:
    """The entry point."""
    del argv
    if not RUN_DIR.value:
        raise flags.FlagError("--run_dir is missing: name the folder of a run")
    talks = _talks()
    run_dir = pathlib.Path(RUN_DIR.value)
    task = runs.saved_task(run_dir)
    if task.config.head.kind != "lm":
        raise flags.FlagError(
            f"--run_dir={run_dir}: a model with head.kind={task.config.head.kind} cannot generate "
            "text; name the run of a model trained to predict next tokens"
        )
    made = mesh.for_decoding(task.make_mesh_to_serve())
    with jax.set_mesh(made), _errors_of_flags():
        template = None if RAW.value else task.template
        records = []
        if PROMPTS_FILE.value:
            records = writing.read_prompts(PROMPTS_FILE.value, messages=template is not None)
        # Each turn of a conversation is a line.
        stops = ["\n"] if talks and getattr(task.recipe, "corpus", "") == "chitchat" else []
        stops += [stop.replace("\\n", "\n") for stop in STOP.value or ()]
        settings = writing.Settings(MAX_NEW_TOKENS.value, _sampler(), tuple(stops), SEED.value)
        model = runs.load(run_dir, best=CHECKPOINT.value == "best")
        writer = writing.Writer(model, settings, template)
        if PROMPT.value is not None:
            writing.show(writer.stream(writer.opened(PROMPT.value)))
        elif PROMPTS_FILE.value:
            writing.complete_file(writer, records, OUTPUT.value, BATCH_SIZE.value, SAMPLES.value)
        else:
            writing.chat(writer)


def _talks() -> bool:
    """Whether to start a conversation.

    Raises:
        FlagError: the flags conflict, or there is no terminal.
    """
    given = {
        "--prompt": PROMPT.value is not None,
        "--prompts_file": bool(PROMPTS_FILE.value),
        "--chat": CHAT.value,
    }
    chosen = [name for name, there in given.items() if there]
    if len(chosen) > 1:
        raise flags.FlagError(f"{' and '.join(chosen)}: give one of them")
    if OUTPUT.value and not PROMPTS_FILE.value:
        raise flags.FlagError("--output is for --prompts_file, which is missing")
    if not chosen and not sys.stdin.isatty():
        raise flags.FlagError(
            "--prompt or --prompts_file is missing, and there is no terminal; --chat reads from a "
            "pipe"
        )
    return chosen in ([], ["--chat"])


def _sampler() -> sampling.SamplerConfig:
    return sampling.SamplerConfig(
        temperature=TEMPERATURE.value,
        top_k=TOP_K.value,
        top_p=TOP_P.value,
        repetition_penalty=PENALTY.value,
        min_p=MIN_P.value,
    )


@contextlib.contextmanager
def _errors_of_flags() -> Iterator[None]:
    """Reports invalid requests in one line."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise flags.FlagError(str(error)) from error


if __name__ == "__main__":
    flags.run(main)
