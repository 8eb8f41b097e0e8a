"""The bytes of a store on disk, and how they get there without ever being half there.

docs/how-to/store.md shows the files.

A shard is `shard_size` samples of all arrays: one file an array, ``c.<shard>``. One worker
writes it, whole; it counts once its manifest record has been renamed into place, which is
the last thing that happens. No file is shared between shards, so that many processes may
write different shards at once. The bytes depend on the data and the recipe alone: no time,
host or process is written down.

Every byte can be checked: the JSON at the root and of the manifest holds a checksum of itself, a
chunk inside a shard ends with its checksum, and the record of a shard holds the SHA-256 and the
seal of each of its files (`condec.store.seals`). Reading goes through `condec.store.checked`.
"""

import errno
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np
import torch

from condec.basis.checks import at_least
from condec.basis.digests import record_digest
from condec.basis.errors import DataError, OptionError, StoreError
from condec.basis.files import (
    checksum_holds,
    file_name,
    folder_lock,
    put_back,
    reading,
    to_json,
    with_checksum,
)
from condec.basis.objects import ObjectPath, at_once
from condec.data.inputs import MOST_LABELS, repeated
from condec.network import Site, Units
from condec.store.seals import seal

Quantity = Literal["contribution", "activation"]
QUANTITIES: Final[tuple[Quantity, ...]] = get_args(Quantity)
AT_PLACES, POSITION, N_PLACES = "place_contribution", "position", "n_places"
"""Arrays of a site of which places are kept."""
_OPTIONAL: Final = ("n_places", "n_kept")

SCHEMA: Final = 3


class Array(NamedTuple):
    """Type of one array, what rows that hold no sample read as, and its axes after the sample."""

    dtype: str
    fill: Any
    tail: tuple[int, ...] = ()
    axes: tuple[str, ...] = ("sign", "unit")


# What was never written, or of a sample that could not be used, passes for no number.
INPUTS: Final[Mapping[str, Array]] = {
    "inputs/id": Array("string", ""),
    "inputs/label": Array("int64", -1),
    "inputs/prediction": Array("int64", -1),
    "inputs/target": Array("float32", float("nan")),
    "inputs/target_baseline": Array("float32", float("nan")),
    "inputs/steps": Array("int64", -1),
    "inputs/valid": Array("bool", False),
}

# 512 KiB of float32, of one sign. Measured on 4,096 x 2 x 2,048 (one core, from memory): a row
# takes 9 ms, a column 17 ms, a whole sign 80 ms. Chunks of 128 x 512 read rows in 6 ms and all
# else 15 % slower; chunks of 256 x 1,024 take 30 ms for a column.
_CHUNK_ENTRIES: Final = 2**17
_CHUNK_UNITS: Final = 512

# zstd at level 1 brings half-zero contributions to 0.58 of their size, an activation after a
# ReLU (one sign all zero) to 0.51, dense ones to 0.90, at 0.2 GB/s a core in and 0.4 out.
# Uncompressed is twice as fast to read from memory, and slower from most disks. Level 3 gains
# 0.01; lz4 (blosc) leaves 0.76 and reads little faster. Its own checksum, of what a chunk unpacks
# to, takes 2.2 ms of 59 in reading; a CRC-32C as a further codec takes 3.7 and a stage more.
_ZSTD_LEVEL: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteInfo:
    """Layout of one site in a store."""

    site: Site
    units: Units  # which axes of the activation are units
    n_units: int
    n_positions: int  # entries of one sample's activation that were summed into one unit
    cut: bool  # all flow from the input to the output passes through the site
    n_places: int = 0  # positions of `condec.attribution.by_position`; 0 where none is kept
    n_kept: int = 0  # of these, so many at most of a sample

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "SiteInfo":
        """Read what `dataclasses.asdict` and JSON make of it."""
        site = dict(values["site"])
        site["units"] = site["units"] and Units.from_dict(site["units"])
        units = Units.from_dict(values["units"])
        return SiteInfo(**{**values, "site": Site(**site), "units": units})

    @property
    def folder(self) -> str:
        """Path of the site's arrays in a store."""
        return f"sites/{file_name(self.site.key)}"

    @property
    def arrays(self) -> dict[str, Array]:
        """Arrays of the site, by their paths in a store."""
        summed = Array("float32", float("nan"), (2, self.n_units))
        found = {f"{self.folder}/{quantity}": summed for quantity in QUANTITIES}
        if self.n_kept:
            size, axes = (self.n_kept, self.n_units), ("place", "unit")
            found[f"{self.folder}/{AT_PLACES}"] = Array("float32", float("nan"), size, axes)
            found[f"{self.folder}/{POSITION}"] = Array("int32", -1, size[:1], axes)
            found[f"{self.folder}/{N_PLACES}"] = Array("int32", 0)
        return found

    @property
    def n_bytes(self) -> int:
        """Bytes of one sample, uncompressed."""
        return 4 * sum(math.prod(array.tail) for array in self.arrays.values())


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """Manifest record of one shard: proof that it was written whole."""

    index: int
    start: int  # its first row
    rows: int  # their number
    config_hash: str  # of the recipe, sites and sizes under which it was written
    files: Mapping[str, str]  # SHA-256 of the shard's file, by the array's path in the store
    seals: str  # of the same files in the order of the paths, one after another, see `seal`
    checksum: str = ""  # of the record itself


@dataclass(frozen=True, slots=True)
class Root:
    """What the root of a store says, once it is known to be what was written."""

    content: bytes  # all of it
    config: Mapping[str, Any]  # all that decides the bytes of the store
    config_hash: str
    nodes: Mapping[str, Any]  # metadata of every array and group, by its path
    places: Mapping[str, int]  # of the arrays' seals in a record, by their paths


def arrays_of(infos: Sequence[SiteInfo]) -> dict[str, Array]:
    """Return every array of a store, by its path there, sorted."""
    sites = {path: array for info in infos for path, array in info.arrays.items()}
    return dict(sorted({**INPUTS, **sites}.items()))


# --- the configuration of a store -----------------------------------------------------------


def make_config(
    recipe: Mapping[str, Any], sites: Sequence[SiteInfo], n_samples: int, shard_size: int
) -> dict[str, Any]:
    """Collect all that decides the bytes of a store, as JSON will give it back."""
    at_least("Store", 1, n_samples=n_samples, shard_size=shard_size)
    keys = [info.site.key for info in sites]
    if not keys or len(set(keys)) < len(keys) or not all(keys):
        problem = "expected one site or more, each once and with a name"
        raise OptionError(f"Store: {problem}; got {keys}")
    try:
        recipe = json.loads(json.dumps(recipe, allow_nan=False))
    except (TypeError, ValueError) as error:
        problem = f"Store: the recipe must be of the kind JSON can hold: {error}"
        raise OptionError(problem) from error
    # Without what only some stores have: others are those of earlier versions.
    infos = [{n: v for n, v in asdict(info).items() if v or n not in _OPTIONAL} for info in sites]
    sizes = {"schema": SCHEMA, "n_samples": n_samples, "shard_size": shard_size}
    return {**sizes, "sites": infos, "recipe": recipe}


def read_root(path: Path) -> Root:
    """Read the metadata of the store at `path`; StoreError if there is none, or it is damaged."""
    file, content = path / "zarr.json", None
    with reading(file, "the metadata of a store", AGAIN):
        try:
            content = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            if file.is_symlink() or (path / "manifest").is_dir():
                with reading(file, "the metadata of a store", _remedy(path)):
                    raise
    if content is None:
        todo = "run 'condec collect' first, or give the path of a store"
        raise StoreError(f"{path}: no contributions yet; {todo}")
    try:
        root = json.loads(content)
        schema = root["attributes"]["condec"]["schema"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{path} is not a store of condec: its zarr.json cannot be read as one ({error!r}). "
            f"Give the path of a store. Where it is one: {_remedy(path)}"
        ) from error
    if schema != SCHEMA:
        raise StoreError(
            f"{path} is written in schema {schema}; this version of condec reads schema {SCHEMA}. "
            "Install the version of condec that its recipe names, or remove it and collect again."
        )
    if not checksum_holds(content):
        problem = f"{file} is damaged: its bytes are not those that were written"
        raise StoreError(f"{problem}. {_remedy(path)}")
    attributes, nodes = root["attributes"], root["consolidated_metadata"]["metadata"]
    arrays = sorted(name for name, node in nodes.items() if node["node_type"] == "array")
    places = {name: place for place, name in enumerate(arrays)}
    return Root(content, attributes["condec"], attributes["config_hash"], nodes, places)


AGAIN: Final = (
    "Run the command that made the store again: that file is written again, shards stay and count."
)
_REMOVE: Final = "Remove that folder and run the command that made it again."
_RECORDS: Final = "manifest/shard-*.json"


def _remedy(path: Path) -> str:
    """Say how the metadata come back; with no record of a shard nothing tells what they were."""
    with suppress(OSError):
        return AGAIN if any(path.glob(_RECORDS)) else _REMOVE
    return _REMOVE


def needs_root(path: Path, config_hash: str) -> bool:
    """Tell whether a folder lacks the root of a configuration: it has a record of it, or nothing.

    What a writer left that was killed before it wrote the root is nothing.
    """
    with suppress(StoreError):
        if read_root(path).config_hash == config_hash:
            return False
    root = path / "zarr.json"
    if not (root.exists() or root.is_symlink() or path.is_file()):
        left = (file for file in path.rglob("*") if not file.is_dir())
        if all(file.name == "zarr.json" or file.suffix == ".partial" for file in left):
            return True
    records = (file.read_bytes() for file in path.glob(_RECORDS) if file.is_file())
    mark = f'"config_hash": "{config_hash}"'.encode()
    return any(mark in content and checksum_holds(content) for content in records)


def strays(path: Path, root: Root) -> dict[Path, bytes]:
    """Return the files of metadata that are not what was written, as they should be."""
    nodes = {name: to_json(node) for name, node in root.nodes.items()}
    wanted = {
        path / name / "zarr.json": text for name, text in ({".": root.content} | nodes).items()
    }

    def differs(file: Path) -> bool:
        with reading(file, "metadata of a store", AGAIN):
            try:
                return file.read_bytes() != wanted[file]
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return True
            except OSError as error:  # of any other reason the file knows nothing
                if error.errno != errno.ELOOP:
                    raise
                return True

    differing = at_once(differs, wanted, path)
    return {file: wanted[file] for file, other in zip(wanted, differing, strict=True) if other}


def entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as one tells it: the recipe's entries, and sites by their keys."""
    infos = {SiteInfo.from_dict(info).site.key: info for info in config["sites"]}
    return {**config, **config["recipe"], "recipe": None, "sites": list(infos), "site": infos}


def make_folder(path: Path, config: Mapping[str, Any]) -> None:
    """Write a store without shards where nothing is, or the root of one that is lost."""
    config_hash = record_digest(config)
    if not path.exists():
        path.mkdir(parents=True, exist_ok=True)
    if needs_root(path, config_hash):
        with folder_lock(path):
            if needs_root(path, config_hash):
                files = {path / name: content for name, content in skeleton(config).items()}
                file, root = files.popitem()
                put_back(files)
                if isinstance(file, ObjectPath):
                    with suppress(FileExistsError):
                        file.create(root)
                        return
                    # Another made it meanwhile, whose recipe counts; or it is damaged.
                    if not needs_root(path, config_hash):
                        return
                put_back({file: root})


# --- metadata -------------------------------------------------------------------------------

_GROUP: Final[dict[str, Any]] = {"attributes": {}, "zarr_format": 3, "node_type": "group"}


def skeleton(config: Mapping[str, Any]) -> dict[str, bytes]:
    """Return all files of a store without shards, by their path in it; the root is the last."""
    infos = [SiteInfo.from_dict(values) for values in config["sites"]]
    n_samples, shard_size = config["n_samples"], min(config["shard_size"], config["n_samples"])
    groups = ("inputs", "sites", "manifest", *(info.folder for info in infos))
    nodes = dict.fromkeys(groups, _GROUP) | {
        path: _array_metadata((n_samples, *array.tail), (shard_size, *array.tail), array)
        for path, array in arrays_of(infos).items()
    }
    # Consolidated metadata: xarray warns where there are none, and readers that find them do
    # not list folders, so that the manifest's records (no Zarr objects) are never in the way.
    metadata = dict(sorted(nodes.items()))
    consolidated = {"kind": "inline", "must_understand": False, "metadata": metadata}
    attributes = {"condec": dict(config), "config_hash": record_digest(config), "checksum": ""}
    root = {**_GROUP, "consolidated_metadata": consolidated, "attributes": attributes}
    files = {f"{name}/zarr.json": to_json(node) for name, node in nodes.items()}
    return {**files, "zarr.json": with_checksum(root)}


def _array_metadata(shape: tuple[int, ...], shard: tuple[int, ...], array: Array) -> dict[str, Any]:
    import zarr
    from zarr.codecs import ZstdCodec

    files: dict[str, Any] = {}
    zarr.create_array(
        zarr.storage.MemoryStore(files),
        shape=shape,
        shards=shard,
        chunks=_chunk(shard, by_sign="sign" in array.axes),
        dtype=array.dtype,
        fill_value=array.fill,
        compressors=ZstdCodec(level=_ZSTD_LEVEL, checksum=True),
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=("sample", *array.axes)[: len(shape)],
    )
    metadata: dict[str, Any] = json.loads(files["zarr.json"].to_bytes())
    return metadata


def _chunk(shard: tuple[int, ...], *, by_sign: bool) -> tuple[int, ...]:
    if len(shard) < 3:
        return shard
    units, middle = _divisor_near(shard[2], _CHUNK_UNITS), 1 if by_sign else shard[1]
    return _divisor_near(shard[0], max(1, _CHUNK_ENTRIES // (units * middle))), middle, units


def _divisor_near(number: int, wanted: int) -> int:
    """Divisor of `number` with the smallest ratio to `wanted`: a shard is a whole of chunks."""
    divisors = (d for d in range(1, number + 1) if number % d == 0)
    return min(divisors, key=lambda d: max(d / wanted, wanted / d))


# --- one shard ------------------------------------------------------------------------------


def shard_file(path: Path, array: str, index: int) -> Path:
    """Return the file of one shard of one array."""
    folder, _, name = array.rpartition("/")
    zeros = "" if folder == "inputs" or name == N_PLACES else ".0" if name == POSITION else ".0.0"
    return path / array / f"c.{index}{zeros}"


def shard_values(
    rows: Mapping[str, Any], n_rows: int, arrays: Mapping[str, Array], who: str
) -> dict[str, Any]:
    """Turn rows into numpy arrays, by path of the array; DataError where they do not fit."""
    if rows.keys() != arrays.keys():
        differing = ", ".join(sorted(rows.keys() ^ arrays.keys()))
        raise DataError(f"{who}: expected rows of every array of the store; differing: {differing}")
    valid = rows["inputs/valid"].cpu()
    if valid.shape != (n_rows,):
        raise DataError(f"{who}: expected {n_rows} samples, got {tuple(valid.shape)}")
    values: dict[str, Any] = {"inputs/id": _ids(rows["inputs/id"], n_rows, who)}
    for path, array in arrays.items():
        if path == "inputs/id":
            continue
        given, shape = rows[path], (n_rows, *array.tail)
        if given.shape != shape:
            raise DataError(f"{who}: {path}: expected shape {shape}, got {tuple(given.shape)}")
        value = given.detach().to("cpu", getattr(torch, array.dtype))
        if path == "inputs/label" and bool((value >= MOST_LABELS).any()):
            raise DataError(f"{who}: expected labels below {MOST_LABELS:,}, got {int(value.max())}")
        if path != "inputs/label" and not bool(valid.all()):
            value = value.clone()
            value[~valid] = array.fill
        values[path] = value.numpy()
    return values


def _ids(ids: Sequence[str], n_rows: int, who: str) -> "np.typing.NDArray[Any]":
    if len(ids) != n_rows:
        raise DataError(f"{who}: expected {n_rows} ids, got {len(ids)}")
    for name in ids:
        try:
            str.encode(name, "utf-8")
        except (TypeError, UnicodeEncodeError) as error:
            problem = f"{who}: ids must be strings that can be written as UTF-8; got {name!r}"
            raise DataError(problem) from error
    if len(set(ids)) < n_rows:
        first, second = repeated(ids)
        raise DataError(f"{who}: samples {first} and {second} have the same id, {ids[first]!r}")
    return np.array(ids, dtype=object)


def write_arrays(
    path: Path, index: int, start: int, values: Mapping[str, Any], nodes: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the files of one shard of the store at `path`; return `files` and `seals` of them."""
    names = sorted(values)

    def write(name: str) -> tuple[str, str]:
        content = _encoded(nodes[name], start, values[name])
        put_back({shard_file(path, name, index): content})
        return hashlib.sha256(content).hexdigest(), seal(content, nodes[name])

    digests, seals = zip(*at_once(write, names, path), strict=True)
    return {"files": dict(zip(names, digests, strict=True)), "seals": "".join(seals)}


def _encoded(node: Mapping[str, Any], start: int, values: Any) -> bytes:
    """Encode one shard file of the array with these metadata."""
    import zarr
    from zarr.core.buffer import default_buffer_prototype

    # In memory first: the writing to disk is then ours alone, whole or not at all.
    metadata = default_buffer_prototype().buffer.from_bytes(to_json(node))
    files: dict[str, Any] = {"zarr.json": metadata}
    array: Any = zarr.open_array(zarr.storage.MemoryStore(files), mode="r+")
    # A shard of fill values is a file like any other: a missing file is always damage.
    array = array.with_config({"write_empty_chunks": True})
    array[start : start + len(values)] = values
    del files["zarr.json"]
    (content,) = files.values()
    return bytes(content.to_bytes())
