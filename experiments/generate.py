"""Lets a trained model write: one text, a file of prompts, or a conversation.

    python -m experiments.generate --run_dir=runs/quickstart
    python -m experiments.generate --run_dir=runs/tiny --prompt="The import statement"
    python -m experiments.generate --run_dir=runs/tiny --prompts_file=in.jsonl --output=out.jsonl
    python -m experiments.generate --run_dir=runs/small_talk --chat

A model that was tuned to answer is spoken to through its chat template: a prompt is what the user
says, and ends where the assistant's turn does. One that was not, or with --raw, goes on with the
text. A prompts file has one JSON object a line with a "prompt", or with "messages"; each comes
back, `--samples` times, with a "completion", its number of tokens, and their mean log-probability
under the model. Without prompts there is a conversation: /reset forgets it, /quit leaves, Ctrl-C
stops a reply.
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
CHECKPOINT = absl_flags.DEFINE_enum("checkpoint", "best", ["best", "last"], "Which one to read.")
PROMPT = absl_flags.DEFINE_string("prompt", None, "What the user says; or text to go on from.")
PROMPTS_FILE = absl_flags.DEFINE_string("prompts_file", None, "JSON lines, each with a prompt.")
CHAT = absl_flags.DEFINE_bool("chat", False, "Talk, line by line, from a pipe too.")
RAW = absl_flags.DEFINE_bool("raw", False, "Go on with plain text, whatever the chat template.")
OUTPUT = absl_flags.DEFINE_string("output", None, "File for --prompts_file; else it is printed.")
BATCH_SIZE = absl_flags.DEFINE_integer("batch_size", 8, "Texts that are written at a time.")
SAMPLES = absl_flags.DEFINE_integer("samples", 1, "Texts for each prompt of a file.")
MAX_NEW_TOKENS = absl_flags.DEFINE_integer("max_new_tokens", 128, "Tokens of a text, at most.")
TEMPERATURE = absl_flags.DEFINE_float("temperature", 0.8, "0 takes the most likely token.")
TOP_K = absl_flags.DEFINE_integer("top_k", 0, "Choose among so many tokens; 0 is all.")
TOP_P = absl_flags.DEFINE_float("top_p", 0.95, "Choose among tokens of so much probability.")
MIN_P = absl_flags.DEFINE_float(
    "min_p", 0.0, "Choose among tokens of so much of the likeliest one's probability."
)
PENALTY = absl_flags.DEFINE_float(
    "repetition_penalty", 1.0, "Above 1, makes tokens that the text has less likely."
)
STOP = absl_flags.DEFINE_multi_string(
    "stop", None, "Text before which a text ends; \\n is a line break"
)
SEED = absl_flags.DEFINE_integer("seed", 0, "Of the draws.")


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
            f"--run_dir={run_dir}: a model with a head of kind {task.config.head.kind} cannot write"
            "; name a run of one that was trained to predict next tokens"
        )
    made = mesh.for_decoding(task.make_mesh())
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
    """Whether there is to be a conversation.

    Raises:
        FlagError: flags that do not go together, or nothing to talk on.
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
            "--prompt or --prompts_file is missing, and there is no terminal to talk on; --chat "
            "reads what is said from a pipe"
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
    """What was asked for and cannot be is said in one line."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise flags.FlagError(str(error)) from error


if __name__ == "__main__":
    flags.run(main)
