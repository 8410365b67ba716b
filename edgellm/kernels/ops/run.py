"""The loops that run a program: what the threads of a team execute, without the GIL.

An op is done when all its chunks are done, not when all threads have met: a thread that the operating
system has put aside holds the others up only if it was in the middle of a chunk. Threads claim the chunks
of an op from a shared counter. Before an op starts, the ops it depends on must be done; ops that do not
depend on each other overlap.

A thread may still be on its way out of one run when the leader begins the next. Therefore every run has
progress counters of its own, taken from a small pool: a thread that enters a run first writes on its seat
whose counters it uses, then looks again whether that run is still the current one; and the leader declares
the old run over before it looks at the seats for counters that nobody uses.
"""

from __future__ import annotations

from types import SimpleNamespace

from llvmlite import ir
from numba import njit

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import call_kernel
from edgellm.kernels.records import OP, PROGRAM, PROGRESS, TEAM
from edgellm.kernels.schema import WORD_BYTES
from edgellm.kernels.staged import I64, Value, staged

LINE = 64  # bytes
OP_BYTES = len(OP.fields) * WORD_BYTES
DONE, N_CHUNKS = (list(PROGRESS.fields).index(name) * WORD_BYTES for name in ("done", "n_chunks"))
ABORT_AT = list(PROGRAM.fields).index("abort") * WORD_BYTES
PROGRESS_AT, PROGRAM_AT = (list(TEAM.fields).index(name) * WORD_BYTES for name in ("progress", "program"))
# A waiting thread first watches closely, for waits are short; then it lets others have the core.
SPINS = 2000
LINES_PER_SPIN = 4  # of weights, prefetched between two looks
# So long a thread without work looks for some before it goes to sleep: longer than it takes to choose a token.
IDLE_YIELDS = 5000


def _words(isa):
    """Shared memory, and the function that runs a program's ops."""
    program_at, op_at = record_viewer(PROGRAM), record_viewer(OP)

    def pointer(address: Value):
        return address.v.builder.inttoptr(address.llvm, I64.as_pointer())

    @staged(isa, "i64", "i64", "i64")
    def fetch_add(v, address, value):
        return Value(v, v.builder.atomic_rmw("add", pointer(address), value.llvm, "seq_cst"))

    @staged(isa, "void", "i64", "i64")
    def store(v, address, value):
        v.builder.atomic_rmw("xchg", pointer(address), value.llvm, "seq_cst")

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

    @staged(isa, "void", "i64", "i64")
    def ask(v, address, n_lines):
        v.repeat(n_lines, lambda i: v.prefetch(address + i * LINE, level=1))

    @njit(error_model="numpy")
    def wait_for(op_progress, system_yield, weights, n_prefetched, n_bytes):
        """Meanwhile, prefetch the first n_bytes of weights; returns how many were prefetched so far."""
        spins = 0
        while load(op_progress + DONE) < load(op_progress + N_CHUNKS):
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
    def run_ops(program_address, progress, thread, system_yield, first, last):
        """Ops first to last - 1, with all other threads; after the last one of the program, all of it is done."""
        program = program_at(program_address)
        n_done = 0  # ops known to be done, all from the first on
        n_prefetched, prefetched_of = 0, 0
        for index in range(first, last):
            mine = progress + index * LINE
            n_chunks = load(mine + N_CHUNKS)
            if n_chunks > 0:
                op = op_at(program.ops + index * OP_BYTES)
                if index + 1 < last:
                    following = op_at(program.ops + (index + 1) * OP_BYTES)
                    ask(following.own, following.own_lines)
                if op.prefetch != prefetched_of:
                    n_prefetched, prefetched_of = 0, op.prefetch
                weights = op.prefetch + thread * op.prefetch_step
                while n_done < op.depends:
                    n_prefetched = wait_for(
                        progress + n_done * LINE, system_yield, weights, n_prefetched, op.prefetch_bytes
                    )
                    n_done += 1
                chunk = fetch_add(mine, 1)
                while chunk < n_chunks:
                    if load(program_address + ABORT_AT) == 0:
                        call(op.kernel, op.record, chunk, thread)
                    fetch_add(mine + DONE, 1)
                    chunk = fetch_add(mine, 1)
        while last == program.n_ops and n_done < last:
            wait_for(progress + n_done * LINE, system_yield, 0, 0, 0)
            n_done += 1

    return SimpleNamespace(
        fetch_add=fetch_add, store=store, load=load, pause=pause, yield_core=yield_core, run_ops=run_ops
    )


def build_lead(isa):
    """lead(team, program, first): work in a run as thread 0, from the op `first` on; 0 starts a run.

    Returns after TEAM.slice_ops ops, so that Python can look at signals, or when the run is done.
    """
    team_at, program_at = record_viewer(TEAM), record_viewer(PROGRAM)
    words = _words(isa)
    fetch_add, store, load, run_ops = words.fetch_add, words.store, words.load, words.run_ops

    @njit(error_model="numpy")
    def free_progress(team_address):
        """The first progress that no seat names; there are more of them than other threads."""
        team = team_at(team_address)
        for index in range(team.n_progress):
            progress = team.all_progress + index * team.progress_bytes
            taken = False
            for thread in range(1, team.n_threads):
                taken |= load(team.seats + thread * LINE) == progress
            if not taken:
                return progress
        return team.all_progress

    def lead(team_address, program_address, first):
        team, program = team_at(team_address), program_at(program_address)
        progress = team.progress
        if first == 0:
            fetch_add(team_address, 1)  # odd: the last run is over
            progress = free_progress(team_address)
            for index in range(program.n_ops):
                at = progress + index * LINE
                store(at, 0)
                store(at + DONE, 0)
                store(at + N_CHUNKS, load(program.n_chunks + index * 8))
            store(team_address + PROGRAM_AT, program_address)
            store(team_address + PROGRESS_AT, progress)
            fetch_add(team_address, 1)  # even: the run is on
        last = min(first + team.slice_ops, program.n_ops)
        run_ops(program_address, progress, 0, team.yield_core, first, last)

    return lead


def build_work(isa):
    """work(team, thread, _): take part in runs as they come; return when none has come for a while."""
    team_at, program_at = record_viewer(TEAM), record_viewer(PROGRAM)
    words = _words(isa)
    store, load, run_ops = words.store, words.load, words.run_ops
    pause, yield_core = words.pause, words.yield_core

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
                program, progress = load(team_address + PROGRAM_AT), load(team_address + PROGRESS_AT)
                store(seat, progress)
                if load(team_address) == generation:
                    run_ops(program, progress, thread, team.yield_core, 0, program_at(program).n_ops)
                    seen = generation
                    idle = 0
                store(seat, 0)
        store(seat + 8, seen)

    return work
