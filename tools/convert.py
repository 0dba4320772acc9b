"""Converts a Hugging Face checkpoint to safetensors, in another precision or other shards.

    python -m tools.convert SOURCE TARGET --dtype=bfloat16 --shard_gb=5 --check

SOURCE is a directory with config.json and safetensors files; TARGET must not hold a checkpoint
yet. The tokenizer's files are copied. It runs on the CPU, and needs memory for the parameters.
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from llmjax import hf, models
from llmjax import spec as specs
from llmjax.hf import checkpoint, files

GIGABYTE = 10**9


def main(arguments: list[str] | None = None) -> None:
    """Converts; bad input ends the program with status 2 and one line on stderr."""
    options = _options(arguments)
    jax.config.update("jax_platforms", "cpu")
    try:
        convert(options)
    except (ValueError, OSError) as error:
        line = "; ".join(part.strip() for part in str(error).splitlines())
        print(f"convert: {line if len(line) <= 500 else line[:500] + ' …'}", file=sys.stderr)
        sys.exit(2)


def convert(options: argparse.Namespace) -> None:
    """Loads SOURCE, describes it, and writes TARGET.

    Raises:
        ValueError: SOURCE is not a readable checkpoint, TARGET already has one, or (`check`) TARGET
            differs from what was written.
    """
    config, params = hf.load(options.source, dtype=options.dtype, progress=True)
    fields = files.read_json(options.source / checkpoint.CONFIG_FILE, checkpoint.CONFIG_LIMIT)
    spec = models.spec(config)
    dtypes = ", ".join(sorted({leaf.dtype.name for leaf in jax.tree.leaves(params)}))
    print(f"{config.family}: {specs.count(spec):,} parameters, {dtypes}")
    hf.save(
        options.target,
        config,
        params,
        shard_bytes=round(options.shard_gb * GIGABYTE),
        progress=True,
        extra={name: value for name, value in fields.items() if name.endswith("_token_id")},
        labels=_labels(fields),
    )
    copied = hf.copy_tokenizer(options.source, options.target)
    print(f"wrote {options.target}" + (f" with {', '.join(copied)}" if copied else ""))
    if options.check:
        check(options.target, spec, params)
        print("checked: every tensor reads back as written")


def _labels(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a classifier's labels in config.json, by number; () if it has none."""
    names = fields.get("id2label") or {}
    return tuple(names[number] for number in sorted(names, key=int))


def check(target: pathlib.Path, spec: specs.Tree, params: specs.Tree) -> None:
    """Raises ValueError unless the tensors in `target` are those of `params`, bit by bit."""
    expected = hf.lazy_state(spec, params)
    found = files.open_directory(target)
    if differing := sorted(expected.keys() ^ found.keys()):
        raise ValueError(f"{target}: tensor {differing[0]!r} is missing or unexpected")
    for name, tensor in expected.items():
        ours, theirs = tensor.read(), found[name]
        if ours.dtype != theirs.dtype or ours.shape != theirs.shape or _bits(ours) != _bits(theirs):
            raise ValueError(f"{target}: tensor {name!r} differs from what was written")


def _bits(value: np.ndarray) -> memoryview:
    """Bytes, so that NaN equals itself."""
    return value.reshape(-1).view(np.uint8).data


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=pathlib.Path, metavar="SOURCE", help="directory to read")
    parser.add_argument("target", type=pathlib.Path, metavar="TARGET", help="directory to write")
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float32"],
        help="precision to write (default: that of SOURCE)",
    )
    parser.add_argument(
        "--shard_gb", type=float, default=5.0, help="maximum gigabytes per file (default: 5)"
    )
    parser.add_argument(
        "--check", action="store_true", help="read TARGET afterwards and compare every tensor"
    )
    options = parser.parse_args(arguments)
    if not (math.isfinite(options.shard_gb) and options.shard_gb * GIGABYTE >= 1):
        parser.error(f"--shard_gb={options.shard_gb}: give a positive number")
    return options


if __name__ == "__main__":
    main()
