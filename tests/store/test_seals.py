"""The seal of a file stands for its bytes, and is worked out here byte by byte."""

import hashlib
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from condec.network.sites import Site, Units
from condec.store.seals import SEAL, holds_all, holds_ends, n_chunks, seal
from condec.store.shards import SiteInfo, _encoded, make_config, skeleton


@pytest.fixture(scope="module")
def shard() -> tuple[bytes, int]:
    """Return one shard's file, and its number of chunks."""
    info = SiteInfo(
        site=Site("a"), units=Units("features"), n_units=1024, n_positions=1, cut=True
    )  # fmt: skip
    node = json.loads(skeleton(make_config({}, [info], 4, 2))["sites/a/activation/zarr.json"])
    rows = np.random.default_rng(0).standard_normal((2, 2, 1024), dtype=np.float32)
    return _encoded(node, 2, rows), n_chunks(node)


def test_a_seal_is_of_size_index_and_ends_of_chunks(shard: tuple[bytes, int]) -> None:
    content, number = shard
    assert number == 4
    index = content[-16 * number - 4 :]
    ends = b""
    for k in range(number):
        start, length = struct.unpack_from("<QQ", index, 16 * k)
        ends += content[start + length - 4 : start + length]
    digest = hashlib.sha256(struct.pack("<Q", len(content)) + index + ends).hexdigest()
    assert seal(content, number) == f"{digest[:16]}{zlib.crc32(content):08x}"
    assert len(seal(content, number)) == SEAL


def test_what_is_another_file_has_another_seal(shard: tuple[bytes, int], tmp_path: Path) -> None:
    content, number = shard
    good, path = seal(content, number), tmp_path / "c.0"
    start, length = struct.unpack_from("<QQ", content[-16 * number - 4 :], 16)
    end, lost = start + length - 1, len(content) - 16 * number - 4
    chunk_lost = content[:lost] + b"\xff" * 16 + content[lost + 16 :]
    changed = content[:end] + bytes([content[end] ^ 1]) + content[end + 1 :]

    def holds(other: bytes) -> bool:
        path.write_bytes(other)
        with path.open("rb", buffering=0) as file:
            return holds_ends(file, number, good)

    assert holds(content)
    assert holds_all(content, good)
    for other in (
        content[:-1],
        content + b"\0",
        b"\0" + content,
        chunk_lost,
        changed,
        b"",
        b"x" * 99,
    ):
        assert not holds_all(other, good)
        assert not holds(other)
