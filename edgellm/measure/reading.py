"""What reading texts leaves in memory beside the cache: tables of the tokenizer, and embeddings of tokens."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np

from edgellm.machine import mapped_at_once, resident_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgellm.formats.tensor import Tensor
    from edgellm.text import Tokenizer

_DOUBLINGS = 15  # of a token, which make 32,768
_CHARS_A_TOKEN = 4
_LEAST_MAPPED = 1 << 16  # see `mapped_at_once`


def bytes_of_reading(tokenizer: Tokenizer, embeddings: Tensor | None) -> tuple[int, ...]:
    """Bytes that are in memory once 1, 2, 4, ... tokens were read: of this package's sources, English and code.

    A tokenizer makes tables when it has met so much text that they pay. Of embeddings, those of a text's tokens are
    read, of which some occur again and again and most never do; the system maps neighbours along with each.

    embeddings:  where nothing else reads them from the file.
    """
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    before, most, begin = resident_memory(), 0, 0
    ids: list[int] = []
    of_tokenizer = []
    for doublings in range(_DOUBLINGS + 1):
        end = _CHARS_A_TOKEN << doublings
        ids += tokenizer.encode(text[begin:end])
        most, begin = max(most, resident_memory() - before), end
        of_tokenizer.append(most)
    if embeddings is None:
        return tuple(of_tokenizer)
    read = np.array(ids)
    mapped = max(_LEAST_MAPPED, mean(mapped_at_once(embeddings.raw.reshape(-1))))
    rows = (_bytes_of_rows(embeddings, read[: 1 << doublings], mapped) for doublings in range(_DOUBLINGS + 1))
    return tuple(map(sum, zip(of_tokenizer, rows, strict=True)))


def _bytes_of_rows(embeddings: Tensor, ids: NDArray[np.int64], mapped: float) -> int:
    """Bytes of all parts of a file, each as large as what the system maps at once, that hold embeddings of tokens."""
    own = embeddings.n_bytes // embeddings.shape[0]
    starts = np.unique(ids) * own
    parts = np.unique([starts // mapped, (starts + own - 1) // mapped])
    return min(embeddings.n_bytes, int(len(parts) * mapped))
