"""The matrices of a structure in a MATLAB file; a damaged file is an error and never ends the process, as with SciPy.

Source: MathWorks, MAT-File Format (level 5).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

HEAD_BYTES, MATRIX, COMPRESSED = 128, 14, 15
STRUCTURE = 2
NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
"""Kind of an element -> its numbers, as NumPy names them."""
REAL_CLASSES = range(6, 16)
IS_COMPLEX = 0x800

Matrix = NDArray[np.int64] | NDArray[np.float64]


class StructureReader:
    """Reads the structure of a name in the bytes of a file.

    Raises:
        ValueError: the file is damaged, larger than allowed once it is decompressed, or has no such structure.
    """

    def __init__(self, data: bytes, name: str, *, most_bytes: int) -> None:
        self._order = ">" if data[126:HEAD_BYTES] == b"MI" else "<"
        self._fields: dict[str, bytes] = {}
        for kind, content in self._elements(data[HEAD_BYTES:]):
            if kind == COMPRESSED:
                try:
                    unpacked = zlib.decompressobj().decompress(content, most_bytes + 1)
                except zlib.error as error:
                    raise ValueError(str(error)) from error
                if len(unpacked) > most_bytes:
                    raise ValueError(f"it unpacks to more than {most_bytes / 1e6:.0f} MB")
                kind, content = next(self._elements(unpacked), (0, b""))
            if kind == MATRIX:
                parts = [each for _, each in self._elements(content)]
                if (
                    len(parts) > 4
                    and parts[0][:1]
                    and parts[2] == name.encode()
                    and self._flags(parts) == STRUCTURE
                ):
                    self._fields = self._split(parts)
                    return
        raise ValueError(f"it has no structure {name}")

    def matrix(self, field: str) -> Matrix:
        """The numbers of a field, in the shape that they have."""
        if field not in self._fields:
            raise ValueError(f"it has no field {field}")
        elements = list(self._elements(self._fields[field]))
        parts = [each for _, each in elements]
        if (
            len(parts) != 4
            or self._flags(parts) not in REAL_CLASSES
            or elements[3][0] not in NUMBERS
        ):
            raise ValueError(f"{field} is no matrix of real numbers")
        shape = np.frombuffer(parts[1], f"{self._order}i4").tolist()
        if min(shape, default=-1) < 0:
            raise ValueError(f"{field} has the shape {shape}")
        numbers = np.frombuffer(parts[3], self._order + NUMBERS[elements[3][0]])
        return numbers.reshape(shape, order="F")

    def _elements(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Kind and content of each element; small ones have both in eight bytes."""
        place = 0
        while place + 8 <= len(data):
            kind, size = struct.unpack_from(f"{self._order}II", data, place)
            start = place + 8
            place = start + size + (0 if kind == COMPRESSED else -size % 8)
            if kind >> 16:
                kind, size, start, place = kind & 0xFFFF, kind >> 16, start - 4, start
            if start + size > len(data):
                raise ValueError("it ends in the middle of an element")
            yield kind, data[start : start + size]

    def _flags(self, parts: list[bytes]) -> int:
        """The class of a matrix; -1 for complex numbers."""
        if len(parts[0]) != 8:
            raise ValueError("a matrix has no class")
        (flags,) = struct.unpack_from(f"{self._order}I", parts[0])
        return -1 if flags & IS_COMPLEX else flags & 0xFF

    def _split(self, parts: list[bytes]) -> dict[str, bytes]:
        """Name -> matrix of each field of a structure of one."""
        if len(parts[3]) != 4:
            raise ValueError("its names have no length")
        (width,) = struct.unpack(f"{self._order}i", parts[3])
        if width < 1 or len(parts[4]) // width != len(parts) - 5:
            raise ValueError("its fields are not those that it names")
        names = [
            parts[4][start : start + width].split(b"\0")[0]
            for start in range(0, len(parts[4]), width)
        ]
        return {name.decode("latin-1"): part for name, part in zip(names, parts[5:], strict=False)}
