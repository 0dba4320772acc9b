"""Back-translation: translates a text into another language and back."""

import dataclasses
import random
import subprocess
from collections.abc import Callable, Sequence
from typing import ClassVar

from llmjax.data.augmentation import sentences
from llmjax.data.augmentation.method import Method

# Sentences to the same number of sentences, in order: a program, a model or a service.
Translate = Callable[[Sequence[str]], Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Apertium:
    """Translates with the program `apertium`, which is rule-based and needs no network.

    Attributes:
        pair: source and target language.
        program: its name or path.
    """

    pair: str = "eng-spa"
    program: str = "apertium"

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """The translations; unknown words stay as they are.

        Args:
            texts: without line breaks.

        Raises:
            RuntimeError: the program or the language pair is not installed, or it fails.
        """
        if not texts:
            return []
        command = [self.program, "-u", "-f", "line", self.pair]
        lines = "".join(" ".join(text.split()) + "\n" for text in texts)
        try:
            done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
        except FileNotFoundError as error:
            raise RuntimeError(
                f"no program {self.program!r}: apt-get install apertium apertium-eng-spa, or give "
                "BackTranslation another translator."
            ) from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(
                f"{' '.join(command)} failed: {(error.stderr or error.stdout).strip()}. If the "
                f"pair is not installed (`{self.program} -l` lists those that are): apt-get "
                "install apertium-eng-spa."
            ) from error
        found = done.stdout.split("\n")[:-1]
        if len(found) != len(texts):
            raise RuntimeError(
                f"{' '.join(command)} gave {len(found)} lines for {len(texts)} sentences."
            )
        # The program may drop a full stop at a line end, as it takes it for one that it added.
        stops = ("." if text.rstrip().endswith(".") else "" for text in texts)
        return [line.strip().removesuffix(".") + s for line, s in zip(found, stops, strict=True)]


@dataclasses.dataclass(frozen=True)
class BackTranslation(Method):
    """Translates sentences and back (Sennrich et al. 2016; as augmentation Yu et al. 2018, QANet).

    Attributes:
        rate: share of sentences to translate; white space between them is kept.
        there: translates into the other language.
        back: translates back.
    """

    rate: float = 1.0
    there: Translate = Apertium("eng-spa")
    back: Translate = Apertium("spa-eng")
    name: ClassVar[str] = "back_translation"

    def __call__(self, text: str, rng: random.Random) -> str:
        """The text, translated and back."""
        return self.batch([text], [rng])[0]

    def batch(self, texts: Sequence[str], rngs: Sequence[random.Random]) -> list[str]:
        """Translates the sentences of all texts in one call per translator."""
        spans = [
            self.drawn(sentences.spans(text), rng) for text, rng in zip(texts, rngs, strict=True)
        ]
        asked = [
            text[start:end]
            for text, of_text in zip(texts, spans, strict=True)
            for start, end in of_text
        ]
        answers = iter(self._there_and_back(asked))
        made = []
        for text, of_text in zip(texts, spans, strict=True):
            pieces, at = [], 0
            for start, end in of_text:
                pieces += [text[at:start], next(answers)]
                at = end
            made.append("".join([*pieces, text[at:]]))
        return made

    def _there_and_back(self, asked: list[str]) -> list[str]:
        """Translates each distinct sentence there and back; an empty result keeps the original."""
        once = list(dict.fromkeys(asked))
        returned = self.back(self.there(once)) if once else []
        if len(returned) != len(once):
            raise ValueError(
                f"the translators returned {len(returned)} texts for {len(once)}: they must return "
                "as many as they receive."
            )
        found = dict(zip(once, returned, strict=True))
        return [found[text] or text for text in asked]
