"""Two run folders, number by number: what `condec compare` prints."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from condec.basis.digests import leaves
from condec.basis.errors import DataError
from condec.basis.files import reading
from condec.basis.metrics import cosine
from condec.dictionary import DeadModesWarning, Imported, fit, load_dictionary
from condec.modes import Modes
from condec.modes.families import partners
from condec.store import RunFolder, Store, is_twin
from condec.store.folder import read_parquet

if TYPE_CHECKING:
    import pandas

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


def compare_modes(first: str | Path, second: str | Path | None = None) -> "pandas.DataFrame":
    """Match the modes of two runs on the same inputs, site by site, one to one.

    Of one run alone, those of the network and of its first twin with random weights, to which the
    same learner is fitted: modes that an untrained network has as well are no result of training.

    Modes are alike where inputs use them alike: partners have the largest sum of correlations of
    their loadings (Hungarian algorithm). So the runs may be of two networks, targets or learners.

    Parameters
    ----------
    first, second : path
        Run folders with modes; without the second, a twin of the first.

    Returns
    -------
    DataFrame
        A row a mode of either: ``site``; ``learner`` and ``mode`` (its number) of the ``first`` and
        the ``second`` run, -1 where a mode has no partner; ``correlation`` of the loadings;
        ``cosine`` of the atoms, NaN where these have other units; ``matched``, whether the
        correlation is above ``chance``, the highest that any partner has where the inputs of one
        run are shuffled.

    Raises
    ------
    DataError
        The runs are of other inputs, have no site in common that has modes, or no twin.
    StoreError
        One of them is not a run folder, or something in it is damaged.
    """
    import pandas

    if second is None:
        return _with_twin(RunFolder(first))
    folders = RunFolder(first), RunFolder(second)
    stores = [Store.open(folder.store) for folder in folders]
    names = [store.sample_ids for store in stores]
    prints = [store.recipe.get("data") for store in stores]
    if names[0] != names[1] or prints[0] != prints[1]:
        raise DataError(
            f"{first} and {second} are of different data: {len(names[0])} and {len(names[1])} "
            f"inputs, of which {len({*names[0]} & {*names[1]})} have the same ids; modes are "
            "matched by what they do on the same inputs. Collect both from the same data"
        )
    tables, unused = [], list[str]()
    for site in (site.key for site in stores[0].sites if site in stores[1].sites):
        found = [
            pair
            for folder, store in zip(folders, stores, strict=True)
            for pair in _first_modes(folder, store, site)
        ]
        if len(found) < len(folders):
            continue
        if all(len(modes) for _, modes in found):
            learners, modes = zip(*found, strict=True)
            tables.append(_matched(*modes).assign(site=site, learner=learners[0],
                                                  learner_second=learners[1]))  # fmt: skip
        else:
            unused.append(site)
    words = f"no input uses any mode of one of them at {', '.join(unused)}" if unused else ""
    if not tables:
        why = words or "no site has modes in both; run fit in both"
        raise DataError(f"{first} and {second}: {why}")
    if words:
        warnings.warn(f"compare: {words}; left out", DeadModesWarning, stacklevel=2)
    return pandas.concat(tables, ignore_index=True)


def _first_modes(folder: RunFolder, store: Store, site: str) -> list[tuple[str, Modes]]:
    """Load the modes of a site by its first learner, with its name; none where there are none."""
    return [
        (learner, Modes.load(folder.ledger.found(place) or place, store))
        for learner in folder.learners(site)[:1]
        for place in [folder.modes(site, learner)]
    ]


def _with_twin(folder: RunFolder) -> "pandas.DataFrame":
    """Match the modes of a run with those of its twin, fitted now as they were."""
    import pandas

    stores = {name: path for name, path in folder.twins().items() if name.startswith("random")}
    if not stores:
        raise DataError(
            f"{folder.path}: has no twin with random weights to compare its modes with; run "
            f"'condec collect {folder.path} --twin random-weights', or give another run"
        )
    name, path = next(iter(stores.items()))
    store, twin = Store.open(folder.store), Store.open(folder.ledger.found(path) or path)
    if not is_twin(twin, store) or twin.sample_ids != store.sample_ids:
        raise DataError(f"{path}: is a twin of another store; remove it and collect it again")
    tables = []
    for site in (site.key for site in store.sites):
        for learner, modes in _first_modes(folder, store, site):
            encoder = modes.encoder
            if encoder is None or isinstance(encoder.learner, Imported):
                continue
            if not len(modes) or encoder.training is None:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeadModesWarning)
                rows = twin.rows(site, modes.quantity, modes.sign, modes.rows)
                report = fit(encoder.learner, rows, config=encoder.training.config, progress=False)
            other = Modes.build(
                report.dictionary, twin, site, modes.sign, quantity=modes.quantity,
                held_out_rows=report.held_out_rows, rows=modes.rows,
            )  # fmt: skip
            if len(other):
                tables.append(_matched(modes, other).assign(
                    site=site, learner=learner, learner_second=f"{learner}, {name}"
                ))  # fmt: skip
    if not tables:
        raise DataError(f"{folder.path}: no site has modes that were fitted here; run fit first")
    return pandas.concat(tables, ignore_index=True)


def _matched(one: Modes, other: Modes) -> "pandas.DataFrame":
    """Match modes of one site, and those that only one run has."""
    import pandas

    found = partners(one.loadings, other.loadings)
    between, pairs, chance = found.between, found.pairs, found.chance
    same = one.atoms.shape[1] == other.atoms.shape[1]
    rows = [
        {"first": int(one.ids[i]), "second": int(other.ids[j]),
         "correlation": float(between[i, j]),
         "cosine": float(cosine(one.atoms[i], other.atoms[j])) if same else np.nan}
        for i, j in pairs
    ]  # fmt: skip
    for side, modes, at in (("first", one, 0), ("second", other, 1)):
        taken = {pair[at] for pair in pairs}
        lone = {"first": -1, "second": -1, "correlation": np.nan, "cosine": np.nan}
        rows += [lone | {side: int(number)} for row, number in enumerate(modes.ids.tolist())
                 if row not in taken]  # fmt: skip
    table = pandas.DataFrame(rows)
    return table.assign(chance=chance, matched=table["correlation"] > chance)


def modes_in_words(table: "pandas.DataFrame") -> Iterator[str]:
    """Say, site by site, how many modes both runs have, and which ones only one has."""
    for site, rows in table.groupby("site", sort=False):
        both = rows[rows["matched"]]
        numbers = [int((rows[side] >= 0).sum()) for side in ("first", "second")]
        yield (
            f"{site}: {len(both)} modes in both, of {numbers[0]} and {numbers[1]}; median "
            f"correlation {both['correlation'].median():.2f}, by chance at most "
            f"{rows['chance'].iloc[0]:.2f}"
        )
        for side in ("first", "second"):
            alone = rows[~rows["matched"] & (rows[side] >= 0)][side].tolist()
            if alone:
                more = ", ..." if len(alone) > 12 else ""
                yield f"{site}: only the {side}: {', '.join(map(str, alone[:12]))}{more}"


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
