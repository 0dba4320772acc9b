"""The mesh axes that a collective crosses, from its replica groups."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

Groups = list[tuple[int, ...]]


def replica_groups(line: str, devices: int) -> Groups:
    """The groups of devices that exchange data, by device number in the program.

    XLA lists them, {{0,1},{2,3}}; or gives the rows of a transposed range,
    [4,2]<=[2,2,2]T(0,2,1); or names axes of a mesh of its own, mesh['a'=4,'b'=2] {'a'}. No groups
    means one group of all devices. The groups of a permutation are its source-target pairs.

    Raises:
        ValueError: an unknown notation.
    """
    pairs = re.search(r"source_target_pairs=\{(.*?)\}(?:,? [a-z]|$)", line)
    explicit = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", line)
    listed = (pairs or explicit or [None, None])[1]
    if listed is not None:
        groups = [tuple(_integers(g)) for g in re.findall(r"\{([\d,]+)\}", listed)]
        return groups or [tuple(range(devices))]
    ranges = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if ranges:
        shape, of, order = (_integers(g or "") for g in ranges.groups())
        numbers = np.arange(math.prod(of)).reshape(of)
        return _rows(np.transpose(numbers, order or None).reshape(shape))
    own = re.search(r"replica_groups=@?mesh(\[.*?\](?:, device_ids=\(.*?\))?) ?\{([^}]*)\}", line)
    if own:
        return _of_own_mesh(own[1], own[2])
    raise ValueError(f"replica groups in an unknown notation: {line.strip()[:300]}")


def _of_own_mesh(mesh: str, joined: str) -> Groups:
    """Groups along mesh axes or sub-axes: 'a':(2)4 is the middle one of 2, 4 and the rest."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    numbers = np.arange(math.prod(sizes.values()))
    order = re.search(r"device_ids=\((?:\[([\d,]+)\](?:T\(([\d,]+)\))?|([\d,]+))\)", mesh)
    if order and order[3]:
        numbers = np.array(_integers(order[3]))
    elif order and order[2]:
        numbers = np.transpose(numbers.reshape(_integers(order[1])), _integers(order[2]))
    shape: list[int] = []  # of the mesh, with split axes
    inside: list[int] = []  # the axes that are joined, in order
    parts = {name: (before, size) for name, before, size in _axes(joined)}
    for name, size in sizes.items():
        if name not in parts:
            shape.append(size)
            continue
        before, part = parts[name]
        part = part or size
        inside.append(len(shape) + 1)
        shape += [before, part, size // (before * part)]
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    ordered = np.transpose(numbers.reshape(shape), outside + inside)
    return _rows(ordered.reshape(-1, math.prod(shape[axis] for axis in inside)))


def _axes(joined: str) -> list[tuple[str, int, int]]:
    """Name, size before the sub-axis and size of the sub-axis; 0 for the whole axis."""
    found = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", joined)
    return [(name, int(before or 1), int(size or 0)) for name, before, size in found]


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _rows(numbers: np.ndarray) -> Groups:
    return [tuple(row) for row in numbers.reshape(-1, numbers.shape[-1]).tolist()]


def crossed_axes(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes along which the devices of a group differ, in mesh order.

    Args:
        groups: groups of device numbers, in row-major order of the mesh.
        mesh: axis sizes.
    """
    shape = tuple(mesh.values())
    crossed = np.zeros(len(shape), bool)
    for group in groups:
        places = np.stack(np.unravel_index(np.asarray(group), shape))
        crossed |= (places != places[:, :1]).any(axis=1)
    return tuple(name for name, differs in zip(mesh, crossed, strict=True) if differs)
