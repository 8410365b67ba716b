"""A batch: tokens of one or several sequences that a program computes in one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from edgellm.graph.angles import Angles
from edgellm.graph.lowering import (
    ATTENTION_ROWS,
    DOCUMENTS,
    MAX_SPLITS,
    POSITIONS,
    SEGMENTS,
    STATE_TASKS,
    STATE_TEXTS,
    TARGET_WEIGHTS,
    TEXT_TASKS,
    TOKEN_IDS,
    Lowered,
    adapter_table,
    full_table,
    merges_table,
    rotation_table,
    slots_table,
    tasks_table,
)
from edgellm.graph.ops import BY_TOKEN, TOGETHER
from edgellm.kernels import encoder_records, gradient_records, recent_records, records, recurrent_records
from edgellm.kernels.encoder_records import TEXT_QUERIES
from edgellm.kernels.kv_types import RECENT
from edgellm.kernels.records import KV_BLOCK, SPAN_TOKENS


class AddressedArray:
    """An array, and where it is: to ask NumPy for that in every step takes longer than to write a task."""

    def __init__(self, array: np.ndarray) -> None:
        self.replace(array)

    def replace(self, array: np.ndarray) -> None:
        """It is another array from now on. Only between runs."""
        self.array, self.address = array, array.ctypes.data


class Piece(NamedTuple):
    """New tokens of one sequence.

    position:      of the first of them; they see those before in the cache.
    slots:         where the keys and values of each go: block * KV_BLOCK + place in the block.
    block_tables:  the cache block of every KV_BLOCK positions. They must stay where they are until the run is over.
                   Both by the windows that layers of the cache keep (`Lowered.kept`).
    adapters:     how much they have of each adapter that the program has, or which place in it each of them takes.
    states:       where states of recurrent layers are after some of them: how many tokens, the slot of the state before
                  them (-1 is none), and that of the state after them.
    """

    token_ids: Sequence[int]
    position: int
    slots: Mapping[int | None, Sequence[int]]
    block_tables: Mapping[int | None, AddressedArray]
    adapters: Sequence[float | np.ndarray] = ()
    states: Sequence[tuple[int, int, int]] = ()


UNEVEN = 9 / 8  # what a thread may have to do over the mean of all, before tokens are shared out otherwise
SPLIT_TOKENS = 16  # of a sequence in a batch, at most, for their attention to be split


class Batch:
    """The data of one run: token ids, angles, where keys go, and what each token attends to.

    Programs hold the addresses of these arrays, so they are filled in place and never moved.
    """

    def __init__(self, capacity: int, lowered: Lowered) -> None:
        self.capacity = capacity
        self.windows, self.kept = lowered.windows, lowered.kept
        self._has_recent = RECENT in lowered.kept
        self._n_threads = lowered.target.tuning.n_threads
        self._slice_tokens = max(1, ATTENTION_ROWS // lowered.group_size)
        self.token_ids = np.zeros(capacity, np.int32)
        self.positions, self.segments = np.zeros(capacity, np.int32), np.zeros(capacity, np.int32)
        self.kv_slots = [np.zeros(capacity, np.int64) for _ in self.kept]
        self.rows = np.zeros(capacity, np.int64)
        self.angles = [Angles(rotation) for rotation in lowered.rotations]
        self.tasks = [records.ATTENTION_TASK.new(capacity + MAX_SPLITS) for _ in self.windows]
        self.full_blocks = [recent_records.FULL_BLOCK_TASK.new(capacity) for _ in self.kept]
        self.merges = [records.MERGE_TASK.new(capacity) for _ in self.windows]
        self._task_bytes = [tasks.view(np.uint8).data for tasks in self.tasks]
        self._count_names = [(tasks_table(i).name, merges_table(i).name) for i in range(len(self.windows))]
        self.text_tasks = encoder_records.TEXT_TASK.new(capacity)
        self.documents = gradient_records.DOCUMENT_TASK.new(capacity)
        self.target_weights = np.zeros(capacity, np.float32)
        self.adapters: list[np.ndarray] = []
        self.has_states = bool(lowered.state_bytes)
        if self.has_states:
            self.state_texts = recurrent_records.STATE_TEXT.new(capacity)
            self.state_tasks = recurrent_records.STATE_TASK.new(capacity)
        self.record = records.BATCH.new()
        self.n_tokens = self.record["n_tokens"]  # a view, for it is written in every run
        self.record["token_ids"] = self.token_ids.ctypes.data
        self.record["rows"] = self.rows.ctypes.data

    @property
    def position_bytes(self) -> int:
        """What a position that is reached takes in tables."""
        return sum(angles.position_bytes for angles in self.angles)

    def prepare_adapters(self, n: int) -> None:
        """Tables for so many adapters, for the programs that are made after this."""
        self.adapters += [np.zeros(self.capacity, np.float32) for _ in range(len(self.adapters), n)]

    def tables(self) -> dict[str, int]:
        """Addresses by the names that records use."""
        result = {
            "batch": self.record.ctypes.data,
            TOKEN_IDS.name: self.token_ids.ctypes.data,
            POSITIONS.name: self.positions.ctypes.data,
            SEGMENTS.name: self.segments.ctypes.data,
            TEXT_TASKS.name: self.text_tasks.ctypes.data,
            DOCUMENTS.name: self.documents.ctypes.data,
            TARGET_WEIGHTS.name: self.target_weights.ctypes.data,
        }
        for index, angles in enumerate(self.angles):
            result[rotation_table(index).name] = angles.address.ctypes.data
        for index, (tasks, merges) in enumerate(zip(self.tasks, self.merges, strict=True)):
            result[tasks_table(index).name] = tasks.ctypes.data
            result[merges_table(index).name] = merges.ctypes.data
        for index, blocks in enumerate(self.full_blocks):
            result[full_table(index).name] = blocks.ctypes.data
        for index, slots in enumerate(self.kv_slots):
            result[slots_table(index).name] = slots.ctypes.data
        if self.has_states:
            result[STATE_TEXTS.name] = self.state_texts.ctypes.data
            result[STATE_TASKS.name] = self.state_tasks.ctypes.data
        for index, scales in enumerate(self.adapters):
            result[adapter_table(index).name] = scales.ctypes.data
        return result

    def fill(self, pieces: Sequence[Piece]) -> dict[str, int]:
        """Write the tokens of some sequences, one behind the other; returns how many of everything the run has."""
        slices: list[tuple[int, int, int, Piece]] = []
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[list[int]] = [[] for _ in self.kept]
        for piece in pieces:
            first, n, start = len(positions), len(piece.token_ids), piece.position
            token_ids.extend(piece.token_ids)
            positions.extend(range(start, start + n))
            for kept, of_kept in zip(self.kept, slots, strict=True):
                of_kept.extend(piece.slots[kept])
            if n == 1:  # as decode has it
                slices.append((first, 1, start, piece))
                for scales, scale in zip(self.adapters, piece.adapters, strict=False):
                    scales[first] = scale[0] if isinstance(scale, np.ndarray) else scale
            else:
                for scales, scale in zip(self.adapters, piece.adapters, strict=False):
                    scales[first : first + n] = scale
                slices += [(first + i, size, start + i, piece) for i, size in self._slices(start, n)]
        n = len(positions)
        by_token = n == len(pieces) and self._is_by_token(pieces)
        _put(self.token_ids, token_ids)
        _put(self.positions, positions)
        for array, of_kept in zip(self.kv_slots, slots, strict=True):
            _put(array, of_kept)
        self._reach(max(positions, default=-1) + 1)
        counts = {"tokens": n, BY_TOKEN: n if by_token else 0, TOGETHER: 0 if by_token else n}
        for index, window in enumerate(self.windows):
            of_tasks, of_merges = self._count_names[index]
            counts[of_tasks], counts[of_merges] = self._divide(index, window, slices, by_token)
        if self._has_recent:
            counts |= self._fill_blocks(pieces)
        if self.has_states:
            counts[STATE_TEXTS.name] = self._order_states(pieces)
        return counts

    def _slices(self, position: int, n: int) -> Iterator[tuple[int, int]]:
        """Which of n tokens, and how many, share the keys they load: within a block, if recent ones are kept."""
        at = 0
        while at < n:
            size = min(self._slice_tokens, n - at)
            if self._has_recent:
                size = min(size, KV_BLOCK - (position + at) % KV_BLOCK)
            yield at, size
            at += size

    def _fill_blocks(self, pieces: Sequence[Piece]) -> dict[str, int]:
        """Write which blocks are full after this batch."""
        counts = {}
        for index, kept in enumerate(self.kept):
            n = 0
            for piece in pieces:
                end = (piece.position + len(piece.token_ids)) // KV_BLOCK
                for block in range(piece.position // KV_BLOCK, end):
                    recent, own = (piece.block_tables[kind].array[block] for kind in (RECENT, kept))
                    self.full_blocks[index][n] = (recent, own)
                    n += 1
            counts[full_table(index).name] = n
        return counts

    def _order_states(self, pieces: Sequence[Piece]) -> int:
        """Write from which state to which the tokens of each text go; returns how many texts there are."""
        token = n_tasks = 0
        for index, piece in enumerate(pieces):
            self.state_texts[index] = (n_tasks, len(piece.states))
            for n, source, target in piece.states:
                self.state_tasks[n_tasks] = (token, n, source, target)
                token, n_tasks = token + n, n_tasks + 1
        return len(pieces)

    def fill_texts(self, texts: Sequence[Sequence[int]], segments: Sequence[Sequence[int]] = ()) -> dict[str, int]:
        """Write whole texts, one behind the other, that attend to themselves; returns how many of everything there is.

        segments:  for each text, the part of a pair that every token belongs to, 0 or 1; by default 0.
        """
        first = n_tasks = 0
        for text, parts in zip(texts, segments or [[0]] * len(texts), strict=True):
            n = len(text)
            rows = slice(first, first + n)
            self.token_ids[rows], self.segments[rows], self.positions[rows] = text, parts, np.arange(n)
            for start in range(0, n, TEXT_QUERIES):
                self.text_tasks[n_tasks] = (first, n, start, min(TEXT_QUERIES, n - start))
                n_tasks += 1
            first += n
        self._reach(max(map(len, texts), default=0))
        return {"tokens": first, TEXT_TASKS.name: n_tasks}

    def fill_documents(self, lengths: Sequence[int]) -> dict[str, int]:
        """Write where documents begin that stand one behind the other in the batch, for backward passes."""
        first = 0
        for index, length in enumerate(lengths):
            self.documents[index] = (first, length)
            first += length
        return {"documents": len(lengths)}

    def targets(self, token_ids: np.ndarray, weights: np.ndarray | float) -> dict[str, int]:
        """Name what should come after each row, and how much it counts; returns the counts of a run for them."""
        n = len(token_ids)
        self.rows[:n] = token_ids
        self.target_weights[:n] = weights
        return {"tokens": n}

    def select(self, rows: Sequence[int], adapters: Sequence[np.ndarray] = ()) -> dict[str, int]:
        """Name rows that `select_rows` takes; returns the counts of a run for them.

        adapters:  how much each row of the other batch has of each adapter.
        """
        _put(self.rows, rows)
        for scales, of_all in zip(self.adapters, adapters, strict=False):
            _put(scales, of_all[rows] if len(rows) > 1 else (of_all[rows[0]],))
        return {"tokens": len(rows)}

    def _reach(self, n_positions: int) -> None:
        """Have angles for so many positions."""
        for angles in self.angles:
            angles.reach(n_positions)

    def _is_by_token(self, pieces: Sequence[Piece]) -> bool:
        """Whether a thread does all of a token's attention (`fusion.by_token`): where all threads get enough to do.

        Of pieces with one token each.
        """
        pasts = [piece.position + 1 for piece in pieces]
        return max(pasts) * self._n_threads <= UNEVEN * sum(pasts)

    def _divide(
        self, index: int, window: int | None, slices: list[tuple[int, int, int, Piece]], by_token: bool
    ) -> tuple[int, int]:
        """Attention tasks for slices (token, n_tokens, position, piece); few tokens with a long past are split.

        by_token:  one task for each token, in their order, for the op of `fusion.by_token`; all other ops get none.

        The splits are the same whatever the number of threads, and results are the same with splits or without.
        """
        tasks, merges = self._task_bytes[index], self.merges[index]
        put = records.ATTENTION_TASK.put
        n_tasks = n_merges = n_slots = 0
        kept = window if window in self.kept else None
        for token, n, position, piece in slices:
            table = piece.block_tables[kept].address
            recent = piece.block_tables[RECENT].address if self._has_recent else 0
            first, end = 0 if window is None else max(0, position - window + 1), position + n
            spans = range(first // SPAN_TOKENS * SPAN_TOKENS, end, SPAN_TOKENS)
            is_whole = by_token or len(piece.token_ids) > SPLIT_TOKENS or len(spans) == 1
            if is_whole or n_slots + n * len(spans) > MAX_SPLITS:
                put(tasks, n_tasks, token, n, position, 0, end, table, recent, -1)
                n_tasks += 1
                continue
            for i in range(n):
                merges[n_merges] = (token + i, n_slots + i, len(spans), n)
                n_merges += 1
            for begin in spans:
                put(tasks, n_tasks, token, n, position, begin, min(begin + SPAN_TOKENS, end), table, recent, n_slots)
                n_tasks += 1
                n_slots += n
        return (0, 0) if by_token else (n_tasks, n_merges)


def _put(array: np.ndarray, numbers: Sequence[float] | np.ndarray) -> None:
    """Write the first numbers of an array. For a single one, as decode has it, NumPy need not make an array of them."""
    if len(numbers) == 1:
        array[0] = numbers[0]
    else:
        array[: len(numbers)] = numbers
