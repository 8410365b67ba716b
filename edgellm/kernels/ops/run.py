"""The loops that run a program: what the threads of a team execute, without the GIL.

An op is done when all its chunks are done, not when all threads have met: a thread that the operating
system has put aside holds the others up only if it was in the middle of a chunk. Before an op starts, the ops it
depends on must be done; ops that do not depend on each other overlap.

Every thread has a share of an op's chunks (`ops/shares.py`). It claims these, and then what is left of the others'
shares. A share is counted in a word on a cache line of its own, which mostly one thread writes: a line that
two threads write goes to and fro between their cores, and where these have no cache in common, that takes longer than
a small op. And in every run a thread gets the same rows, which its caches may still have.

A word says of which run it is. So nothing is cleared between runs, and a thread that is late finds in the words of a
later run that nothing is left for it.

A thread may still be on its way out of one run when the leader begins the next. Therefore every run has a copy of its
own of how many chunks there are, taken from a small pool: a thread that enters a run first writes on its seat
which copy it uses, then looks again whether that run is still the current one; and the leader declares
the old run over before it looks at the seats for a copy that nobody uses.
"""

from __future__ import annotations

from types import SimpleNamespace

from llvmlite import ir
from numba import njit

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import call_kernel
from edgellm.kernels.ops.shares import share_size, share_start
from edgellm.kernels.records import MOST_CHUNKS, OP, PROGRAM, TEAM
from edgellm.kernels.schema import LINE, WORD_BYTES
from edgellm.kernels.staged import I64, Value, staged

OP_BYTES = len(OP.fields) * WORD_BYTES
# The word of a share, from its lowest bits: chunks that are claimed, chunks that are done, and the number of the run.
DONE_SHIFT = MOST_CHUNKS.bit_length()
RUN_SHIFT = 2 * DONE_SHIFT
DONE = 1 << DONE_SHIFT
ALL_DONE = (1 << RUN_SHIFT) - 1
RUNS = 1 << (64 - RUN_SHIFT)  # until the numbers begin anew
LATER = RUNS // 2  # what is not older by less is of a later run
RENEWAL = RUNS // 8  # after so many runs, words that no op has used meanwhile are brought up to date
ABORT_AT = list(PROGRAM.fields).index("abort") * WORD_BYTES
N_CHUNKS_AT, PROGRAM_AT = (list(TEAM.fields).index(name) * WORD_BYTES for name in ("n_chunks", "program"))
# A waiting thread first watches closely, for waits are short; then it lets others have the core.
SPINS = 2000
LINES_PER_SPIN = 4  # of weights, prefetched between two looks
# So long a thread without work looks for some before it goes to sleep: longer than it takes to choose a token.
IDLE_YIELDS = 5000


def _words(isa):
    """Shared memory, and the function that runs a program's ops."""
    team_at, program_at, op_at = record_viewer(TEAM), record_viewer(PROGRAM), record_viewer(OP)

    def pointer(address: Value):
        return address.v.builder.inttoptr(address.llvm, I64.as_pointer())

    @staged(isa, "i64", "i64", "i64")
    def fetch_add(v, address, value):
        return Value(v, v.builder.atomic_rmw("add", pointer(address), value.llvm, "seq_cst"))

    @staged(isa, "i64", "i64", "i64", "i64")
    def compare_exchange(v, address, expected, value):
        """What was there; the value is there now if that is what was expected."""
        both = v.builder.cmpxchg(pointer(address), expected.llvm, value.llvm, "seq_cst", "seq_cst")
        return Value(v, v.builder.extract_value(both, 0))

    @staged(isa, "void", "i64", "i64")
    def store(v, address, value):
        v.builder.atomic_rmw("xchg", pointer(address), value.llvm, "seq_cst")

    @staged(isa, "void", "i64", "i64")
    def prepare(v, address, value):
        """A store that other threads need not see before the next addition."""
        v.builder.store_atomic(value.llvm, pointer(address), "monotonic", 8)

    @staged(isa, "i64", "i64")
    def load(v, address):
        return Value(v, v.builder.load_atomic(pointer(address), "seq_cst", 8))

    call = staged(isa, "void", *["i64"] * 4)(call_kernel)

    @staged(isa, "void")
    def pause(v):
        v.pause()

    @staged(isa, "void", "i64")
    def yield_core(v, function):
        kind = ir.FunctionType(ir.IntType(32), [])
        v.builder.call(v.builder.inttoptr(function.llvm, kind.as_pointer()), [])

    @staged(isa, "void", "i64")
    def prefetch(v, address):
        for line in range(LINES_PER_SPIN):
            v.prefetch(address + line * LINE)

    @staged(isa, "void", "i64")
    def ask_to_write(v, address):
        """Ask for a line ahead of writing to it: the cores that have read it give it up."""
        v.prefetch(address, level=1, is_written=True)

    @staged(isa, "void", "i64", "i64")
    def ask(v, address, n_lines):
        v.repeat(n_lines, lambda i: v.prefetch(address + i * LINE, level=1))

    @njit(error_model="numpy")
    def age_of(word, run):
        """By how many runs a share's word is older than a run; LATER or more if it is of a later one."""
        return (run - (word >> RUN_SHIFT)) & (RUNS - 1)

    @njit(error_model="numpy")
    def claim(share, run, n, done):
        """Count `done` (0, or DONE for one) chunks of a share of n, and claim the next; n if there is none."""
        word = load(share)
        while True:
            age = age_of(word, run)
            claimed = word & MOST_CHUNKS if age == 0 else (0 if age < LATER else n)
            is_left = claimed < n
            if not is_left and done == 0:
                return n
            changed = (word if age == 0 else (run & (RUNS - 1)) << RUN_SHIFT) + done + (1 if is_left else 0)
            found = compare_exchange(share, word, changed)
            if found == word:
                return claimed if is_left else n
            word = found

    @njit(error_model="numpy")
    def is_done(share, run, n):
        word = load(share)
        age = age_of(word, run)
        return age >= LATER or (age == 0 and (word >> DONE_SHIFT) & MOST_CHUNKS >= n)

    @njit(error_model="numpy")
    def wait_for(shares, n_chunks, n_threads, run, system_yield, weights, n_prefetched, n_bytes):
        """Until an op is done. Meanwhile, prefetch the first n_bytes of weights; returns how many were so far."""
        spins = 0
        for thread in range(min(n_threads, n_chunks)):
            share, n = shares + thread * LINE, share_size(n_chunks, thread, n_threads)
            while not is_done(share, run, n):
                spins += 1
                if n_prefetched < n_bytes:
                    prefetch(weights + n_prefetched)
                    n_prefetched += LINES_PER_SPIN * LINE
                elif spins < SPINS:
                    pause()
                else:
                    yield_core(system_yield)
        return n_prefetched

    @njit(error_model="numpy")
    def with_chunks(all_n_chunks, index, last):
        """The next op, from an index on, that has something to do in this run; `last` if none has."""
        while index < last and load(all_n_chunks + index * WORD_BYTES) == 0:
            index += 1
        return index

    @njit(error_model="numpy")
    def run_ops(team_address, program_address, all_n_chunks, run, thread, first, last):
        """Ops first to last - 1, with all other threads; after the last one of the program, all of it is done."""
        team, program = team_at(team_address), program_at(program_address)
        n_threads, system_yield = team.n_threads, team.yield_core
        n_done = 0  # ops known to be done, all from the first on
        n_prefetched, prefetched_of = 0, 0
        index = with_chunks(all_n_chunks, first, last)
        while index < last:
            op, n_chunks = op_at(program.ops + index * OP_BYTES), load(all_n_chunks + index * WORD_BYTES)
            shares = team.shares + index * n_threads * LINE
            index = with_chunks(all_n_chunks, index + 1, last)
            if index < last:
                following = op_at(program.ops + index * OP_BYTES)
                ask(following.own, following.own_lines)
                ask_to_write(team.shares + (index * n_threads + thread) * LINE)
            is_first = thread == 0 and op.prefetch_first != 0
            weights = op.prefetch_first
            if not is_first:
                weights = op.prefetch + share_start(op.prefetch_chunks, thread, n_threads) * op.prefetch_step
            if weights != prefetched_of:
                n_prefetched, prefetched_of = 0, weights
            while n_done < op.depends:
                n_prefetched = wait_for(
                    team.shares + n_done * n_threads * LINE,
                    load(all_n_chunks + n_done * WORD_BYTES),
                    n_threads,
                    run,
                    system_yield,
                    weights,
                    n_prefetched,
                    op.prefetch_bytes,
                )
                n_done += 1
            if is_first:
                ask(op.prefetch_first, op.first_lines)
            owner = thread
            for _ in range(n_threads):
                n, share = share_size(n_chunks, owner, n_threads), shares + owner * LINE
                start = share_start(n_chunks, owner, n_threads)
                at = claim(share, run, n, 0) if n > 0 else 0
                while at < n:
                    if load(program_address + ABORT_AT) == 0:
                        call(op.kernel, op.record, start + at, thread)
                    at = claim(share, run, n, DONE)
                owner = owner + 1 if owner + 1 < n_threads else 0
        while last == program.n_ops and n_done < last:
            n_chunks = load(all_n_chunks + n_done * WORD_BYTES)
            wait_for(team.shares + n_done * n_threads * LINE, n_chunks, n_threads, run, system_yield, 0, 0, 0)
            n_done += 1

    return SimpleNamespace(
        fetch_add=fetch_add,
        store=store,
        prepare=prepare,
        load=load,
        pause=pause,
        yield_core=yield_core,
        run_ops=run_ops,
    )


def build_lead(isa):
    """lead(team, program, first): work in a run as thread 0, from the op `first` on; 0 starts a run.

    Returns after TEAM.slice_ops ops, so that Python can look at signals, or when the run is done, and that of
    TEAM.following after it.
    """
    team_at, program_at = record_viewer(TEAM), record_viewer(PROGRAM)
    words = _words(isa)
    fetch_add, store, prepare, load, run_ops = words.fetch_add, words.store, words.prepare, words.load, words.run_ops

    @njit(error_model="numpy")
    def free_copy(team):
        """The first memory for n_chunks that no seat names; there is more of it than other threads."""
        for index in range(team.n_threads + 1):
            n_chunks = team.all_n_chunks + index * team.max_ops * WORD_BYTES
            is_taken = False
            for thread in range(1, team.n_threads):
                is_taken |= load(team.seats + thread * LINE) == n_chunks
            if not is_taken:
                return n_chunks
        return team.all_n_chunks

    @njit(error_model="numpy")
    def renew(team, run):
        """Words that no run has used for long, as the last run left its own, before they seem to be of a later one."""
        for index in range(team.max_ops * team.n_threads):
            prepare(team.shares + index * LINE, (((run - 1) & (RUNS - 1)) << RUN_SHIFT) + ALL_DONE)

    def lead(team_address, program_address, first):
        team = team_at(team_address)
        is_done = work_as_leader(team_address, program_address, first)
        if is_done and team.following != 0:
            work_as_leader(team_address, team.following, 0)

    @njit(error_model="numpy")
    def work_as_leader(team_address, program_address, first):
        """Whether all of a program is done now."""
        team, program = team_at(team_address), program_at(program_address)
        n_chunks = team.n_chunks
        if first == 0:
            fetch_add(team_address, 1)  # odd: the last run is over
            n_chunks = free_copy(team)
            for index in range(program.n_ops):
                prepare(n_chunks + index * WORD_BYTES, load(program.n_chunks + index * WORD_BYTES))
            run = team.generation // 2 + 1
            if run % RENEWAL == 0:
                renew(team, run)
            store(team_address + PROGRAM_AT, program_address)
            store(team_address + N_CHUNKS_AT, n_chunks)
            fetch_add(team_address, 1)  # even: the run is on
        last = min(first + team.slice_ops, program.n_ops)
        run_ops(team_address, program_address, n_chunks, load(team_address) // 2, 0, first, last)
        return last == program.n_ops

    return lead


def build_work(isa):
    """work(team, thread, _): take part in runs as they come; return when none has come for a while."""
    team_at, program_at = record_viewer(TEAM), record_viewer(PROGRAM)
    words = _words(isa)
    store, load, pause, yield_core, run_ops = words.store, words.load, words.pause, words.yield_core, words.run_ops

    def work(team_address, thread, unused):
        team = team_at(team_address)
        seat = team.seats + thread * LINE
        seen = load(seat + 8)
        idle = 0
        while idle < SPINS + IDLE_YIELDS and team.stop == 0:
            generation = load(team_address)
            if generation == seen or generation % 2 == 1:
                idle += 1
                if idle < SPINS:
                    pause()
                else:
                    yield_core(team.yield_core)
            else:
                program, n_chunks = load(team_address + PROGRAM_AT), load(team_address + N_CHUNKS_AT)
                store(seat, n_chunks)
                if load(team_address) == generation:
                    n_ops = program_at(program).n_ops
                    run_ops(team_address, program, n_chunks, generation // 2, thread, 0, n_ops)
                    seen = generation
                    idle = 0
                store(seat, 0)
        store(seat + 8, seen)

    return work
