"""Lets a trained model write: one text, a file of prompts, or a conversation.

    python -m experiments.generate --run_dir=runs/quickstart
    python -m experiments.generate --run_dir=runs/tiny --prompt="The import statement"
    python -m experiments.generate --run_dir=runs/tiny --prompts_file=in.jsonl --output=out.jsonl

A prompts file has one JSON object a line with a "prompt"; each comes back, `--samples` times, with
a "completion", its number of tokens, and their mean log-probability under the model. Without
prompts there is a conversation: /reset forgets it, /quit leaves, Ctrl-C stops a reply.
"""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from absl import flags as absl_flags

from experiments import flags, runs
from llmjax import mesh, models, sampling
from llmjax.data import corpora

RUN_DIR = absl_flags.DEFINE_string("run_dir", None, "Folder of the run.")
CHECKPOINT = absl_flags.DEFINE_enum("checkpoint", "best", ["best", "last"], "Which one to read.")
PROMPT = absl_flags.DEFINE_string("prompt", None, "Text to go on from.")
PROMPTS_FILE = absl_flags.DEFINE_string("prompts_file", None, "JSON lines, each with a prompt.")
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
    if PROMPT.value is not None and PROMPTS_FILE.value:
        raise flags.FlagError("--prompt and --prompts_file: give one of them")
    if OUTPUT.value and not PROMPTS_FILE.value:
        raise flags.FlagError("--output is for --prompts_file, which is missing")
    talks = PROMPT.value is None and not PROMPTS_FILE.value
    if talks and not sys.stdin.isatty():
        raise flags.FlagError(
            "--prompt or --prompts_file is missing, and there is no terminal to talk on"
        )
    run_dir = pathlib.Path(RUN_DIR.value)
    task = runs.saved_task(run_dir)
    if task.config.head.kind != "lm":
        raise flags.FlagError(
            f"--run_dir={run_dir}: a model with a head of kind {task.config.head.kind} cannot write"
            "; name a run of one that was trained to predict next tokens"
        )
    made = mesh.for_decoding(task.make_mesh())
    with jax.set_mesh(made), _errors_of_flags():
        records = read_prompts(PROMPTS_FILE.value) if PROMPTS_FILE.value else []
        # Each turn of a conversation is a line.
        stops = ["\n"] if talks and getattr(task.recipe, "corpus", "") == "chitchat" else []
        stops += [stop.replace("\\n", "\n") for stop in STOP.value or ()]
        settings = Settings(MAX_NEW_TOKENS.value, _sampler(), tuple(stops), SEED.value)
        writer = Writer(runs.load(run_dir, best=CHECKPOINT.value == "best"), settings)
        if PROMPT.value is not None:
            _show(writer.stream(PROMPT.value))
        elif PROMPTS_FILE.value:
            complete_file(writer, records, OUTPUT.value, BATCH_SIZE.value, SAMPLES.value)
        else:
            chat(writer)


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


@dataclasses.dataclass(frozen=True)
class Settings:
    """How texts are written.

    Attributes:
        max_new_tokens: where a text ends that meets no stop.
        sampler: how tokens are chosen.
        stops: what ends a text and is no part of it, beside the end of a document.
        seed: of the draws.
    """

    max_new_tokens: int
    sampler: sampling.SamplerConfig
    stops: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if "" in self.stops:
            raise ValueError("stop: an empty text would end every text before its first token")


class Writer:
    """A model and how it is to write."""

    def __init__(self, model: runs.TrainedModel, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.params = models.for_decoding(model.task.merge(model.params), model.config)
        self._stops: dict[str, Any] = {
            "stop_tokens": model.tokenizer.stop_ids,
            "stop_texts": settings.stops,
        }
        self._arguments: dict[str, Any] = self._stops | {
            "max_new_tokens": settings.max_new_tokens,
            "sampler": settings.sampler,
            "tokenizer": model.tokenizer,
        }

    def encode(self, prompt: str) -> list[int]:
        """The prompt's tokens, at the beginning of a document."""
        return [*self.model.tokenizer.opening, *self.model.tokenizer.encode(prompt)]

    def stream(self, prompt: str, number: int = 0) -> Iterator[str]:
        """Text that goes on from a prompt, as it is written; `number` varies the draws."""
        return sampling.stream(
            self.params,
            self.encode(prompt),
            self.model.config,
            self._key(number),
            **self._arguments,
        )

    def complete(
        self, prompts: list[str], number: int = 0, samples: int = 1, at_a_time: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """For each prompt so many completions, their `tokens` and mean `log_prob`, in order."""
        written = sampling.rollouts(
            self.params,
            [self.encode(prompt) for prompt in prompts],
            self.model.config,
            self._key(number),
            samples=samples,
            slots=at_a_time,
            **self._arguments,
        )
        early: dict[int, dict[str, Any]] = {}
        following = 0
        for row in written:
            early[row.prompt * samples + row.sample] = {
                "completion": sampling.text_of(
                    row.tokens.tolist(), self.model.tokenizer, **self._stops
                ),
                "tokens": len(row.tokens),
                "log_prob": float(row.log_probs.mean()),
            }
            while following in early:
                yield early.pop(following)
                following += 1

    def _key(self, number: int) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.settings.seed), number)


def read_prompts(path: str) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines.

    Raises:
        FlagError: it cannot be read, or a line of it is no object with a text "prompt".
    """
    try:
        lines = pathlib.Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise flags.FlagError(f"--prompts_file={path}: {error}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise flags.FlagError(f"{path}:{number}: no JSON: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            raise flags.FlagError(f'{path}:{number}: no object with a text "prompt"')
        records.append(record)
    if not records:
        raise flags.FlagError(f"--prompts_file={path}: there is no prompt in it")
    return records


def complete_file(
    writer: Writer, records: list[dict[str, Any]], output: str | None, batch_size: int, samples: int
) -> None:
    """Writes each record with its completions, a JSON object a line, as they are done."""
    for name, value in (("batch_size", batch_size), ("samples", samples)):
        if value < 1:
            raise flags.FlagError(f"--{name}={value}: must be at least 1")
    prompts = [record["prompt"] for record in records]
    with contextlib.ExitStack() as stack:
        file = sys.stdout
        if output:
            file = stack.enter_context(pathlib.Path(output).open("w", encoding="utf-8"))
        completed = writer.complete(prompts, samples=samples, at_a_time=batch_size)
        for place, result in enumerate(completed):
            record = records[place // samples]
            print(json.dumps(record | result, ensure_ascii=False), file=file, flush=True)


def chat(writer: Writer) -> None:
    """Talks on the terminal until /quit or the end of the input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives `input` a line to edit and a history
    name, step = writer.model.recipe.name, writer.model.step
    print(f"{name}, step {step}. /reset forgets, /quit leaves, Ctrl-C stops a reply.")
    turns: list[str] = []
    number = 0
    while True:
        try:
            line = input("> ").strip()
        except KeyboardInterrupt:
            print("\n/quit leaves")
            continue
        except EOFError:
            print()
            return
        if line == "/quit":
            return
        if line == "/reset":
            turns.clear()
        elif line:
            turns.append(line)
            turns.append(_show(writer.stream(_context(writer, turns), number)))
            number += 1


def _context(writer: Writer, turns: list[str]) -> str:
    """The prompt from the turns so far; forgets the oldest two while they are too long."""
    recipe = writer.model.recipe
    room = recipe.model.max_length - writer.settings.max_new_tokens
    while True:
        prompt = corpora.chat_prompt(turns) if recipe.corpus == "chitchat" else "".join(turns)
        if len(turns) <= 2 or len(writer.encode(prompt)) <= room:
            return prompt
        del turns[:2]


def _show(pieces: Iterable[str]) -> str:
    """Prints text as it comes and returns it; Ctrl-C ends it."""
    text = ""
    with contextlib.suppress(KeyboardInterrupt):
        for piece in pieces:
            text += piece
            print(piece, end="", flush=True)
    print()
    return text


if __name__ == "__main__":
    flags.run(main)
