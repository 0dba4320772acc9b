"""Checkpoint directories: config.json and safetensors, to a configuration and parameters and back.

Whatever a directory holds is checked before it is used, and nothing in it is executed.
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
# Names of a language model's head that the embedding may be.
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
    """The model in a directory that `transformers` or `save` wrote.

    Parameters are sharded over the current mesh as they are read: a process holds in host memory
    little more than its part of the largest parameter.

    Args:
        directory: with config.json, and model.safetensors or its shards and their index.
        dtype: of the parameters, "float32" say; by default the checkpoint's. float64 becomes
            float32 unless jax_enable_x64 is set.
        progress: whether a terminal shows a bar of the bytes read.
        **changes: to the fields of the configuration: dropout, remat, scan_layers, …

    Raises:
        ValueError: naming the file, and the tensor where it is one: a file that is missing,
            damaged, or not safetensors; a model that is not supported; tensors that do not fit it.
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
    """Writes a directory that `load` and `transformers` read; one tensor at a time is in memory.

    config.json comes last, and where a checkpoint is overwritten goes first, so that an
    interrupted save is never taken for a checkpoint. While it writes, the old one stays whole.

    Args:
        directory: made where it does not exist.
        config: the model's.
        params: as `models.spec(config)` declares.
        dtype: of the tensors, "bfloat16" say; by default the parameters'.
        shard_bytes: the most data in one file, 5 GB by default.
        overwrite: whether a checkpoint that is there is replaced.
        progress: whether a terminal shows a bar of the bytes written.
        extra: more fields of config.json, "eos_token_id" say; those of `config` come first.
        labels: names of what the head tells apart; by default LABEL_0 and so on.

    Raises:
        ValueError: the directory has a config.json already, or is a file; the family has no such
            checkpoints; the parameters are not those of the configuration, or lie on devices of
            other processes.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; a checkpoint is a directory")
    if (directory / CONFIG_FILE).exists() and not overwrite:
        raise ValueError(
            f"{directory} has a {CONFIG_FILE} already: choose another directory, or overwrite=True"
        )
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(params)):
        raise ValueError(
            "the parameters lie on devices of several processes: save a training checkpoint, "
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
    """Copies the tokenizer's files, and the settings for generation, as they are.

    Returns:
        The names of the files that `source` has; those in `target` are replaced.
    """
    source, target = Path(source), Path(target)
    names = tuple(name for name in TOKENIZER_FILES if (source / name).is_file())
    target.mkdir(parents=True, exist_ok=True)
    if source.resolve() != target.resolve():
        for name in names:
            shutil.copyfile(source / name, target / name)
    return names


def load_config(directory: str | os.PathLike, **changes: Any) -> models.ModelConfig:
    """The configuration of the model in such a directory, without reading its parameters.

    Args:
        directory: with config.json.
        **changes: to its fields.

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
    """Raises ValueError if a head comes along that is not the embedding, which would be lost."""
    for head in HEADS:
        if embedding in tensors and head in tensors and not _same(tensors, embedding, head):
            raise ValueError(
                f"{head} differs from {embedding}, but tie_word_embeddings says that they are one: "
                "set it to false in config.json"
            )


def _same(tensors: Mapping[str, np.ndarray], first: str, second: str) -> bool:
    table, head = tensors[first], tensors[second]
    # A block of rows at a time: the files are mapped, and may be larger than memory.
    blocks = range(0, len(table) if table.ndim else 0, 1024)
    return table.shape == head.shape and all(
        np.array_equal(table[i : i + 1024], head[i : i + 1024]) for i in blocks
    )


def _floating(dtype: Any) -> np.dtype | None:
    if dtype is None:
        return None
    chosen = np.dtype(jnp.dtype(dtype))
    if not jnp.issubdtype(chosen, jnp.floating):
        raise ValueError(f"dtype={dtype}: parameters are of floating point; choose float32, say")
    return chosen


@contextlib.contextmanager
def _bar(what: str, nbytes: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar of bytes with rate and time left; on stderr, and only on a terminal."""
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
