"""A corpus to clean, and what came of it: for tests of engines and of runs that are killed."""

import hashlib
import json
import pathlib
import random

from llmjax import data
from llmjax.data.cleaning.config import CleaningConfig
from llmjax.data.cleaning.length import Length

WORDS = ["sea", "storm", "boat", "of", "the", "wind", "and", "calm", "light", "a", "gull", "rope"]
STEPS = ("length", "repair", "exact_duplicates", "near_duplicates")


def line(text: str, **known: object) -> bytes:
    """A line of JSON."""
    return json.dumps({"text": text, **known}).encode()


def write(path: pathlib.Path, lines: list[bytes]) -> pathlib.Path:
    """Writes lines to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts of which some are short, and some say what an earlier one does."""
    draw = random.Random(seed)
    said: list[str] = []
    for _ in range(count):
        again = said and draw.random() < 0.2
        words = draw.choices(WORDS, k=draw.randint(1, 40))
        said.append(draw.choice(said).upper() + " \n" if again else " ".join(words))
    return said


def settings(root: pathlib.Path, **cleaning: object) -> data.DataConfig:
    """How all folders of a folder are prepared."""
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    sources = tuple(data.Source(folder.name, str(folder)) for folder in folders)
    given = {"steps": ("length", "exact_duplicates"), "length": Length(20), "part_bytes": 2000}
    return data.DataConfig(
        sources,
        data.TokenizerConfig(kind="bytes"),
        validation_share=0.2,
        max_rejected_share=0.2,
        cleaning=CleaningConfig(**{**given, **cleaning}),  # type: ignore[arg-type]
    )


def made(directory: pathlib.Path) -> dict[str, str]:
    """What training reads, and what cleaning wrote, byte for byte."""
    paths = [*directory.rglob("*.arrayrecord"), *directory.rglob("*.zst")]
    assert len(paths) > 4
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [*paths, directory / "tokenizer.meta.json"]
    }
