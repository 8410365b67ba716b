"""Cutting a text into words by an automaton: into the matches of a pattern, and the stretches between them."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

from numba import njit

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.word_records import AT_END_CLASS, CUT_WORDS, DEAD_STATE, NOT_MADE, START_STATE


@cache
def utf8(isa) -> SimpleNamespace:
    """Characters of a text that is known to be UTF-8: width(address) and code(address) of the one that begins there."""
    load = memory(isa).load_u8

    @njit(error_model="numpy")
    def width(address):
        first = load(address)
        if first < 0x80:
            return 1
        return 2 if first < 0xE0 else 3 if first < 0xF0 else 4

    @njit(error_model="numpy")
    def code(address):
        first = load(address)
        if first < 0x80:
            return first
        second = load(address + 1) & 0x3F
        if first < 0xE0:
            return (first & 0x1F) << 6 | second
        third = load(address + 2) & 0x3F
        if first < 0xF0:
            return (first & 0x0F) << 12 | second << 6 | third
        return (first & 0x07) << 18 | second << 12 | third << 6 | load(address + 3) & 0x3F

    return SimpleNamespace(width=width, code=code)


def build_cut_words(isa):
    op_at, words, chars = record_viewer(CUT_WORDS), memory(isa), utf8(isa)
    load_u8, load_i32, load, store = words.load_u8, words.load_i32, words.load_i64, words.store_i64
    width, code = chars.width, chars.code

    @njit(error_model="numpy")
    def match(op, start, end):
        """Where the match from `start` ends, or `start`; if a step is lacking, -1 - (state * n_classes + class)."""
        state, at, found = START_STATE, start, start
        while True:
            char_class = AT_END_CLASS
            if at < end:
                char_class = load_u8(op.classes + code(op.text + at))
            place = state * op.n_classes + char_class
            step = load_i32(op.steps + place * 4)
            if step == NOT_MADE:
                return -1 - place
            if step & 1:
                found = at
            state = step >> 1
            if state == DEAD_STATE or at >= end:
                return found
            at += width(op.text + at)

    def cut_words(record, chunk, thread):
        op = op_at(record)
        piece, at, gap = load(op.progress), load(op.progress + 8), load(op.progress + 16)
        n, lacking = 0, -1
        while piece < op.n_pieces and n + 2 <= op.room:
            end = load(op.pieces + piece * 8)
            if at >= end:
                if gap < end:
                    store(op.ends + n * 8, end)
                    n += 1
                at = gap = end
                piece += 1
                continue
            found = match(op, at, end)
            if found < 0:
                lacking = -1 - found
                break
            if found == at:
                at += width(op.text + at)
                continue
            if gap < at:
                store(op.ends + n * 8, at)
                n += 1
            store(op.ends + n * 8, found)
            n += 1
            at = gap = found
        store(op.progress, piece)
        store(op.progress + 8, at)
        store(op.progress + 16, gap)
        store(op.progress + 24, n)
        store(op.progress + 32, lacking // op.n_classes if lacking >= 0 else -1)
        store(op.progress + 40, lacking % op.n_classes if lacking >= 0 else -1)

    return cut_words
