"""Two run folders, number by number: what `condec compare` prints."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from condec.basis.digests import leaves
from condec.basis.files import reading
from condec.dictionary import load_dictionary
from condec.store import RunFolder, Store
from condec.store.folder import read_parquet

Values = NDArray[Any]
PARTS: Final = ("recipe", "statistics", "quality", "control", "tables", "arrays")


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of two runs in a key, column or array of one of `PARTS`, in words."""

    part: str
    name: str
    text: str


def compare_runs(first: str | Path, second: str | Path) -> tuple[Difference, ...]:
    """Compare recipes, tables, metrics of dictionaries, stores, modes and maps of two runs.

    Numbers have to be equal to the last bit; NaN equals NaN.

    Raises StoreError: one of them is not a run folder, or something in it is damaged.
    """
    a, b = (dict(_content(RunFolder(folder))) for folder in (first, second))
    found = []
    for part, name in sorted(a.keys() | b.keys(), key=lambda key: (PARTS.index(key[0]), key[1])):
        values = [side[part, name]() if (part, name) in side else None for side in (a, b)]
        if text := _difference(*values):
            found.append(Difference(part, name, text))
    return tuple(found)


def _content(folder: RunFolder) -> Iterator[tuple[tuple[str, str], Callable[[], Values]]]:
    """Yield all that a run holds, by part and name, read when it is called for."""
    store = Store.open(folder.store)
    store.require_complete()  # Before results are refused that were made from the whole.
    for name, value in leaves(store.recipe).items():
        yield ("recipe", name), partial(np.asarray, value)
    for name, file in folder.tables().items():
        kind = name.partition("/")[0].partition("_")[0]
        for column, values in read_parquet(folder.ledger.found(file) or file).items():
            part = kind if kind in ("statistics", "control") else "tables"
            yield (part, f"{name}: {column}"), partial(np.asarray, values)
    for site in store.sites:
        for learner in folder.learners(site.key):
            found = folder.modes(site.key, learner)
            training = load_dictionary(folder.ledger.found(found) or found).training
            metrics = {} if training is None else training.to_dict()["metrics"]
            place = found.relative_to(folder.path).as_posix()
            for name, value in leaves(metrics).items():
                yield ("quality", f"{place}: {name}"), partial(np.asarray, value)
    for path in sorted([*folder.path.rglob("*.zarr"), *folder.path.rglob("*.npz")]):
        place = path.relative_to(folder.path).as_posix()
        if "/." in place:  # Left by a writer that was killed.
            continue
        if folder.ledger.maker(place):
            folder.ledger.found(path)
        for name, array in _arrays(path):
            yield ("arrays", f"{place}: {name}"), partial(_values, path, array)


def _arrays(path: Path) -> list[tuple[str, Any]]:
    with reading(path, "arrays", "Make it again."):
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return list(arrays.items())
        import zarr

        members = zarr.open_group(path, mode="r").members(max_depth=None)
        return sorted((n, m) for n, m in members if isinstance(m, zarr.Array))


def _values(path: Path, array: Any) -> Values:
    with reading(path, "arrays", "Make it again."):
        return np.asarray(array)


def _difference(a: Values | None, b: Values | None) -> str:
    """Say how two arrays differ; nothing where they are equal."""
    if a is None or b is None:
        return f"only in the {'first' if b is None else 'second'} run"
    if a.shape != b.shape:
        return f"{' x '.join(map(str, a.shape))} against {' x '.join(map(str, b.shape))} values"
    if a.dtype.kind in "fiub" and b.dtype.kind in "fiub":
        if np.array_equal(a, b, equal_nan=True):
            return ""
        x, y = a.astype(float), b.astype(float)
        differ = ~((x == y) | (np.isnan(x) & np.isnan(y)))
        apart = np.abs(x[differ] - y[differ])
        largest = float(np.nanmax(apart)) if np.isfinite(apart).any() else np.nan
        return f"{int(differ.sum())} of {a.size} values, by up to {largest:.3g}"
    different = np.asarray([str(x) != str(y) for x, y in zip(a.flat, b.flat, strict=True)])
    if not different.any():
        return ""
    place = int(different.argmax())
    return (
        f"{int(different.sum())} of {a.size} values, first {a.flat[place]!s} and {b.flat[place]!s}"
    )
