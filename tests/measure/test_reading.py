"""What reading texts takes: of embeddings the parts of a file that hold them, and what the tokenizer makes."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.formats.tensor import Tensor
from edgellm.measure import reading
from edgellm.quants import FORMATS

N_ROWS, N_COLS = 1024, 64
ROW_BYTES = N_COLS * 4


class Letters:
    """Every letter is a token."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % N_ROWS for letter in text]


def embeddings() -> Tensor:
    raw = np.zeros((N_ROWS, ROW_BYTES), np.uint8)
    return Tensor("token_embd.weight", (N_ROWS, N_COLS), FORMATS["F32"], raw)


@pytest.mark.parametrize(
    ("ids", "mapped", "n_bytes"),
    [
        ([0, 1, 1, 0], 4 * ROW_BYTES, 4 * ROW_BYTES),
        ([3, 4], 4 * ROW_BYTES, 8 * ROW_BYTES),
        ([1], 300, 600),  # bytes 256 to 511, of the first part and of the second
        ([0, 1023], 1 << 30, N_ROWS * ROW_BYTES),  # never more than there is
    ],
)
def test_parts_that_hold_embeddings(ids: list[int], mapped: float, n_bytes: int) -> None:
    assert reading._bytes_of_rows(embeddings(), np.array(ids), mapped) == n_bytes


def test_embeddings_and_tables_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of 1,000 bytes is made as the 16th token is read, and let go later: what was taken at most counts."""
    taken = iter([0, *[0] * 4, 1000, *[500] * 20])
    monkeypatch.setattr(reading, "resident_memory", lambda: next(taken))
    alone = reading.bytes_of_reading(Letters(), None)  # type: ignore[arg-type]
    assert alone == (*[0] * 4, *[1000] * 12)
    monkeypatch.setattr(reading, "resident_memory", lambda: 0)
    both = reading.bytes_of_reading(Letters(), embeddings())  # type: ignore[arg-type]
    assert list(both) == sorted(both)
    assert both[0] >= ROW_BYTES and both[-1] <= N_ROWS * ROW_BYTES
