"""Block formats, how files store weights in few bits: layout, exact dequantize and quantize, in NumPy.

FORMATS["Q4_K"].dequantize(raw)     uint8[..., n_bytes] -> float32[..., n_weights]
by_ggml_type(12)                    the same format by its number in a GGUF file
"""

from __future__ import annotations

from edgellm.errors import FormatError, UnsupportedError
from edgellm.quants.base import BlockFormat
from edgellm.quants.floats import BF16, F16, F32
from edgellm.quants.iq4_nl import IQ4_NL
from edgellm.quants.iq4_xs import IQ4_XS
from edgellm.quants.mxfp4 import MXFP4
from edgellm.quants.q2_k import Q2_K
from edgellm.quants.q3_k import Q3_K
from edgellm.quants.q4_0 import Q4_0
from edgellm.quants.q4_1 import Q4_1
from edgellm.quants.q4_k import Q4_K
from edgellm.quants.q5_0 import Q5_0
from edgellm.quants.q5_1 import Q5_1
from edgellm.quants.q5_k import Q5_K
from edgellm.quants.q6_k import Q6_K
from edgellm.quants.q8_0 import Q8_0

__all__ = ["FORMATS", "BlockFormat", "by_ggml_type"]

_CLASSES: tuple[type[BlockFormat], ...] = (
    *(F32, F16, BF16),
    *(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0),
    *(Q2_K, Q3_K, Q4_K, Q5_K, Q6_K),
    *(IQ4_NL, IQ4_XS, MXFP4),
)

FORMATS: dict[str, BlockFormat] = {kind.name: kind() for kind in _CLASSES}

_BY_TYPE = {block_format.ggml_type: block_format for block_format in FORMATS.values()}

# Types that GGUF files may hold and edgellm does not compute with, so that the refusal can name them.
_OTHER_TYPES = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    34: "TQ1_0",
    35: "TQ2_0",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
    40: "NVFP4",
    41: "Q1_0",
}


def by_ggml_type(number: int) -> BlockFormat:
    """The format of a tensor type number in GGUF files.

    UnsupportedError when ggml has that type and edgellm lacks it, FormatError when no such type exists.
    """
    if found := _BY_TYPE.get(number):
        return found
    if name := _OTHER_TYPES.get(number):
        raise UnsupportedError(f"tensor type {name} is not supported; supported are {', '.join(FORMATS)}")
    raise FormatError(f"tensor type number {number} does not exist in GGUF")
