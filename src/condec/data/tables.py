"""Inputs from tables with a column of encoded images: parquet files, data sets of Hugging Face.

An image is read when it is wanted: of a parquet file with its row group, of which one is kept.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from condec.basis.errors import DataError, DependencyError, OptionError
from condec.basis.files import reading, user_path
from condec.data import images
from condec.data.arrays import LABEL_KEYS, as_labels
from condec.data.classes import with_classes, with_labels
from condec.data.images import Orientation, name_of, reader, stored
from condec.data.inputs import UNLABELLED, Inputs, spread

if TYPE_CHECKING:
    import pyarrow

_PARQUET: Final = (
    "a table in parquet",
    "Expected a column with the bytes of images; write it again.",
)
_VERIFIED: Final[dict[str, Any]] = {"page_checksum_verification": True}
_GROUP: Final = 2**31
"""Bytes of images that a row group may hold, which is read whole."""
_SOME: Final = 32
"""Images of large parquet files that the fingerprint reads, each with its row group."""


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A table of some rows: columns, whole, by their names, and the image of a row."""

    name: str
    schema: "pyarrow.Schema"
    image: str  # the column of images
    column: Callable[[str], Any]  # a pyarrow.ChunkedArray; `image.path` is a field of a column
    cell: Callable[[int], Any]  # of that column: bytes, or a mapping of them and a path
    numbered: Callable[[], Iterable[str]]  # ids of rows without names
    digests: Sequence[bytes] = ()  # of files that are too large to be read for the fingerprint
    folder: Path | None = None  # in which files lie that a table only names

    def values(self, name: str) -> list[Any]:
        """Return what a column says, row by row."""
        with reading(self.name, f"a table with a column {name}", "Write it again.", DataError):
            found: list[Any] = self.column(name).to_pylist()
            return found


def from_parquet(
    files: Sequence[Path], keys: Mapping[str, str], names: Sequence[str] | None = None,
    orientation: Orientation | None = None,
) -> Inputs:  # fmt: skip
    """Read images of parquet files, whose columns `keys` name: image, label and id."""
    import pyarrow
    from pyarrow import parquet

    metadata = []
    for file in files:
        with reading(file, *_PARQUET, DataError):
            metadata.append(parquet.read_metadata(file))
        if not metadata[-1].schema.equals(metadata[0].schema):
            raise DataError(f"{file}: other columns than {files[0]}; give files of one table")
    schema = metadata[0].schema.to_arrow_schema()
    who = name_of(files)
    wanted = _image_column(who, schema, keys)
    places = [(n, g) for n, one in enumerate(metadata) for g in range(one.num_row_groups)]
    first = np.cumsum([0, *(metadata[n].row_group(g).num_rows for n, g in places)])

    @lru_cache(maxsize=1)
    def group(number: int) -> Any:
        of_file, place = places[number]
        with reading(files[of_file], *_PARQUET, DataError):
            # Of a damaged footer pyarrow may end the process where single columns are asked for.
            size = metadata[of_file].row_group(place).total_byte_size
            if size > _GROUP:
                raise DataError(
                    f"{files[of_file]}: row group {place} says that it takes {size / 2**30:.1f} "
                    "GiB, which are read at once; expected 2 at most. Write the file with smaller "
                    "row groups, row_group_size=100 for example"
                )
            with parquet.ParquetFile(files[of_file], **_VERIFIED) as opened:
                return opened.read_row_group(place, columns=[wanted]).column(0)

    def cell(row: int) -> Any:
        number = int(np.searchsorted(first, row, "right")) - 1
        return group(number)[row - int(first[number])].as_py()

    def column(name: str) -> Any:
        found = []
        for file in files:
            with reading(file, *_PARQUET, DataError):
                found.append(parquet.read_table(file, columns=[name], **_VERIFIED).column(0))
        return pyarrow.chunked_array([part for one in found for part in one.chunks], found[0].type)

    def numbered() -> Iterator[str]:
        for file, one in zip(files, metadata, strict=True):
            yield from (f"{file.stem}/{row}" for row in range(one.num_rows))

    digests = []
    if sum(file.stat().st_size for file in files) > images.WHOLE_BYTES:
        digests = [_footer(file) for file in files]
    table = _Table(
        name=who, schema=schema, image=wanted, column=column, cell=cell, numbered=numbered,
        digests=digests,
    )  # fmt: skip
    return _inputs(table, keys, names, orientation)


def from_hub(
    name: str, keys: Mapping[str, str], folder: Path, names: Sequence[str] | None = None,
    orientation: Orientation | None = None,
) -> Inputs:  # fmt: skip
    """Read a data set of Hugging Face: a folder, as it was saved or of files; or from its hub."""
    try:
        import datasets
    except ImportError as error:
        raise DependencyError(
            f'data hf:{name} needs datasets, which is not installed: pip install "condec[hf]"'
        ) from error
    place, split = user_path(name, folder), keys.get("split")
    saved = any((place / file).is_file() for file in ("dataset_dict.json", "dataset_info.json"))
    remedy = "Expected a folder that save_to_disk wrote, a folder of files, or a name on the hub."
    with reading(f"hf:{name}", "a data set of Hugging Face", remedy, DataError):
        if saved:
            found = datasets.load_from_disk(str(place))
            own = None if isinstance(found, Mapping) else str(found.split or "")
            if keys.get("config") or (own is not None and split not in (None, own)):
                raise OptionError(
                    f"data hf:{name}: a folder of save_to_disk has no configurations, and this "
                    f"holds {'splits' if own is None else f'one data set, split {own!r}'}; got "
                    f"config {keys.get('config')}, split {split}"
                )
        else:
            there = str(place) if place.is_dir() else name
            found = datasets.load_dataset(there, keys.get("config"), split=split)
    if isinstance(found, Mapping):
        splits = ", ".join(map(str, found))
        split = split or (splits if len(found) == 1 else None)
        if split not in found:
            raise OptionError(f"data hf:{name}: split must be one of {splits}; got {split}")
        found = found[split]
    rows = found.with_format("arrow")
    schema = rows.features.arrow_schema
    wanted = _image_column(f"hf:{name}", schema, keys)
    only = rows.select_columns([wanted])

    def column(name: str) -> Any:
        import pyarrow.compute

        top, _, field = name.partition(".")
        whole = rows.select_columns([top])[:].column(0)
        return pyarrow.compute.struct_field(whole, field) if field else whole

    table = _Table(
        name=f"hf:{name}", schema=schema, image=wanted, column=column,
        cell=lambda row: only[row : row + 1].column(0)[0].as_py(),
        numbered=lambda: map(str, range(len(rows))), folder=place,
    )  # fmt: skip
    return _inputs(table, keys, names, orientation)


def _image_column(who: str, schema: "pyarrow.Schema", keys: Mapping[str, str]) -> str:
    """Return the name of the column of images: the one that `keys` name, else the only one."""
    found = [field.name for field in schema if _bytes_path(field) is not None]
    name = keys.get("image", found[0] if len(found) == 1 else "")
    if name not in found:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise DataError(
            f"{who}: expected one column of images, their bytes, or a mapping of bytes and path; "
            f"got {name or 'none named by image=COLUMN'}, and the columns are {columns}"
        )
    return name


def _bytes_path(field: "pyarrow.Field") -> str | None:
    """Return the path of the bytes in a column of images; None for one of something else."""
    from pyarrow import types

    binary = (types.is_binary, types.is_large_binary)
    if any(of(field.type) for of in binary):
        return str(field.name)
    if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
        inner = field.type.field("bytes").type
        return f"{field.name}.bytes" if any(of(inner) for of in binary) else None
    return None


def _footer(file: Path) -> bytes:
    """Hash the footer of a parquet file, which says where columns lie and how large they are."""
    with reading(file, *_PARQUET, DataError), file.open("rb") as opened:
        opened.seek(-8, os.SEEK_END)
        n_bytes = int.from_bytes(opened.read(4), "little")
        opened.seek(-8 - n_bytes, os.SEEK_END)
        return hashlib.sha256(opened.read(n_bytes)).digest()


def _inputs(
    table: _Table, keys: Mapping[str, str], names: Sequence[str] | None,
    orientation: Orientation | None,
) -> Inputs:  # fmt: skip
    path, read = str(_bytes_path(table.schema.field(table.image))), reader(orientation)
    ids = _ids(table, keys)

    def content(row: int) -> bytes:
        remedy = "Replace it, or leave it out, in a run by on_bad = 'skip'."
        with reading(f"{table.name}: {ids[row]}", "an image in a table", remedy, DataError):
            found, file = table.cell(row), None
            if isinstance(found, Mapping):
                found, file = found["bytes"], found.get("path")
            if found is None and file and table.folder is not None:
                found = (table.folder / str(file)).read_bytes()
            if found is None:
                raise ValueError("the table has no bytes of it")
            return bytes(found)

    def stored_of(rows: Sequence[int]) -> Iterator[bytes]:
        if table.digests:
            some = [rows[place] for place in spread(len(rows), _SOME)]
            return chain(table.digests, stored(some, [0] * len(some), content, orientation))
        import pyarrow.compute

        lengths = pyarrow.compute.binary_length(table.column(path)).fill_null(-1).to_numpy()
        return stored(rows, lengths[list(rows)].tolist(), content, orientation)

    inputs = Inputs(
        table.name, ids, lambda row: read(f"{table.name}: {ids[row]}", content(row)),
        stored=stored_of,
    )  # fmt: skip
    return _with_labels(table, inputs, keys, names)


def _ids(table: _Table, keys: Mapping[str, str]) -> tuple[str, ...]:
    """Return names of the images: of a column, or those beside the bytes where no two are alike."""
    if "id" in keys:
        given = _named_column(table, "id", keys["id"])
        if None in given:
            where = f"row {given.index(None)} has no {keys['id']}"
            raise DataError(f"{table.name}: {where}; expected an id of every row")
        return tuple(map(str, given))
    kind = table.schema.field(table.image).type
    if getattr(kind, "num_fields", 0) and kind.get_field_index("path") >= 0:
        found = table.values(f"{table.image}.path")
        if all(found):
            start = f"{table.folder}/"
            names = [name.removeprefix(start) for name in found]
            names = [
                PurePath(name).name if PurePath(name).is_absolute() else name for name in names
            ]
            if len({*names}) == len(names):
                return tuple(names)
    return tuple(table.numbered())


def _named_column(table: _Table, key: str, name: str) -> list[Any]:
    if name not in table.schema.names:
        columns = ", ".join(table.schema.names)
        raise DataError(f"{table.name}: no column {name!r} for {key}; the columns are {columns}")
    return table.values(name)


def _with_labels(
    table: _Table, inputs: Inputs, keys: Mapping[str, str], names: Sequence[str] | None
) -> Inputs:
    name = keys.get("label", next((key for key in LABEL_KEYS if key in table.schema.names), ""))
    if not name:
        return inputs
    given, own = _named_column(table, "label", name), _class_names(table, name)
    who = f"{table.name}: {name}"
    if any(isinstance(one, str) for one in given):
        texts = ["" if one is None else str(one) for one in given]
        return with_labels(inputs, texts, names, who, inputs.ids)
    labels = as_labels(who, [UNLABELLED if one is None else one for one in given])
    if own is None:
        return replace(inputs, labels=labels)
    if bool(((labels < UNLABELLED) | (labels >= len(own))).any()):
        raise DataError(f"{who}: labels outside of the {len(own)} names that the table gives them")
    if names is None:
        return replace(inputs, labels=labels, label_names=own, by_alphabet=True)
    return with_classes(inputs, [own[n] if n >= 0 else "" for n in labels.tolist()], names, who)


def _class_names(table: _Table, name: str) -> tuple[str, ...] | None:
    """Return the names that a table of Hugging Face gives the numbers of a column."""
    said = (table.schema.metadata or {}).get(b"huggingface")
    if said is None:
        return None
    with reading(table.name, "features of a data set", "Write the table again.", DataError):
        feature = json.loads(said)["info"]["features"].get(name, {})
        found = feature.get("names") if isinstance(feature, dict) else None
        return None if found is None else tuple(map(str, found))
