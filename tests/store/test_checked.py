"""A store in an object store, or read by http: the same bytes, the same numbers, no secret."""

import errno
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

import condec
from condec.basis.errors import StoreError
from condec.store import Store, shards
from condec.testing.models import small_resnet
from object_server import SECRET, ObjectServer

DATA = (torch.randn(10, 1, 6, 6, generator=torch.Generator().manual_seed(1)), torch.arange(10) % 3)
SITES = "block1,block2:input@channels"


def collect(out: Path | str, **options: object) -> Store:
    given = {
        "method": condec.IntegratedGradients(steps=2),
        "progress": False,
        "batch_size": 4,
        "prove": False,
    }
    return condec.collect(
        small_resnet(), DATA, SITES, out=out, shard_size=5, **given | options
    )  # type: ignore[arg-type]  # fmt: skip


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def test_a_collection_has_the_bytes_of_one_on_disk_and_goes_on(place: Path, tmp_path: Path) -> None:
    wanted = contents(collect(tmp_path / "on_disk.zarr").path)
    store = collect(place / "s.zarr")
    assert contents(store.path) == wanted
    for lost in ("manifest/shard-00001.json", "zarr.json", "inputs/id/zarr.json"):
        (store.path / lost).unlink()
    assert collect(place / "s.zarr").is_complete
    assert contents(store.path) == wanted
    twin = condec.store.collect_twin(
        condec.store.ShuffledLabels(), small_resnet(), DATA, SITES, out=place / "twin.zarr",
        of=store, method=condec.IntegratedGradients(steps=2), batch_size=4, shard_size=5,
        prove=False,
    )  # fmt: skip
    assert torch.equal(twin.matrix("block1"), store.matrix("block1"))


@pytest.mark.parametrize("place", ["memory", "s3"], indirect=True)
def test_of_two_that_make_a_store_at_once_the_first_counts(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second had seen nothing there, when it began."""
    seen, needs = iter((True, True)), shards.needs_root
    monkeypatch.setattr(shards, "needs_root", lambda *some: next(seen, False) or needs(*some))
    collect(place / "s.zarr")
    seen = iter((True, True))
    with pytest.raises(
        StoreError, match=r"was made by another recipe:\n  method.steps: had 2, wan"
    ):
        collect(place / "s.zarr", method=condec.IntegratedGradients(steps=3))
    assert collect(place / "s.zarr").is_complete


def test_no_secret_is_in_an_object(object_server: ObjectServer) -> None:
    store = collect("s3://tests/secrets/s.zarr")
    assert not any(SECRET.encode() in content for content in contents(store.path).values())
    assert SECRET not in repr(store) + repr(store.recipe) + repr(store.path)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_store_is_read_by_http_and_never_written(web: str, tmp_path: Path) -> None:
    wanted = collect(tmp_path / "s.zarr")
    store = Store.open(f"{web}/s.zarr")
    for site in store.sites:
        assert torch.equal(store.matrix(site), wanted.matrix(site))
    assert store.sample_ids == wanted.sample_ids
    store.verify()
    assert store.to_xarray()["inputs"].sizes == {"sample": 10}
    (wanted.path / "inputs" / "label" / "c.1").write_bytes(b"")
    (damage,) = Store.open(f"{web}/s.zarr").damages()
    assert str(damage.file) == f"{web}/s.zarr/inputs/label/c.1"
    with pytest.raises(StoreError, match=r"by http.s. one only reads; write to s3://"):
        store.repair()
    with pytest.raises(StoreError, match=r"none.zarr: no contributions yet"):
        Store.open(f"{web}/none.zarr")


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_computed() -> None:
    called: list[object] = []
    model = small_resnet()
    model.register_forward_hook(lambda *some: called.append(some))
    for make in (condec.collect, partial(condec.store.collect_twin, condec.store.RandomWeights())):
        with pytest.raises(StoreError, match=r"https://host/s.zarr: by http.s. one only reads"):
            make(model, DATA, SITES, out="https://host/s.zarr")
    assert not called


def test_metadata_that_a_store_does_not_give_are_not_called_damaged(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read = collect(place / "s.zarr"), type(place).read_bytes

    def fails(self: Path) -> bytes:
        if self.name == "zarr.json" and self.parent.name == "manifest":
            raise OSError(errno.ECONNABORTED, "503 Slow Down", str(self))
        return read(self)

    monkeypatch.setattr(type(place), "read_bytes", fails)
    with pytest.raises(StoreError, match=r"503 Slow Down.*object store, and its settings"):
        store.damages()


def test_an_object_is_read_once_whatever_is_read_of_it(object_server: ObjectServer) -> None:
    store = Store.open(collect("s3://tests/once/s.zarr").path)
    len(store)
    before = object_server.counts["requests"]
    store.matrix("block1")
    assert object_server.counts["requests"] - before == store.n_shards
    with object_server.failing({"503": 1.0}, 0):
        with pytest.raises(
            StoreError, match=r"contribution/c.0.0.0: cannot be read as a shard .*503"
        ):
            store.rows("block1").read(0)
    assert len(store.matrix("block1")) == 10
