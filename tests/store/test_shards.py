"""What lies on disk: chunks that read rows and columns fast, records that come back equal."""

import hashlib
import json
import math
import struct
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from condec.basis.digests import differences, record_digest
from condec.network.sites import Site, Units
from condec.store.seals import SEAL, ends, seal
from condec.store.shards import SiteInfo, _encoded, entries, make_config, skeleton


def _info(name: str = "a", n_units: int = 8) -> SiteInfo:
    return SiteInfo(
        site=Site(name), units=Units("channels"), n_units=n_units, n_positions=4, cut=False
    )


def _array(n_samples: int, shard_size: int, n_units: int) -> dict[str, tuple[int, ...]]:
    config = make_config({}, [_info(n_units=n_units)], n_samples, shard_size)
    node = json.loads(skeleton(config)["sites/a/contribution/zarr.json"])
    (codec,) = node["codecs"]
    assert codec["name"] == "sharding_indexed"
    return {
        "shape": tuple(node["shape"]),
        "shard": tuple(node["chunk_grid"]["configuration"]["chunk_shape"]),
        "chunk": tuple(codec["configuration"]["chunk_shape"]),
    }


@pytest.mark.parametrize(
    ("n_samples", "shard_size", "n_units", "chunk"),
    [
        (50_000, 1024, 2048, (256, 1, 512)),
        (50_000, 1024, 768, (256, 1, 384)),
        (50_000, 1024, 64, (1024, 1, 64)),
        (50_000, 1000, 1000, (250, 1, 500)),
        (1_017, 1024, 16, (1017, 1, 16)),
        (50_000, 1009, 1009, (1009, 1, 1009)),  # primes have no other divisor
        (3, 1024, 1, (3, 1, 1)),
    ],
)
def test_chunks(n_samples: int, shard_size: int, n_units: int, chunk: tuple[int, ...]) -> None:
    assert _array(n_samples, shard_size, n_units)["chunk"] == chunk


@given(st.integers(1, 3000), st.integers(1, 1500), st.integers(1, 4000))
@example(149, 149, 2393)
@settings(max_examples=30, deadline=None)
def test_a_shard_is_a_whole_number_of_chunks_of_one_sign(
    n_samples: int, shard_size: int, n_units: int
) -> None:
    found = _array(n_samples, shard_size, n_units)
    assert found["shape"] == (n_samples, 2, n_units)
    assert found["shard"] == (min(shard_size, n_samples), 2, n_units)
    assert found["chunk"][1] == 1
    assert all(s % c == 0 for s, c in zip(found["shard"], found["chunk"], strict=True))
    # 1 and all rows divide a shard: one of them is within the square root of what is wanted.
    assert math.prod(found["chunk"]) <= 2**18 * math.sqrt(found["shard"][0])


@pytest.mark.parametrize("units", [None, Units("heads", 3), Units("tokens")])
def test_site_info_comes_back_equal_from_json(units: Units | None) -> None:
    info = SiteInfo(
        site=Site("blocks.1.proj", "input", units, 2),
        units=units or Units("features"), n_units=3, n_positions=5, cut=True,
    )  # fmt: skip
    assert SiteInfo.from_dict(json.loads(json.dumps(asdict(info)))) == info


def test_names_that_no_file_system_likes_are_quoted() -> None:
    info = SiteInfo(
        site=Site("a/b", "input", Units("heads", 2), 1),
        units=Units("heads", 2), n_units=2, n_positions=1, cut=False,
    )  # fmt: skip
    assert info.folder == "sites/a%2Fb%3Ainput%231%40heads%282%29"


def test_differences_are_told_entry_by_entry() -> None:
    had = make_config({"a": {"b": 1, "c": (1, 2)}}, [_info("x"), _info("y")], 5, 2)
    assert differences(entries(had), entries(had)) == []
    wants = make_config({"a": {"b": 2, "c": [1, 2]}}, [_info("y"), _info("x")], 5, 2)
    assert differences(entries(had), entries(wants)) == [
        "a.b: had 1, wants 2",
        'sites: had ["x", "y"], wants ["y", "x"]',
    ]
    assert record_digest(had) != record_digest(wants)


# --- seals: worked out here byte by byte ----------------------------------------


@pytest.fixture(scope="module")
def shard() -> tuple[bytes, dict[str, Any]]:
    """Return one shard's file, and the metadata of its array."""
    info = SiteInfo(
        site=Site("a"), units=Units("features"), n_units=1024, n_positions=1, cut=True
    )  # fmt: skip
    node = json.loads(skeleton(make_config({}, [info], 4, 2))["sites/a/activation/zarr.json"])
    rows = np.random.default_rng(0).standard_normal((2, 2, 1024), dtype=np.float32)
    return _encoded(node, 2, rows), node


def test_a_seal_is_of_size_index_and_ends_of_chunks(shard: tuple[bytes, dict[str, Any]]) -> None:
    content, node = shard
    number = 4
    index = content[-16 * number - 4 :]
    ends = b""
    for k in range(number):
        start, length = struct.unpack_from("<QQ", index, 16 * k)
        ends += content[start + length - 4 : start + length]
    digest = hashlib.sha256(struct.pack("<Q", len(content)) + index + ends).hexdigest()
    assert seal(content, node) == f"{digest[:16]}{zlib.crc32(content):08x}"
    assert len(seal(content, node)) == SEAL


def test_what_is_another_file_has_another_seal(
    shard: tuple[bytes, dict[str, Any]], tmp_path: Path
) -> None:
    content, node = shard
    number, good, path = 4, seal(content, node), tmp_path / "c.0"
    start, length = struct.unpack_from("<QQ", content[-16 * number - 4 :], 16)
    end, lost = start + length - 1, len(content) - 16 * number - 4
    chunk_lost = content[:lost] + b"\xff" * 16 + content[lost + 16 :]
    changed = content[:end] + bytes([content[end] ^ 1]) + content[end + 1 :]

    def holds(other: bytes) -> bool:
        path.write_bytes(other)
        with path.open("rb", buffering=0) as file:
            return ends(file, node) == good[:16]

    assert holds(content)
    assert seal(content, node) == good
    for other in (
        content[:-1],
        content + b"\0",
        b"\0" + content,
        chunk_lost,
        changed,
        b"",
        b"x" * 99,
    ):
        assert seal(other, node)[16:] != good[16:]
        assert not holds(other)
