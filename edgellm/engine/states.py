"""States of recurrent layers: what such layers have kept of a text up to one of its tokens.

Unlike keys and values, a state is of one place in a text only, and cannot be cut. So some are kept as a text goes on
(checkpoints): a text that begins like another up to a checkpoint goes on from there. All layers' states at one place
are a slot. A pass never writes into the slot that it reads, so one that is stopped has changed nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgellm.dataclass import dataclass
from edgellm.engine.adapter_set import AdapterSet
from edgellm.engine.block_pool import BlockPool, key_after
from edgellm.kernels.records import KV_BLOCK

SLOTS_OF_TEXT = 5  # beside checkpoints in equal steps: the last token's, the next one's, and three of `Trail.plan`
MOST_STEP = 64  # blocks from one checkpoint to the next, at most
NOTHING = -1  # the slot of what is before a text's first token

Step = tuple[int, int, int]  # tokens, the slot before them, the slot after them


@dataclass(frozen=True)
class StateShape:
    """layer_bytes: of a state in each layer. step: blocks from one checkpoint to the next."""

    layer_bytes: tuple[int, ...]
    step: int

    @classmethod
    def beside(cls, layer_bytes: Sequence[int], block_bytes: int) -> StateShape:
        """With checkpoints that take about as much as the keys and values between them, block_bytes each block."""
        step = -(-sum(layer_bytes) // max(1, block_bytes))
        return cls(tuple(layer_bytes), min(MOST_STEP, step))

    @property
    def slot_bytes(self) -> int:
        return sum(self.layer_bytes)

    def slots_for(self, n_blocks: int) -> int:
        """Slots that a text of so many blocks may have."""
        return n_blocks // self.step + SLOTS_OF_TEXT if self.layer_bytes else 0


NO_STATES = StateShape((), 1)


class StatePool:
    """The slots of all texts. A named one that nobody holds stays until its room is needed, see `BlockPool`.

    Who calls holds the lock of the cache.
    """

    def __init__(self, shape: StateShape, n_slots: int) -> None:
        self.shape = shape
        self.memory = [np.empty((n_slots, size), np.uint8) for size in shape.layer_bytes]
        self.slots = BlockPool(self.memory, n_slots, what="states of recurrent layers")

    def place(self, keys: Sequence[bytes], rest: Sequence[int]) -> tuple[int, int]:
        """A slot behind as many as possible of some tokens, and of how many: (NOTHING, 0) where there is none.

        keys:  of what is before the tokens. With none of them, it is the slot at their beginning.
        """
        slot, n = self.slots.longest_within(keys[-1], rest)
        if n == 0 and len(keys) > 1:
            found = self.slots.whole(keys[-1])
            slot = NOTHING if found is None else found
        return slot, n

    def name(self, slot: int, keys: Sequence[bytes], tokens: Sequence[int], n: int, adapters: AdapterSet) -> None:
        """Let texts find the state behind the first n of some tokens. keys: before each block of them."""
        block = (n - 1) // KV_BLOCK
        of_block = tokens[block * KV_BLOCK : n]
        key = key_after(keys[block], of_block) if len(of_block) == KV_BLOCK else None
        self.slots.name(slot, keys[block], of_block, key, adapters)

    def write(self, slot: int, layers: Sequence[np.ndarray]) -> None:
        for memory, layer in zip(self.memory, layers, strict=True):
            memory[slot] = layer


@dataclass
class Checkpoint:
    """The state behind the first n tokens of a text. is_held: by the text; otherwise it may be gone."""

    n: int
    slot: int
    name: object = None

    @property
    def is_held(self) -> bool:
        return self.name is None


class Trail:
    """The states of one sequence, of more and more of its tokens; the last is of all of them, and always held.

    Earlier ones are held until texts can find them. Then they may go when others need their room.
    """

    def __init__(self, pool: StatePool) -> None:
        self.pool = pool
        self.checkpoints: list[Checkpoint] = []
        self._spare: int | None = None  # for the state of the next pass, so that there always is room for it
        self._planned: list[tuple[int, int]] = []  # how many tokens, and the slot of the state behind them
        self._is_prompt = False
        self._ends = [0, 0]  # the last whole blocks within an answer, and within a prompt, of which there is a state
        self.parting = 0  # whole blocks that another text begins with too: a third may part with them there

    @property
    def n(self) -> int:
        """Tokens of the last state."""
        return self.checkpoints[-1].n if self.checkpoints else 0

    @property
    def n_held(self) -> int:
        return sum(1 for one in self.checkpoints if one.is_held) + len(self._planned) + (self._spare is not None)

    # --- going on -------------------------------------------------------------------------------------------

    @property
    def can_grow(self) -> bool:
        return self._spare is not None or self.pool.slots.n_free > 0

    def reserve(self) -> None:
        """Make room for another state. Raises CacheFullError when there is none."""
        if self._spare is None:
            self._spare = self.pool.slots.take()

    def plan(self, n_tokens: int, n_guesses: int) -> list[Step]:
        """How the next tokens are gone through, the last n_guesses of which may be wrong: there is room for them.

        Checkpoints are made in equal steps, where other texts have parted, at the last whole block, and at every guess.
        """
        self._forget_plan()
        self.reserve()
        assert self._spare is not None
        self._is_prompt = n_tokens - n_guesses > 1
        start, end = self.n, self.n + n_tokens
        for n in self._cuts(start, end, n_guesses):
            if self.pool.slots.n_free:
                self._planned.append((n, self.pool.slots.take()))
        self._planned.append((end, self._spare))
        self._spare = None
        steps, before = [], self.checkpoints[-1].slot if self.checkpoints else NOTHING
        for n, slot in self._planned:
            steps.append((n - start, before, slot))
            start, before = n, slot
        return steps

    def _cuts(self, start: int, end: int, n_guesses: int) -> list[int]:
        """Where states are wanted before the end."""
        step = self.pool.shape.step * KV_BLOCK
        last = (end - 1) // KV_BLOCK * KV_BLOCK
        cuts = {*range(start // step * step + step, end, step), *range(end - n_guesses, end), last, self.parting}
        return sorted(n for n in cuts if start < n < end)

    def commit(self, n_tokens: int) -> int:
        """The text has n_tokens now, if there is a state of them; returns of how many there is one."""
        reached = [(n, slot) for n, slot in self._planned if n <= n_tokens]
        self._planned = self._planned[len(reached) :]
        self._forget_plan()
        self.checkpoints += [Checkpoint(n, slot) for n, slot in reached]
        if within := [n for n, _ in reached if n % KV_BLOCK == 0]:
            self._ends[self._is_prompt] = within[-1]
        step, kept = self.pool.shape.step * KV_BLOCK, (self.n, self.parting, *self._ends)
        for one in [one for one in self.checkpoints if one.n % step and one.n not in kept]:
            self._drop(one)
        if self.pool.slots.n_free:
            self.reserve()  # what has begun can go on, whoever comes
        return self.n

    def _forget_plan(self) -> None:
        while self._planned:
            slot = self._planned.pop()[1]
            if self._spare is None:
                self._spare = slot
            else:
                self.pool.slots.give_back(slot)

    def _drop(self, one: Checkpoint) -> None:
        self.checkpoints.remove(one)
        if one.is_held:
            self.pool.slots.give_back(one.slot)

    # --- going back -----------------------------------------------------------------------------------------

    def best(self, n_tokens: int) -> Checkpoint | None:
        """The last checkpoint within the first n_tokens that is still there."""
        within = (one for one in reversed(self.checkpoints) if one.n <= n_tokens)
        return next((one for one in within if one.is_held or self.pool.slots.name_of(one.slot) is one.name), None)

    def trim(self, n_tokens: int) -> None:
        """Keep no state of more tokens; there must be one of so many, or they are none."""
        best = self.best(n_tokens) if n_tokens else None
        for one in [one for one in self.checkpoints if best is None or one.n > best.n]:
            self._drop(one)
        if best is not None and not best.is_held:
            self.pool.slots.share(best.slot)
            best.name = None

    def share(self, other: Trail, n_tokens: int) -> None:
        """Begin with the states that another one has of the first n_tokens; it has one of just so many."""
        for one in other.checkpoints:
            if one.n <= n_tokens and other.best(one.n) is one:
                self.begin(one.n, one.slot)

    def begin(self, n_tokens: int, slot: int) -> None:
        """Go on from a state that is in a slot."""
        self.checkpoints.append(Checkpoint(n_tokens, self.pool.slots.share(slot)))

    def restore(self, states: Sequence[tuple[int, Sequence[np.ndarray]]]) -> None:
        """Go on from states that were read from elsewhere: of how many tokens, and the bytes of each layer."""
        for n, layers in states:
            slot = self.pool.slots.take()
            self.pool.write(slot, layers)
            self.checkpoints.append(Checkpoint(n, slot))

    def release(self) -> None:
        """Give everything back."""
        self.trim(0)
        self._forget_plan()
        if self._spare is not None:
            self.pool.slots.give_back(self._spare)
            self._spare = None

    # --- what others find -----------------------------------------------------------------------------------

    def remember(self, keys: Sequence[bytes], tokens: Sequence[int], adapters: AdapterSet, also_last: bool) -> None:
        """Let texts find the states of whole blocks, also_last that behind the last token."""
        slots = self.pool.slots
        for one in [one for one in self.checkpoints if one.is_held]:
            is_last = one is self.checkpoints[-1]
            if slots.is_shared(one.slot) or (is_last and not also_last):
                continue
            if slots.name_of(one.slot) is None:
                self.pool.name(one.slot, keys, tokens, one.n, adapters)
            if not is_last:
                one.name = slots.name_of(one.slot)
                slots.give_back(one.slot)

    def copies(self, start: int, end: int) -> list[tuple[int, list[np.ndarray]]]:
        """The states behind tokens start + 1 to end that are there: how many tokens, and the bytes of each layer."""
        there = [one for one in self.checkpoints if start < one.n <= end and self.best(one.n) is one]
        return [(one.n, [memory[one.slot].copy() for memory in self.pool.memory]) for one in there]
