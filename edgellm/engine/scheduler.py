"""The scheduler: all that is asked of a model, from any thread, in batches that are computed one after the other.

    request = Scores(ids)
    scheduler.submit(request)
    scheduler.wait(request)      # runs steps until the request is ready; other threads' requests go along

There is no thread of its own. Of all threads that wait, one runs the next step, for its request and those of the
others; then another one may. A step first takes the next token of every text that is being written, and then pieces of
prompts. What a text's tokens give does not depend on what else is in the batch, to the bit.

Behind the next token of a text may stand guesses of what comes then (see `engine.speculation`). They count as far as
they are what was chosen.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count

from edgellm.engine.adapter_set import MOST_TOGETHER, Adapter, slots_of
from edgellm.engine.bound import bound_to
from edgellm.engine.disk_cache import DiskCache
from edgellm.engine.kv_cache import Sequence as CachedTokens
from edgellm.engine.prefix_cache import PrefixCache
from edgellm.engine.request import Request
from edgellm.engine.runner import Runner, Span
from edgellm.engine.speculation import NO_SPECULATION, Speculator
from edgellm.engine.turns import Turns
from edgellm.errors import BusyError, CacheFullError, UsageError
from edgellm.graph.forks import at_fork
from edgellm.kernels.records import KV_BLOCK
from edgellm.text.common import n_common

# Who reads an answer waits no longer than this for its next token while a prompt is computed beside it.
SECONDS_BESIDE_DECODE = 0.1
LEAST_PIECE = 16  # tokens of a prompt
RATE_WEIGHT = 0.3  # of the last step, in the average speed of reading prompts


class Scheduler:
    """Steps of a runner, for requests in the order of their arrival."""

    def __init__(self, runner: Runner, speculator: Speculator = NO_SPECULATION, disk_bytes: int = 0) -> None:
        self.runner = runner
        self.speculator = speculator
        self.prefixes = PrefixCache(runner.cache)
        self.disk: DiskCache | None = None
        if disk_bytes:
            self.disk = DiskCache(runner.cache, lambda: bound_to(runner), self.prefixes.keep, disk_bytes)
        self._arrivals: deque[Request] = deque()
        self._requests: list[Request] = []
        self._numbers = count(1)
        self._n_over = 0
        self._prompt_rate = 0.0  # tokens a second
        self._is_closing = False
        self._unlock()
        at_fork(self, in_child=Scheduler._forget_threads)

    def _forget_threads(self) -> None:
        """In a child process, a step of another thread has no end, and nobody waits for its requests."""
        self._unlock()
        for request in (*self._requests, *self._arrivals):
            request.is_awaited = False

    def _unlock(self) -> None:
        self._turns = Turns()
        self._is_stepping = False
        self._alone: int | None = None  # the thread that has the model for itself

    # --- for any thread -----------------------------------------------------------------------------------

    def submit(self, request: Request) -> Request:
        """Let a request take part in steps from now on; never waits."""
        request.arrival = next(self._numbers)
        if self._alone == threading.get_ident():
            request.owner, request.is_private = self._alone, True
        self._arrivals.append(request)
        return request

    def wait(self, request: Request) -> None:
        """Run steps, or let other threads run them, until a request is ready. Raises what went wrong with it."""
        request.is_awaited = True
        try:
            while not request.is_ready:
                self._advance((request,))
        finally:
            request.is_awaited = False
        if request.error is not None:
            error, request.error = request.error, None
            try:
                raise error
            finally:
                del error  # which holds this frame, and all that it sees

    def advance(self, requests: Sequence[Request]) -> None:
        """Run one step, or wait while another thread runs it, unless one of some requests is ready already.

        For one thread that waits for many; those that it names stand before others where there is too little room.
        """
        for request in requests:
            request.is_awaited = True
        try:
            if not any(request.is_ready for request in requests):
                self._advance(requests)
        finally:
            for request in requests:
                request.is_awaited = False

    def _advance(self, requests: Sequence[Request]) -> None:
        n_steps = self._turns.n_steps
        if not self._turns.run.acquire(blocking=False):
            self._turns.wait(n_steps, lambda: any(request.is_ready for request in requests))
            return
        try:
            self._step(requests)
        finally:
            self._turns.run.release()
            self._turns.tell()

    def retire(self, request: Request) -> None:
        """Nobody needs a request any more. What it has in the cache is given back, or kept for texts that begin alike.

        Waits for no step: a finalizer may call it at any moment.
        """
        request.is_over = True
        if not self._turns.run.acquire(blocking=False):
            return  # whoever runs a step will see to it
        try:
            if not self._is_stepping:
                self._is_stepping = True
                try:
                    self.update_requests()
                finally:
                    self._is_stepping = False
        finally:
            self._turns.run.release()
            self._turns.tell()  # those that could not run a step meanwhile

    def cancel(self, request: Request) -> None:
        """Let a request end soon, also in the middle of a batch that nobody else needs."""
        request.is_cancelled = True
        self._turns.tell()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Meanwhile, only this thread's requests are computed, and nothing is left in the prefix cache.

        Raises UsageError after `close`.
        """
        try:
            with self._turns.run:
                self._check_free()
                outer, self._alone = self._alone, threading.get_ident()
                try:
                    yield
                finally:
                    self._alone = outer
        finally:
            self._turns.tell()  # those that waited for the lock

    def close(self) -> None:
        """End all requests, with an error, when the step that is on has ended, which it does early."""
        self._is_closing = True
        with self._turns.run:
            for request in (*self._requests, *self._arrivals):
                request.error, request.is_over = UsageError("the model is closed"), True
            self.update_requests()
            if self.disk is not None:
                self.disk.close()
            self.prefixes.clear()
            self.speculator.close()
            self.runner.close()
        self._turns.tell()

    def update_requests(self) -> None:
        """Take in requests that have arrived, and release those that are over. Only between steps."""
        while self._arrivals:
            self._requests.append(self._arrivals.popleft())
        for request in [request for request in self._requests if request.is_over or request.is_cancelled]:
            self._requests.remove(request)
            self.speculator.forget(request)
            self._n_over += 1
            if request.sequence is not None:
                if request.is_private:
                    request.sequence.release()
                else:
                    if self.disk is not None and not request.n_shifts:
                        self.disk.keep(request.sequence)
                    self.prefixes.keep(request.sequence)
                request.sequence = None
        for request in self._requests:
            if request.is_full:
                self._shift(request)

    def _shift(self, request: Request) -> None:
        """Let a text whose context is full go on without its oldest tokens."""
        self.speculator.forget(request)  # it knows places that are others now
        if request.sequence is not None:
            request.sequence.release()
            request.sequence = None
        try:
            request.shift()
        except Exception as problem:
            request.error, request.is_over = problem, True

    def _check_free(self) -> None:
        """Raises UsageError after `close`, BusyError for who calls from within a step."""
        self.runner.check_open()
        if self._is_stepping:
            raise BusyError("the model is in the middle of a step, which called this; wait until it is over")

    # --- a step -------------------------------------------------------------------------------------------

    def _step(self, asked: Sequence[Request]) -> None:
        """Compute some tokens of some requests, and hand out their logits."""
        self._check_free()
        self._is_stepping = True
        try:
            self.update_requests()
            if self._alone is None:
                self.runner.take_tiles()
            batch = self._next_batch()
            if not batch:
                if not any(request.is_ready for request in asked):
                    raise BusyError(
                        "the model is used in a way that must not be mixed with this; wait until it is over"
                    )
                return
            self._compute(batch)
        finally:
            self._is_stepping = False

    def _compute(self, batch: list[tuple[Request, Span]]) -> None:
        started = time.perf_counter()
        rows: list[int] = []
        wanted: list[tuple[Request, int, int]] = []
        first = 0
        for request, span in batch:
            start, n = len(span.sequence), len(span.token_ids)
            for place in range(max(0, request.first_wanted - start), n):
                rows.append(first + place)
                wanted.append((request, start + place, span.token_ids[place]))
            first += n
        if not self.runner.run_body([span for _, span in batch], lambda: self._is_unwanted(batch), rows=rows):
            return
        for (request, position, token_id), (logits, maxima) in zip(wanted, self.runner.logits_of(rows), strict=True):
            is_right = position < len(request.tokens) and request.tokens[position] == token_id  # or a guess was wrong
            if is_right and not (request.is_over or request.is_cancelled):
                try:
                    self.runner.check_numbers(maxima, request.adapters)
                    request.take(position, logits, maxima)
                except Exception as problem:
                    request.error, request.is_over = problem, True
        for request, span in batch:
            self._count(request, span)
        seconds = time.perf_counter() - started
        self._note_rate(first, seconds)
        if len(rows) == first:
            self.speculator.pace.note(first, seconds)

    def _count(self, request: Request, span: Span) -> None:
        """Count what was computed, but for guesses that were wrong."""
        start, n = len(span.sequence), len(span.token_ids)
        came = request.tokens[start : start + n]
        n_right = n if span.token_ids == came else n_common(span.token_ids, came)
        span.sequence.append(span.token_ids[:n_right])
        if span.n_guesses:
            span.sequence.trim(start + n_right)
            request.n_guessed += span.n_guesses
            request.n_right += max(0, n_right - (n - span.n_guesses))
        if not request.is_private:
            span.sequence.remember()
            # A prompt is kept as soon as it has been read: it outlasts a process that is killed while it answers, and
            # later a window would have left behind what the same prompt, asked once more, needs.
            # What is left of a text after a shift begins as no other does.
            is_begun = not span.n_guesses and not request.n_shifts
            if self.disk is not None and n > 1 and is_begun and n_right + start + 1 >= len(request.tokens):
                self.disk.keep(span.sequence)
        span.sequence.leave_behind()
        request.last_step = self._turns.n_steps
        request.progressed()

    def _is_unwanted(self, batch: list[tuple[Request, Span]]) -> bool:
        return self._is_closing or all(request.is_cancelled for request, _ in batch)

    def _note_rate(self, n_tokens: int, seconds: float) -> None:
        if n_tokens >= LEAST_PIECE:
            rate = n_tokens / seconds
            self._prompt_rate += (rate - self._prompt_rate) * (RATE_WEIGHT if self._prompt_rate else 1)

    # --- who takes part -----------------------------------------------------------------------------------

    def _next_batch(self) -> list[tuple[Request, Span]]:
        """The next token of every text that is being written, and then pieces of prompts."""
        writing: list[Request] = []
        prompts: list[Request] = []
        for request in self._requests:
            n_pending = request.n_pending
            if n_pending and self._may_run(request):
                (writing if n_pending == 1 and request.n_cached else prompts).append(request)
        batch: list[tuple[Request, Span]] = []
        n_left = self.runner.n_batch
        if len(writing) > 1:
            writing.sort(key=lambda request: (not request.is_awaited, request.last_step, request.arrival))
            writing = writing[:n_left]
        # Beside prompts nothing is guessed: they fill a pass by themselves.
        guesses = self.speculator.guesses(writing, n_left - len(writing)) if writing and not prompts else {}
        for request in writing:
            self._add(batch, request, 1, guesses.get(request, ()))
        if not prompts:
            return batch
        n_left -= len(batch)
        if batch and self._prompt_rate:
            n_left = min(n_left, max(LEAST_PIECE, int(self._prompt_rate * SECONDS_BESIDE_DECODE)))
        # Short ones take what they need, and the others share the rest.
        prompts = sorted(self._admitted(prompts), key=lambda request: request.n_pending)
        for index, request in enumerate(prompts):
            n = min(request.n_pending, -(-n_left // (len(prompts) - index)))
            if n > 0 and self._add(batch, request, n):
                n_left -= n
        return batch

    def _may_run(self, request: Request) -> bool:
        if self._alone is not None:
            return request.owner == self._alone
        return not self._lost_room(request) or not any(
            other.is_awaited and other.n_pending and not self._lost_room(other) for other in self._requests
        )

    def _lost_room(self, request: Request) -> bool:
        """Whether the room that a request lost to another is still taken."""
        return request.n_over_when_preempted == self._n_over

    def _admitted(self, prompts: list[Request]) -> list[Request]:
        """Give new texts the longest prefix that is in the cache; those whose prefix is being computed wait for it."""
        admitted: list[Request] = []
        states = self.runner.cache.states
        worth = KV_BLOCK * (states.shape.step if states is not None else 1)  # tokens, for which others are waited for
        for request in sorted(prompts, key=lambda request: request.arrival):
            if request.sequence is None:
                wanted = request.tokens[:-1]  # the last token is computed anew, for its logits
                if request.is_private:
                    found = self.runner.cache.sequence(request.adapters)
                else:
                    if self.disk is not None:
                        self.disk.bring(wanted, request.adapters)
                    found = self.prefixes.longest(wanted, self.live(), request.adapters)
                if not request.is_private and any(
                    n_common(other.tokens, wanted) >= len(found) + worth
                    for other in admitted
                    if not other.is_private and other.adapters == request.adapters
                ):
                    found.release()
                    continue
                request.sequence = found
                if request.n_over_when_preempted < 0 and not request.n_shifts:
                    request.n_reused = len(found)
            admitted.append(request)
        return admitted

    def live(self) -> list[CachedTokens]:
        """What texts have in the cache that others may begin with."""
        return [other.sequence for other in self._requests if other.sequence is not None and not other.is_private]

    def _add(
        self, batch: list[tuple[Request, Span]], request: Request, n_tokens: int, guesses: Sequence[int] = ()
    ) -> bool:
        """Put the next tokens of a request into a batch, if the cache has room for them or others can make some.

        guesses:  of what comes behind them, for which nobody else loses room.
        """
        sequence = request.sequence
        if sequence is None:
            return False  # it lost its room to one of this batch
        if batch and request.adapters and not _may_stand_together(batch, request):
            return False  # its turn comes with the next one
        try:
            if not sequence.grow(n_tokens + len(guesses)):
                guesses = ()
                self._make_room(batch, request, sequence, n_tokens)
        except CacheFullError:
            return False
        start = len(sequence)
        batch.append((request, Span(sequence, [*request.tokens[start : start + n_tokens], *guesses], len(guesses))))
        return True

    def _make_room(
        self, batch: list[tuple[Request, Span]], request: Request, sequence: CachedTokens, n_tokens: int
    ) -> None:
        """Room for more tokens, that of others if need be. Raises CacheFullError where there is none."""
        others: list[Request] = []
        if request.is_awaited:
            served = [other for other, _ in batch]
            others = [other for other in self._requests if self._yields(other, request) and other not in served]
        self._reserve(sequence, n_tokens, others)

    def forget(self, adapter: Adapter) -> None:
        """Release what is kept of an adapter, for who has the model alone; texts that go on with it keep it."""
        self.update_requests()
        self.prefixes.forget(adapter)
        self.runner.forget(adapter)

    def _yields(self, other: Request, request: Request) -> bool:
        """Whether a request may take the room of another: of one that nobody waits for, or that came later."""
        return other is not request and (not (other.is_awaited and other.n_pending) or other.arrival > request.arrival)

    def reserve(self, sequence: CachedTokens, n_tokens: int) -> None:
        """Room for more tokens of a sequence that is no request's, for who has the model alone."""
        self.update_requests()
        self._reserve(sequence, n_tokens, self._requests)

    def _reserve(self, sequence: CachedTokens, n_tokens: int, others: Sequence[Request]) -> None:
        """Room for more tokens: first that of texts that have ended, then that of `others`, which are computed anew
        later.
        """
        if not sequence.can_grow(n_tokens):
            self.prefixes.release_waiting()
            while not sequence.can_grow(n_tokens):
                holders = [other for other in others if other.sequence is not None and other.sequence.n_blocks]
                if not holders:
                    break
                self._preempt(max(holders, key=lambda other: (not other.is_awaited, other.arrival)))
        sequence.reserve(n_tokens)

    def _preempt(self, request: Request) -> None:
        """Take a request's room; it is computed anew when its turn comes."""
        assert request.sequence is not None
        request.sequence.release()
        request.sequence = None
        request.n_over_when_preempted = self._n_over


def _may_stand_together(batch: list[tuple[Request, Span]], request: Request) -> bool:
    """Whether a batch has no more adapters with those of another request than one program takes."""
    return len(slots_of({request.adapters, *(other.adapters for other, _ in batch)})) <= MOST_TOGETHER
