"""The store: contributions and activations of many samples on disk, read as tensors.

Written shard by shard, by as many processes as one likes, and resumed where it stopped.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from condec.basis.checks import one_of
from condec.basis.digests import differences, digest, record_digest
from condec.basis.errors import OptionError, StoreError, counted
from condec.basis.files import (
    file_digest,
    folder_lock,
    put_back,
    reading,
    remove_all_partial,
    remove_whatever,
    store_path,
    with_checksum,
    write_file,
    writing,
)
from condec.basis.objects import at_once
from condec.basis.options import digest_of
from condec.basis.records import Damage
from condec.basis.shapes import Labels, Mask, PerSample, UnitMatrix
from condec.data.inputs import MOST_LABELS, repeated
from condec.network import Site, find_site
from condec.store import shards
from condec.store.matrix import Sign, StoredMatrix
from condec.store.places import Places, Rows
from condec.store.seals import REPAIR, read_seals
from condec.store.shards import AGAIN, Quantity, ShardRecord, SiteInfo

if TYPE_CHECKING:
    import xarray


class Store:
    """Contributions and activations of many samples, on disk or in an object store.

    Made by `Store.create` (or `condec.collect`), found again by `Store.open`. All accessors
    give valid samples only, in the order of the data, and refuse an incomplete store. What is
    damaged is found when it is read, and named by a StoreError.

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
        self.path = store_path(path)
        self._root = shards.read_root(self.path)
        config = self._root.config
        self.recipe: dict[str, Any] = config["recipe"]
        self.infos = tuple(SiteInfo.from_dict(info) for info in config["sites"])
        self.sites = tuple(info.site for info in self.infos)
        self._by_site = {info.site: info for info in self.infos}
        self.n_samples: int = config["n_samples"]
        self.shard_size: int = config["shard_size"]
        self.n_shards = -(-self.n_samples // self.shard_size)
        self.config_hash = self._root.config_hash
        self._seals: dict[int, str] = {}  # of the shards that are known to count
        self._inputs: dict[str, Tensor] = {}
        self._ids: tuple[str, ...] | None = None

    @classmethod
    def create(
        cls, path: str | Path, *,
        recipe: Mapping[str, Any], sites: Sequence[SiteInfo], n_samples: int, shard_size: int,
    ) -> "Store":  # fmt: skip
        """Make an empty store, or open the one that is there to go on with it.

        The recipe is everything that decides the numbers, as JSON can hold it; sites are in order
        of execution. What killed writers left goes, and damaged metadata are written again.

        Raises
        ------
        StoreError
            A store of another recipe is there (every difference is listed), something else
            is there, or the place cannot be written.
        """
        path = store_path(path, write=True)
        config = shards.make_config(recipe, sites, n_samples, shard_size)
        with writing(f"{path}"):
            shards.make_folder(path, config)
        store = cls(path)
        if store.config_hash != record_digest(config):
            each = (shards.entries(one) for one in (store._root.config, config))
            lines = "\n  ".join(differences(*each))
            raise StoreError(
                f"{path} was made by another recipe:\n  {lines}\n"
                "Choose another path, or remove that store first."
            )
        with writing(f"{path}"):
            remove_all_partial(path)
            put_back(shards.strays(path, store._root))
        return store

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Find a store again, complete or not; StoreError where there is none of this schema."""
        return cls(path)

    # --- the manifest and writing ---------------------------------------------------------

    @property
    def manifest(self) -> tuple[ShardRecord, ...]:
        """Records of the shards that count, in order."""
        missing = {*self.missing()}
        there = [i for i in range(self.n_shards) if i not in missing]
        return tuple(at_once(self._record, there, self.path))

    def missing(self) -> tuple[int, ...]:
        """Return the indices of the shards that are still to be written.

        A shard counts if its manifest record is, byte for byte, one that this store has written.
        """
        unknown = [i for i in range(self.n_shards) if i not in self._seals]
        counting = zip(unknown, at_once(self.counts, unknown, self.path), strict=True)
        return tuple(i for i, counts in counting if not counts)

    def counts(self, index: int) -> bool:
        """Tell whether a shard counts, now."""
        return self._problem(index) is None

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
        part = slice(span.start, span.stop)
        rows = {name: self._read(name, part) for name in self._root.places}
        return {
            name: tuple(map(str, values)) if name == "inputs/id" else torch.from_numpy(values)
            for name, values in rows.items()
        }

    def write_shard(self, index: int, rows: Mapping[str, Any]) -> None:
        """Write one shard, whole, and make it count.

        Processes may write shards at once, also the same one; writing a shard again replaces it.
        What killed writers left goes with the next `create`.

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
        self._forget(index)
        with (
            writing(who, lambda: f"{self._done} shards are complete and count. "),
            folder_lock(self.path, shared=True),
        ):
            record = self._record_path(index)
            remove_whatever(record)
            made = shards.write_arrays(self.path, index, span.start, values, self._root.nodes)
            write_file(record, with_checksum(asdict(ShardRecord(**self._head(index), **made))))

    def damages(self) -> tuple[Damage, ...]:
        """Read every byte of the store, and return all files that are not what was written.

        Shards that were never written are no damage; see `missing`. StoreError where a file cannot
        be read for a reason that says nothing about it, such as its permissions.
        """
        problem = "its bytes are not those that were written"
        found = [Damage(path, problem, AGAIN) for path in shards.strays(self.path, self._root)]
        return (*found, *(one for i in range(self.n_shards) for one in self._damages_of(i)))

    def verify(self) -> None:
        """Do as `damages`; StoreError with the files where there are some."""
        if found := self.damages():
            lines = "\n".join(map(str, found[:8]))
            raise StoreError(f"{self.path}: {len(found)} damaged files, of which\n{lines}")

    def repair(self) -> tuple[Damage, ...]:
        """Make damaged shards count no longer, write damaged metadata again; return all damages.

        The same `condec.collect` then writes those shards again, and ends with the same bytes.
        """
        found = self.damages()
        with writing(f"{self.path}"):
            put_back(shards.strays(self.path, self._root))
            for damage in found:
                if shard := re.match(r"(?:c\.|shard-)(\d+)", damage.file.name):
                    remove_whatever(self._record_path(int(shard[1])))
                    self._forget(int(shard[1]))
        return found

    # --- reading --------------------------------------------------------------------------

    def info(self, site: Site | str) -> SiteInfo:
        """Return the layout of a site, by any spelling of it, or its module's name."""
        if isinstance(site, Site) and site in self._by_site:
            return self._by_site[site]
        units = [info.units for info in self.infos]
        return self.infos[self.sites.index(find_site(self.sites, site, units))]

    def group(self, site: Site | str) -> str:
        """Return the path of a site's arrays in the store, for ``xarray.open_zarr(group=...)``."""
        return self.info(site).folder

    def __len__(self) -> int:
        return int(self.valid.sum())

    def __repr__(self) -> str:
        size = sum(info.n_bytes for info in self.infos) * self.n_samples / 2**20
        width = max(len(info.site.key) for info in self.infos)
        units = (f"\n  {i.site.key:{width}}  {i.n_units} units ({i.units})" for i in self.infos)
        return (
            f"Store({str(self.path)!r}: {counted(self.n_samples, 'sample')}, "
            f"{counted(len(self.sites), 'site')}, {self._done} shards, "
            f"{size:.1f} MiB uncompressed){''.join(units)}"
        )

    @property
    def valid(self) -> Mask:
        """Mask of the rows that hold a usable sample, shape [n_samples]."""
        return self._input("valid").clone()

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """Identities of the valid samples."""
        if self._ids is None:
            every = zip(self._read("inputs/id"), self.valid.tolist(), strict=True)
            self._ids = tuple(str(name) for name, good in every if good)
            if len(set(self._ids)) < len(self._ids):
                twice = self._ids[repeated(self._ids)[0]]
                raise StoreError(f"{self.path}: id {twice!r} comes twice; collect again without")
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
        self, site: Site | str, quantity: Quantity = "contribution", sign: Sign = "positive",
        rows: Rows = "samples",
    ) -> UnitMatrix:  # fmt: skip
        """Read contributions or activations at a site, of all valid samples.

        Float32 of shape [sample, unit], or, with ``rows="positions"``, [kept position, unit] of
        contributions, of all samples one after the other (`places`). The sign ``sum`` is positive
        plus negative part; ``concat``, of shape [..., 2 unit], all positive parts, then all
        negative parts. OptionError where no positions were collected.
        """
        return self.rows(site, quantity, sign, rows).all()

    def rows(
        self, site: Site | str, quantity: Quantity = "contribution", sign: Sign = "positive",
        rows: Rows = "samples",
    ) -> StoredMatrix:  # fmt: skip
        """Return the same matrix, left on disk and read in blocks; `condec.fit` takes it, too."""
        for name, word, words in (
            ("quantity", quantity, Quantity), ("sign", sign, Sign), ("rows", rows, Rows),
        ):  # fmt: skip
            one_of("Store.matrix", name, word, words)
        self.require_complete()
        info, array, valid, samples = self.info(site), str(quantity), self.valid, None
        if rows == "positions":
            if quantity != "contribution":
                raise OptionError(f"Store.matrix: {quantity} is kept as sums over positions only")
            array, valid = shards.AT_PLACES, self._of_places(info, shards.POSITION) >= 0
            samples = valid[self.valid].nonzero()[:, 0]
        spans = [self.shard_rows(index) for index in range(self.n_shards)]
        whole, origin = f"{info.folder}/{array}", digest(self.recipe.get("data"), digest_of(valid))
        return StoredMatrix(self._files(), whole, spans, valid, sign, info.n_units, samples, origin)

    def places(self, site: Site | str) -> Places:
        """Tell where the rows of the matrix of positions are; OptionError as there."""
        info, valid = self.info(site), self.valid
        position = self._of_places(info, shards.POSITION)[valid]
        there = position >= 0
        return Places(
            sample=there.nonzero()[:, 0], position=position[there].long(),
            n_places=self._of_places(info, shards.N_PLACES)[valid].long(),
        )  # fmt: skip

    def _of_places(self, info: SiteInfo, array: str) -> Tensor:
        if not info.n_kept:
            raise OptionError(
                f"{self.path}: no positions of {info.site.key} were kept; collect with "
                'rows="positions" (run.toml: [collect] rows = "positions")'
            )
        return torch.from_numpy(self._read(f"{info.folder}/{array}"))

    def completeness(self) -> dict[str, PerSample]:
        """Sum of all contributions over the change of the target, for sites that cut the network.

        By key of the site; not finite where the target does not change.
        """
        change = (self.target - self.target_baseline).to(torch.float64)
        sums = {
            info.site.key: torch.cat([
                rows.sum(1, dtype=torch.float64) for rows in self.rows(info.site, sign="sum").each()
            ])
            for info in self.infos
            if info.cut
        }  # fmt: skip
        return {key: (total / change).to(torch.float32) for key, total in sums.items()}

    def to_xarray(self) -> "xarray.DataTree":
        """Open the store as an xarray tree, read lazily: ``inputs`` and ``sites/<quoted key>``.

        All rows are there, also those with ``valid`` False (which hold NaN).
        """
        import xarray

        with reading(self.path, "a store", REPAIR):
            return xarray.open_datatree(self._files(thorough=True), engine="zarr", chunks=None)

    def _files(self, *, thorough: bool = False) -> Any:
        from condec.store.checked import CheckedFiles

        self.require_complete()
        return CheckedFiles(self.path, self._root, self._seals, thorough=thorough)

    def _read(self, array: str, rows: slice = slice(None)) -> Any:
        import zarr

        files = self._files(thorough=True)
        with reading(self.path / array, "an array of a store", REPAIR):
            opened: Any = zarr.open_array(files, path=array, mode="r", zarr_format=3)
            return opened[rows]

    def _input(self, name: str) -> Tensor:
        if name not in self._inputs:
            values = torch.from_numpy(self._read(f"inputs/{name}"))
            if name == "label" and (top := int(values.max())) >= MOST_LABELS:
                wrong = f"label {top}; expected labels below {MOST_LABELS:,}; collect again"
                raise StoreError(f"{self.path}: {wrong}")
            self._inputs[name] = values
        return self._inputs[name]

    @property
    def _done(self) -> str:
        return f"{self.n_shards - len(self.missing())} of {self.n_shards}"

    def require_complete(self) -> None:
        """Refuse a store of which shards are missing."""
        if missing := self.missing():
            some = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            bad = [(i, problem) for i in missing if (problem := self._problem(i))]
            why = f" {self._record_path(bad[0][0])}: {bad[0][1]}." if bad else ""
            raise StoreError(
                f"{self.path} is incomplete: {len(missing)} of {self.n_shards} shards are missing "
                f"({some}).{why} Run the command that made it again: it computes those, and keeps "
                "the others."
            )

    def _record_path(self, index: int) -> Path:
        return self.path / "manifest" / f"shard-{index:05d}.json"

    def _forget(self, index: int) -> None:
        self._seals.pop(index, None)
        self._inputs.clear()
        self._ids = None

    def _head(self, index: int) -> dict[str, Any]:
        """First entries of a shard's record, in their order."""
        span = self.shard_rows(index)
        sizes = {"start": span.start, "rows": len(span)}
        return {"index": index, **sizes, "config_hash": self.config_hash}

    def _problem(self, index: int) -> str | None:
        """Return None if a shard counts, else what is wrong with its record ("": there is none)."""
        if index in self._seals:
            return None
        return read_seals(self._record_path(index), self._head(index), self._seals)

    def _record(self, index: int) -> ShardRecord:
        return ShardRecord(**json.loads(self._record_path(index).read_bytes()))

    def _damages_of(self, index: int) -> Iterator[Damage]:
        """Compare a shard that was written with its record, and the record with itself."""
        self._seals.pop(index, None)
        if problem := self._problem(index):
            yield Damage(self._record_path(index), problem, REPAIR)
        elif problem is None:
            for name, expected in self._record(index).files.items():
                path = shards.shard_file(self.path, name, index)
                with reading(path, "a shard of a store", REPAIR):
                    got = file_digest(path) if path.is_file() else "no file"
                if got != expected:
                    yield Damage(path, f"expected SHA-256 {expected}, got {got}", REPAIR)
