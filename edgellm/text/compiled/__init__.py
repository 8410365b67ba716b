"""Texts to tokens in machine code, for texts that are long enough for it.

    patterns of the rule ──► programs ──► automata ──┐
                         (`patterns.py`) (`automaton.py`)
    tokens, merges ──► tables by hash (`tables.py`) ─┴─► `CompiledWords` (`words.py`), when it is their turn (`turn.py`)

The kernels are `edgellm/kernels/ops/cut_words.py` and `merge_words.py`. The ids are those of the ways in Python.
"""
