"""Checkpoint directories: converts config.json and safetensors to a configuration and parameters.

Every file is validated before it is used, and nothing in a directory is executed.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress

from llmjax import models
from llmjax.hf import files, state, writing
from llmjax.hf.config import config_from_hf, config_to_hf
from llmjax.spec import Param

CONFIG_FILE = "config.json"
CONFIG_LIMIT = 10_000_000
# Possible names of a language model head that is tied to the embedding.
HEADS = (
    "lm_head.weight",
    "lm_head.decoder.weight",
    "cls.predictions.decoder.weight",
    "generator_lm_head.weight",
    "decoder.weight",
)

TOKENIZER_FILES = (
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer.meta.json",  # of our own tokenizers: `data.load_tokenizer`
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "spm.model",
    "added_tokens.json",
    "generation_config.json",
)


def load(
    directory: str | os.PathLike,
    *,
    dtype: Any = None,
    progress: bool = False,
    **changes: Any,
) -> tuple[models.ModelConfig, Any]:
    """Loads the model in a directory that `transformers` or `save` wrote.

    Parameters are sharded over the current mesh while they are read: a process holds little more in
    host memory than its part of the largest parameter.

    Args:
        directory: a folder with config.json and model.safetensors, or shards with their index.
        dtype: dtype of the parameters, such as "float32"; by default the checkpoint's. float64
            becomes float32 unless jax_enable_x64 is set.
        progress: whether to show a progress bar on a terminal.
        **changes: configuration fields to replace: dropout, remat, scan_layers, …

    Raises:
        ValueError: a file is missing, damaged or not safetensors, the model is not supported, or
            tensors do not fit it. The message names the file and the tensor.
    """
    directory = Path(directory)
    chosen = _floating(dtype)
    config = load_config(directory, **changes)
    tensors = files.open_directory(directory)
    put = state.sharded(chosen)
    with _bar(f"reading {directory.name}", tensors.nbytes, progress) as advance:

        def place(stored: state.StoredParam, param: Param) -> jax.Array:
            value = put(stored, param)
            advance(value.size * stored.dtype.itemsize)
            return value

        try:
            spec = models.spec(config)
            if config.tied:
                _require_tied(spec["embedding"].hf, tensors)
            return config, state.from_state(spec, tensors, place=place)
        except ValueError as error:
            raise ValueError(f"{directory}: {error}") from error


def save(
    directory: str | os.PathLike,
    config: models.ModelConfig,
    params: Any,
    *,
    dtype: Any = None,
    shard_bytes: int = writing.SHARD_BYTES,
    overwrite: bool = False,
    progress: bool = False,
    extra: Mapping[str, Any] | None = None,
    labels: Sequence[str] = (),
) -> None:
    """Writes a directory that `load` and `transformers` read, with one tensor in memory at a time.

    config.json is written last and, when a checkpoint is overwritten, removed first, so an
    interrupted save never looks like a checkpoint. Until then the old checkpoint stays intact.

    Args:
        directory: created if it does not exist.
        config: the model's configuration.
        params: parameters as `models.spec(config)` declares them.
        dtype: dtype of the tensors, such as "bfloat16"; the parameters' by default.
        shard_bytes: maximum data in one file, 5 GB by default.
        overwrite: whether to replace an existing checkpoint.
        progress: whether to show a progress bar on a terminal.
        extra: further fields of config.json, such as "eos_token_id"; those of `config` win.
        labels: names of the head's labels; LABEL_0 and so on by default.

    Raises:
        ValueError: the directory is a file or has a config.json; the family has no checkpoints;
            the parameters do not match the configuration or are on devices of other processes.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; a checkpoint must be a directory")
    if (directory / CONFIG_FILE).exists() and not overwrite:
        raise ValueError(
            f"{directory} has a {CONFIG_FILE} already: choose another directory, or remove this "
            "one (in Python: overwrite=True)"
        )
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(params)):
        raise ValueError(
            "the parameters are on devices of several processes: save a training checkpoint, "
            "restore it in one process, and export it there"
        )
    tensors = state.lazy_state(models.spec(config), params, dtype=_floating(dtype))
    fields = config_to_hf(config, labels)
    said = {name: value for name, value in fields.items() if value is not None}
    exported = {**fields, **(extra or {}), **said}
    precisions = {tensor.dtype.name for tensor in tensors.values()}
    if len(precisions) == 1:
        exported = {**exported, "torch_dtype": precisions.pop()}
    directory.mkdir(parents=True, exist_ok=True)
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    with _bar(f"writing {directory.name}", nbytes, progress) as advance:
        staged = writing.stage(directory, tensors, shard_bytes=shard_bytes, advance=advance)
    (directory / CONFIG_FILE).unlink(missing_ok=True)
    writing.commit(directory, staged)
    content = json.dumps(exported, indent=2, sort_keys=True) + "\n"
    writing.write_text(directory / CONFIG_FILE, content)


def copy_tokenizer(source: str | os.PathLike, target: str | os.PathLike) -> tuple[str, ...]:
    """Copies the tokenizer's files and the generation settings unchanged.

    Returns:
        The names of the files found in `source`; those in `target` are replaced.
    """
    source, target = Path(source), Path(target)
    names = tuple(name for name in TOKENIZER_FILES if (source / name).is_file())
    target.mkdir(parents=True, exist_ok=True)
    if source.resolve() != target.resolve():
        for name in names:
            shutil.copyfile(source / name, target / name)
    return names


def load_config(directory: str | os.PathLike, **changes: Any) -> models.ModelConfig:
    """Loads the configuration of the model in a checkpoint directory, without its parameters.

    Args:
        directory: a folder with config.json.
        **changes: configuration fields to replace.

    Raises:
        ValueError: the file is missing or damaged, or the model is not supported.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a directory")
    path = directory / CONFIG_FILE
    fields = files.read_json(path, CONFIG_LIMIT)
    try:
        config = config_from_hf(fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return dataclasses.replace(config, **changes)


def _require_tied(embedding: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError for a head that differs from the tied embedding and would be lost."""
    for head in HEADS:
        if embedding in tensors and head in tensors and not _same(tensors, embedding, head):
            raise ValueError(
                f"{head} differs from {embedding}, but tie_word_embeddings says they are tied: "
                "set it to false in config.json"
            )


def _same(tensors: Mapping[str, np.ndarray], first: str, second: str) -> bool:
    table, head = tensors[first], tensors[second]
    # Compares blocks of rows: the files are memory-mapped and may be larger than memory.
    blocks = range(0, len(table) if table.ndim else 0, 1024)
    return table.shape == head.shape and all(
        np.array_equal(table[i : i + 1024], head[i : i + 1024]) for i in blocks
    )


def _floating(dtype: Any) -> np.dtype | None:
    if dtype is None:
        return None
    chosen = np.dtype(jnp.dtype(dtype))
    if not jnp.issubdtype(chosen, jnp.floating):
        raise ValueError(f"dtype={dtype}: must be a floating-point type, such as float32")
    return chosen


@contextlib.contextmanager
def _bar(what: str, nbytes: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar of bytes with rate and time left, on stderr and only on a terminal."""
    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
        disable=not (shown and sys.stderr.isatty()),
    ) as progress:
        task = progress.add_task(what, total=nbytes)
        yield lambda amount: progress.update(task, advance=amount)
