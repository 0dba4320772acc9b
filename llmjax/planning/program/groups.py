"""Which axes of a mesh a collective crosses, from the devices that it joins."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

Groups = list[tuple[int, ...]]


def replica_groups(line: str, devices: int) -> Groups:
    """The devices that exchange among each other, by their numbers in the program.

    XLA writes them out, {{0,1},{2,3}}; or as the rows of a transposed range,
    [4,2]<=[2,2,2]T(0,2,1); or as axes of a mesh of its own, mesh['a'=4,'b'=2] {'a'}. None at all
    means one group of all. A permutation's are its pairs of source and target.

    Raises:
        ValueError: another notation.
    """
    pairs = re.search(r"source_target_pairs=\{(.*?)\}(?:,? [a-z]|$)", line)
    explicit = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", line)
    if pairs or explicit:
        listed = (pairs or explicit)[1]
        groups = [tuple(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", listed)]
        return groups or [tuple(range(devices))]
    ranges = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if ranges:
        shape, of, order = (list(map(int, g.split(","))) if g else None for g in ranges.groups())
        return _rows(np.transpose(np.arange(math.prod(of)).reshape(of), order).reshape(shape))
    own = re.search(r"replica_groups=@?mesh\[([^\]]*)\](?:\([^)]*\))? ?\{([^}]*)\}", line)
    if own and "device_ids" not in own[0] and ":(" not in own[2]:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", own[1])}
        joined = re.findall(r"'([^']+)'", own[2])
        names = [name for name in sizes if name not in joined] + joined
        numbers = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        ordered = np.transpose(numbers, [list(sizes).index(name) for name in names])
        return _rows(ordered.reshape(-1, math.prod(sizes[name] for name in joined)))
    raise ValueError(f"replica groups in an unknown notation: {line.strip()[:300]}")


def _rows(numbers: np.ndarray) -> Groups:
    return [tuple(row) for row in numbers.reshape(-1, numbers.shape[-1]).tolist()]


def crossed_axes(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes along which devices of a group differ, in the order of the mesh.

    Args:
        groups: devices by their numbers, which count through the mesh in its own order.
        mesh: sizes of its axes.
    """
    shape = tuple(mesh.values())
    crossed = np.zeros(len(shape), bool)
    for group in groups:
        places = np.stack(np.unravel_index(np.asarray(group), shape))
        crossed |= (places != places[:, :1]).any(axis=1)
    return tuple(name for name, differs in zip(mesh, crossed, strict=True) if differs)
