"""The seal of a shard's file: what is compared before any of it is read.

It has two parts, one after another in the shard's record: `holds_ends` compares the first by a few
small reads, `holds_all` the second by reading all.
"""

import hashlib
import io
import math
import zlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

_SEAL, _CRC = 16, 8  # hexadecimal digits
SEAL: Final = _SEAL + _CRC


def n_chunks(node: Mapping[str, Any]) -> int:
    """Return the number of chunks in one shard of the array with these metadata."""
    shard: list[int] = node["chunk_grid"]["configuration"]["chunk_shape"]
    chunk: list[int] = node["codecs"][0]["configuration"]["chunk_shape"]
    return math.prod(shard) // math.prod(chunk)


def seal(content: bytes, n_chunks: int) -> str:
    """Digest of a shard's file: that of `holds_ends`, then the CRC-32 of the whole."""
    return f"{_digest_ends(io.BytesIO(content), n_chunks)}{zlib.crc32(content):08x}"


def holds_ends(file: io.FileIO, n_chunks: int, seal: str) -> bool:
    """Compare a file's size, index and the checksum at the end of each chunk with its seal.

    That stands for all of its bytes once the chunks that are read are compared with their
    checksums, which Zarr does, and costs a few small reads: 0.1 ms for 9 MB in 32 chunks, where
    CRC-32 takes 3 ms and SHA-256 takes 11. A file of another shard, array or store has another
    seal; so has one that is shorter, or lacks a chunk.
    """
    return _digest_ends(file, n_chunks) == seal[:_SEAL]


def holds_all(content: bytes, seal: str) -> bool:
    """Compare all bytes of a shard's file with its seal."""
    return f"{zlib.crc32(content):08x}" == seal[_SEAL:]


def _digest_ends(file: io.FileIO | io.BytesIO, n_chunks: int) -> str:
    size, n_bytes = file.seek(0, io.SEEK_END), 16 * n_chunks + 4
    if size < n_bytes:
        return ""
    file.seek(size - n_bytes)
    index = file.read(n_bytes)
    digest = hashlib.sha256(size.to_bytes(8, "little") + index)
    for start, length in np.frombuffer(index[:-4], "<u8").reshape(-1, 2).tolist():
        file.seek(max(4, min(start + length, size)) - 4)  # a damaged index may say anything
        digest.update(file.read(4))
    return digest.hexdigest()[:_SEAL]
