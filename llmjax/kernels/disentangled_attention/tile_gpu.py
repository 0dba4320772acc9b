"""The tiles of disentangled attention on a GPU.

The n queries and n keys of a tile are at 2n - 1 distances from each other, whose positions are two
adjacent blocks of the tables. The products of these positions with the queries, or with the keys,
[n, 2n], hold the scores of all pairs; each row starts one column farther left. Triton cannot shift
rows in registers: a program writes these products to a slab of global memory, and reads each score
from its place there. The gradient with respect to the scores takes the reverse path.

Why this is safe:

- A slab belongs to one program, by its index in the grid: no other program reads or writes it.
- A barrier between writes and reads makes the writes visible to all threads of the program; another
  one separates the reads from the next writes. Bounds and branches of the kernel are uniform over
  threads, so all of them reach every barrier.
- The reads are volatile, and loops have one stage, so the compiler moves no read across a barrier
  or into the previous iteration.
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
from llmjax.kernels.tiling import LOWEST, divide, product


class View:
    """A reference with its first axes indexed: Pallas' Triton takes a single indexer."""

    def __init__(self, ref, *place) -> None:
        self._ref, self._place = ref, place
        self.shape, self.dtype = ref.shape[len(place) :], ref.dtype
        self.ndim = len(self.shape)

    @property
    def at(self) -> "View":
        """Itself, because indexing a view already gives a reference."""
        return self

    def __getitem__(self, index):
        return self._ref.at[(*self._place, *index)]


class Kernel(NamedTuple):
    """The static parameters of a kernel.

    Attributes:
        tiles: the tiles of one head of one row.
        options: attention options.
        terms: names of the tables that are not None.
        heads: H.
        items: number of results that are distributed over the programs.
    """

    tiles: Tiles
    options: Options
    terms: tuple[str, ...]
    heads: int
    items: int


class Refs(NamedTuple):
    """References that kernels read, and the slab.

    Attributes:
        arrays: query [B·H, 1, S, C], key [B·H, S, C] and so on; the first axis is called "rows".
        tables: each [H, 2·N·n, C], the positions for N blocks, or None.
        slab: the program's slab, [terms, n, 2·n].
    """

    arrays: Arrays
    tables: Tables
    slab: View


class Tile(Program):
    """A tile of queries and keys of one row and head, scored by content and positions.

    `ahead` sets which positions it uses.
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
        """The tile whose queries are `blocks` blocks ahead of its keys."""
        tile = copy.copy(self)
        tile._ahead = blocks
        return tile

    def window(self, term: str) -> Any:
        """The index of the table's window of two blocks with the tile's positions."""
        # The first window is for the last keys and the first queries (c2p), or the reverse (p2c).
        return self.tiles.query_blocks - 1 + (-self._ahead if term == "c2p" else self._ahead)

    def positions(self, term: str) -> jax.Array:
        """The tile's positions [2·n, C], in order of distance."""
        size = self.tiles.query_block
        numbers = self.window(term) * size + jnp.arange(2 * size, dtype=jnp.int32)
        return load(View(self._tables[term], self._head), Part(None, numbers, None, None))

    def scores(self, query, key, queries: Part, keys: Part, masked: bool) -> tuple[Any, Any]:
        """As `Program.scores`."""
        # One term after another, to limit register use.
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
        """Runs `over` the blocks of keys that a block of queries sees."""
        first, last = self.tiles.keys_of(block, 0)
        return self.over((first, last + 1), self.tiles.whole_keys_of(block, 0), body, carry)

    def unslide(self, grad_scores, *terms: str) -> dict[str, jax.Array]:
        """Inverts the shift in `scores`: the gradient [n, 2·n] of each of these terms.

        Terms without a table are left out. Entries without a score are zero, whatever the slab
        held.
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
        """Indices of the rows and columns of a slab."""
        size = self.tiles.query_block
        rows, columns = (jnp.arange(count, dtype=jnp.int32) for count in (size, 2 * size))
        return rows[:, None], columns[None]

    def _slid(self, slot: int):
        """Rows and columns of the tile's pairs in a slab, [queries, keys]."""
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
        """A barrier over the program's threads; skipped if interpreted or without a slab."""
        if not self.options.interpret and self._terms:
            plgpu.debug_barrier()
