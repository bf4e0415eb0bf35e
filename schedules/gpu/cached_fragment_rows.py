"""Blocks of the cache's keys and values on their way to shared memory, as 16-bit floats.

A block is read into registers while the one before is multiplied, as the cache has it; when its
turn has come, it is split and stored. Keys keep their turned layout, in which a row is an element
of the head and positions lie side by side: a fragment can be had from either.

A cache of float16 has nothing to split: its words are only sorted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm.tirx.script.builder import ir as T

from ..tir import Expr, bind, when
from .attention_fragment_rows import SplitRows
from .attention_fragment_tile import VALUES
from .attention_vectors import times
from .cached_token import Cache
from .fragments import EIGHT, Lane, half_vectors
from .kernel import ceil_div, registers
from .vectors import LANES, four, held, lane
from .warpgroup import bytes_of

LOW_HALVES, HIGH_HALVES = 0x5410, 0x7632
"""The bytes of two words that are their low halves side by side, and their high ones."""


class _Staged:
    """What both have: each item of a block is two vectors of the cache, of one thread.

    Parameters
    ----------
    cache : Cache
        The cache.
    thread : PrimExpr
        The thread's index.
    threads, items : int
        Threads of the work-group, and items of a block.
    dtype : str
        The type of a vector.
    """

    def __init__(self, cache: Cache, thread: Expr, threads: int, items: int, dtype: str) -> None:
        self.cache, self.items = cache, items
        self.steps, self.whole = ceil_div(items, threads), items % threads == 0
        self.own = [bind(thread + step * threads) for step in range(self.steps)]
        # A thread without an item of its own reads the last one's.
        existing = [each if self.whole else bind(T.min(each, items - 1)) for each in self.own]
        self.places = [self._place(item) for item in existing]
        self.loaded = registers([2 * self.steps], dtype)

    def _place(self, item: Expr) -> tuple[Expr, Expr]:
        """Return where an item is in a block."""
        raise NotImplementedError

    def _vectors(self, step: int) -> list[Expr]:
        return [self.loaded[2 * step + i] for i in range(2)]

    def _put(self, step: int, put: Callable[[], None]) -> None:
        """Emit the stores of a step, of which the last may have more threads than items."""
        put() if self.whole else when(self.own[step] < self.items, put)


class KeyBlock(_Staged):
    """A block of keys; make it at the top of a launch: it allocates."""

    def __init__(self, cache: Cache, place: Lane, thread: Expr, threads: int, keys: int) -> None:
        stored, head_dim = cache.stored, cache.heads.head_dim
        self.words, self.across = head_dim // stored.per_word, keys // EIGHT
        items = self.words * self.across
        super().__init__(cache, thread, threads, items, stored.keys_type)
        self.rows = SplitRows(place, head_dim, self.across, stored.is_half)
        if stored.scaled:
            self.scales = registers([2 * self.steps], f"float32x{LANES}")

    def _place(self, item: Expr) -> tuple[Expr, Expr]:
        """Return the word of an item, and which eight of the positions.

        Neighbouring threads take neighbouring positions, then words whose rows are four apart:
        the vectors that they store together lie in different banks.
        """
        word, apart = bind(item // self.across), LANES // self.cache.stored.per_word
        pair = bind(word % (2 * apart))
        word = word - pair + pair % 2 * apart + pair // 2
        return bind(word), bind(item % self.across)

    def fetch(self, s: Expr, kv: Expr, first: Expr, last: Expr) -> None:
        """Emit the reading of the positions from `first` on, a multiple of four.

        Past the vector that has position `last` there is that one.
        """
        cache = self.cache
        for step in range(self.steps):
            word, vector = self.places[step]
            for i in range(2):
                place = bind(T.min(first // LANES + 2 * vector + i, last // LANES))
                T.buffer_store(self.loaded, cache.keys[s, kv, word, place], [2 * step + i])
                if cache.stored.scaled:
                    T.buffer_store(self.scales, cache.key_scales[s, kv, place], [2 * step + i])

    def put(self) -> None:
        """Emit the stores of what was read."""
        for step in range(self.steps):
            self._put(step, partial(self._sort if self.cache.stored.is_half else self._split, step))

    def _sort(self, step: int) -> None:
        """Emit the stores of the two rows that words of two float16 have."""
        word, vector = self.places[step]
        words = [lane(own, i) for own in self._vectors(step) for i in range(LANES)]
        for c, selector in enumerate((LOW_HALVES, HIGH_HALVES)):
            pairs = zip(words[::2], words[1::2], strict=True)
            row = [held(bytes_of(low, high, selector)) for low, high in pairs]
            self.rows.put(2 * word + c, vector, four(row, "int32"))

    def _split(self, step: int) -> None:
        """Emit the stores of the rows that words of other elements have."""
        stored = self.cache.stored
        word, vector = self.places[step]
        vectors = [stored.positions(own) for own in self._vectors(step)]
        for c in range(stored.per_word):
            values = []
            for i, elements in enumerate(vectors):
                scale = self.scales[2 * step + i] if stored.scaled else None
                row = times(elements[c], scale)
                values += [lane(row, n) for n in range(LANES)]
            parts = half_vectors(values, bounded=True)
            self.rows.put_parts(word * stored.per_word + c, vector, *parts)


class ValueBlock(_Staged):
    """A block of values; make it at the top of a launch: it allocates."""

    def __init__(self, cache: Cache, place: Lane, thread: Expr, threads: int, keys: int) -> None:
        stored, self.across = cache.stored, cache.heads.head_dim // EIGHT
        super().__init__(cache, thread, threads, keys * self.across, stored.values_type)
        self.rows = SplitRows(place, keys, self.across, stored.is_half)
        if stored.scaled:
            self.scales = registers([self.steps])

    @property
    def factor(self) -> float:
        """The factor on values."""
        return 1.0 if self.rows.exact else VALUES

    def _place(self, item: Expr) -> tuple[Expr, Expr]:
        """Return the position of an item, and which eight of its elements."""
        return bind(item // self.across), bind(item % self.across)

    def fetch(self, base: Expr, first: Expr, last: Expr) -> None:
        """Emit the reading of the positions from `first` on, of which those past `last` repeat it.

        `base` is the row of position 0.
        """
        cache = self.cache
        for step in range(self.steps):
            row, vector = self.places[step]
            place = bind(base + T.min(first + row, last))
            for i in range(2):
                T.buffer_store(self.loaded, cache.values[place, 2 * vector + i], [2 * step + i])
            if cache.stored.scaled:
                T.buffer_store(self.scales, cache.value_scales[place], [step])

    def put(self) -> None:
        """Emit the stores of what was read."""
        for step in range(self.steps):
            self._put(step, partial(self._store, step))

    def _store(self, step: int) -> None:
        stored = self.cache.stored
        row, vector = self.places[step]
        if stored.is_half:
            words = [lane(own, i) for own in self._vectors(step) for i in range(2)]
            self.rows.put(row, vector, four(words, "int32"))
            return
        vectors = [bind(stored.row(own)) for own in self._vectors(step)]
        factor = T.float32(self.factor)
        if stored.scaled:
            factor = held(self.scales[step] * factor)
        values = [held(lane(own, n) * factor) for own in vectors for n in range(LANES)]
        self.rows.put_parts(row, vector, *half_vectors(values, bounded=True))
