"""A loaded model survives a fork: parent and child go on with it, whatever other threads were doing at that moment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
ROOT = Path(__file__).parents[2]

# Each child must end by itself in time with status 0; one that hangs is ended by its alarm.
BEGIN = """
import os, signal, sys, threading, time, warnings
import numpy as np
import edgellm
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork beside threads
model = edgellm.load(sys.argv[1], n_threads=3)
PROMPT = [50, 9, 14, 40, 33, 7, 8, 210] * 9
def answer(prompt=PROMPT, n=20):
    generation = model.generate(prompt, temperature=0.0, max_tokens=n)
    for _ in generation:
        pass
    return generation.token_ids
def in_child(work):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        status = 1
        try:
            work()
            status = 0
        except BaseException as problem:
            print("child:", repr(problem), file=sys.stderr, flush=True)
        os._exit(status)
    return child
def ended(child):
    return os.waitpid(child, 0)[1]
expected = answer()
"""

BESIDE_A_GENERATION = """
stop = False
def generate():
    while not stop:
        answer([9, 7, 5] * 40, 30)
others = [threading.Thread(target=generate) for _ in range(2)]
for other in others: other.start()
def work():
    for _ in range(2):
        assert answer() == expected
    assert [t.name for t in threading.enumerate()][1:] == ["edgellm-1", "edgellm-2"], threading.enumerate()
    model.close()
    assert threading.active_count() == 1
for _ in range(8):
    time.sleep(0.01)
    assert ended(in_child(work)) == 0
    assert answer() == expected
stop = True
for other in others: other.join()
"""

WHILE_NOTHING_RUNS = """
def work():
    assert answer() == expected
    assert np.array_equal(model.logits(PROMPT), logits)
logits = model.logits(PROMPT)
time.sleep(0.2)  # helpers sleep by then
children = [in_child(work) for _ in range(3)]
assert answer() == expected  # while they run
assert [ended(child) for child in children] == [0, 0, 0]
"""

A_CHILD_OF_A_CHILD = """
def work():
    assert ended(in_child(lambda: [answer()] == [expected] or 1 / 0)) == 0
    assert answer() == expected
assert ended(in_child(work)) == 0
"""

A_GENERATION_GOES_ON_IN_BOTH = """
generation = model.generate(PROMPT, temperature=0.0, max_tokens=20)
for _ in zip(range(3), generation): pass
def work():
    for _ in generation: pass
    assert generation.token_ids == expected and generation.finish_reason == "length"
child = in_child(work)
work()
assert ended(child) == 0
"""

A_CLOSED_MODEL = """
model.close()
def work():
    try:
        model.logits(PROMPT)
    except edgellm.UsageError as problem:
        assert "closed" in str(problem)
    else:
        raise AssertionError
    model.close()
assert ended(in_child(work)) == 0
"""

IT_ENDS_IN_ORDER = """
import multiprocessing
def work():
    assert answer() == expected
process = multiprocessing.get_context("fork").Process(target=work)
process.start()
process.join(60)
assert process.exitcode == 0
child = os.fork()
if child == 0:
    signal.alarm(60)
    sys.exit(7)  # with all that runs at the end of an interpreter
assert os.waitstatus_to_exitcode(ended(child)) == 7
"""

IN_THE_MIDDLE_OF_A_CHOICE = """
from edgellm.engine import sampling
usual = sampling.Sampler.choose
statuses = []
def choose(self, *given):
    if not statuses:
        statuses.append(0)
        statuses[0] = ended(in_child(lambda: answer([9, 7, 5] * 40, 5)))
    return usual(self, *given)
sampling.Sampler.choose = choose
assert answer() == expected
assert statuses == [0]
"""

WHILE_THE_CACHE_IS_BUSY = """
cache = model._runner.cache
stop = False
def take():
    sequence = cache.sequence()
    while not stop:
        sequence.reserve(200)
        sequence.append([1] * 200)
        sequence.fork(150).release()
        sequence.trim(0)
other = threading.Thread(target=take)
other.start()
def work():
    pool, = cache.pools
    free = pool.n_free
    taken = [pool.take() for _ in range(free)]
    assert len(set(taken)) == free
    for block in taken:
        pool.give_back(block)
    assert answer() == expected
for _ in range(30):
    assert ended(in_child(work)) == 0
stop = True
other.join()
"""


@pytest.mark.parametrize(
    "code",
    [
        BESIDE_A_GENERATION,
        WHILE_NOTHING_RUNS,
        A_CHILD_OF_A_CHILD,
        A_GENERATION_GOES_ON_IN_BOTH,
        A_CLOSED_MODEL,
        IT_ENDS_IN_ORDER,
        IN_THE_MIDDLE_OF_A_CHOICE,
        WHILE_THE_CACHE_IS_BUSY,
    ],
    ids=["beside a generation", "while nothing runs", "a child of a child", "a generation goes on in both",
         "a closed model", "it ends in order", "in the middle of a choice", "while the cache is busy"],
)  # fmt: skip
def test_a_fork(code: str, tiny_path: Path) -> None:
    command = [sys.executable, "-c", BEGIN + code, str(tiny_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.stderr, done.returncode) == ("", 0)
