"""Reads the matrices of a structure in a MATLAB file; a damaged file is an error, where SciPy ends the process.

Source: MathWorks, MAT-File Format (level 5).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

HEAD_BYTES = 128
"""Text about the file, and in the last two bytes `MI` or `IM`, which tells the order of bytes."""
MATRIX, COMPRESSED = 14, 15
"""Kinds of elements that hold other elements."""
STRUCTURE = 2
"""Class of a matrix whose elements are structures."""
REAL_CLASSES = range(6, 16)
"""Classes of matrices of numbers."""
IS_COMPLEX = 0x800
"""Flag of a matrix whose numbers have an imaginary part."""
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

Matrix = NDArray[np.int64] | NDArray[np.float64]


class StructureReader:
    """Reads the structure of a given name from the bytes of a file.

    Args:
        data: The file.
        name: Name of the structure.
        most_bytes: What the structure may take once it is decompressed.

    Raises:
        ValueError: the file is damaged, larger than allowed once it is decompressed, or has no such structure.
    """

    def __init__(self, data: bytes, name: str, *, most_bytes: int) -> None:
        self._byte_order = ">" if data[HEAD_BYTES - 2 : HEAD_BYTES] == b"MI" else "<"
        self._fields: dict[str, bytes] = {}
        for kind, content in self._elements(data[HEAD_BYTES:]):
            if kind == COMPRESSED:
                unpacked = _decompress(content, most_bytes)
                kind, content = next(self._elements(unpacked), (0, b""))
            if kind != MATRIX:
                continue
            # Flags, shape, name; of a structure then the length of its fields' names, these names, and the fields.
            parts = [part for _, part in self._elements(content)]
            if len(parts) < 5 or not parts[0] or parts[2] != name.encode():
                continue
            if self._class_of(parts) == STRUCTURE:
                self._fields = self._split(parts)
                return
        raise ValueError(f"it has no structure {name}")

    def matrix(self, field: str) -> Matrix:
        """The numbers of a field, in the shape that they have.

        Raises:
            ValueError: there is no such field, or it is no matrix of real numbers.
        """
        if field not in self._fields:
            raise ValueError(f"it has no field {field}")
        elements = list(self._elements(self._fields[field]))
        parts = [part for _, part in elements]
        is_real = len(parts) == 4 and self._class_of(parts) in REAL_CLASSES
        if not is_real or elements[3][0] not in NUMBERS:
            raise ValueError(f"{field} is no matrix of real numbers")
        shape = np.frombuffer(parts[1], f"{self._byte_order}i4").tolist()
        if min(shape, default=-1) < 0:
            raise ValueError(f"{field} has the shape {shape}")
        numbers = np.frombuffer(parts[3], self._byte_order + NUMBERS[elements[3][0]])
        return numbers.reshape(shape, order="F")  # MATLAB stores column after column

    def _elements(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Kind and content of each element."""
        position = 0
        while position + 8 <= len(data):
            kind, size = struct.unpack_from(f"{self._byte_order}II", data, position)
            start = position + 8
            # Elements are filled up to eight bytes, but for compressed ones.
            padding = 0 if kind == COMPRESSED else -size % 8
            position = start + size + padding
            # A small element has its size in the upper half of the kind, and up to four bytes where the size would be.
            if kind >> 16:
                kind, size = kind & 0xFFFF, kind >> 16
                position = start
                start -= 4
            if start + size > len(data):
                raise ValueError("it ends in the middle of an element")
            yield kind, data[start : start + size]

    def _class_of(self, parts: list[bytes]) -> int:
        """The class of a matrix; -1 for complex numbers."""
        if len(parts[0]) != 8:
            raise ValueError("a matrix has no class")
        (flags,) = struct.unpack_from(f"{self._byte_order}I", parts[0])
        return -1 if flags & IS_COMPLEX else flags & 0xFF

    def _split(self, parts: list[bytes]) -> dict[str, bytes]:
        """Name -> matrix of each field of a matrix of one structure."""
        name_length, names, fields = parts[3], parts[4], parts[5:]
        if len(name_length) != 4:
            raise ValueError("its names have no length")
        (length,) = struct.unpack(f"{self._byte_order}i", name_length)
        if length < 1 or len(names) // length != len(fields):
            raise ValueError("its fields are not those that it names")
        fields_by_name = {}
        for index, field in enumerate(fields):
            name = names[index * length : (index + 1) * length]
            text = name.split(b"\0")[0]  # shorter names are filled up with zeros
            fields_by_name[text.decode("latin-1")] = field
        return fields_by_name


def _decompress(data: bytes, most_bytes: int) -> bytes:
    try:
        # One byte more than allowed is enough to see that there are too many; a few MB can stand for terabytes.
        unpacked = zlib.decompressobj().decompress(data, most_bytes + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(unpacked) > most_bytes:
        raise ValueError(f"it unpacks to more than {most_bytes / 1e6:.0f} MB")
    return unpacked
