"""The store gives back what was written, whatever happened while it was written."""

import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from condec.basis.errors import DataError, OptionError, SiteError, StoreError
from condec.basis.files import folder_lock, write_file
from condec.network.sites import Site, Units
from condec.store.shards import SiteInfo
from condec.store.store import Store
from forked import Command

INFOS = (
    SiteInfo(site=Site("layer1.0"), units=Units("channels"), n_units=5, n_positions=16, cut=True),
    SiteInfo(
        site=Site("blocks.3.attn.proj", "input", Units("heads", 2), 0),
        units=Units("heads", 2), n_units=2, n_positions=12, cut=False,
    ),
)  # fmt: skip
RECIPE = {"model": "net 1a2b", "method": {"name": "ig", "steps": 10}, "target": {"k": 1}}
IDS = ("café/ü.png", "", "日本 語", "🎉", "a\0b", " x\n", "0")


def _rows(
    n: int, *, seed: int = 0, infos: Sequence[SiteInfo] = INFOS, **other: Any
) -> dict[str, Any]:
    gen = torch.Generator().manual_seed(seed)
    inputs: dict[str, Any] = {
        "id": tuple(f"{IDS[(3 * seed + i) % len(IDS)]}{seed}-{i}" for i in range(n)),
        "label": torch.randint(-1, 9, (n,), generator=gen),
        "prediction": torch.randint(0, 9, (n,), generator=gen),
        "target": torch.randn(n, generator=gen),
        "target_baseline": torch.randn(n, generator=gen),
        "steps": torch.randint(-1, 99, (n,), generator=gen),
        "valid": torch.ones(n, dtype=torch.bool),
    } | other
    signs = torch.tensor([1.0, -1.0])[:, None]
    return {f"inputs/{name}": value for name, value in inputs.items()} | {
        f"{i.folder}/{quantity}": signs * torch.randn(n, 2, i.n_units, generator=gen).abs()
        for quantity in ("contribution", "activation")
        for i in infos
    }


def _create(path: Path, n_samples: int = 7, shard_size: int = 3, **other: Any) -> Store:
    given: dict[str, Any] = {"recipe": RECIPE, "sites": INFOS} | other
    return Store.create(path, n_samples=n_samples, shard_size=shard_size, **given)


def _full(path: Path, n_samples: int = 7, shard_size: int = 3, **other: Any) -> Store:
    store = _create(path, n_samples, shard_size, **other)
    for index in store.missing():
        store.write_shard(index, _rows(len(store.shard_rows(index)), seed=index))
    return store


def _bytes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, and every folder, below `folder`."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        )
        for path in folder.rglob("*")
    }


# --- what goes in comes out -------------------------------------------------------------


@given(
    st.integers(1, 12), st.integers(1, 14), st.integers(1, 6), st.integers(0, 2**12 - 1),
    st.integers(0, 2**31 - 1),
)  # fmt: skip
@settings(max_examples=12, deadline=None)
def test_rows_come_back_valid_ones_only_whatever_the_sizes(
    tmp_path_factory: pytest.TempPathFactory, n: int, shard: int, units: int, mask: int, seed: int
) -> None:
    info = SiteInfo(site=Site("a"), units=Units("features"), n_units=units, n_positions=1, cut=True)
    valid = torch.tensor([bool(mask >> i & 1) for i in range(n)])
    rows = _rows(n, seed=seed, infos=[info], valid=valid)
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    store = _create(path, n, shard, sites=[info])
    for index in store.missing():
        span = store.shard_rows(index)
        store.write_shard(index, {name: v[span.start : span.stop] for name, v in rows.items()})
    store = Store.open(path)
    store.verify()
    assert len(store) == int(valid.sum())
    assert torch.equal(store.valid, valid)
    assert store.sample_ids == tuple(i for i, v in zip(rows["inputs/id"], valid, strict=True) if v)
    assert torch.equal(store.labels, rows["inputs/label"][valid])
    assert torch.equal(store.predictions, rows["inputs/prediction"][valid])
    assert torch.equal(store.target, rows["inputs/target"][valid])
    assert torch.equal(store.target_baseline, rows["inputs/target_baseline"][valid])
    assert torch.equal(store.steps, rows["inputs/steps"][valid])
    for quantity in ("contribution", "activation"):
        positive, negative = rows[f"sites/a/{quantity}"][valid].unbind(1)
        for sign, wanted in (
            ("positive", positive),
            ("negative", negative),
            ("sum", positive + negative),
            ("concat", torch.cat([positive, negative], 1)),
        ):
            got = store.matrix("a", quantity=quantity, sign=sign)
            assert got.dtype == torch.float32
            assert got.is_contiguous()
            assert torch.equal(got, wanted)


def test_what_the_store_knows_of_itself(place: Path) -> None:
    store = Store.open(_full(place / "s.zarr").path)
    assert store.sites == tuple(info.site for info in INFOS)
    assert store.info("layer1.0") == INFOS[0]
    assert store.info(INFOS[1].site.key) == store.info(INFOS[1].site) == INFOS[1]
    assert store.recipe == RECIPE
    assert (store.n_samples, store.shard_size, store.n_shards) == (7, 3, 3)
    assert [list(store.shard_rows(i)) for i in range(3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [(r.index, r.start, r.rows) for r in store.manifest] == [(0, 0, 3), (1, 3, 3), (2, 6, 1)]
    assert {r.config_hash for r in store.manifest} == {store.config_hash}
    head, *sites = repr(store).splitlines()
    assert head.endswith("s.zarr': 7 samples, 2 sites, 3 of 3 shards, 0.0 MiB uncompressed)")
    assert sites[0].split() == ["layer1.0", "5", "units", "(channels)"]
    assert len(sites) == 2
    with pytest.raises(SiteError, match=r"'layer9' is not among the sites"):
        store.info("layer9")


def test_completeness_of_cut_sites(tmp_path: Path) -> None:
    store = _full(tmp_path / "s.zarr")
    got = store.completeness()
    assert list(got) == ["layer1.0"]
    total = store.matrix("layer1.0", sign="sum").double().sum(1)
    torch.testing.assert_close(
        got["layer1.0"].double(), total / (store.target - store.target_baseline).double()
    )


def test_other_devices_types_and_gradients_are_taken_and_left_alone(place: Path) -> None:
    store = _create(place / "s.zarr", 3)
    valid = torch.tensor([True, False, True])
    rows = _rows(3, valid=valid)
    rows["inputs/target"] = rows["inputs/target"].double()
    for info in INFOS:
        name = f"{info.folder}/contribution"
        rows[name] = rows[name].bfloat16().requires_grad_()
    before = {name: value.detach().clone() for name, value in rows.items() if name != "inputs/id"}
    store.write_shard(0, rows)
    assert all(torch.equal(rows[name].detach(), value) for name, value in before.items())
    for info in INFOS:
        signed = before[f"{info.folder}/contribution"].float()[valid]
        assert torch.equal(store.matrix(info.site), signed[:, 0])


def test_the_mask_that_is_handed_out_is_a_copy(tmp_path: Path) -> None:
    store = _full(tmp_path / "s.zarr")
    store.valid.zero_()
    store.labels.zero_()
    assert len(store) == 7
    assert int(store.labels.abs().sum()) > 0


def test_rows_left_out_and_rows_not_written_never_look_like_numbers(tmp_path: Path) -> None:
    store = _create(tmp_path / "s.zarr")
    rows = _rows(3, valid=torch.zeros(3, dtype=torch.bool))
    store.write_shard(
        0, rows | {f"{i.folder}/contribution": torch.zeros(3, 2, i.n_units) for i in INFOS}
    )
    group = zarr.open_group(store.path, mode="r")
    for quantity in ("contribution", "activation"):
        assert np.isnan(group[f"sites/layer1.0/{quantity}"][:]).all()
    for name in ("target", "target_baseline"):
        assert np.isnan(group[f"inputs/{name}"][:]).all()
    assert (group["inputs/prediction"][:] == -1).all()
    assert (group["inputs/label"][3:] == -1).all()
    assert (group["inputs/id"][3:] == "").all()
    assert not group["inputs/valid"][:].any()
    store.verify()


# --- xarray -----------------------------------------------------------------------------


def test_xarray_reads_all_of_it_without_a_warning(tmp_path: Path) -> None:
    store = _full(tmp_path / "s.zarr")
    inputs = xarray.open_zarr(store.path, group="inputs")
    assert tuple(str(name) for name in inputs["id"].values) == store.sample_ids
    assert any("🎉" in name for name in store.sample_ids)
    assert any("a\0b" in name for name in store.sample_ids)
    assert inputs.sizes == {"sample": 7}
    assert {str(name) for name in inputs} == {
        "id", "label", "prediction", "target", "target_baseline", "steps", "valid",
    }  # fmt: skip
    folder = "sites/blocks.3.attn.proj%3Ainput%230%40heads%282%29"
    for consolidated in (None, False):
        site = xarray.open_zarr(store.path, group=folder, consolidated=consolidated)
        assert site["contribution"].dims == ("sample", "sign", "unit")
        got = torch.from_numpy(site["contribution"].values[:, 0])
        assert torch.equal(got, store.matrix(INFOS[1].site))
        assert xarray.open_zarr(store.path, consolidated=consolidated).sizes == {}


def test_the_tree_holds_all_rows(place: Path) -> None:
    store = _create(place / "s.zarr", 4, 4)
    store.write_shard(0, _rows(4, valid=torch.tensor([True, True, False, True])))
    tree = store.to_xarray()
    assert tree["sites/layer1.0/activation"].shape == (4, 2, 5)
    assert len(store) == 3


# --- the same bytes, always -------------------------------------------------------------


def test_two_stores_of_the_same_data_are_the_same_bytes(tmp_path: Path) -> None:
    first = _full(tmp_path / "first.zarr")
    second = _create(tmp_path / "second.zarr", recipe=dict(reversed(RECIPE.items())))
    assert second.config_hash == first.config_hash
    shutil.rmtree(second.path)
    second = _create(tmp_path / "second.zarr")
    for index in (2, 0, 1):  # in any order, and one of them twice
        second.write_shard(index, _rows(len(second.shard_rows(index)), seed=9))
    for index in (1, 0, 2):
        second.write_shard(index, _rows(len(second.shard_rows(index)), seed=index))
    assert _bytes(first.path) == _bytes(second.path)
    third = _full(tmp_path / "third.zarr", recipe=RECIPE | {"target": {"k": 2}})
    assert _bytes(third.path) != _bytes(first.path)


_TWO = tuple(replace(INFOS[0], site=Site(name), n_units=64) for name in ("layer1", "layer2"))
Start = Callable[..., Command]


def _work(path: Path, shards: Sequence[int] | None = None, die_at: int = 0) -> None:
    """Make a store, or some shards of it; the process dies with half a file written."""
    calls, fsync = 0, os.fsync

    def dying_fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == die_at:
            if not Path(f"/proc/self/fd/{handle}").is_dir():
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(handle)

    os.fsync = dying_fsync  # type: ignore[assignment]
    store = Store.create(path, recipe={"r": 1}, sites=_TWO, n_samples=420, shard_size=64)
    for index in store.missing():
        if shards is None or index in shards:
            rows = _rows(len(store.shard_rows(index)), seed=index, infos=_TWO)
            store.write_shard(index, rows)


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Starts `_work` in a process of its own."""
    return lambda *some, **how: Command(
        tmp_path_factory.mktemp("output"), partial(_work, *some, **how)
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("undisturbed")
    assert Command(path / "output", partial(_work, path / "made" / "s.zarr")).end() == 0
    Store.open(path / "made" / "s.zarr").verify()
    return _bytes(path / "made")


def _finish(start: Start, path: Path, undisturbed: dict[str, str]) -> None:
    again = start(path)
    assert again.end() == 0, again.output
    store = Store.open(path)
    store.verify()
    assert store.is_complete
    assert _bytes(path.parent) == undisturbed


def test_killed_again_and_again(start: Start, undisturbed: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    for die_at in (30, 40, 50, 20, 30):
        assert start(path, die_at=die_at).end() == -signal.SIGKILL
        if (path / "zarr.json").exists():
            Store.open(path).verify()
    _finish(start, path, undisturbed)


# The flushes to disk are counted, two a file (its content, its folder): 17 files make the store,
# the root the last, then come eleven arrays and the manifest record of every shard.
@pytest.mark.parametrize(
    ("die_at", "where"),
    [
        (1, ".partial"), (6, ""), (33, ".partial"), (34, ""),
        (35, ".partial"), (36, ""), (45, ".partial"), (57, ".partial"), (58, ""), (81, ".partial"),
    ],
)  # fmt: skip
def test_killed_with_half_a_file_written_and_run_again(
    start: Start, undisturbed: dict[str, str], tmp_path: Path, die_at: int, where: str
) -> None:
    path = tmp_path / "s.zarr"
    assert start(path, die_at=die_at).end() == -signal.SIGKILL
    left = [p.suffix for p in tmp_path.rglob("*.partial")]
    assert left == [where] if where else not left
    assert (path / "zarr.json").exists() == (die_at > 33)
    if die_at > 33:
        store = Store.open(path)
        store.verify()
        with pytest.raises(StoreError, match="is incomplete"):
            store.matrix("layer1")
    _finish(start, path, undisturbed)


def test_two_processes_write_different_shards_at_once(
    start: Start, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "s.zarr"
    children = [start(path, shards) for shards in ([0, 2, 4, 6], [1, 3, 5])]
    assert [child.end() for child in children] == [0, 0], children[0].output
    Store.open(path).verify()
    assert _bytes(tmp_path) == undisturbed


def test_two_processes_that_write_the_same_shards_do_no_harm(
    start: Start, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "s.zarr"
    children = [start(path) for _ in range(2)]
    # One may lose its unfinished file to the other, and then says so.
    assert {child.end() for child in children} <= {0, 1}
    _finish(start, path, undisturbed)


# --- damage -----------------------------------------------------------------------------


def test_a_flipped_bit_in_any_file_is_found(tmp_path: Path) -> None:
    store = _full(tmp_path / "s.zarr")
    store.verify()
    files = sorted(path for path in store.path.rglob("*") if path.is_file())
    assert len(files) == 17 + 3 * (7 + 4) + 3  # metadata, shards of eleven arrays, records
    draw = random.Random(0)
    for path in files:
        content = path.read_bytes()
        for _ in range(3):
            flipped = bytearray(content)
            flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            path.write_bytes(bytes(flipped))
            with pytest.raises(StoreError, match="1 damaged files, of which\n") as caught:
                store.verify()
            assert f"{path}: " in str(caught.value)
        path.write_bytes(content)
    store.verify()


def test_verify_names_the_file_and_both_checksums(place: Path) -> None:
    store = _full(place / "s.zarr")
    path = store.path / "sites" / "layer1.0" / "contribution" / "c.1.0.0"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    expected, got = (hashlib.sha256(b).hexdigest() for b in (content, content[:-1]))
    with pytest.raises(
        StoreError,
        match=r"1 damaged files, of which\n.*sites/layer1.0/contribution/c.1.0.0: expected SHA-256 "
        rf"{expected}, got {got}\. Call Store\.repair .* that shard is written again\.",
    ):
        store.verify()
    path.unlink()
    with pytest.raises(StoreError, match=r"c.1.0.0: expected SHA-256 .*, got no file"):
        store.verify()


def test_all_damages_are_named_and_repaired_to_the_same_bytes(tmp_path: Path) -> None:
    store = _full(tmp_path / "s.zarr")
    before = _bytes(store.path)
    assert store.damages() == store.repair() == ()
    places = ("zarr.json", "sites/layer1.0/activation/zarr.json", "inputs/label/c.0",
              "sites/layer1.0/contribution/c.0.0.0", "manifest/shard-00001.json")  # fmt: skip
    for place in places:
        (store.path / place).write_bytes(b"garbage")
    (store.path / "inputs" / "id" / "c.2").unlink()
    (store.path / "inputs" / "id" / "c.2").mkdir()  # in the place of the file
    assert [damage.file for damage in store.damages()] == [
        store.path / place for place in (*places[:4], places[4], "inputs/id/c.2")
    ]
    assert len(store.repair()) == 6
    assert store.missing() == (0, 1, 2)
    store = _create(store.path)
    for index in store.missing():
        store.write_shard(index, _rows(len(store.shard_rows(index)), seed=index))
    assert _bytes(store.path) == before


def test_a_lost_root_is_written_again_where_a_record_is_of_its_recipe(tmp_path: Path) -> None:
    store = _full(tmp_path / "s.zarr")
    before, root = _bytes(store.path), store.path / "zarr.json"
    other = _create(tmp_path / "other.zarr", recipe={"model": "another"})
    for lose in (root.unlink, lambda: root.write_bytes(b"{"),
                 lambda: shutil.copy(other.path / "zarr.json", root)):  # fmt: skip
        lose()
        assert _create(store.path).is_complete
        assert _bytes(store.path) == before
    root.write_bytes(b"{")
    with pytest.raises(StoreError, match=r"is not a store .* that file is written again, shards"):
        _create(store.path, recipe={"model": "another"})
    (other.path / "zarr.json").unlink()
    assert _create(other.path).missing() == (0, 1, 2)  # of a writer that was killed early on
    other.write_shard(0, _rows(3))
    (other.path / "zarr.json").unlink()
    (other.path / "manifest" / "shard-00000.json").unlink()
    with pytest.raises(StoreError, match=r"zarr.json: there is no such file; .* Remove that"):
        _create(other.path)


def test_every_reader_names_the_damaged_file(place: Path) -> None:
    """A flipped bit, a lost file, another shard's, and that of a store of the same recipe."""
    path = _full(place / "s.zarr").path
    twin = _create(place / "t.zarr")
    for index in twin.missing():
        twin.write_shard(index, _rows(len(twin.shard_rows(index)), seed=index + 9))
    site = "sites/layer1.0/activation"
    for array, name, use in (
        ("inputs/label", "c.1", lambda store: store.labels),
        ("inputs/id", "c.1", lambda store: store.sample_ids),
        (site, "c.1.0.0", lambda store: store.matrix("layer1.0", "activation")),
        (site, "c.1.0.0", lambda store: store.read_shard(1)),
        (site, "c.1.0.0", lambda store: store.to_xarray()[site].values),
    ):  # fmt: skip
        file = path / array / name
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[5] ^= 1
        sibling = file.with_name(name.replace("1", "0", 1)).read_bytes()
        for other in (bytes(flipped), sibling, (twin.path / array / name).read_bytes(), b""):
            file.write_bytes(other)
            with pytest.raises(StoreError, match=rf"{array}/{name}.* Call Store.repair"):
                use(Store.open(path))
        file.unlink()
        with pytest.raises(StoreError, match=rf"{array}/{name}: there is no such file"):
            use(Store.open(path))
        file.write_bytes(content)


def test_the_metadata_beside_an_array_do_not_change_its_numbers(tmp_path: Path) -> None:
    store = _full(tmp_path / "s.zarr")
    path = store.path / "sites" / "layer1.0" / "activation" / "zarr.json"
    wanted = store.matrix("layer1.0", "activation")
    good = json.loads(path.read_text())
    for change in ({"data_type": "int32", "fill_value": 0}, {"shape": [3, 2, 5]}, {"codecs": []}):
        path.write_text(json.dumps(good | change))
        assert torch.equal(Store.open(store.path).matrix("layer1.0", "activation"), wanted)
        tree = store.to_xarray()["sites/layer1.0/activation"].values
        assert torch.equal(torch.from_numpy(tree[:, 0]), wanted)


def test_zarr_itself_refuses_a_flipped_bit(tmp_path: Path) -> None:
    store = _full(tmp_path / "s.zarr")
    path = store.path / "sites" / "layer1.0" / "activation" / "c.1.0.0"
    flipped = bytearray(path.read_bytes())
    flipped[5] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(RuntimeError, match="Zstd decompression error"):
        xarray.open_zarr(store.path, group="sites/layer1.0")["activation"].load()


def test_a_shard_that_is_written_again_does_not_count_until_it_is_whole(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _full(place / "s.zarr")
    before, ids = store.labels, store.sample_ids
    calls = iter(range(100))

    def fails_in_the_middle(path: Path, content: bytes) -> None:
        if next(calls) == 4:
            raise PermissionError(13, "Permission denied", str(path))
        write_file(path, content)

    monkeypatch.setattr("condec.basis.files.write_file", fails_in_the_middle)
    with pytest.raises(StoreError, match=r"shard 0: cannot write .*denied.* 2 of 3.* allow"):
        store.write_shard(0, _rows(3, seed=7))
    assert store.missing() == Store.open(store.path).missing() == (0,)
    monkeypatch.undo()
    store.write_shard(0, _rows(3, seed=7))
    store.verify()
    assert (
        store.labels[:3].tolist()
        == _rows(3, seed=7)["inputs/label"].tolist()
        != before[:3].tolist()
    )
    assert store.sample_ids[:3] == _rows(3, seed=7)["inputs/id"] != ids[:3]


def test_a_record_that_is_not_of_this_store_does_not_count(tmp_path: Path) -> None:
    store = _full(tmp_path / "s.zarr")
    other = _full(tmp_path / "other.zarr", recipe={"model": "another"})
    before, path = _bytes(store.path), store.path / "manifest" / "shard-00001.json"
    good = path.read_bytes()
    for content, message in (
        (b"garbage", "its bytes are not those that were written"),
        (b"", "its bytes are not those that were written"),
        (good.replace(b'"rows": 3', b'"rows": 2'), "its bytes are not those that were written"),
        (path.with_name("shard-00000.json").read_bytes(), "it is of another shard or store"),
        ((other.path / "manifest" / path.name).read_bytes(), "it is of another shard or store"),
    ):
        path.write_bytes(content)
        again = Store.open(store.path)
        assert again.missing() == (1,)
        assert [record.index for record in again.manifest] == [0, 2]
        with pytest.raises(StoreError, match=rf"1 of 3 shards .*\(1\)\. {path}: {message}"):
            _ = again.labels
        with pytest.raises(StoreError, match=rf"{path}: {message}\. Call Store.repair"):
            again.verify()
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match=r"shard-00001.json: it is no file\. Run"):
        _ = Store.open(store.path).labels
    again = _create(store.path)
    again.write_shard(1, _rows(3, seed=1))
    assert _bytes(store.path) == before


def test_a_record_that_may_not_be_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(_full(tmp_path / "s.zarr").path)

    def refuse(path: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    for use in (store.missing, store.repair):
        with pytest.raises(StoreError, match=r"json: .* Allow more open files"):
            use()
    monkeypatch.undo()
    assert store.is_complete


def test_what_killed_writers_left_goes_unless_one_is_alive(tmp_path: Path) -> None:
    store = _full(tmp_path / "s.zarr")
    before = _bytes(tmp_path)
    left = store.path / "inputs" / "id" / "c.0.0123abcd.partial"
    left.write_bytes(b"half")
    with folder_lock(store.path, shared=True):  # as `write_shard` does
        _create(store.path)
        assert left.exists()
    _create(store.path)
    assert _bytes(tmp_path) == before


# --- disk full --------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


_WIDE = (
    SiteInfo(site=Site("a"), units=Units("features"), n_units=400, n_positions=1, cut=True),
)  # fmt: skip


def _fill(path: Path) -> Store:
    store = _create(path, 300, 50, sites=_WIDE)
    for index in store.missing():
        store.write_shard(index, _rows(50, seed=index, infos=_WIDE))
    return store


def test_a_full_disk_leaves_what_counts_and_the_same_call_goes_on(
    small_disk: Path, tmp_path: Path
) -> None:
    path = small_disk / "s.zarr"
    with pytest.raises(
        StoreError,
        match=r"s\.zarr: shard 3: the disk is full .*No space left.* 3 of 6 shards are complete "
        r"and count\. To go on, make room and run the same command again",
    ):
        _fill(path)
    store = Store.open(path)
    store.verify()
    assert store.missing() == (3, 4, 5)
    assert not list(path.rglob("*.partial"))
    with pytest.raises(StoreError, match="shard 3: the disk is full"):
        _fill(path)
    grow = ["mount", "-o", "remount,size=8m", str(small_disk)]
    subprocess.run(grow, check=True, capture_output=True)
    _fill(path).verify()
    assert _bytes(small_disk) == _bytes(_fill(tmp_path / "other" / "s.zarr").path.parent)


def test_a_file_that_may_not_grow_counts_as_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    store = _create(path, 300, 50, sites=_WIDE)
    store.write_shard(0, _rows(50, seed=0, infos=_WIDE))
    before = _bytes(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(StoreError, match=r"shard 1: the disk is full .* 1 of 6 shards"):
            store.write_shard(1, _rows(50, seed=1, infos=_WIDE))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.missing() == (1, 2, 3, 4, 5)
    assert {name: _bytes(path)[name] for name in before} == before
    assert not list(path.rglob("*.partial"))
    _fill(path).verify()


def test_no_store_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"s\.zarr: cannot write .*To go on, mend that and run"):
        _create(tmp_path / "file" / "s.zarr")
    with pytest.raises(StoreError, match="no contributions yet"):
        _create(tmp_path / "file")


# --- what is refused --------------------------------------------------------------------


def test_another_recipe_is_refused_with_every_difference(place: Path) -> None:
    _full(place / "s.zarr")
    before = _bytes(place)
    other = {"model": "net 1a2b", "method": {"name": "ig", "steps": 5, "baseline": None}}
    with pytest.raises(StoreError) as caught:
        _create(place / "s.zarr", shard_size=4, recipe=other, sites=INFOS[:1])
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("s.zarr was made by another recipe:")
    key = INFOS[1].site.key
    for line in (
        "  method.baseline: had nothing, wants null",
        "  method.steps: had 10, wants 5",
        "  shard_size: had 3, wants 4",
        f'  sites: had ["layer1.0", "{key}"], wants ["layer1.0"]',
        "  target.k: had 1, wants nothing",
        f"  site.{key}.n_units: had 2, wants nothing",
    ):
        assert line in lines
    assert not any(line.strip().startswith(("model", "n_samples")) for line in lines)
    assert lines[-1] == "Choose another path, or remove that store first."
    assert _bytes(place) == before


def test_the_same_recipe_goes_on(place: Path) -> None:
    store = _create(place / "s.zarr")
    store.write_shard(1, _rows(3, seed=1))
    again = _create(place / "s.zarr", recipe={**RECIPE, "method": {"steps": 10, "name": "ig"}})
    assert again.missing() == (0, 2)
    assert not again.is_complete
    assert [record.index for record in again.manifest] == [1]


def test_an_incomplete_store_opens_and_says_what_is_missing(place: Path) -> None:
    _create(place / "s.zarr", 30).write_shard(4, _rows(3))
    store = Store.open(place / "s.zarr")
    assert "1 of 10 shards" in repr(store)
    for use in (
        lambda: store.matrix("layer1.0"),
        lambda: store.labels,
        lambda: store.sample_ids,
        lambda: len(store),
        store.completeness,
        store.to_xarray,
    ):
        with pytest.raises(
            StoreError,
            match=r"s\.zarr is incomplete: 9 of 10 shards are missing \(0, 1, 2, 3, 5, 6, 7, 8, "
            r"\.\.\.\)\. Run the command that made it again",
        ):
            use()


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="none: no contributions yet"):
        Store.open(tmp_path / "none")
    zarr.create_group(tmp_path / "foreign.zarr")
    for use in (Store.open, _create):
        with pytest.raises(StoreError, match=r"foreign\.zarr is not a store of condec: .*Give the"):
            use(tmp_path / "foreign.zarr")
    store = _full(tmp_path / "s.zarr")
    root = json.loads((store.path / "zarr.json").read_text())
    root["attributes"]["condec"]["schema"] = 99
    (store.path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(StoreError, match=r"is written in schema 99; this version .* schema 3"):
        Store.open(store.path)
    root["attributes"]["condec"] |= {"schema": 3, "shard_size": 4}
    (store.path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(StoreError, match=r"zarr\.json is damaged: its bytes are not those"):
        Store.open(store.path)


def test_an_empty_folder_will_do_and_leftovers_of_a_killed_process_go(tmp_path: Path) -> None:
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / "zarr.json.0123abcd.partial").write_text("{")
    assert _create(tmp_path / "s.zarr").missing() == (0, 1, 2)
    assert not list(tmp_path.rglob("*.partial"))


def test_options_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    nameless = SiteInfo(site=Site(""), units=Units("features"), n_units=1, n_positions=1, cut=True)
    for other, message in (
        ({"n_samples": 0}, "n_samples must be at least 1; got 0"),
        ({"shard_size": 0}, "shard_size must be at least 1; got 0"),
        ({"sites": ()}, r"one site or more, each once and with a name; got \[\]"),
        ({"sites": INFOS[:1] * 2}, r"got \['layer1.0', 'layer1.0'\]"),
        ({"sites": (nameless,)}, r"got \[''\]"),
        ({"recipe": {"x": float("nan")}}, "recipe must be of the kind JSON can hold"),
        ({"recipe": {"x": torch.ones(1)}}, "recipe must be of the kind JSON can hold"),
    ):
        with pytest.raises(OptionError, match=message):
            _create(path, **other)
    assert not path.exists()
    store = _full(path)
    with pytest.raises(OptionError, match=r"shard 3 is not one of 0 \.\.\. 2"):
        store.write_shard(3, _rows(1))


def test_matrix_options_are_checked(tmp_path: Path, unchecked: None) -> None:
    store = _full(tmp_path / "s.zarr")
    with pytest.raises(OptionError, match=r"sign must be one of positive, .*; got 'both'"):
        store.matrix("layer1.0", sign="both")
    with pytest.raises(OptionError, match=r"quantity must be one of contribution, .*'gradient'"):
        store.matrix("layer1.0", quantity="gradient")


def test_rows_that_do_not_fit_are_refused_and_nothing_is_written(
    tmp_path: Path, unchecked: None
) -> None:
    store = _create(tmp_path / "s.zarr")
    before = _bytes(store.path)
    good = _rows(3)
    narrow = good | {f"{INFOS[0].folder}/contribution": torch.ones(3, 2, 4)}
    fewer = {name: rows for name, rows in good.items() if name != f"{INFOS[1].folder}/activation"}
    for rows, message in (
        (_rows(2), "shard 0: expected 3 samples, got (2,)"),
        (narrow, "sites/layer1.0/contribution: expected shape (3, 2, 5), got"),
        (fewer, f"every array of the store; differing: {INFOS[1].folder}/activation"),
        (_rows(3, label=torch.ones(2)), "label: expected shape (3,), got (2,)"),
        (_rows(3, id=("a", "b")), "expected 3 ids, got 2"),
        (_rows(3, id=("a", "b", 7)), "ids must be strings that can be written as UTF-8; got 7"),
        (_rows(3, id=("a", "b", "\udcff")), r"written as UTF-8; got '\udcff'"),
    ):
        with pytest.raises(DataError) as caught:
            store.write_shard(0, rows)
        assert message in str(caught.value)
    assert _bytes(store.path) == before


def test_samples_of_one_id_and_labels_without_end_are_refused(tmp_path: Path) -> None:
    store = _create(tmp_path / "s.zarr")
    with pytest.raises(DataError, match="shard 0: samples 0 and 2 have the same id, 'a'"):
        store.write_shard(0, _rows(3, id=("a", "b", "a")))
    with pytest.raises(DataError, match="shard 0: expected labels below 1,000,000, got 200000000"):
        store.write_shard(0, _rows(3, label=torch.tensor([1, 200_000_000, 2])))
    for index, n in enumerate((3, 3, 1)):
        store.write_shard(index, _rows(n, seed=index, id=("a", "b", "c")[:n]))
    with pytest.raises(StoreError, match="id 'a' comes twice; collect again without"):
        _ = store.sample_ids
