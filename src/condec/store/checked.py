"""Reading a store: what is read is what was written, or an error names the file.

Zarr itself takes a missing file, or a folder in its place, for fill values, and every array by the
`zarr.json` beside it. Here metadata come from the root, whose checksum was compared, and a shard's
file is compared with its seal in the manifest before anything of it is used.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import LocalStore, MemoryStore

from condec.basis.errors import StoreError
from condec.basis.files import reading, to_json
from condec.basis.objects import ObjectPath
from condec.store.seals import ENDS, REPAIR, SEAL, ends, seal
from condec.store.shards import Root

_KEPT: Final = 4
"""Objects that are kept: those of as many shards are read at once (`StoredMatrix.all`)."""


class CheckedFiles(LocalStore):
    """The files of a store, as Zarr and xarray read them.

    A file is compared with its seal when it is first used: a few bytes of it, as Zarr compares
    chunks with their checksums when it reads them; all if `thorough`, so that no error is Zarr's.
    An object is read once, whole, and compared: one request, where its chunks would be many.
    """

    def __init__(
        self, path: Path, root: Root, seals: Mapping[int, str], *, thorough: bool = False
    ) -> None:
        super().__init__(path, read_only=True)
        self._metadata, self._seals, self._thorough = root, seals, thorough
        self._checked: set[str] = set()
        self._objects: dict[str, asyncio.Task[MemoryStore]] = {}  # those that were read last

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
        if isinstance(path, ObjectPath):
            return await (await self._whole(key)).get(key, prototype, byte_range)
        if key not in self._checked:
            with reading(path, "a shard of a store", REPAIR):
                self._check(path, folder, thorough=self._thorough)
            self._checked.add(key)
        found = await super().get(key, prototype, byte_range)
        if found is None:
            raise StoreError(f"{path} is gone since it was opened. {REPAIR}")
        return found

    async def _open(self, *, mode: Any = None) -> None:
        self._is_open = True  # its root was read before

    async def _whole(self, key: str) -> MemoryStore:
        """Read an object, and keep it for its other chunks; all on the one event loop of Zarr."""
        if key not in self._objects:
            if len(self._objects) == _KEPT:
                del self._objects[next(iter(self._objects))]
            self._objects[key] = asyncio.create_task(asyncio.to_thread(self._object, key))
        try:
            return await self._objects[key]
        except BaseException:
            self._objects.pop(key, None)
            raise

    def _object(self, key: str) -> MemoryStore:
        path = self.root / key
        with reading(path, "a shard of a store", REPAIR):
            content = self._check(path, key.rpartition("/")[0], thorough=True)
        return MemoryStore({key: default_buffer_prototype().buffer.from_bytes(content)})

    def _check(self, path: Path, array: str, *, thorough: bool) -> bytes:
        """Compare a file with its seal; return all of it where all was read."""
        start, node = SEAL * self._metadata.places[array], self._metadata.nodes[array]
        wanted = self._seals.get(int(path.name.split(".")[1]), "")[start : start + SEAL]
        content = b""
        if thorough:
            content = path.read_bytes()
            good = seal(content, node) == wanted
        else:
            with path.open("rb", buffering=0) as file:
                good = ends(file, node) == wanted[:ENDS]
        if not good:
            raise StoreError(f"{path} is damaged: it is not the file that was written. {REPAIR}")
        return content
