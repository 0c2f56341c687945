"""The section table of an ELF file, as much of it as device code needs (ELF-64, gABI 4.1).

Every count and offset is held against the file's size before it is used: a broken file costs no
more time than a whole one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fp4forge.kernels.base import BinaryError

CUDA = 190  # EM_CUDA
NOBITS = 8  # SHT_NOBITS: no bytes in the file
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_FUNC = 2  # STT_FUNC
_EXTENDED = 0xFFFF  # SHN_XINDEX
_LARGEST_NAMES = 256 << 20  # bytes; mangled names of the largest cubins take some MB
_LARGEST_TABLE = 4_000_000  # sections


@dataclass(frozen=True)
class Section:
    """One section: its name, type (SHT_*), and its bytes' place in the file."""

    name: str
    type: int
    offset: int
    size: int


@dataclass(frozen=True)
class Elf:
    """An ELF file's machine (EM_*) and sections."""

    machine: int
    sections: tuple[Section, ...]

    @property
    def device_code(self) -> bool:
        """Whether it is a cubin, or has CUDA's fat binary."""
        return self.machine == CUDA or any(s.name == ".nv_fatbin" for s in self.sections)

    @property
    def end(self) -> int:
        """Where the last section's bytes end."""
        return max((s.offset + s.size for s in self.sections if s.type != NOBITS), default=0)


def functions(path: Path) -> dict[str, int]:
    """Indices of a cubin's functions in its symbol table, by name (gABI 4.1, "Symbol Table").

    Raises:
        BinaryError: it is not ELF-64 in little-endian order, or is broken or cut off.
    """
    table = next((s for s in read(path).sections if s.name == ".symtab"), None)
    names = next((s for s in read(path).sections if s.name == ".strtab"), None)
    if table is None or names is None:
        return {}
    size = path.stat().st_size
    if max(table.offset + table.size, names.offset + names.size) > size:
        raise _broken(path, "truncated: its symbols are not in the file")
    with path.open("rb") as file:
        rows = _at(file, table.offset, table.size - table.size % _SYMBOL.size)
        text = _at(file, names.offset, names.size)
    return {
        _name(text, start): index
        for index, (start, info, *_) in enumerate(_SYMBOL.iter_unpack(rows))
        if info & 0xF == _FUNC
    }


def is_elf(path: Path) -> bool:
    """Whether a file begins as ELF files do."""
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def read(path: Path) -> Elf:
    """The section table of a file.

    Raises:
        BinaryError: it is not ELF-64 in little-endian order, or its table is broken or cut off.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_HEADER.size)
        if len(start) < _HEADER.size or start[:6] != b"\x7fELF\x02\x01":
            raise _broken(path, "no 64-bit little-endian header")
        _, _, machine, _, _, _, table, _, _, _, _, width, count, names = _HEADER.unpack(start)
        if table == 0:
            return Elf(machine, ())
        if width != _SECTION.size or table + width > size:
            raise _broken(path, f"its section table at byte {table} is not in the file")
        first = _SECTION.unpack(_at(file, table, width))
        count = count or first[5]
        names = first[6] if names == _EXTENDED else names
        if count > _LARGEST_TABLE or table + count * width > size or not names < count:
            raise _broken(path, f"its section table of {count} entries is truncated")
        rows = [*_SECTION.iter_unpack(_at(file, table, count * width))]
        _, kind, _, _, offset, length, *_ = rows[names]
        if kind == NOBITS or length > _LARGEST_NAMES or offset + length > size:
            raise _broken(path, "truncated: the names of its sections are not in the file")
        text = _at(file, offset, length)
    return Elf(machine, tuple(Section(_name(text, row[0]), row[1], row[4], row[5]) for row in rows))


def _at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _name(text: bytes, start: int) -> str:
    end = text.find(b"\0", start, start + 65536)
    return text[start:end].decode(errors="replace") if end >= 0 else ""


def _broken(path: Path, why: str) -> BinaryError:
    return BinaryError(f"{path} is a broken ELF file: {why}", rule="ELF-64, little-endian")
