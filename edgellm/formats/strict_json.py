"""JSON from files that may be hostile: bounded in size, depth and number of values, no key twice."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, NoReturn

from edgellm.errors import FormatError
from edgellm.formats.gguf.header import quoted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_BYTES = 100_000_000
MAX_VALUES = 1 << 21  # bounds memory: a byte of JSON can become a Python object of 64
MAX_DIGITS = 64  # of a whole number; transformers writes 1e30 where there is no limit


def parse_object(data: NDArray[np.uint8]) -> dict[str, Any]:
    """The JSON object in uint8[n_bytes] of a file, in the file's order; FormatError says what else it is."""
    if len(data) > MAX_BYTES:
        raise FormatError(f"its JSON has {len(data)} bytes; edgellm reads at most {MAX_BYTES}")
    found = parse(data.tobytes())
    if type(found) is not dict:
        raise FormatError(f"its JSON is a {type(found).__name__}; expected an object")
    return found


def parse(raw: bytes) -> Any:
    """The value that some bytes spell in JSON. Raises FormatError for what is malformed or beyond the bounds."""
    if len(raw) > MAX_BYTES:
        raise FormatError(f"its JSON has {len(raw)} bytes; edgellm reads at most {MAX_BYTES}")
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > MAX_VALUES:
        raise FormatError(f"its JSON holds more than {MAX_VALUES} values")
    try:
        return json.loads(
            raw.decode(),
            object_pairs_hook=_unique,
            parse_int=_bounded_int,
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
    except UnicodeDecodeError as problem:
        raise FormatError(f"its JSON is not UTF-8 at byte {problem.start}") from None
    except json.JSONDecodeError as problem:
        raise FormatError(f"its JSON is malformed: {problem}") from None
    except RecursionError:
        raise FormatError("its JSON is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise FormatError(f"{quoted(twice)} appears twice in its JSON")
    return found


def _bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise FormatError(f"its JSON holds a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    found = float(digits)
    if not math.isfinite(found):  # which could not be written as JSON again
        raise FormatError(f"its JSON holds the number {digits[:20]}, which is too large")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise FormatError(f"its JSON holds {name}, which is no number")
