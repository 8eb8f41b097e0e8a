"""Places: which positions of a sample a store keeps, and what it gives of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condec.attribution import ActGrad
from condec.attribution.contributions import contribute
from condec.attribution.targets import Logit
from condec.basis.errors import OptionError, StoreError
from condec.data import as_inputs
from condec.network import PackedInput, Site, Units
from condec.store import SiteInfo, Store, collect, layer_statistics
from condec.store.batches import BatchPlan
from condec.store.places import chosen_places
from condec.testing.models import small_resnet

N, KEEP = 9, 7


def images() -> Tensor:
    return torch.randn(N, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def gather(out: Path, data: Any = None, **options: Any) -> Store:
    options = {"method": ActGrad(), "target": Logit(0), "progress": False, "batch_size": 4,
               "shard_size": 5, "rows": "positions", "keep": KEEP} | options  # fmt: skip
    data = (images(), torch.arange(N) % 3) if data is None else data
    model = options.pop("model", None) or small_resnet()
    return collect(model, data, options.pop("sites", "block*"), out=out, **options)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return gather(tmp_path_factory.mktemp("places") / "s.zarr")


def info(n_places: int = 20, n_kept: int = 5, site: str = "a") -> SiteInfo:
    return SiteInfo(site=Site(site), units=Units("channels"), n_units=2, n_positions=n_places,
                    cut=True, n_places=n_places, n_kept=n_kept)  # fmt: skip


def test_the_choice_depends_on_seed_id_and_site_alone() -> None:
    ids = [f"{number}.png" for number in range(6)] + ["\ud800"]  # half of a sign
    chosen, n_places = chosen_places(info(), ids, 0)
    assert chosen.dtype == torch.int32
    assert n_places.tolist() == [20] * 7
    for row, name in zip(chosen.tolist(), ids, strict=True):
        assert row == sorted(set(row))
        assert 0 <= row[0] <= row[-1] < 20
        assert chosen_places(info(), [name], 0)[0][0].tolist() == row
    assert len(set(map(tuple, chosen.tolist()))) == 7
    assert not torch.equal(chosen, chosen_places(info(), ids, 1)[0])
    assert not torch.equal(chosen, chosen_places(info(site="b"), ids, 0)[0])
    # The same in every version: whoever collects again gets the same store.
    assert chosen_places(info(), ["0.png"], 0)[0].tolist() == [[0, 2, 4, 9, 16]]


def test_every_position_is_chosen_as_often() -> None:
    chosen, _ = chosen_places(info(), [str(number) for number in range(2000)], 3)
    counts = torch.bincount(chosen.flatten(), minlength=20)
    assert int((counts - 500).abs().max()) < 5 * (2000 * 0.25 * 0.75) ** 0.5


def test_padding_is_never_chosen_and_where_there_are_fewer_all_are() -> None:
    real = torch.zeros(3, 20, dtype=torch.bool)
    real[0, 4:7] = real[1, 2:] = real[2, 10:15] = True
    chosen, n_places = chosen_places(info(), ["a", "b", "c"], 0, real)
    assert n_places.tolist() == [3, 18, 5]
    assert chosen[0].tolist() == [4, 5, 6, -1, -1]
    assert bool((chosen[1] >= 2).all())
    assert chosen[2].tolist() == [10, 11, 12, 13, 14]
    assert chosen_places(info(4, 4), ["a"], 0)[0].tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("site", ["block1", "block2"])
def test_rows_are_the_signed_contributions_at_these_positions(store: Store, site: str) -> None:
    batch = contribute(small_resnet(), images(), site, method=ActGrad(), target=Logit(0))
    values, places = batch[site].contribution.flatten(2), store.places(site)
    assert places.n_places.tolist() == [36] * N
    assert places.sample.tolist() == [row for row in range(N) for _ in range(KEEP)]
    wanted = torch.stack(
        [values[s, :, p] for s, p in zip(places.sample, places.position, strict=True)]
    )
    for sign, part in (
        ("sum", wanted), ("positive", wanted.clamp(min=0)), ("negative", wanted.clamp(max=0)),
        ("concat", torch.cat([wanted.clamp(min=0), wanted.clamp(max=0)], 1)),
    ):  # fmt: skip
        rows = store.rows(site, sign=sign, rows="positions")  # type: ignore[arg-type]
        torch.testing.assert_close(rows.all(), part)
        assert (rows.shape, rows.blocks) == (tuple(part.shape), (5 * KEEP, 4 * KEEP))
        assert torch.equal(torch.cat([rows.read(0), rows.read(1)]), rows.all())
        assert rows.samples is not None
        assert torch.equal(rows.samples, places.sample)
        some = [one for part in rows.in_columns(3) for one in part.in_columns(2)]  # of 4 units
        parts = [
            one.all().unflatten(1, (-1, width)) for one, width in zip(some, (2, 1, 1), strict=True)
        ]
        assert torch.equal(torch.cat(parts, 2).flatten(1), rows.all())
    assert "63 positions x 8 units in 2 blocks" in repr(rows)


def test_neither_batch_nor_shard_nor_order_changes_what_is_kept(
    store: Store, tmp_path: Path
) -> None:
    order = torch.tensor([4, 0, 8, 2, 6, 1, 7, 3, 5])
    turned = replace(as_inputs(images()[order]), ids=tuple(map(str, order.tolist())))
    for data, sizes in ((None, (2, 3)), (turned, (4, 5))):
        batch_size, shard_size = sizes
        other = gather(
            tmp_path / f"{batch_size}.zarr", data, batch_size=batch_size, shard_size=shard_size
        )
        at = [other.sample_ids.index(name) for name in store.sample_ids]
        mine, own = (s.places("block2").position.view(N, KEEP) for s in (other, store))
        assert torch.equal(mine[at], own)
        values = [s.matrix("block2", sign="sum", rows="positions") for s in (other, store)]
        torch.testing.assert_close(values[0].view(N, KEEP, 4)[at], values[1].view(N, KEEP, 4))


def test_all_else_is_as_in_a_store_without(store: Store, tmp_path: Path) -> None:
    plain = gather(tmp_path / "s.zarr", rows="samples")
    assert not {"rows", "keep", "seed"} & plain.recipe.keys()
    for path in (plain.path / "sites").rglob("c.*"):
        assert path.read_bytes() == (store.path / path.relative_to(plain.path)).read_bytes()
    assert layer_statistics(plain).equals(layer_statistics(store))
    with pytest.raises(OptionError, match=r"no positions of block1 .*\[collect\] rows = \"posi"):
        plain.matrix("block1", rows="positions")
    with pytest.raises(OptionError, match="no positions of block1 were kept"):
        plain.places("block1")


def test_a_killed_collection_ends_with_the_same_bytes(store: Store, tmp_path: Path) -> None:
    again = gather(tmp_path / "s.zarr")
    file = again.path / "sites" / "block1" / "place_contribution" / "c.1.0.0"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(StoreError, match=r"place_contribution/c\.1\.0\.0 is damaged"):
        again.matrix("block1", rows="positions")
    assert [damage.file for damage in Store.open(again.path).repair()] == [file]
    gather(tmp_path / "s.zarr").verify()
    for path in (p for p in store.path.rglob("*") if p.is_file()):
        assert path.read_bytes() == (again.path / path.relative_to(store.path)).read_bytes()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"keep": 8}, "keep: had 7, wants 8"),
        ({"seed": 1}, "seed: had 0, wants 1"),
        ({"rows": "samples"}, r"rows: had \"positions\", wants nothing"),
    ],
)
def test_a_store_of_other_places_is_refused(
    store: Store, options: dict[str, Any], line: str
) -> None:
    with pytest.raises(StoreError, match=line):
        gather(store.path, **options)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: gather(s.path, keep=0), "collect: keep must be at least 1; got 0"),
        (lambda s: gather(s.path, keep=2.5), "collect: keep must be at least 1; got 2.5"),
        (lambda s: gather(s.path, rows="places"), "rows must be one of samples, positions; got"),
        (lambda s: s.matrix("block1", rows="places"), "rows must be one of samples, positions"),
        (
            lambda s: s.matrix("block1", "activation", rows="positions"),
            "activation is kept as sums over positions only",
        ),
    ],
)
def test_bad_requests(unchecked: None, store: Store, ask: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ask(store)


def test_samples_that_cannot_be_used_have_no_rows(store: Store, tmp_path: Path) -> None:
    broken = images()
    broken[2] = torch.nan
    some = gather(tmp_path / "s.zarr", broken, on_bad="skip")
    places, good = some.places("block2"), [i for i in range(N) if i != 2]
    assert places.sample.tolist() == [row for row in range(N - 1) for _ in range(KEEP)]
    assert len(places.n_places) == N - 1
    own = store.places("block2").position.view(N, KEEP)[good]
    assert torch.equal(places.position.view(N - 1, KEEP), own)


def test_disk_and_memory_are_announced(store: Store) -> None:
    made = [
        BatchPlan.make(small_resnet(), as_inputs(images()), "block*", None, None, None, "raise",
                       None, keep=keep)
        for keep in (None, KEEP)
    ]  # fmt: skip
    more = 2 * (4 * KEEP * 4 + 4 * KEEP + 4)  # two sites: numbers, their positions, how many
    assert made[1].disk() - made[0].disk() == N * more
    assert made[1].memory(3, 5) - made[0].memory(3, 5) == 2 * 5 * more


class Texts(PackedInput):
    """Tokens with a channel that says which are real, as `LanguageModel` has it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.eval()

    def fixed(self, inputs: Tensor) -> Tensor:
        return torch.arange(4) == 3

    def real(self, inputs: Tensor) -> Tensor:
        return inputs[..., -1] == 1

    def forward(self, x: Tensor) -> Tensor:
        real = x[..., -1:]
        return self.last((torch.relu(self.first(x)) * real).sum(1) / real.sum(1))


def test_padded_tokens_are_left_out(tmp_path: Path) -> None:
    texts = torch.randn(4, 8, 4)
    texts[..., -1] = torch.arange(8) >= torch.tensor([[0], [5], [2], [7]])
    store = gather(
        tmp_path / "s.zarr", texts, model=Texts(), sites="first, first@features[1:], last", keep=4
    )
    assert store.places("first").n_places.tolist() == [8, 3, 6, 1]
    places = store.places("first")
    assert torch.bincount(places.sample).tolist() == [4, 3, 4, 1]
    assert bool((texts[places.sample, places.position, -1] == 1).all())
    assert store.places("first@features[1:]").n_places.tolist() == [7, 3, 6, 1]
    assert store.places("last").n_places.tolist() == [1] * 4  # no positions: one row a sample
    torch.testing.assert_close(store.matrix("last", rows="positions"), store.matrix("last"))
