"""The perplexity of texts under the model of a run, for cleaning."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

from experiments import runs
from llmjax.evaluation import TextScorer


@dataclasses.dataclass(frozen=True)
class RunScorer:
    """Perplexities under the best checkpoint of a run, which is loaded at first use.

    It can be pickled to other processes: only the folder's name is sent.

    Attributes:
        run_dir: the folder of the run.
        rows: number of rows scored at a time.
    """

    run_dir: str
    rows: int = 8

    @property
    def fingerprint(self) -> str:
        """Of the checkpoint: another, once the run has a better one.

        Raises:
            FlagError: the folder holds no run, or one without a checkpoint.
        """
        return runs.fingerprint(pathlib.Path(self.run_dir))

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """The perplexity of each text.

        Raises:
            FlagError: the folder holds no run, or one without a checkpoint.
            ValueError: its model does not predict next tokens.
        """
        return _scorer(self)(texts)


@functools.lru_cache(maxsize=1)
def _scorer(scorer: RunScorer) -> TextScorer:
    model = runs.load(pathlib.Path(scorer.run_dir))
    length = model.recipe.sequence_length
    return TextScorer(model.params, model.config, model.tokenizer, length, scorer.rows)
