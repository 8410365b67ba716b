"""A file of cached blocks: keys and values of a text, or of a part of one, as the cache has them.

    magic, length, checksum        20 bytes; the checksum is that of what stands between here and the data
    header                         JSON: what it is bound to, which tokens, which blocks, the checksum of the data
    data                           token ids, int32; then for each layer its blocks, one behind the other; then, for
                                   each place in the text that the header names, states of all recurrent layers

A file serves the model and the settings that it was written with, and no others: keys and values of another model, type
of cache or version are other numbers. Data begins at a multiple of ALIGN, and is read through a mapping.
"""

from __future__ import annotations

import itertools
import json
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from edgellm.dataclass import dataclass
from edgellm.engine.block_table import GONE
from edgellm.engine.kv_cache import KVCache, Sequence, State
from edgellm.errors import FileProblem, FormatError
from edgellm.formats.mapped import map_file
from edgellm.kernels.records import KV_BLOCK

MAGIC = b"EDGELLMKV2\n\0"
FAMILY = MAGIC[:9]  # how those of all versions begin
OLDER = (b"EDGELLMKV1\n\0",)  # of versions before, whose files are of no use here
LENGTHS = struct.Struct("<12sII")
ALIGN = 4096
MOST_HEADER = 1 << 26
WORDS = {
    "model": "from another model",
    "version": "from another version of edgellm",
    "isa": "from another kind of CPU",
    "kv_type": "with another kv_type",
    "activations": "with other activations",
    "layers": "from a model of another shape",
    "states": "from a model of another shape",
    "adapters": "with other adapters",
}


class Run(NamedTuple):
    """Blocks of one pool: n of them from the block `first` of the text on."""

    first: int
    n: int


@dataclass
class BlockFile:
    """What such a file holds.

    start:   the block of the text that it begins with. token_ids: of all its blocks.
    runs:    which of these blocks are there, for each pool of the cache.
    layers:  uint8 [n, block_bytes] for each layer, views of the mapped file.
    note:    a text of who wrote it.
    states:  of recurrent layers: behind how many tokens of the text, and the bytes of each layer, such views too.
    """

    start: int
    token_ids: list[int]
    runs: list[Run]
    layers: list[np.ndarray]
    note: str
    states: list[State]


def write_blocks(
    file: BinaryIO, sequence: Sequence, bound: dict[str, Any], start: int = 0, end: int | None = None, note: str = ""
) -> None:
    """Write blocks start to end - 1 of a sequence; None goes to its end."""
    end = -(-len(sequence) // KV_BLOCK) if end is None else end
    token_ids = np.array(sequence.tokens[start * KV_BLOCK : end * KV_BLOCK], np.int32)
    runs, layers = [], []
    for table in sequence.tables:
        held = [index for index in range(start, min(end, len(table.blocks))) if table.blocks[index] != GONE]
        runs.append(Run(held[0] if held else end, len(held)))
    pools = sequence.cache.pools
    for layer, memory in zip(sequence.cache.layers, sequence.cache.memory, strict=True):
        index = next(i for i, pool in enumerate(pools) if pool.window == layer.window)
        run = runs[index]
        layers.append(memory[sequence.tables[index].blocks[run.first : run.first + run.n]])
    first = start * KV_BLOCK
    states = sequence.states(first, first + len(token_ids))
    layers += [layer for _, layers_of in states for layer in layers_of]
    crc = zlib.crc32(token_ids.tobytes())
    for blocks in layers:
        crc = zlib.crc32(blocks.data, crc)
    about = {"bound": bound, "start": start, "n_tokens": len(token_ids), "runs": runs, "crc": crc, "note": note}
    about |= {"states": [n for n, _ in states]} if states else {}
    header = json.dumps(about).encode()
    padded = header + bytes(-(LENGTHS.size + len(header)) % ALIGN)
    file.write(LENGTHS.pack(MAGIC, len(header), zlib.crc32(padded)) + padded)
    file.write(token_ids.tobytes())
    for blocks in layers:
        file.write(blocks.data)


def read_blocks(path: Path, cache: KVCache, bound: dict[str, Any]) -> BlockFile:
    """Map such a file and check all of it.

    Raises FormatError for one that is none, is cut short or damaged, and FileProblem for one that is bound to
    something else, or cannot be read.
    """
    data = map_file(path, "a session")
    if len(data) < LENGTHS.size:
        raise FormatError(f"{path} is no session: it has {len(data)} bytes")
    magic, n_header, header_crc = LENGTHS.unpack(data[: LENGTHS.size].tobytes())
    if magic in OLDER:
        raise FileProblem(f"{path} was saved {WORDS['version']}; it cannot be used here")
    if magic != MAGIC or n_header > MOST_HEADER:
        raise FormatError(f"{path} is no session that edgellm has saved")
    place = LENGTHS.size + n_header
    place += -place % ALIGN
    if len(data) < place:
        raise _cut_short(path)
    if zlib.crc32(data[LENGTHS.size : place].data) != header_crc:
        raise FormatError(f"{path} is damaged: its header does not match its checksum; save the session again")
    try:
        about = json.loads(data[LENGTHS.size : LENGTHS.size + n_header].tobytes())
        own = about["bound"]
        start, n_tokens, crc, note = (about[name] for name in ("start", "n_tokens", "crc", "note"))
        runs = [Run(*run) for run in about["runs"]]
        places = list(about.get("states", ()))
        numbers = [start, n_tokens, crc, *places, *(number for run in runs for number in run)]
        if not all(type(number) is int and 0 <= number < 1 << 40 for number in numbers) or not isinstance(note, str):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FormatError(f"{path} is damaged: its header cannot be read; save the session again") from None
    check_bound(path, own, bound)
    end = start + -(-n_tokens // KV_BLOCK)
    if len(runs) != len(cache.pools) or any(run.first < start or run.first + run.n > end for run in runs):
        raise FormatError(f"{path} is damaged: it names blocks that its text does not have; save the session again")
    first = start * KV_BLOCK
    if any(not first < n <= first + n_tokens for n in places) or sorted(set(places)) != places:
        raise FormatError(f"{path} is damaged: it names states that its text does not have; save the session again")
    state_sizes = list(cache.states.shape.layer_bytes) if cache.states is not None else []
    sizes = [_run_of(cache, layer, runs).n * layer.block_bytes for layer in cache.layers]
    if len(data) != place + 4 * n_tokens + sum(sizes) + len(places) * sum(state_sizes):
        raise _cut_short(path)
    if zlib.crc32(data[place:].data) != crc:
        raise FormatError(f"{path} is damaged: its content does not match its checksum; save the session again")
    token_ids = data[place : place + 4 * n_tokens].view(np.int32).tolist()
    place += 4 * n_tokens
    layers = []
    for layer, size in zip(cache.layers, sizes, strict=True):
        layers.append(data[place : place + size].reshape(-1, layer.block_bytes))
        place += size
    states: list[State] = []
    for n in places:
        ends = place + np.cumsum([0, *state_sizes])
        states.append((n, [data[at:to] for at, to in itertools.pairwise(ends)]))
        place = int(ends[-1])
    return BlockFile(start, token_ids, runs, layers, note, states)


def check_bound(path: Path, found: Any, expected: dict[str, Any]) -> None:
    """Raise FileProblem, saying why, for what belongs to another model or to other settings."""
    if not isinstance(found, dict):
        raise FormatError(f"{path} is damaged: its header cannot be read; save the session again")
    for name, value in expected.items():
        own = found.get(name)
        if own != value:
            shown = f" ({own}, and here it is {value})" if name in ("version", "isa", "kv_type", "activations") else ""
            raise FileProblem(f"{path} was saved {WORDS[name]}{shown}; it cannot be used here")


def _run_of(cache: KVCache, layer: Any, runs: list[Run]) -> Run:
    return next(run for run, pool in zip(runs, cache.pools, strict=True) if pool.window == layer.window)


def _cut_short(path: Path) -> FormatError:
    return FormatError(f"{path} is cut short or has something behind its end; save the session again")
