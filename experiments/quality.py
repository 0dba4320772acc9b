"""Measures the quality of text files, before or after cleaning.

    python -m experiments.quality --data=web.jsonl.gz,books --output=reports/raw
    python -m experiments.quality --data=data/mixture --output=reports/mixture

writes quality.html, a self-contained page, and quality.json with the same numbers, and prints them.
For a folder from `experiments.prepare`, it reports what was kept and rejected, by source and step;
anything else is measured as it is, each path as a source. Files are measured in several processes,
in bounded memory.
"""

from absl import flags as absl_flags
from rich.console import Console

from experiments import flags, measuring
from llmjax.data import quality

DATA = absl_flags.DEFINE_list("data", None, "Files, folders, globs, or a folder of prepared data.")
OUTPUT = absl_flags.DEFINE_string("output", None, "Folder for quality.html and quality.json.")
TEXT_FIELD = absl_flags.DEFINE_string("text_field", "text", "The field or column with the text.")
SPLIT = absl_flags.DEFINE_enum(
    "split", "file", ["file", "paragraph", "line"], "What counts as a document in plain text."
)
MODEL = absl_flags.DEFINE_string("model", None, "Run of a model to measure perplexity with.")
WORKERS = absl_flags.DEFINE_integer("workers", 0, "Number of processes; 0 for one per core.")


def main(argv: list[str]) -> None:
    """The entry point."""
    del argv
    if not DATA.value or not OUTPUT.value:
        missing = "output" if DATA.value else "data"
        raise flags.FlagError(f"--{missing} is missing: say what to measure and where to write")
    config = quality.QualityConfig()
    if MODEL.value:
        from experiments import scoring  # imports models, which nothing else here needs

        scorer = scoring.RunScorer(MODEL.value)
        _ = scorer.fingerprint  # raises at once if there is no such run
        config = quality.QualityConfig(scorer=scorer)
    try:
        report, page = measuring.report(
            DATA.value,
            OUTPUT.value,
            config,
            workers=WORKERS.value,
            text_field=TEXT_FIELD.value,
            split=SPLIT.value,  # type: ignore[arg-type]
        )
    except ImportError as error:
        raise flags.FlagError(str(error)) from error
    except (FileNotFoundError, ValueError) as error:
        raise flags.FlagError(f"--data={','.join(DATA.value)}: {error}") from error
    Console().print(measuring.table(report))
    print(f"report: {page}")


if __name__ == "__main__":
    flags.run(main)
