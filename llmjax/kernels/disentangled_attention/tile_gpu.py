"""The tiles of disentangled attention that a program on a GPU goes over.

The n queries and n keys of a tile lie at 2n - 1 distances from each other, whose positions are two
neighbouring blocks of the tables. Their products with the queries, or with the keys, [n, 2n], hold
the scores of all pairs in rows that start one column farther left each. Triton cannot slide rows in
registers: a program writes these products to a slab of global memory, and reads every score from
where it is. The gradient by the scores goes the same way back.

Why that is safe:

- A slab belongs to one program, by its number in the grid: no other ever reads or writes it.
- A program's threads meet between writing and reading, which makes what one has written visible to
  all, and again between reading and writing anew. They take the same way through the kernel, whose
  bounds and branches are the same for all of them, so that all come to every barrier.
- The reads are volatile, and loops have one stage: no compiler moves a read across a barrier, or
  into the iteration before.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

from llmjax.kernels.disentangled_attention.tables import Tables
from llmjax.kernels.flash_attention.tile_gpu import LOG2E, Arrays, Part, Program, load
from llmjax.kernels.flash_attention.tiles import Options, Tiles
from llmjax.kernels.tiling import LOWEST, product


def divide(x, by) -> tuple[jax.Array, jax.Array]:
    """Quotient and remainder of numbers that are not negative, without a word about signs."""
    by = jnp.asarray(by, x.dtype)
    return jax.lax.div(x, by), jax.lax.rem(x, by)


class View:
    """A part of a reference, of the places on its first axes: Triton takes one index at a time."""

    def __init__(self, ref, *place) -> None:
        self._ref, self._place = ref, place
        self.shape, self.dtype = ref.shape[len(place) :], ref.dtype
        self.ndim = len(self.shape)

    @property
    def at(self) -> "View":
        """Itself: as of a reference, parts of it are references."""
        return self

    def __getitem__(self, index):
        return self._ref.at[(*self._place, *index)]


class Kernel(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        tiles: of one head of one row.
        options: of the attention.
        terms: names of the tables that are not None.
        heads: H.
        items: how many results the programs share.
    """

    tiles: Tiles
    options: Options
    terms: tuple[str, ...]
    heads: int
    items: int


class Refs(NamedTuple):
    """What kernels read.

    Attributes:
        arrays: query [B·H, 1, S, C], key [B·H, S, C] and so on; their first axis is "rows" here.
        tables: [H, 2·N·n, C] each of N blocks' positions, or None.
        slab: the program's own, [terms, n, 2·n].
    """

    arrays: Arrays
    tables: Tables
    slab: View


class Tile(Program):
    """Queries by keys of one row and head, whose scores are of content and of positions.

    It is anywhere until `ahead` says where its positions are.
    """

    def __init__(self, kernel: Kernel, refs: Refs, row) -> None:
        arrays = refs.arrays
        batch, head = divide(row, kernel.heads)
        views: dict[str, Any] = {
            name: None if x is None else View(x, row) for name, x in arrays._asdict().items()
        }
        if arrays.segments is not None:
            views["segments"] = views["key_segments"] = View(arrays.segments, batch)
        if arrays.seeds is not None:
            views |= {"seeds": arrays.seeds, "heads": (arrays.heads[row],)}
        super().__init__(kernel.tiles, kernel.options, Arrays(**views), True)
        self._head, self._tables = head, refs.tables._asdict()
        self._terms = kernel.terms
        self._slab = refs.slab
        self._ahead = 0

    def ahead(self, blocks) -> "Tile":
        """The tile whose queries are so many blocks ahead of its keys."""
        tile = copy.copy(self)
        tile._ahead = blocks
        return tile

    def window(self, term: str) -> Any:
        """Which of a table's windows of two blocks has the tile's positions."""
        # The first is of the last keys and the first queries, or the reverse.
        return self.tiles.query_blocks - 1 + (-self._ahead if term == "c2p" else self._ahead)

    def positions(self, term: str) -> jax.Array:
        """[2·n, C], by distance."""
        size = self.tiles.query_block
        numbers = self.window(term) * size + jnp.arange(2 * size, dtype=jnp.int32)
        return load(View(self._tables[term], self._head), Part(None, numbers, None, None))

    def scores(self, query, key, queries: Part, keys: Part, masked: bool) -> tuple[Any, Any]:
        """As `Program.scores`."""
        # One after another: few numbers at a time are in registers.
        states = {"c2p": query, "p2c": key}
        for slot, term in enumerate(self._terms):
            self._write(slot, self._whole(), product(states[term], self.positions(term), 1, 1))
        self._meet()
        slid = [self._read(slot, self._slid(slot)) for slot in range(len(self._terms))]
        self._meet()
        scores = sum((x.astype(jnp.float32) for x in slid), self.product(query, key))
        scores *= self.options.scale * LOG2E
        return (jnp.where(self._allowed(queries, keys), scores, LOWEST) if masked else scores), 1.0

    def over_keys(self, block, body: Callable, carry) -> Any:
        """`over` the blocks of keys that a block of queries sees."""
        first, last = self.tiles.keys_of(block, 0)
        return self.over((first, last + 1), self.tiles.whole_keys_of(block, 0), body, carry)

    def unslide(self, grad_scores, *terms: str) -> dict[str, jax.Array]:
        """What `scores` slides, slid back: [n, 2·n] of each of these terms that there is.

        What scores do not come from is zero, whatever was in the slab.
        """
        slots = [slot for slot, term in enumerate(self._terms) if term in terms]
        for slot in slots:
            self._write(slot, self._slid(slot), grad_scores)
        self._meet()
        row, column = self._whole()
        start = self.tiles.query_block - 1 - row
        inside = (column >= start) & (column < start + self.tiles.query_block)
        found = {
            self._terms[slot]: jnp.where(inside, self._read(slot, (row, column)), 0)
            for slot in slots
        }
        self._meet()
        return found

    def _whole(self):
        """Rows and columns of a slab."""
        size = self.tiles.query_block
        rows, columns = (jnp.arange(count, dtype=jnp.int32) for count in (size, 2 * size))
        return rows[:, None], columns[None]

    def _slid(self, slot: int):
        """Rows and columns of a slab where the tile's pairs are, queries by keys."""
        size = self.tiles.query_block
        numbers = jnp.arange(size, dtype=jnp.int32)
        row, other = numbers[:, None], numbers[None]
        if self._terms[slot] == "p2c":  # its rows are keys
            row, other = other, row
        return row, size - 1 - row + other

    def _write(self, slot: int, where, x) -> None:
        plgpu.store(self._slab[(slot, *where)], x.astype(self._slab.dtype))

    def _read(self, slot: int, where) -> jax.Array:
        return plgpu.load(self._slab[(slot, *where)], volatile=True)

    def _meet(self) -> None:
        """Waits for all threads of the program, if there are any to wait for."""
        if not self.options.interpret and self._terms:
            plgpu.debug_barrier()
