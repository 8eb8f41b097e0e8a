"""The store: contributions and activations of many samples on disk, read as tensors.

Written shard by shard, by as many processes as one likes, and resumed where it stopped.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from condec.basis.checks import one_of
from condec.basis.errors import OptionError, StoreError
from condec.basis.files import (
    file_digest,
    remove_partial,
    to_json,
    user_path,
    write_file,
    write_folder,
    writing,
)
from condec.basis.shapes import Labels, Mask, PerSample, UnitMatrix
from condec.data.inputs import MOST_LABELS, repeated
from condec.network import Site, find_site
from condec.store import shards
from condec.store.matrix import Sign, StoredMatrix
from condec.store.shards import Quantity, ShardRecord, SiteInfo

if TYPE_CHECKING:
    import xarray


class Store:
    """Contributions and activations of many samples, on disk.

    Made by `Store.create` (or `condec.collect`), found again by `Store.open`. All accessors
    give valid samples only, in the order of the data, and refuse an incomplete store.

    Attributes
    ----------
    path : Path
    recipe : dict
        What made the store: model, method, target and so on.
    sites : tuple of Site
    n_samples, n_shards, shard_size : int
        Rows of the store, valid or not (``len(store)`` counts the valid ones); shards; rows of one.
    config_hash : str
        SHA-256 of recipe, sites and sizes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path)
        config = shards.read_config(self.path)
        self.recipe: dict[str, Any] = config["recipe"]
        self.infos = tuple(SiteInfo.from_dict(info) for info in config["sites"])
        self.sites = tuple(info.site for info in self.infos)
        self.n_samples: int = config["n_samples"]
        self.shard_size: int = config["shard_size"]
        self.n_shards = -(-self.n_samples // self.shard_size)
        self.config_hash = shards.config_hash(config)
        self._complete = False
        self._inputs: dict[str, Tensor] = {}
        self._ids: tuple[str, ...] | None = None

    @classmethod
    def create(
        cls, path: str | Path, *,
        recipe: Mapping[str, Any], sites: Sequence[SiteInfo], n_samples: int, shard_size: int,
    ) -> "Store":  # fmt: skip
        """Make an empty store, or open the one that is there to go on with it.

        The recipe is everything that decides the numbers, as JSON can hold it; sites are in order
        of execution.

        Raises
        ------
        StoreError
            A store of another recipe is there (every difference is listed), something else
            is there, or the place cannot be written.
        """
        path = user_path(path)
        config = shards.make_config(recipe, sites, n_samples, shard_size)
        with writing(f"{path}"):
            write_folder(path, shards.skeleton(config))
        store = cls(path)
        if store.config_hash != shards.config_hash(config):
            had, wants = shards.entries(shards.read_config(path)), shards.entries(config)
            raise StoreError(
                f"{path} was made by another recipe:\n{shards.differences(had, wants)}\n"
                "Choose another path, or remove that store first."
            )
        return store

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Find a store again, complete or not; StoreError where there is none of this schema."""
        return cls(path)

    # --- the manifest and writing ---------------------------------------------------------

    @property
    def manifest(self) -> tuple[ShardRecord, ...]:
        """Records of the shards that count, in order."""
        there = (i for i in range(self.n_shards) if self._record_path(i).exists())
        return tuple(self._record(i) for i in there)

    def missing(self) -> tuple[int, ...]:
        """Return the indices of the shards that are still to be written."""
        if self._complete:
            return ()
        found = tuple(i for i in range(self.n_shards) if not self._record_path(i).exists())
        self._complete = not found
        return found

    @property
    def is_complete(self) -> bool:
        """Tell whether every shard counts."""
        return not self.missing()

    def shard_rows(self, index: int) -> range:
        """Return the rows of the store that a shard holds."""
        if not 0 <= index < self.n_shards:
            raise OptionError(f"{self.path}: shard {index} is not one of 0 ... {self.n_shards - 1}")
        start = index * self.shard_size
        return range(start, min(start + self.shard_size, self.n_samples))

    def read_shard(self, index: int) -> dict[str, Any]:
        """Read all rows of a shard, valid or not, as `write_shard` takes them."""
        span = self.shard_rows(index)
        rows = {
            name: self._open(name)[span.start : span.stop] for name in shards.arrays_of(self.infos)
        }
        return {
            name: tuple(map(str, values)) if name == "inputs/id" else torch.from_numpy(values)
            for name, values in rows.items()
        }

    def write_shard(self, index: int, rows: Mapping[str, Any]) -> None:
        """Write one shard, whole, and make it count.

        Different processes may write different shards at once. What a killed writer left of
        this shard is removed; writing a shard again replaces it.

        Parameters
        ----------
        index : int
        rows : mapping
            What every array of the store holds of these samples, by its path, see
            `condec.store.shards`: ``inputs/id`` a sequence of str, else Tensor[sample, ...].

        Raises
        ------
        DataError
            `rows` do not fit the store.
        StoreError
            The disk is full, or cannot be written; the shard does not count then.
        """
        who = f"{self.path}: shard {index}"
        span = self.shard_rows(index)
        values = shards.shard_values(rows, len(span), shards.arrays_of(self.infos), who)
        self._complete = False
        self._inputs.clear()
        self._ids = None
        with writing(who, lambda: f"{self._done} shards are complete and count. "):
            record = self._record_path(index)
            record.unlink(missing_ok=True)
            files = shards.write_arrays(self.path, index, span.start, values)
            remove_partial(record)
            write_file(record, to_json(asdict(self._new_record(index, files))))

    def verify(self) -> None:
        """Read every byte of the shards that count, and compare it with the manifest.

        StoreError at the first thing that is damaged or missing, with the shard, the array, and
        what was expected and found.
        """
        shards.verify_metadata(self.path)
        for record in self.manifest:
            for name, expected in record.files.items():
                path = shards.shard_file(self.path, name, record.index)
                try:
                    got = file_digest(path)
                except OSError as error:
                    raise self._damaged(record.index, name, "its file", repr(error)) from error
                if got != expected:
                    raise self._damaged(record.index, name, f"SHA-256 {expected}", got)

    # --- reading --------------------------------------------------------------------------

    def info(self, site: Site | str) -> SiteInfo:
        """Return the layout of a site, by any spelling of it, or its module's name."""
        units = [info.units for info in self.infos]
        return self.infos[self.sites.index(find_site(self.sites, site, units))]

    def group(self, site: Site | str) -> str:
        """Return the path of a site's arrays in the store, for ``xarray.open_zarr(group=...)``."""
        return self.info(site).folder

    def __len__(self) -> int:
        return int(self.valid.sum())

    def __repr__(self) -> str:
        size = sum(16 * info.n_units for info in self.infos) * self.n_samples / 2**20
        width = max(len(info.site.key) for info in self.infos)
        units = (f"\n  {i.site.key:{width}}  {i.n_units} units ({i.units})" for i in self.infos)
        return (
            f"Store({str(self.path)!r}: {self.n_samples} samples, {len(self.sites)} sites, "
            f"{self._done} shards, {size:.1f} MiB uncompressed){''.join(units)}"
        )

    @property
    def valid(self) -> Mask:
        """Mask of the rows that hold a usable sample, shape [n_samples]."""
        return self._input("valid").clone()

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """Identities of the valid samples."""
        if self._ids is None:
            valid = self.valid.tolist()
            ids = self._open("inputs/id")[:]
            self._ids = tuple(str(name) for name, good in zip(ids, valid, strict=True) if good)
            if len(set(self._ids)) < len(self._ids):
                first, second = repeated(self._ids)
                raise StoreError(
                    f"{self.path}: samples {first} and {second} have the same id, "
                    f"{self._ids[first]!r}; collect again from data whose ids differ"
                )
        return self._ids

    @property
    def labels(self) -> Labels:
        """Labels of the valid samples; -1 where there is none."""
        return self._input("label")[self.valid]

    @property
    def predictions(self) -> Labels:
        """Classes the model predicted for the valid samples; -1 where there is none."""
        return self._input("prediction")[self.valid]

    @property
    def target(self) -> PerSample:
        """Target at the valid samples."""
        return self._input("target")[self.valid]

    @property
    def target_baseline(self) -> PerSample:
        """Target at the baseline of the valid samples."""
        return self._input("target_baseline")[self.valid]

    @property
    def steps(self) -> Labels:
        """Intervals of the path that each valid sample took; -1 for methods without a path."""
        return self._input("steps")[self.valid]

    def matrix(
        self, site: Site | str, quantity: Quantity = "contribution", sign: Sign = "positive"
    ) -> UnitMatrix:
        """Read contributions or activations at a site, of all valid samples.

        Float32 of shape [sample, unit]. The sign ``sum`` is positive plus negative part;
        ``concat``, of shape [sample, 2 unit], all positive parts, then all negative parts.
        """
        return self.rows(site, quantity, sign).all()

    def rows(
        self, site: Site | str, quantity: Quantity = "contribution", sign: Sign = "positive"
    ) -> StoredMatrix:
        """Return the same matrix, left on disk and read in blocks; `condec.fit` takes it, too."""
        one_of("Store.matrix", "quantity", quantity, Quantity)
        one_of("Store.matrix", "sign", sign, Sign)
        self._require_complete()
        info = self.info(site)
        spans = [self.shard_rows(index) for index in range(self.n_shards)]
        array = self.path / info.folder / quantity
        return StoredMatrix(array, spans, self.valid, sign, info.n_units)

    def completeness(self) -> dict[str, PerSample]:
        """Sum of all contributions over the change of the target, for sites that cut the network.

        By key of the site; not finite where the target does not change.
        """
        change = (self.target - self.target_baseline).to(torch.float64)
        sums = {
            info.site.key: self.matrix(info.site, sign="sum").sum(1, dtype=torch.float64)
            for info in self.infos
            if info.cut
        }
        return {key: (total / change).to(torch.float32) for key, total in sums.items()}

    def to_xarray(self) -> "xarray.DataTree":
        """Open the store as an xarray tree, read lazily: ``inputs`` and ``sites/<quoted key>``.

        All rows are there, also those with ``valid`` False (which hold NaN).
        """
        import xarray

        self._require_complete()
        return xarray.open_datatree(self.path, engine="zarr", chunks=None)

    def _open(self, array: str) -> Any:
        import zarr

        self._require_complete()
        return zarr.open_array(self.path / array, mode="r")

    def _input(self, name: str) -> Tensor:
        if name not in self._inputs:
            self._inputs[name] = torch.from_numpy(self._open(f"inputs/{name}")[:])
            if name == "label" and int(self._inputs[name].max()) >= MOST_LABELS:
                top = int(self._inputs.pop(name).max())
                raise StoreError(
                    f"{self.path}: label {top}; expected labels below {MOST_LABELS:,}. Collect "
                    "again from data with numbers of classes"
                )
        return self._inputs[name]

    @property
    def _done(self) -> str:
        return f"{self.n_shards - len(self.missing())} of {self.n_shards}"

    def _require_complete(self) -> None:
        if missing := self.missing():
            some = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            raise StoreError(
                f"{self.path} is incomplete: {len(missing)} of {self.n_shards} shards are missing "
                f"({some}). Run the command that made it again: it goes on where it stopped."
            )

    def _record_path(self, index: int) -> Path:
        return self.path / "manifest" / f"shard-{index:05d}.json"

    def _new_record(self, index: int, files: Mapping[str, str]) -> ShardRecord:
        span, checksum = self.shard_rows(index), shards.checksum_of(files)
        return ShardRecord(index, span.start, len(span), self.config_hash, files, checksum)

    def _record(self, index: int) -> ShardRecord:
        path = self._record_path(index)
        try:
            record = ShardRecord(**json.loads(path.read_bytes()))
            expected = asdict(self._new_record(index, record.files))
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise self._damaged(index, path.name, "a manifest record", repr(error)) from error
        for field, wanted in expected.items():
            got = getattr(record, field)
            if got != wanted:
                raise self._damaged(index, f"{field} in {path.name}", wanted, got)
        if record.files.keys() != shards.arrays_of(self.infos).keys():
            raise self._damaged(index, f"files in {path.name}", "every array", sorted(record.files))
        return record

    def _damaged(self, index: int, what: str, expected: object, got: object) -> StoreError:
        return StoreError(
            f"{self.path}: shard {index} is damaged: {what}: expected {expected}, got {got}. "
            f"Delete manifest/{self._record_path(index).name} in the store and run the command "
            "that made it again: that shard is written again."
        )
