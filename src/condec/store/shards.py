"""The bytes of a store on disk, and how they get there without ever being half there.

    contributions.zarr/
        zarr.json                   schema version, recipe, sites; metadata of all arrays
        inputs/{id,label,prediction,target,target_baseline,steps,valid}     [sample]
        sites/<quoted key>/{contribution,activation}                  [sample, sign, unit]
        manifest/shard-00000.json   one record a shard that counts

A shard is `shard_size` samples of all arrays: one file an array, ``c.<shard>``. One worker
writes it, whole; it counts once its manifest record has been renamed into place, which is
the last thing that happens. No file is shared between shards, so that many processes may
write different shards at once. The bytes depend on the data and the recipe alone: no time,
host or process is written down.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args
from urllib.parse import quote

import numpy as np
import torch

from condec.basis.checks import at_least
from condec.basis.errors import DataError, OptionError, StoreError
from condec.basis.files import remove_partial, to_json, write_file
from condec.data.inputs import MOST_LABELS, repeated
from condec.network import Site, Units

Quantity = Literal["contribution", "activation"]
QUANTITIES: Final[tuple[Quantity, ...]] = get_args(Quantity)

SCHEMA: Final = 2


class Array(NamedTuple):
    """Type of one array, what rows that hold no sample read as, and its axes after the sample."""

    dtype: str
    fill: Any
    tail: tuple[int, ...] = ()


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
# 0.01; lz4 (blosc) leaves 0.76 and reads little faster.
_ZSTD_LEVEL: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteInfo:
    """Layout of one site in a store."""

    site: Site
    units: Units  # which axes of the activation are units
    n_units: int
    n_positions: int  # entries of one sample's activation that were summed into one unit
    cut: bool  # all flow from the input to the output passes through the site

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
        return f"sites/{quote(self.site.key, safe='')}"


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """Manifest record of one shard: proof that it was written whole."""

    index: int
    start: int  # its first row
    rows: int  # their number
    config_hash: str  # of the recipe, sites and sizes under which it was written
    files: Mapping[str, str]  # SHA-256 of the shard's file, by the array's path in the store
    checksum: str  # SHA-256 of these, in the order of the paths


def arrays_of(infos: Sequence[SiteInfo]) -> dict[str, Array]:
    """Return every array of a store, by its path there, sorted."""
    sites = {
        f"{info.folder}/{quantity}": Array("float32", float("nan"), (2, info.n_units))
        for info in infos
        for quantity in QUANTITIES
    }
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
    infos = [asdict(info) for info in sites]
    sizes = {"schema": SCHEMA, "n_samples": n_samples, "shard_size": shard_size}
    return {**sizes, "sites": infos, "recipe": recipe}


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration, whatever the order of its keys."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_config(path: Path) -> dict[str, Any]:
    """Read the configuration of the store at `path`; StoreError if there is none."""
    try:
        root = json.loads((path / "zarr.json").read_bytes())
        config, digest = root["attributes"]["condec"], root["attributes"]["config_hash"]
        schema = config["schema"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            f"{path}: there is no store; expected a folder that 'condec collect' has written"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} is not a store of condec: its zarr.json cannot be read as one ({error!r}). "
            "Give the path of a store, or remove that folder to make a new one."
        ) from error
    if schema != SCHEMA:
        raise StoreError(
            f"{path} is written in schema {schema}; this version of condec reads schema {SCHEMA}. "
            "Install the version of condec that its recipe names, or collect again."
        )
    if (found := config_hash(config)) != digest:
        problem = f"zarr.json: expected a configuration of SHA-256 {digest}, got {found}"
        raise _damaged(path, problem)
    return dict(config)


def entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as one tells it: the recipe's entries, and sites by their keys."""
    infos = {SiteInfo.from_dict(info).site.key: info for info in config["sites"]}
    return {**config, **config["recipe"], "recipe": None, "sites": list(infos), "site": infos}


def differences(had: Mapping[str, Any], wants: Mapping[str, Any]) -> str:
    """Return a line for every entry, at whatever depth, in which two mappings differ."""
    import pandas

    old, new = (
        {key: json.dumps(value[0], ensure_ascii=False) for key, value in leaves.items()}
        for leaves in (pandas.json_normalize(dict(each)).to_dict("list") for each in (had, wants))
    )
    return "\n".join(
        f"  {key}: had {old.get(key, 'nothing')}, wants {new.get(key, 'nothing')}"
        for key in sorted(map(str, old.keys() | new.keys()))
        if old.get(key) != new.get(key)
    )


# --- metadata -------------------------------------------------------------------------------


def skeleton(config: Mapping[str, Any]) -> dict[str, bytes]:
    """Return all files of a store without shards, by their path in it."""
    infos = [SiteInfo.from_dict(values) for values in config["sites"]]
    n_samples, shard_size = config["n_samples"], min(config["shard_size"], config["n_samples"])
    groups = ("inputs", "sites", "manifest", *(info.folder for info in infos))
    nodes = dict.fromkeys(groups, _GROUP) | {
        path: _array_metadata((n_samples, *array.tail), (shard_size, *array.tail), array)
        for path, array in arrays_of(infos).items()
    }
    files = {f"{name}/zarr.json": to_json(node) for name, node in nodes.items()}
    return {"zarr.json": to_json(_root(config, nodes)), **files}


_GROUP: Final[dict[str, Any]] = {"attributes": {}, "zarr_format": 3, "node_type": "group"}


def _root(config: Mapping[str, Any], nodes: Mapping[str, Any]) -> dict[str, Any]:
    # Consolidated metadata: xarray warns where there are none, and readers that find them do
    # not list folders, so that the manifest's records (no Zarr objects) are never in the way.
    metadata = dict(sorted(nodes.items()))
    consolidated = {"kind": "inline", "must_understand": False, "metadata": metadata}
    attributes = {"condec": dict(config), "config_hash": config_hash(config)}
    return {**_GROUP, "attributes": attributes, "consolidated_metadata": consolidated}


def _array_metadata(shape: tuple[int, ...], shard: tuple[int, ...], array: Array) -> dict[str, Any]:
    import zarr
    from zarr.codecs import ZstdCodec

    files: dict[str, Any] = {}
    zarr.create_array(
        zarr.storage.MemoryStore(files),
        shape=shape,
        shards=shard,
        chunks=_chunk(shard),
        dtype=array.dtype,
        fill_value=array.fill,
        compressors=ZstdCodec(level=_ZSTD_LEVEL),
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=("sample", "sign", "unit")[: len(shape)],
    )
    metadata: dict[str, Any] = json.loads(files["zarr.json"].to_bytes())
    return metadata


def _chunk(shard: tuple[int, ...]) -> tuple[int, ...]:
    if len(shard) == 1:
        return shard
    units = _divisor_near(shard[2], _CHUNK_UNITS)
    return _divisor_near(shard[0], _CHUNK_ENTRIES // units), 1, units


def _divisor_near(number: int, wanted: int) -> int:
    """Divisor of `number` with the smallest ratio to `wanted`: a shard is a whole of chunks."""
    divisors = (d for d in range(1, number + 1) if number % d == 0)
    return min(divisors, key=lambda d: max(d / wanted, wanted / d))


def verify_metadata(path: Path) -> None:
    """Compare the metadata at the root with those of every array; StoreError if they differ."""
    config = read_config(path)
    infos = [SiteInfo.from_dict(values) for values in config["sites"]]
    names = ["inputs", "sites", "manifest", *(info.folder for info in infos), *arrays_of(infos)]
    found: dict[str, Any] = {}
    for name in names:
        try:
            found[name] = json.loads((path / name / "zarr.json").read_bytes())
        except (OSError, ValueError) as error:
            raise _damaged(path, f"{name}/zarr.json: {error!r}") from error
    root = json.loads((path / "zarr.json").read_bytes())
    if root != _root(config, found):
        noted = root.get("consolidated_metadata", {}).get("metadata", {})
        differ = [f"{name}/zarr.json" for name in names if noted.get(name) != found[name]]
        differing = ", ".join(differ) or "itself"
        raise _damaged(path, f"expected zarr.json to agree with {differing}, but it does not")


def _damaged(path: Path, problem: str) -> StoreError:
    return StoreError(
        f"{path}: metadata are damaged: {problem}. Remove the store and run the command that made "
        "it again."
    )


# --- one shard ------------------------------------------------------------------------------


def shard_file(path: Path, array: str, index: int) -> Path:
    """Return the file of one shard of one array."""
    return path / array / (f"c.{index}" if array.startswith("inputs/") else f"c.{index}.0.0")


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


def write_arrays(path: Path, index: int, start: int, values: Mapping[str, Any]) -> dict[str, str]:
    """Write the files of one shard of the store at `path`, and return their SHA-256 by array."""
    files: dict[str, str] = {}
    for name, value in values.items():
        content = _encoded((path / name / "zarr.json").read_bytes(), start, value)
        target = shard_file(path, name, index)
        remove_partial(target)
        write_file(target, content)
        files[name] = hashlib.sha256(content).hexdigest()
    return files


def _encoded(metadata: bytes, start: int, values: Any) -> bytes:
    """Encode one shard file of the array with these metadata."""
    import zarr
    from zarr.core.buffer import default_buffer_prototype

    # In memory first: the writing to disk is then ours alone, whole or not at all.
    files: dict[str, Any] = {"zarr.json": default_buffer_prototype().buffer.from_bytes(metadata)}
    array: Any = zarr.open_array(zarr.storage.MemoryStore(files), mode="r+")
    # A shard of fill values is a file like any other: a missing file is always damage.
    array = array.with_config({"write_empty_chunks": True})
    array[start : start + len(values)] = values
    del files["zarr.json"]
    (content,) = files.values()
    return bytes(content.to_bytes())


def checksum_of(files: Mapping[str, str]) -> str:
    """SHA-256 of the digests of a shard's files, in the order of their paths."""
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(text.encode()).hexdigest()
