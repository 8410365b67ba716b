"""A program that trains in a folder, from its last checkpoint on, and says each step: to be killed at any moment."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.train.test_checkpoint import a_run

if __name__ == "__main__":
    run = a_run(Path(sys.argv[1]), lambda step: print("step", step.step, flush=True))
    if run._checkpoints is not None and run._checkpoints.steps():
        run.resume()
    print("from", run.state.step, flush=True)
    run.go()
