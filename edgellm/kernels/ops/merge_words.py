"""Byte-pair merging of words, one after the other, and the tables by which pairs and tokens are found.

A pair is looked up by its spelling, so a table needs the list of merges alone, and is made in some milliseconds. Such
a table is far larger than a cache of the CPU, so a short string stands in it with all its bytes: one look at memory
finds it. Words that were met are noted, and not merged again.
"""

from __future__ import annotations

from functools import cache, partial
from types import SimpleNamespace

import numpy as np
from numba import njit

from edgellm.kernels.numba_records import record_viewer
from edgellm.kernels.ops.cut_words import utf8
from edgellm.kernels.ops.memory import memory
from edgellm.kernels.word_records import (
    AT_ONCE,
    IN_LINE,
    INDEX_STRINGS,
    LONGEST_WORD,
    MERGE_WORDS,
    MOST_ALIKE,
    MOST_PROBES,
    PASSING,
    UNRANKED,
    WHOLE,
)

NEVER = UNRANKED << 32  # what stands for a string that is not found, or is not made by merging
LOWER = (1 << 32) - 1
NEAR = 8  # places where a word may be noted
_SPACE = 0x20
# Of eight bytes: a space or one in each, all bits but the top ones, and what makes 2 ** (8 * n) times it have n on top.
_SPACES, _ONES, _ALL_BUT_TOP, _PLACES = 0x2020202020202020, 0x0101010101010101, 0x7F7F7F7F7F7F7F7F, 0x0001020304050607
_PAGE = 0xFFF  # bits of an address inside of a page, the smallest there are
_PACKED = 7  # bytes of a string that has room in a key, beside where it is split
# Odd numbers that spread bits: FNV's (Fowler, Noll, Vo) and that of the golden ratio (Knuth, volume 3, section 6.4).
_PRIME = 0x100000001B3
_SIGN = -1 << 63
_SPREAD = 0x9E3779B97F4A7C15 - (1 << 64)

_inlined = partial(njit, error_model="numpy", forceinline=True)


@cache
def listed_strings(isa) -> SimpleNamespace:
    """Strings: packed, key_of, place_of, equal; lines of tables: line_of, next_line; strings of lists: is_listed."""
    words = memory(isa)
    load, load_i32, load_u8 = words.load_i64, words.load_i32, words.load_u8

    @_inlined()
    def packed(start, n):
        """The bytes of a string of up to seven as a number, the first one lowest.

        What stands behind them is read with them and dropped, in the same page of memory only.
        """
        if start & _PAGE <= _PAGE - 7:
            return load(start) & ((1 << n * 8) - 1)
        if n >= 4:
            return load_i32(start) & LOWER | (load_i32(start + n - 4) & LOWER) << ((n - 4) * 8)
        if n == 0:
            return 0
        middle, last = n >> 1, n - 1
        return load_u8(start) | load_u8(start + middle) << (middle * 8) | load_u8(start + last) << (last * 8)

    @_inlined()
    def digest(start, n):
        """Eight bytes at a time; of the last ones, some may count twice, and of eight all do.

        So all strings of eight to sixteen bytes, most that are not short, take the same steps.
        """
        if n <= _PACKED:
            return packed(start, n)
        key, at, last = 0, start, start + n - 8
        while True:
            key = (key ^ load(at)) * _PRIME
            key = (key ^ (key >> 32)) * _SPREAD  # else the last bytes, which may come twice, can undo this
            at += 8
            if at >= last:
                return (key ^ load(last)) * _SPREAD + n

    @_inlined()
    def key_of(left, n_left, right, n_right):
        """Of short strings one number for each, and of others a number below 0, which they may share.

        A string that is no pair is a right half, and there is no left one.
        """
        n = n_left + n_right
        if n <= _PACKED:
            return (n_left * 8 + n) << 56 | packed(left, n_left) | packed(right, n_right) << (n_left * 8)
        of_left = digest(left, n_left) * _PRIME + n_left
        return (((of_left ^ (of_left >> 32)) * _SPREAD) ^ digest(right, n_right)) * _PRIME | _SIGN

    @_inlined()
    def place_of(key, n_places):
        return (((key ^ (key >> 32)) * _SPREAD) >> 24) & (n_places - 1)

    @_inlined()
    def line_of(of, key):
        """Where the places of a table begin at which a string with this key is first looked for."""
        return of.table + (place_of(key, of.n_places) & -IN_LINE) * 16

    @_inlined()
    def next_line(of, line):
        line += IN_LINE * 16
        return of.table if line == of.table + of.n_places * 16 else line

    @_inlined()
    def equal(a, b, n):
        alike = 0
        while alike < n and load_u8(a + alike) == load_u8(b + alike):
            alike += 1
        return alike == n

    @_inlined()
    def is_listed(of, i, start, end, split):
        """Whether string i of a list is [start, end), or the halves of it with a space between."""
        begin, stop = of.bytes + load(of.starts + i * 8) + of.lead, of.bytes + load(of.starts + i * 8 + 8)
        n = end - start
        if split == 0:
            return stop - begin == n and equal(begin, start, n)
        return (
            stop - begin == n + 1
            and load_u8(begin + split) == _SPACE
            and equal(begin, start, split)
            and equal(begin + split + 1, start + split, n - split)
        )

    return SimpleNamespace(
        packed=packed,
        key_of=key_of,
        place_of=place_of,
        line_of=line_of,
        next_line=next_line,
        equal=equal,
        is_listed=is_listed,
    )


def build_index_strings(isa):
    op_at, words, strings = record_viewer(INDEX_STRINGS), memory(isa), listed_strings(isa)
    load, load_i32, store, prefetch = words.load_i64, words.load_i32, words.store_i64, words.prefetch
    packed, key_of, is_listed = strings.packed, strings.key_of, strings.is_listed
    line_of, next_line = strings.line_of, strings.next_line

    @_inlined()
    def spaces(start, end):
        """How many spaces a string has, and where the last one is; eight bytes at a time."""
        n, last = 0, end
        for at in range(start, end, 8):
            others = (packed(at, end - at) if end - at < 8 else load(at)) ^ _SPACES  # zeros for spaces
            marks = ~((others & _ALL_BUT_TOP) + _ALL_BUT_TOP | others | _ALL_BUT_TOP)
            while marks != 0:
                lowest = (marks & -marks) >> 7 & _ONES
                last = at + (lowest * _PLACES >> 56)
                marks &= marks - 1
                n += 1
        return n, last

    @_inlined()
    def bounds(of, i):
        return of.bytes + load(of.starts + i * 8) + of.lead, of.bytes + load(of.starts + i * 8 + 8)

    @_inlined()
    def key_in(of, i):
        """The key of a string of a list and how many spaces it has; 0 for a string that is left out."""
        start, end = bounds(of, i)
        if start == end:
            return 0, 0
        if of.are_pairs == 0:
            return key_of(start, 0, start, end - start), 0
        n_spaces, space = spaces(start, end)
        if n_spaces != 1 or space == start or space + 1 == end:
            return 0, n_spaces
        return key_of(start, space - start, space + 1, end - space - 1), 1

    @njit(error_model="numpy")
    def others_before(of, i, key, line):
        """Strings of a line that are not string i but before its place there, and how many of them have its key."""
        start, end = bounds(of, i)
        n_alike = 0
        for n in range(IN_LINE):
            there = load(line + n * 16)
            if there == 0 or (
                there == key and (key > 0 or is_listed(of, load(line + n * 16 + 8) & LOWER, start, end, 0))
            ):
                return n, n_alike
            n_alike += there == key
        return IN_LINE, n_alike

    @_inlined()
    def insert(of, i, key):
        """Put a string into its table; returns whether it has found a place, and how many others have its key."""
        line, n_alike = line_of(of, key), 0
        for _ in range(MOST_PROBES // IN_LINE):
            first, second, third, fourth = load(line), load(line + 16), load(line + 32), load(line + 48)
            n_before = (first != 0) + (second != 0) + (third != 0) + (fourth != 0)
            if (first == key) | (second == key) | (third == key) | (fourth == key):  # itself, or one alike
                n_before, n_new = others_before(of, i, key, line)
                n_alike += n_new
            if n_before < IN_LINE:
                store(line + n_before * 16, key)
                store(line + n_before * 16 + 8, (i if of.ranks == 0 else load_i32(of.ranks + i * 4)) << 32 | i)
                return True, n_alike
            line = next_line(of, line)
        return False, n_alike

    @_inlined()
    def put(of, listed, keys, n):
        """Put strings into their table; returns spaces in them, how many share keys, and whether all have places."""
        total, total_alike = 0, 0
        for i in range(n):
            key, n_spaces = key_in(of, load(listed + i * 8))
            store(keys + i * 8, key)
            total += n_spaces
            prefetch(line_of(of, key))
        for i in range(n):
            key = load(keys + i * 8)
            if key != 0:
                placed, n_alike = insert(of, load(listed + i * 8), key)
                total_alike += n_alike
                if not placed:
                    return total, total_alike, False
        return total, total_alike, True

    def index_strings(record, chunk, thread):
        op = op_at(record)
        of, total, total_alike = op.strings, 0, 0
        short, long, keys = op.scratch, op.scratch + AT_ONCE * 8, op.scratch + 2 * AT_ONCE * 8
        for at in range(0, of.n, AT_ONCE):
            # Short and long strings apart: a CPU cannot guess which comes next, and most of the time would go there.
            n_short, n_long = np.int64(0), np.int64(0)
            for i in range(at, min(at + AT_ONCE, of.n)):
                start, end = bounds(of, i)
                store(short + n_short * 8, i)
                store(long + n_long * 8, i)
                is_short = np.int64(end - start <= _PACKED + of.are_pairs)
                n_short += is_short
                n_long += 1 - is_short
            for listed, n in ((short, n_short), (long, n_long)):
                n_spaces, n_alike, placed = put(of, listed, keys, n)
                total += n_spaces
                total_alike += n_alike
                if not placed or total_alike > MOST_ALIKE:
                    store(op.status, 1)
                    return
        store(op.status, 0)
        store(op.status + 8, total)

    return index_strings


def build_merge_words(isa):
    op_at, words, strings = record_viewer(MERGE_WORDS), memory(isa), listed_strings(isa)
    load, load_u8, load_i32, prefetch = words.load_i64, words.load_u8, words.load_i32, words.prefetch
    store, store_u8, store_i32 = words.store_i64, words.store_u8, words.store_i32
    key_of, place_of, equal, is_listed = strings.key_of, strings.place_of, strings.equal, strings.is_listed
    line_of, next_line = strings.line_of, strings.next_line
    width = utf8(isa).width

    @_inlined()
    def is_there(of, key, entry, start, end, split):
        return load(entry) == key and (key > 0 or is_listed(of, load(entry + 8) & LOWER, start, end, split))

    @njit(error_model="numpy")
    def find(of, key, start, end, split):
        """The rank and the number of the string of a list that has this key, as in its table; or NEVER."""
        line = line_of(of, key)
        for _ in range(MOST_PROBES // IN_LINE):
            second, third, fourth = load(line + 16), load(line + 32), load(line + 48)
            n = (second == key) + (third == key) * 2 + (fourth == key) * 3  # the only place, if it is of a short string
            if key < 0:
                n = 0
                while n < IN_LINE - 1 and not is_there(of, key, line + n * 16, start, end, split):
                    n += 1
            if is_there(of, key, line + n * 16, start, end, split):
                return load(line + n * 16 + 8)
            if fourth == 0:
                break
            line = next_line(of, line)
        return NEVER

    @_inlined()
    def token_of(op, start, end):
        """Which token a string is, or -1."""
        found = find(op.tokens, key_of(start, 0, start, end - start), start, end, 0)
        return -1 if found >= NEVER else found & LOWER

    @_inlined()
    def is_marked(op, token, mark):
        return op.marks != 0 and load_u8(op.marks + token) & mark != 0

    @_inlined()
    def spell(op, start, end, spelled, starts):
        """Spell a word and note where each symbol starts, and where the last one ends; returns how many there are."""
        n, out = 0, spelled
        for at in range(start, end):
            letter = load_i32(op.spelling + load_u8(at) * 4)
            size = letter >> 16
            if size > 0:
                store(starts + n * 8, out)
                n += 1
                store_u8(out, letter & 0xFF)
                if size > 1:
                    store_u8(out + 1, (letter >> 8) & 0xFF)
                out += size
        store(starts + n * 8, out)
        return n

    @_inlined()
    def characters(start, end, starts):
        """The same for a word whose symbols are its characters as they stand."""
        n, at = 0, start
        while at < end:
            store(starts + n * 8, at)
            n += 1
            at += width(at)
        store(starts + n * 8, end)
        return n

    @_inlined()
    def merge(op, starts, ranks, n):
        """Join the best pair, the leftmost of equals, until none is left; returns how many symbols are."""
        new, end = 0, n - 1  # the pairs whose ranks are not known
        while n > 1:
            for i in range(new, end):
                left, right = load(starts + i * 8), load(starts + i * 8 + 8)
                if op.merges.are_pairs != 0:
                    key = key_of(left, right - left, right, load(starts + i * 8 + 16) - right)
                else:
                    key = key_of(left, 0, left, load(starts + i * 8 + 16) - left)
                store(ranks + i * 8, key)
                prefetch(line_of(op.merges, key))
            for i in range(new, end):
                left, right = load(starts + i * 8), load(starts + i * 8 + 8)
                split = (right - left) * op.merges.are_pairs
                found = find(op.merges, load(ranks + i * 8), left, load(starts + i * 8 + 16), split)
                store(ranks + i * 8, found >> 32)
            best, place = UNRANKED, 0
            for i in range(n - 1):
                rank = load(ranks + i * 8)
                if rank < best:
                    best, place = rank, i
            if best == UNRANKED:
                break
            n -= 1
            for i in range(place + 1, n + 1):
                store(starts + i * 8, load(starts + i * 8 + 8))
            for i in range(place + 1, n - 1):
                store(ranks + i * 8, load(ranks + i * 8 + 8))
            new, end = max(place - 1, 0), min(place + 1, n - 1)
        return n

    @_inlined()
    def put_bytes(op, start, end, ids):
        """Put the tokens of bytes; returns whether each has one."""
        for at in range(start, end):
            token = load_i32(op.byte_ids + load_u8(at) * 4)
            if token < 0:
                return False
            store_i32(ids + (at - start) * 4, token)
        return True

    @_inlined()
    def encode(op, start, end, ids):
        """How many ids a word has, which are put there; or -1."""
        starts = op.scratch + 2 * LONGEST_WORD
        n = characters(start, end, starts) if op.spelling == 0 else spell(op, start, end, op.scratch, starts)
        if op.marks != 0 and n > 0:
            first, last = load(starts), load(starts + n * 8)
            whole = token_of(op, first, last)
            if whole >= 0 and is_marked(op, whole, WHOLE):
                store_i32(ids, whole)
                return 1
        n = merge(op, starts, starts + 8 * (LONGEST_WORD + 1), n)
        n_ids = 0
        for i in range(n):
            first, last = load(starts + i * 8), load(starts + i * 8 + 8)
            token = token_of(op, first, last)
            if token >= 0:
                if is_marked(op, token, PASSING):
                    return -1
                store_i32(ids + n_ids * 4, token)
                n_ids += 1
            elif op.byte_ids != 0 and put_bytes(op, first, last, ids + n_ids * 4):
                n_ids += last - first
            else:
                return -1
        return n_ids

    @_inlined()
    def noted_at(op, start, end):
        """The place where a word is noted, or -1 - the place where it can be."""
        key = key_of(start, 0, start, end - start)
        first = place_of(key, op.n_recent)
        for i in range(NEAR):
            place = op.recent + ((first + i) & (op.n_recent - 1)) * 16
            if load(place) == 0:
                return -1 - place
            if load(place) == key:
                word = load(place + 8) & LOWER
                begin = op.text + (load(op.ends + word * 8 - 8) if word > 0 else op.begin)
                n = end - start
                if key > 0 or (op.text + load(op.ends + word * 8) - begin == n and equal(begin, start, n)):
                    return place
        return -1 - (op.recent + first * 16)

    def merge_words(record, chunk, thread):
        op = op_at(record)
        start, n_ids = op.text + op.begin, 0
        for word in range(op.n_words):
            end = op.text + load(op.ends + word * 8)
            count = -1
            if end - start <= LONGEST_WORD:
                ids = op.ids + n_ids * 4
                place = noted_at(op, start, end)
                if place >= 0:
                    noted = load(place + 8)
                    count = load_i32(op.counts + (noted & LOWER) * 4)
                    for i in range(count):
                        store_i32(ids + i * 4, load_i32(op.ids + ((noted >> 32) + i) * 4))
                else:
                    count = encode(op, start, end, ids)
                    store(-1 - place, key_of(start, 0, start, end - start))
                    store(-1 - place + 8, n_ids << 32 | word)
            store_i32(op.counts + word * 4, count)
            n_ids += max(count, 0)
            start = end

    return merge_words
