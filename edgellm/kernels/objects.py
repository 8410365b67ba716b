"""Object files as LLVM writes them for Linux (ELF), macOS (Mach-O) and Windows (COFF): what they want from elsewhere.

64-bit and little-endian, as all that kernels are compiled for. They come straight from LLVM, so they are whole.
"""

from __future__ import annotations

import llvmlite.binding as llvm
import numpy as np

from edgellm.errors import KernelError


def undefined_symbols(code: bytes) -> set[str]:
    """Names, as C has them, that an object expects from elsewhere: also those of functions that stand in for

    missing instructions. Raises KernelError for any other kind of file.
    """
    if code.startswith(b"\x7fELF"):
        return _of_elf(code)
    if code.startswith(b"\xcf\xfa\xed\xfe"):
        return _of_macho(code)
    if code[:2] in (b"\x64\x86", b"\x64\xaa"):  # IMAGE_FILE_MACHINE_AMD64 and _ARM64
        return _of_coff(code)
    raise KernelError(f"LLVM made an object of an unknown kind, which begins with {code[:4].hex(' ')}")


_ELF_SYMBOL = np.dtype([("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"),
                        ("value", "<u8"), ("size", "<u8")])  # fmt: skip


def _of_elf(code: bytes) -> set[str]:
    """Of the System V ABI: a symbol without a section."""
    sections = {section.name(): section.data() for section in llvm.ObjectFileRef.from_data(code).sections()}
    names = sections.get(b".strtab", b"")
    symbols = np.frombuffer(sections.get(b".symtab", b""), _ELF_SYMBOL)
    return {_name_at(names, at) for at in symbols["name"][symbols["section"] == 0] if at}


_MACHO_COMMAND = np.dtype([("kind", "<u4"), ("n_bytes", "<u4")])
_MACHO_SYMBOL_TABLE = np.dtype([("command", _MACHO_COMMAND), ("symbols", "<u4"), ("n_symbols", "<u4"),
                                ("names", "<u4"), ("n_bytes", "<u4")])  # fmt: skip
_MACHO_SYMBOL = np.dtype([("name", "<u4"), ("type", "u1"), ("section", "u1"), ("about", "<u2"), ("value", "<u8")])
_MACHO_HEADER_BYTES = 32
_LC_SYMTAB = 2
_N_STAB, _N_TYPE = 0xE0, 0x0E  # set for debuggers; what kind of symbol it is, 0 for an undefined one


def _of_macho(code: bytes) -> set[str]:
    """Of Apple's mach-o/loader.h and nlist.h. C's names have an underscore before them."""
    (n_commands,) = np.frombuffer(code, "<u4", 1, 16)
    at, found = _MACHO_HEADER_BYTES, set()
    for _ in range(n_commands):
        (command,) = np.frombuffer(code, _MACHO_COMMAND, 1, at)
        if command["kind"] == _LC_SYMTAB:
            (table,) = np.frombuffer(code, _MACHO_SYMBOL_TABLE, 1, at)
            symbols = np.frombuffer(code, _MACHO_SYMBOL, table["n_symbols"], table["symbols"])
            undefined = symbols[symbols["type"] & (_N_STAB | _N_TYPE) == 0]
            found |= {_name_at(code[table["names"] :], at).removeprefix("_") for at in undefined["name"]}
        at += int(command["n_bytes"])
    return found


_COFF_HEADER = np.dtype([("machine", "<u2"), ("n_sections", "<u2"), ("time", "<u4"), ("symbols", "<u4"),
                         ("n_symbols", "<u4"), ("optional", "<u2"), ("about", "<u2")])  # fmt: skip
_COFF_SYMBOL = np.dtype([("name", "S8"), ("value", "<u4"), ("section", "<i2"), ("type", "<u2"), ("storage", "u1"),
                         ("n_more", "u1")])  # fmt: skip
_EXTERNAL = (2, 105)  # IMAGE_SYM_CLASS_EXTERNAL and _WEAK_EXTERNAL


def _of_coff(code: bytes) -> set[str]:
    """Of Microsoft's PE format: a symbol without a section. Names of more than 8 bytes follow the symbols."""
    (header,) = np.frombuffer(code, _COFF_HEADER, 1)
    symbols = np.frombuffer(code, _COFF_SYMBOL, header["n_symbols"], header["symbols"])
    names = code[header["symbols"] + symbols.nbytes :]
    found, at = set(), 0
    while at < len(symbols):
        symbol = symbols[at]
        if symbol["section"] == 0 and symbol["storage"] in _EXTERNAL:
            raw = symbol.tobytes()[:8]
            is_long = raw[:4] == bytes(4)
            found.add(_name_at(names, int.from_bytes(raw[4:], "little")) if is_long else raw.rstrip(b"\0").decode())
        at += 1 + int(symbol["n_more"])  # records that say more of it
    return found


def _name_at(names: bytes, at: int) -> str:
    return names[at : names.index(b"\0", at)].decode()
