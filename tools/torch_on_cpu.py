#!/usr/bin/env python3
"""Lets PyTorch's package from PyPI be imported without NVIDIA's libraries: 1.2 GB instead of 5.2.

    python tools/torch_on_cpu.py SITE_PACKAGES

On x86_64 PyPI has PyTorch for CUDA only; it is linked against libraries of fifteen other packages and calls none of them where there is no
device. This puts stand-ins beside it: one shared library in which every symbol of theirs is a function that answers "no device", and, under
the other names, links to a library of PyTorch's own. PyTorch's files are not touched; where the real libraries are installed nothing is done.

Why one library can answer for all: a symbol is looked up by name in all libraries that were loaded, and a library without versions of its own
answers for every version unless the caller expects the version in just that library. So the stand-in takes a name of which no
version is expected. (ELF: System V ABI, chapters 4 and 5; glibc, elf/dl-lookup.c.)
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from pathlib import Path

PREFIXES = ("cu", "nccl", "nv", "__cuda")  # of the symbols
LIBRARIES = ("libcu", "libnccl", "libnv")
PLACEHOLDER = "libtorch_global_deps.so"  # the smallest of PyTorch's own
NO_DEVICE = bytes.fromhex("b864000000c3").ljust(16, b"\x90")  # mov eax, 100 (cudaErrorNoDevice); ret
# lea rax, [rip + 1]; ret; and the text that it points to: what an error is called is a text, which PyTorch reads.
CALLED = bytes.fromhex("488d0501000000c3") + b"no CUDA device".ljust(24, b"\0")
# Ends of symbols that answer with one.
TEXTS = ("ErrorString", "ErrorName", "StatusString", "StatusName", "ncclGetLastError")
# Tags of the dynamic section.
NEEDED, HASH, STRTAB, SYMTAB, STRSZ, SYMENT, SONAME, VERNEED = 1, 4, 5, 6, 10, 11, 14, 0x6FFFFFFE
SYMBOL, HEADER, SEGMENT = struct.Struct("<IBBHQQ"), struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")
DYNAMIC_SECTION, DYNAMIC_SYMBOLS = 6, 11  # types of sections


@dataclass(frozen=True)
class Library:
    """What a shared library asks of others."""

    needed: frozenset[str]
    versioned: frozenset[str]  # those of which it expects versions
    undefined: frozenset[str]  # symbols


def read(path: Path) -> Library:
    """Read the dynamic section and symbol table of an ELF file for x86_64."""
    data = path.read_bytes()
    header = HEADER.unpack_from(data)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, header[6] + index * header[11]) for index in range(header[12])]

    def text(table: int, at: int) -> str:
        start = sections[table][4] + at
        return data[start : data.index(0, start)].decode()

    needed, versioned, undefined = set(), set(), set()
    for section in sections:
        kind, offset, size, link = section[1], section[4], section[5], section[6]
        if kind == DYNAMIC_SECTION:
            entries = struct.iter_unpack("<QQ", data[offset : offset + size])
            needed = {text(link, value) for tag, value in entries if tag == NEEDED}
        elif kind == VERNEED:
            at = offset
            for _ in range(section[7]):
                _, _, name, _, following = struct.unpack_from("<HHIII", data, at)
                versioned.add(text(link, name))
                at += following
        elif kind == DYNAMIC_SYMBOLS:
            symbols = SYMBOL.iter_unpack(data[offset : offset + size])
            undefined = {text(link, name) for name, _, _, home, _, _ in symbols if home == 0}
    return Library(frozenset(needed), frozenset(versioned), frozenset(undefined))


def stand_in(name: str, symbols: list[str]) -> bytes:
    """A shared library in which every one of `symbols` is the function NO_DEVICE, or CALLED."""
    texts = bytearray(b"\0")

    def place(text: str) -> int:
        texts.extend(text.encode() + b"\0")
        return len(texts) - len(text) - 1

    code = HEADER.size + 3 * SEGMENT.size
    table = code + len(NO_DEVICE) + len(CALLED)
    # Global functions in "section" 1, which only has to differ from 0, undefined.
    starts = [code + len(NO_DEVICE) * symbol.endswith(TEXTS) for symbol in symbols]
    rows = [SYMBOL.pack(place(symbol), 0x12, 0, 1, start, 8) for symbol, start in zip(symbols, starts, strict=True)]
    symbol_table = SYMBOL.pack(0, 0, 0, 0, 0, 0) + b"".join(rows)
    soname = place(name)
    hashed = table + len(symbol_table)
    count = len(symbols) + 1
    # One bucket: a chain through all symbols.
    chain = struct.pack(f"<{3 + count}I", 1, count, min(1, len(symbols)), *(0, *range(2, count), 0)[:count])
    strings = hashed + len(chain)
    end = strings + len(texts)
    dynamic = (end + 0xFFF) // 0x1000 * 0x1000  # on a page of its own: the loader writes into it
    entries = ((SONAME, soname), (HASH, hashed), (STRTAB, strings), (SYMTAB, table), (STRSZ, len(texts)))
    section = b"".join(struct.pack("<QQ", *entry) for entry in (*entries, (SYMENT, SYMBOL.size), (0, 0)))
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = HEADER.pack(ident, 3, 62, 1, 0, HEADER.size, 0, 0, HEADER.size, SEGMENT.size, 3, 64, 0, 0)
    segments = (
        SEGMENT.pack(1, 5, 0, 0, 0, end, end, 0x1000),  # loaded, read and executed
        SEGMENT.pack(1, 6, dynamic, dynamic, dynamic, len(section), len(section), 0x1000),  # loaded, written
        SEGMENT.pack(2, 6, dynamic, dynamic, dynamic, len(section), len(section), 8),
    )
    front = head + b"".join(segments) + NO_DEVICE + CALLED + symbol_table + chain + bytes(texts)
    return front.ljust(dynamic, b"\0") + section


def main(site_packages: Path) -> None:
    """Write the stand-ins beside PyTorch's libraries, where they are needed."""
    folder = site_packages / "torch" / "lib"
    libraries = [read(path) for path in folder.glob("lib*.so*") if not path.is_symlink()]
    if any((site_packages / "nvidia").glob("**/libcudart.so*")) or not libraries:
        return
    core = read(folder / "libtorch_cuda.so")
    missing = {name for library in libraries for name in library.needed if name.startswith(LIBRARIES)}
    missing -= {"libcuda.so.1"}  # the driver's own, loaded on demand
    symbols = {name for library in libraries for name in library.undefined if name.startswith(PREFIXES)}
    name = min(missing & core.needed - {each for library in libraries for each in library.versioned})
    for other in missing:
        (folder / other).unlink(missing_ok=True)
        if other != name:
            (folder / other).symlink_to(PLACEHOLDER)
    (folder / name).write_bytes(stand_in(name, sorted(symbols)))
    print(f"{len(missing)} libraries that PyTorch does without on a CPU, {len(symbols)} symbols in {folder / name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
