"""Streaming a model into a GGUF file: a few rows at a time are dequantized, quantized and written.

Threads work on neighbouring pieces of a tensor, and the pieces are written in order. So memory holds a few pieces,
whatever the size of the model, and the file does not depend on the number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgellm.convert.parts import Part
from edgellm.convert.rows import PIECE_WEIGHTS, Encoder, rows_of
from edgellm.errors import FileProblem
from edgellm.files import check_room
from edgellm.formats.gguf import GGUFFile, GGUFWriter
from edgellm.machine import default_threads
from edgellm.params import RuntimeConfig
from edgellm.quants import BlockFormat

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")
R = TypeVar("R")


def write_model(
    target: Path,
    metadata: Mapping[str, Any],
    parts: Sequence[Part],
    formats: Mapping[str, BlockFormat],
    *,
    importance: Mapping[str, NDArray[Any]] | None = None,
    n_threads: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    check: Callable[[GGUFFile], None] | None = None,
) -> None:
    """Write `target`, which takes its name only when it is whole and opens again.

    formats:     of every tensor, by its name in the target.
    importance:  float32 [n_cols] by name: how much each column matters (see `edgellm.formats.imatrix`).
    progress:    (bytes of the source done, bytes in all, what).
    check:       is given the file as it was written; what it raises is raised, and nothing is left.

    Raises FormatError naming a tensor that holds NaN or infinity, FileProblem when the target cannot
    be written, UsageError for a number of threads that cannot be.
    """
    n_threads = RuntimeConfig(n_threads=n_threads).n_threads or default_threads()
    encoder = Encoder(importance or {})
    total, done = sum(part.tensor.n_bytes for part in parts), 0

    def pieces_of(part: Part) -> Iterator[NDArray[Any]]:
        nonlocal done

        def encode(rows: slice) -> NDArray[Any]:
            return encoder.encode(part, rows, formats[part.name])

        for piece, raw in _in_order(pool, n_threads + 2, encode, rows_of(part, PIECE_WEIGHTS)):
            yield raw
            done += part.piece_bytes(piece)
            if progress:
                progress(done, total, f"writing {target.name}")

    def source(part: Part) -> Callable[[], Iterator[NDArray[Any]]]:
        return lambda: pieces_of(part)

    tensors = [(part.name, part.tensor.shape, formats[part.name], source(part)) for part in parts]
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="edgellm-quantize")
    try:
        check_room(target, sum(part.n_rows * formats[part.name].row_bytes(part.n_cols) for part in parts))
        GGUFWriter(target, metadata, tensors).write(check or (lambda file: None))
    except OSError as problem:
        raise FileProblem(f"{problem.filename or target} cannot be written: {problem.strerror or problem}") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, n_ahead: int, work: Callable[[T], R], items: Iterable[T]
) -> Iterator[tuple[T, R]]:
    """Each item and work(item), in order, while the pool is at most n_ahead items further."""
    waiting: deque[tuple[T, Future[R]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(work, item)))
        if len(waiting) > n_ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()
