"""Modes: atoms and loadings of a dictionary on the samples of a store, by label."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import Tensor

from condec.basis.checks import at_least, one_of
from condec.basis.digests import path_digest
from condec.basis.errors import DataError, OptionError, StoreError
from condec.basis.files import (
    folder_in_place,
    folder_lock,
    read_checked,
    reading,
    replace_folder,
    user_path,
    with_checksum,
    write_file,
    writing,
)
from condec.basis.metrics import in_columns
from condec.basis.records import short_repr
from condec.basis.shapes import (
    Atom,
    Atoms,
    Loadings,
    Mask,
    ModeLabel,
    PerSample,
    UnitMatrix,
)  # fmt: skip
from condec.dictionary import Dictionary, load_dictionary
from condec.dictionary.base import saved_digest
from condec.modes.labels import check_labels, label_correlation
from condec.modes.rows import held_out_mask, refuse_places, summed, whole_samples
from condec.network import Site
from condec.store import Quantity, Rows, Sign, Store

if TYPE_CHECKING:
    import pandas

Split = Literal["all", "train", "held_out"]
_SCHEMA: Final = 2
_ROWS_AT_ONCE: Final = 8192
_AXES: Final = {
    "atoms": ("mode", "unit"), "loadings": ("sample", "mode"), "ids": ("mode",),
    "held_out": ("sample",),
}  # fmt: skip
"""Tensors of `Modes` on disk, with the names of their axes."""
_WORDS: Final = ("sign", "quantity", "n_modes", "name", "dictionary", "rows")
_REMEDY: Final = (
    "Fit again ('condec fit'), or encode again: Modes.build(load_dictionary(FOLDER), store, site)."
)


@short_repr
@dataclass(frozen=True, eq=False)
class ModeMatch:
    """The mode that fits a label best, from `Modes.best`.

    `mode` is its row of `Modes.atoms`, `id` its number in the dictionary, alive and dead ones
    counted; the correlation with the label is that on the split that was asked for.
    """

    mode: int
    id: int
    atom: Atom
    loadings: PerSample
    correlation: float


@short_repr
@dataclass(frozen=True, eq=False)
class Modes:
    """Alive modes of one site: which units act together, and for which samples.

    Attributes
    ----------
    atoms : Tensor of shape [mode, unit]
        In the unit of the matrix; for the sign ``concat`` [mode, 2 unit], positive first.
    loadings : Tensor of shape [sample, mode]
        On all valid samples of the store; of rows that are positions, the sum over a sample's.
    ids : Tensor of shape [mode]
        Number of each mode in the dictionary.
    held_out : Tensor of shape [sample], bool
        Samples that were not used to fit.
    store : Store
    site : Site
    sign, quantity : str
        Which matrix of the store was decomposed.
    n_modes : int
        Modes of the dictionary, dead ones counted.
    name : str
        Tells several decompositions of one site apart.
    dictionary : str
        `Dictionary.digest` of the one that encoded them; empty where that is not known.
    encoder : Dictionary, optional
        That dictionary: that of `build`, or the one beside the modes that were loaded.
    rows : {"samples", "positions"}
        What the rows of that matrix were.
    """

    atoms: Atoms
    loadings: Loadings
    ids: Tensor
    held_out: Mask
    store: Store
    site: Site
    sign: Sign
    quantity: Quantity
    n_modes: int
    name: str = "modes"
    dictionary: str = field(default="", repr=False)
    encoder: Dictionary | None = field(default=None, repr=False, compare=False)
    rows: Rows = "samples"
    _correlations: dict[Split, Tensor] = field(
        init=False, default_factory=dict, repr=False, compare=False
    )

    @staticmethod
    def build(
        dictionary: Dictionary, store: Store, site: Site | str, sign: Sign = "positive", *,
        quantity: Quantity = "contribution", held_out_rows: Tensor | Sequence[int] | None = None,
        name: str = "modes", rows: Rows = "samples",
    ) -> "Modes":  # fmt: skip
        r"""Encode all samples of a store, and keep the modes that are alive.

        A mode is alive if its loading is above 0 for at least one sample (Melander et al. 2026).
        `sign`, `quantity` and `rows` name the matrix that was fitted, as in `Store.matrix`.
        `held_out_rows`, [row], are those of its rows that were not; by default those that the
        dictionary records, so that selecting on ``"train"`` never sees them, and none where it was
        fitted to other samples: to those of another store (of other data, or where others are
        valid), or to another number of rows where it does not tell.

        Where rows are positions, the loading of a sample with :math:`P_s` of them is the sum over
        all, :math:`z_{sm} = P_s / |K_s| \sum_{p \in K_s} z_{spm}`: estimated from the kept ones
        :math:`K_s`, exact where all are kept.

        Raises DataError: the dictionary has another width than the site, or the store is not
        complete; OptionError: a held-out row is out of range, the store has no positions, or some
        of a sample's are held out and some are not.
        """
        info = store.info(site)
        matrix = store.rows(info.site, quantity, sign, rows)
        encoded = (
            dictionary.encode(part).cpu()
            for block in range(len(matrix.blocks))
            for part in torch.split(matrix.read(block), _ROWS_AT_ONCE)
        )
        training = dictionary.training
        same = training is not None and training.origin in ("", matrix.origin)
        if held_out_rows is None and training and same and training.n_rows == matrix.shape[0]:
            held_out_rows = training.held_out_rows
        elif rows == "samples" and info.n_kept and training:
            refuse_places(training.n_rows, store, info.site)
        held_out = held_out_mask(held_out_rows, matrix.shape[0])
        if matrix.samples is None:
            loadings = torch.cat(list(encoded))
        else:
            held_out = whole_samples(held_out, matrix.samples, len(store))
            loadings = summed(encoded, matrix.samples, store.places(info.site).n_places)
        alive = (loadings > 0).any(0)
        return Modes(
            atoms=dictionary.atoms.detach().cpu()[alive], loadings=loadings[:, alive],
            ids=alive.nonzero().flatten(), held_out=held_out, store=store, site=info.site,
            sign=sign, quantity=quantity, n_modes=dictionary.n_modes, name=name,
            dictionary=dictionary.digest, encoder=dictionary, rows=rows,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.atoms)

    @property
    def share_dead(self) -> float:
        """Share of the dictionary's modes that no sample uses."""
        return 1.0 - len(self) / max(self.n_modes, 1)

    def matrix(self) -> UnitMatrix:
        """Read the matrix that was decomposed from the store."""
        return self.store.matrix(self.site, self.quantity, self.sign, self.rows)

    def samples(self, split: Split) -> Mask:
        """Return the mask of the samples of a split; OptionError where it is unknown or empty."""
        one_of(self.site.key, "split", split, Split)
        rows = {"train": ~self.held_out, "held_out": self.held_out}
        chosen = rows.get(split, torch.ones_like(self.held_out))
        if not bool(chosen.any()):
            raise OptionError(
                f"{self.site.key}: no row is in the split {split!r}; give held_out_rows to "
                "Modes.build, or ask for split='all'"
            )
        return chosen

    def correlation(self, labels: Tensor | None = None, split: Split = "all") -> ModeLabel:
        """Correlate loadings (Pearson) with the 0/1 indicator of each label.

        `labels`, [sample], are the store's by default; samples without label are left out. Returns
        [mode, label]; 0 where a mode or label does not vary on the split (Melander et al. 2026
        replace NaN by 0, too).

        Raises DataError: labels are missing, or not one for each sample; OptionError: the split is
        unknown or empty.
        """
        if labels is not None:
            return self._correlate(check_labels(labels, len(self.loadings)), split)
        if split not in self._correlations:
            self._correlations[split] = self._correlate(self.store.labels, split)
        return self._correlations[split].clone()

    def best(self, label: int, rank: int = 0, split: Split = "train") -> ModeMatch:
        """Return the mode most correlated with a label; rank 1 is the second most, and so on.

        By default chosen on the training rows, so that held-out rows stay unseen.

        Raises DataError: the store has no labels, or no sample of the split has this one;
        OptionError: the label is out of range, or fewer modes than `rank` + 1.
        """
        correlation = self.correlation(split=split)
        if not 0 <= label < correlation.shape[1]:
            raise OptionError(
                f"label {label} is out of range; the store's labels are 0 to "
                f"{correlation.shape[1] - 1}"
            )
        if not 0 <= rank < len(self):
            raise OptionError(
                f"{self.site.key}: rank {rank} is out of range; {len(self)} modes are alive, "
                "rank 0 is the most correlated"
            )
        if not bool((self.store.labels[self.samples(split)] == label).any()):
            raise DataError(
                f"{self.site.key}: no sample of the split {split} has label {label}, so no mode is "
                "its best one; take another split or label"
            )
        mode = int(correlation[:, label].argsort(descending=True, stable=True)[rank])
        return ModeMatch(
            mode=mode, id=int(self.ids[mode]), atom=self.atoms[mode],
            loadings=self.loadings[:, mode], correlation=float(correlation[mode, label]),
        )  # fmt: skip

    def row(self, mode: int) -> int:
        """Return the row of a mode by its number in the dictionary; OptionError without it."""
        rows = (self.ids == mode).nonzero().flatten()
        if not len(rows):
            raise OptionError(
                f"{self.site.key}: no input uses a mode {mode}; {len(self)} of the dictionary's "
                f"{self.n_modes} modes are alive"
            )
        return int(rows[0])

    def top(self, mode: int, n: int = 10) -> "pandas.DataFrame":
        """List the inputs that use a mode most, highest loading first.

        `mode` is a row of `atoms`. Columns: row (of `loadings`), id (of the input: its file, of a
        folder), label, prediction (-1 for none), held_out, loading. Inputs that do not use the
        mode are left out.

        Raises OptionError: there is no such mode, or `n` is below 1.
        """
        loading = self._of(mode, n)
        return self._listed(mode, loading.argsort(descending=True, stable=True), n)

    def random(self, mode: int, n: int = 10, seed: int = 0) -> "pandas.DataFrame":
        """List inputs drawn from all that use a mode, as `top` does: what it is on the whole."""
        drawn = torch.randperm(
            len(self._of(mode, n)), generator=torch.Generator().manual_seed(seed)
        )
        return self._listed(mode, drawn, n)

    def typical(self, mode: int, n: int = 10) -> "pandas.DataFrame":
        """List inputs from the middle of all that use a mode, by loading, as `top` does."""
        loading = self._of(mode, n)
        order = loading.argsort(descending=True, stable=True)[: int((loading > 0).sum())]
        middle = len(order) // 2 - n // 2
        return self._listed(mode, order[max(0, middle) : max(0, middle + n)], n)

    def counter_examples(self, mode: int, n: int = 10) -> "pandas.DataFrame":
        """List inputs on which a mode's units are active and yet contribute little, as `top` does.

        Inputs come in the order of how many more places they stand higher by `activation` than by
        loading (inputs of equal loading share the lowest place); those that stand no higher are
        left out. One more column holds the activation.

        Raises DataError: the modes are of activations themselves.
        """
        loading = self._of(mode, n)
        if self.quantity != "contribution":
            raise DataError(
                f"{self.site.key}: modes of {self.quantity}s have no counter-examples, which are "
                "active and contribute little; give modes of contributions"
            )
        active = self.activation[:, mode]
        higher = _place(active) - _place(loading)
        order = higher.argsort(descending=True, stable=True)
        found = self._listed(mode, order[higher[order] > 0], n, used=False)
        return found.assign(activation=active[found["row"].tolist()].tolist())

    @cached_property
    def activation(self) -> Loadings:
        """How active the units of every mode are, [sample, mode].

        The sum over units of their activation, summed over positions, times the size of the atom's
        entry; of the two halves of an atom, their sum.
        """
        return self.activation_of(slice(None))

    def activation_of(self, modes: slice) -> Loadings:
        """Return some columns of `activation`, which are not kept."""
        rows = self.store.rows(self.site, "activation", "sum")
        n_units, atoms = self.store.info(self.site).n_units, self.atoms[modes]
        sizes = atoms.abs().view(len(atoms), -1, n_units).sum(1).T
        return torch.cat([rows.read(block) @ sizes for block in range(len(rows.blocks))])

    def of_loadings(self, of: Callable[[Loadings], Tensor]) -> Tensor:
        """Return what is worked out of loadings mode by mode, of many modes in parts."""
        return torch.cat([of(part) for part in in_columns(self.loadings)])

    def _of(self, mode: int, n: int) -> PerSample:
        at_least(self.site.key, 1, n=n)
        if not 0 <= mode < len(self):
            raise OptionError(
                f"{self.site.key}: there is no mode in row {mode}; {len(self)} modes are alive, "
                "which have rows of atoms from 0 on and the numbers of Modes.ids"
            )
        return self.loadings[:, mode]

    def _listed(self, mode: int, order: Tensor, n: int, *, used: bool = True) -> "pandas.DataFrame":
        import pandas

        loading, store = self.loadings[:, mode], self.store
        rows = order[loading[order] > 0][:n] if used else order[:n]
        ids = [store.sample_ids[row] for row in rows.tolist()]
        tensors = {
            "label": store.labels, "prediction": store.predictions, "held_out": self.held_out,
            "loading": loading,
        }  # fmt: skip
        columns = {name: values[rows].tolist() for name, values in tensors.items()}
        return pandas.DataFrame({"row": rows.tolist(), "id": ids, **columns})

    def save(self, folder: str | Path, dictionary: Dictionary | None = None) -> Path:
        """Write ``modes.zarr`` into a folder, whole or not at all; returns its path.

        At every moment `load` reads either the earlier modes or the new ones. With their
        `dictionary` both are written, and the folder is replaced: an earlier pair stays whole until
        the new one is. Raises StoreError: the folder cannot be written, or holds something else.
        """
        path = user_path("modes.zarr", folder)
        place = path if dictionary is None else path.parent
        fresh = place.with_name(f".{place.name}.new")
        with writing(str(place)):
            place.parent.mkdir(parents=True, exist_ok=True)
            with folder_lock(place.parent):
                shutil.rmtree(fresh, ignore_errors=True)
                try:
                    if dictionary is None:
                        self._write(fresh)
                    else:
                        _refuse_others(place)
                        dictionary.save(fresh)
                        self._write(fresh / path.name)
                    replace_folder(place, fresh)
                finally:
                    shutil.rmtree(fresh, ignore_errors=True)
        return path

    def _write(self, path: Path) -> None:
        import zarr

        group = zarr.create_group(path)
        for name, axes in _AXES.items():
            group.create_array(name, data=getattr(self, name).numpy(), dimension_names=axes)
        of = {"schema": _SCHEMA, "store": self.store.config_hash, "site": self.site.key}
        words: dict[str, Any] = of | {name: getattr(self, name) for name in _WORDS}
        content = {name: path_digest(path / name) for name in _AXES}
        group.attrs.put({**words, "sha256": content, "checksum": ""})
        written = json.loads((path / "zarr.json").read_bytes())
        write_file(path / "zarr.json", with_checksum(written))

    @staticmethod
    def load(folder: str | Path, store: Store) -> "Modes":
        """Read what `save` wrote.

        StoreError where nothing is, what is damaged or of another store, and where the dictionary
        that lies beside is not the one that encoded them.
        """
        import zarr

        path = folder_in_place(folder_in_place(user_path(folder)) / "modes.zarr")
        if not (path / "zarr.json").exists():
            raise StoreError(f"{path}: no modes are there; fit a dictionary first")
        with reading(path, "modes", _REMEDY):
            content = (path / "zarr.json").read_bytes()
            kept: dict[str, Any] = json.loads(content)["attributes"]
            if (schema := kept.get("schema")) == _SCHEMA:
                read_checked(content)
        if kept.get("store") != store.config_hash:
            raise StoreError(f"{path}: modes of another store than {store.path}; refit")
        if schema != _SCHEMA:
            raise StoreError(
                f"{path} is written in schema {schema}; this version of condec reads schema "
                f"{_SCHEMA}, which holds digests. {_REMEDY}"
            )
        beside = _check_content(path, kept)
        encoder = load_dictionary(path.parent) if beside and beside == kept["dictionary"] else None
        with reading(path, "modes", _REMEDY):
            group = zarr.open_group(path, mode="r")
            arrays: dict[str, Any] = {name: torch.from_numpy(group[name][:]) for name in _AXES}  # type: ignore[index]
        words = {name: ({"rows": "samples"} | kept)[name] for name in _WORDS}  # earlier: no rows
        site = store.info(kept["site"]).site
        return Modes(**arrays, **words, store=store, site=site, encoder=encoder)

    def _correlate(self, labels: Tensor, split: Split) -> Tensor:
        return label_correlation(self.loadings, labels, self.samples(split))

    def forget(self) -> None:
        """Free the memory of what is computed again when asked for."""
        self._correlations.clear()
        self.__dict__.pop("activation", None)


def _place(values: Tensor) -> Tensor:
    """Return how many values are lower than each one."""
    return torch.searchsorted(values.sort().values, values.contiguous())


def _check_content(path: Path, kept: dict[str, Any]) -> str:
    """Refuse arrays that are not those that were written, and another dictionary beside them.

    Return the digest of the dictionary beside; empty where there is none.
    """
    with reading(path, "modes", _REMEDY):
        for name in _AXES:
            if (found := path_digest(path / name)) != (expected := kept["sha256"][name]):
                raise StoreError(
                    f"{path}: {name} are damaged, or of other modes: expected SHA-256 {expected}, "
                    f"got {found or 'nothing'}. {_REMEDY}"
                )
        beside = saved_digest(path.parent)
    if kept["dictionary"] and beside not in ("", kept["dictionary"]):
        raise StoreError(
            f"{path}: encoded by another dictionary than the one beside it: expected "
            f"{kept['dictionary']}, got {beside}. {_REMEDY}"
        )
    return beside


def _refuse_others(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but a dictionary and modes."""
    for file in folder.iterdir() if folder.is_dir() else ():
        if not file.name.startswith(("dictionary.", "modes.zarr", ".modes.zarr.")):
            raise StoreError(
                f"{folder}: holds {file.name} besides a dictionary and its modes, and would be "
                "replaced; choose a folder of their own"
            )
