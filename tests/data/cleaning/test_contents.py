"""What a file says that settings name decides the outcome, and where it lies does not."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import pytest

from llmjax import data
from llmjax.data.cleaning import contents, pipeline, quality_model, task
from llmjax.data.cleaning.config import CleaningConfig
from llmjax.data.cleaning.decontamination import Decontamination
from llmjax.data.cleaning.harm import HarmfulContent
from llmjax.data.cleaning.perplexity import Perplexity
from llmjax.data.cleaning.urls import Urls
from tests.data.cleaning.corpus import line, settings, write

NAMES = [
    f"{kind} number {i} of the harbour at night" for kind in ("gull", "rope") for i in range(20)
]


@pytest.fixture
def corpus(tmp_path: pathlib.Path) -> pathlib.Path:
    """Texts about gulls, and about ropes, with addresses."""
    lines = [line(text, url=f"http://{text.split()[0]}.org/{i}") for i, text in enumerate(NAMES)]
    write(tmp_path / "in" / "web" / "a.jsonl", lines)
    return tmp_path / "in"


def urls(path: pathlib.Path, word: str) -> CleaningConfig:
    path.write_text(f"{word}.org\n")
    return CleaningConfig(("urls",), urls=Urls(domain_files=(str(path),)))


def harm(path: pathlib.Path, word: str) -> CleaningConfig:
    path.write_text(f"{word}\n")
    step = HarmfulContent(threshold=None, lists=(f"birds={path}",), most=0.0)
    return CleaningConfig(("harmful_content",), harmful_content=step)


def model(path: pathlib.Path, word: str) -> CleaningConfig:
    pytest.importorskip("sklearn")
    bad = [text for text in NAMES if text.startswith(word)]
    good = [text for text in NAMES if not text.startswith(word)]
    quality_model.train(good, bad, features=1 << 10).save(path)
    return CleaningConfig(("quality_model",), quality_model=quality_model.QualityModel(str(path)))


def leaks(path: pathlib.Path, word: str) -> CleaningConfig:
    asked = [json.dumps({"asked": text}) for text in NAMES if text.startswith(word)]
    path.write_text("\n".join(asked))
    return CleaningConfig(
        ("decontamination",),
        evaluation_sets=(str(path),),
        decontamination=Decontamination(n=8, shortest=4, mode="reject"),
    )


def left(directory: pathlib.Path) -> set[str]:
    """The first words of what cleaning left."""
    return {document.text.split()[0] for document in pipeline.read_cleaned(directory)}


@pytest.mark.parametrize("make", [urls, harm, model, leaks])
def test_a_changed_file_is_noticed(
    corpus: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[pathlib.Path, str], CleaningConfig],
) -> None:
    path, out = tmp_path / "named.jsonl", tmp_path / "out"
    wanted = dataclasses.replace(settings(corpus), cleaning=make(path, "gull"))
    done = data.prepare(wanted, out)
    assert left(out) == {"rope"}
    assert str(path) not in json.dumps(done.config)
    make(path, "rope")
    with pytest.raises(ValueError, match="holds data that was prepared differently .cleaning"):
        data.prepare(wanted, out)
    # What was cleaned by the old file is not kept, and what was read of it is forgotten.
    data.prepare(wanted, out, overwrite=True)
    assert left(out) == {"gull"}
    # The same content is the same, wherever it lies: nothing is cleaned again.
    monkeypatch.setattr(task.Task, "run", None)
    (tmp_path / "moved").mkdir()
    moved = make(tmp_path / "moved" / path.name, "rope")
    again = data.prepare(dataclasses.replace(wanted, cleaning=moved), out)
    assert again == data.load_manifest(out)
    path.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=str(path)):
        data.prepare(wanted, out)


def test_another_model_behind_a_scorer_is_noticed(
    corpus: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    @dataclasses.dataclass
    class Scorer:
        fingerprint: str
        strange: str

        def __call__(self, texts: list[str]) -> list[float]:
            return [9.0 if text.startswith(self.strange) else 1.0 for text in texts]

    cleaning = CleaningConfig(("perplexity",), perplexity=Perplexity("run", maximum=5.0))
    wanted = dataclasses.replace(settings(corpus), cleaning=cleaning)
    out = tmp_path / "out"
    data.prepare(wanted, out, scorer=Scorer("one", "gull"))
    assert left(out) == {"rope"}
    with pytest.raises(ValueError, match="or the model that judged them"):
        data.prepare(wanted, out, scorer=Scorer("other", "rope"))
    data.prepare(wanted, out, scorer=Scorer("other", "rope"), overwrite=True)
    assert left(out) == {"gull"}
    silent = dataclasses.replace(wanted, cleaning=CleaningConfig())
    data.prepare(silent, tmp_path / "plain", scorer=Scorer("one", "gull"))
    data.prepare(silent, tmp_path / "plain", scorer=Scorer("other", "gull"))


def test_settings_that_name_no_file_are_as_they_were() -> None:
    """Data that were prepared before have the fingerprints that they had."""
    config = CleaningConfig(("urls", "harmful_content"), urls=Urls(words=("a",)))
    assert json.loads(json.dumps(config.plain())) == {
        "steps": ["urls", "harmful_content"],
        "urls": json.loads(json.dumps(dataclasses.asdict(config.urls))),
        "harmful_content": json.loads(json.dumps(dataclasses.asdict(config.harmful_content))),
    }


def test_a_digest_is_that_of_the_bytes(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert contents.digest(path) == wanted
    path.write_bytes(b"abcd")
    assert contents.digest(path) != wanted
    with pytest.raises(ValueError, match="cleaning settings name, cannot be read"):
        contents.digest(tmp_path)
