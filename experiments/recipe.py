"""Everything that determines a training run, in one frozen config; here for pretraining."""

import dataclasses
import math
import pathlib
from typing import ClassVar, Literal

from llmjax.data import corpora
from llmjax.data.config import RESERVED_PIECES, DataConfig, Source
from llmjax.mesh import RULES, MeshConfig
from llmjax.models.config import ModelConfig
from llmjax.objectives import MaskingConfig, ReplacementConfig
from llmjax.optim.config import OptimizerConfig
from llmjax.train.early_stopping import EarlyStoppingConfig
from llmjax.train.health import SpikeConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Settings shared by all training runs.

    Attributes:
        name: name of the run in reports.
        optimizer: the optimizer.
        mesh: how devices share the work.
        steps: number of parameter updates.
        batch_size: B, rows per update, over all devices.
        sequence_length: S, tokens per row.
        accumulate: number of micro-batches per batch, computed in sequence to save memory.
        seed: seed of initial parameters, dropout, masks and the order of the data.
        spikes: which steps are skipped as spikes in loss or gradient.
        early_stopping: when the run ends before its last step.
        log_every: steps between records of metrics.
        log_norms: whether to log the norms of gradient and update of each group of parameters.
        evaluate_every: steps between evaluations; 0 means only at the end.
        evaluate_batches: validation batches per evaluation; 0 means all.
        checkpoint_every: steps between checkpoints; 0 means only at the end.
        keep_checkpoints: number of latest checkpoints to keep, besides the best.
    """

    # Fields that determine the prepared data: runs that differ in none of them can share a folder.
    prepared_from: ClassVar[frozenset[str]] = frozenset({"data", "corpus"})

    name: str
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    steps: int = 1000
    batch_size: int = 32
    sequence_length: int = 256
    accumulate: int = 1
    seed: int = 0
    spikes: SpikeConfig = SpikeConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    log_every: int = 1
    log_norms: bool = True
    evaluate_every: int = 0
    evaluate_batches: int = 0
    checkpoint_every: int = 0
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "sequence_length", "accumulate", "log_every")
        for name in (*counts, "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: must be at least 1")
        require_not_negative(self, "evaluate_every", "evaluate_batches", "checkpoint_every")
        require(
            not self.early_stopping.patience or self.evaluate_every > 0,
            f"early_stopping.patience={self.early_stopping.patience} counts evaluations, but "
            "evaluate_every=0 makes none before the end: set it to a number of steps",
        )
        # Checks the known mesh axes; one of -1 is only known with the devices.
        self.require_rows_divide(
            math.prod(max(getattr(self.mesh, name), 1) for name in RULES["batch"])
        )

    @property
    def row_counts(self) -> dict[str, int]:
        """The rows of a batch, by field: each number divides over micro-batches and devices."""
        return {"batch_size": self.batch_size}

    def require_rows_divide(self, devices: int) -> None:
        """Raises ValueError unless rows divide into micro-batches over devices that split them."""
        parts = self.accumulate * devices
        for name, count in self.row_counts.items():
            require(
                count % parts == 0,
                f"{name}={count} does not divide over {devices} devices (mesh "
                f"{' × '.join(RULES['batch'])}) in accumulate={self.accumulate} parts: choose a "
                f"multiple of {parts}",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Training):
    """A pretraining run. Runs with equal recipes on equal data are identical, step by step.

    Attributes:
        model: the network; for rtd the discriminator, from which the generator is derived.
        objective: what is learned: clm, next tokens (GPT-2); mlm, masked tokens (BERT); rtd, which
            tokens a generator has replaced (ELECTRA).
        masking: for mlm and rtd, which tokens are masked.
        replacement: for rtd, the generator and the joint loss.
        data: the text and its tokens.
        corpus: a text from a Python package, used if `data` has no sources: chitchat, 12.5 million
            characters of conversation; python_topics, half a million characters of Python's
            manual.
        packing: concat fills rows and splits documents at row ends; best_fit only splits those
            longer than a row, and pads; windows draws random windows of the concatenated text,
            ignoring documents, and takes sources in proportion to their size.
        label_smoothing: for clm, share of each target's probability spread over the vocabulary.
        z_loss: for clm, weight of the penalty on log² of the softmax normalizer (PaLM, section 5).
        sample_every: for clm, steps between samples; 0 means only at the end.
        sample_prompt: text that samples continue; empty means the beginning of a document.
        sample_tokens: tokens per sample; 0 for no samples.
    """

    model: ModelConfig
    objective: Literal["clm", "mlm", "rtd"] = "clm"
    masking: MaskingConfig = MaskingConfig()
    replacement: ReplacementConfig = ReplacementConfig()
    data: DataConfig = DataConfig()
    corpus: Literal["none", "chitchat", "python_topics"] = "none"
    packing: Literal["concat", "best_fit", "windows"] = "concat"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    sample_every: int = 0
    sample_prompt: str = ""
    sample_tokens: int = 64

    @property
    def has_text(self) -> bool:
        """Whether there is text to train on; recipes of benchmarks only have shapes."""
        return bool(self.data.sources) or self.corpus != "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "z_loss", "sample_every", "sample_tokens")
        require(
            0.0 <= self.label_smoothing < 1.0,
            f"label_smoothing={self.label_smoothing}: must be in [0, 1)",
        )
        self._require_model_fits()
        self._require_vocabulary_fits()
        attention = self.model.attention
        require(
            not attention.window or "local" in attention.pattern,
            f"model.attention.window={attention.window} is for local layers, but model.attention."
            f"pattern={','.join(attention.pattern)} has none: set the pattern too",
        )
        require(
            self.sequence_length <= self.model.max_length,
            f"sequence_length={self.sequence_length} is longer than "
            f"model.max_length={self.model.max_length}: lower the former or raise the latter",
        )

    def _require_model_fits(self) -> None:
        """Checks the head, and that the model is causal for clm and bidirectional otherwise."""
        head, causal = {"clm": ("lm", True), "mlm": ("mlm", False), "rtd": ("rtd", False)}[
            self.objective
        ]
        found = self.model.head.kind, self.model.attention.causal
        require(
            found == (head, causal),
            f"objective={self.objective} needs a model with head.kind={head} and attention.causal="
            f"{causal}, but {self.model.family} has {found[0]} and {found[1]}: use a recipe with "
            "this objective, or set both",
        )
        if self.objective == "clm":
            return
        for name in ("label_smoothing", "z_loss", "sample_every"):
            require(
                not getattr(self, name),
                f"{name}={getattr(self, name)} is for objective=clm, not {self.objective}: set it "
                "to 0",
            )

    def _require_vocabulary_fits(self) -> None:
        """Checks the tokenizer's size; recipes without text, for benchmarks, have none."""
        tokenizer = self.data.tokenizer
        size = RESERVED_PIECES if tokenizer.kind == "bytes" else tokenizer.vocab_size
        require(
            not self.has_text or self.model.vocab_size >= size,
            f"model.vocab_size={self.model.vocab_size} is less than the {size} tokens of "
            f"data.tokenizer: set --model.vocab_size={size} too",
        )


def data_config(recipe: Recipe, directory: pathlib.Path) -> DataConfig:
    """The recipe's data configuration; without sources, it reads the recipe's corpus.

    The corpus is written to `directory`, once.

    Raises:
        ValueError: the recipe has no text.
        ModuleNotFoundError: the package of the corpus is not installed.
    """
    if not recipe.has_text:
        raise ValueError(
            f"recipe {recipe.name} has no text to train on: give "
            "--data.sources=name=mine,path=FOLDER or --corpus=python_topics"
        )
    if recipe.data.sources:
        return recipe.data
    path = directory / f"{recipe.corpus}.jsonl"
    write = corpora.chitchat if recipe.corpus == "chitchat" else corpora.python_topics
    write(path)
    source = Source(recipe.corpus, str(path))
    return dataclasses.replace(recipe.data, sources=(source,))


def require(condition: bool, message: str) -> None:
    """Raises ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_not_negative(config: object, *names: str) -> None:
    """Raises ValueError if one of the fields is negative."""
    for name in names:
        require(getattr(config, name) >= 0, f"{name}={getattr(config, name)}: must not be negative")
