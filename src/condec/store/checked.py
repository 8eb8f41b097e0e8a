"""Reading a store: what is read is what was written, or an error names the file.

Zarr itself takes a missing file, or a folder in its place, for fill values, and every array by the
`zarr.json` beside it. Here metadata come from the root, whose checksum was compared, and a shard's
file is compared with its seal in the manifest before anything of it is used.
"""

from collections.abc import Mapping
from pathlib import Path

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import LocalStore

from condec.basis.errors import StoreError
from condec.basis.files import reading, to_json
from condec.store.shards import ENDS, REPAIR, SEAL, Root, ends, seal


class CheckedFiles(LocalStore):
    """The files of a store, as Zarr and xarray read them.

    A file is compared with its seal when it is first used: a few bytes of it, as Zarr compares
    chunks with their checksums when it reads them; all if `thorough`, so that no error is Zarr's.
    """

    def __init__(
        self, path: Path, root: Root, seals: Mapping[int, str], *, thorough: bool = False
    ) -> None:
        super().__init__(path, read_only=True)
        self._metadata, self._seals, self._thorough = root, seals, thorough
        self._checked: set[str] = set()

    async def get(
        self, key: str, prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:  # fmt: skip
        """Return the content of a file, or a part of it; StoreError where it is damaged."""
        folder, _, name = key.rpartition("/")
        if name == "zarr.json":
            node = self._metadata.nodes.get(folder)
            content = to_json(node) if node else b"" if folder else self._metadata.content
            return default_buffer_prototype().buffer.from_bytes(content) if content else None
        if folder not in self._metadata.places or not name.startswith("c."):
            return None
        path = self.root / key
        if key not in self._checked:
            with reading(path, "a shard of a store", REPAIR):
                self._check(path, folder)
            self._checked.add(key)
        found = await super().get(key, prototype, byte_range)
        if found is None:
            raise StoreError(f"{path} is gone since it was opened. {REPAIR}")
        return found

    def _check(self, path: Path, array: str) -> None:
        start, node = SEAL * self._metadata.places[array], self._metadata.nodes[array]
        wanted = self._seals.get(int(path.name.split(".")[1]), "")[start : start + SEAL]
        if self._thorough:
            good = seal(path.read_bytes(), node) == wanted
        else:
            with path.open("rb", buffering=0) as file:
                good = ends(file, node) == wanted[:ENDS]
        if not good:
            raise StoreError(f"{path} is damaged: it is not the file that was written. {REPAIR}")
