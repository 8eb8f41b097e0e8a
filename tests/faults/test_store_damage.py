"""Damage to every kind of file of a store: what is read is what was written, or is refused.

The whole is slow: ``pytest -m slow -s tests/faults/test_store_damage.py`` prints its counts. Each
damage is repaired afterwards, by the same calls as a run makes, to the same bytes.
"""

import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from condec.basis.errors import StoreError
from condec.network.sites import Site, Units
from condec.store import SiteInfo, Store, layer_statistics
from damages import DAMAGES, append, flip, overwrite, same, scramble, swap, truncate
from small_runs import contents

DRAWN = (flip, truncate, scramble, overwrite, append, swap)
N, SHARD, RECIPE = 7, 3, {"model": "net 1a2b", "method": {"name": "ig", "steps": 10}}
INFOS = tuple(
    SiteInfo(site=Site(name), units=Units("channels"), n_units=n, n_positions=4, cut=True, **kept)
    for name, n, kept in (("layer1.0", 5, {"n_places": 4, "n_kept": 3}), ("layer2", 640, {}))
)


def write(path: Path, seed: int = 0) -> None:
    """Make a store, or what is missing of it."""
    store = Store.create(path, recipe=RECIPE, sites=INFOS, n_samples=N, shard_size=SHARD)
    for index in store.missing():
        n = len(store.shard_rows(index))
        draw = torch.Generator().manual_seed(10 * seed + index)
        rows: dict[str, Any] = {
            "id": tuple(f"{seed}-{index}-{k}.png" for k in range(n)),
            "valid": torch.tensor([True, index != 1, True])[:n],
        }
        rows |= {key: torch.randint(0, 9, (n,), generator=draw)
                 for key in ("label", "prediction", "steps")}  # fmt: skip
        rows |= {key: torch.randn(n, generator=draw) for key in ("target", "target_baseline")}
        arrays = {f"inputs/{key}": value for key, value in rows.items()}
        for info in INFOS:
            for quantity in ("contribution", "activation"):
                values = torch.randn(n, 2, info.n_units, generator=draw)
                arrays[f"{info.folder}/{quantity}"] = values
            if info.n_kept:
                arrays[f"{info.folder}/place_contribution"] = torch.randn(n, 3, 5, generator=draw)
                arrays[f"{info.folder}/position"] = torch.tensor([[0, 1, 3]] * n)
                arrays[f"{info.folder}/n_places"] = torch.full((n,), 4)
        store.write_shard(index, arrays)


def everything(path: Path) -> dict[str, Any]:
    """Read all that a store gives, in every way in which it gives it."""
    store = Store.open(path)
    found: dict[str, Any] = {
        name: getattr(store, name)
        for name in ("labels", "predictions", "target", "target_baseline", "steps", "valid")
    }
    found |= {"ids": np.array(store.sample_ids), "recipe": np.array(str(store.recipe))}
    for site in store.sites:
        for quantity in ("contribution", "activation"):
            for sign in ("negative", "sum"):
                found[f"{site.key} {quantity} {sign}"] = store.matrix(site, quantity, sign)
    found["places"] = store.matrix("layer1.0", rows="positions")
    found |= {f"places {n}": v for n, v in vars(store.places("layer1.0")).items()}
    found |= {f"{name} 1": value for name, value in store.read_shard(1).items()}
    for node in store.to_xarray().subtree:
        found |= {f"{node.path} {name}": array.values for name, array in node.data_vars.items()}
    found["statistics"] = layer_statistics(store).drop(columns="site").to_numpy()
    return {name: np.asarray(value) for name, value in found.items()}


class Trial:
    """A store that is damaged, read and repaired again and again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "s.zarr"
        write(self.path)
        self.other = folder / "other" / "s.zarr"
        write(self.other, seed=1)
        self.bytes, self.numbers = contents(self.path), everything(self.path)
        self.counts: Counter[str] = Counter()

    def run(self, damage: Any, name: Path, draw: random.Random) -> None:
        damage(self.path / name, draw, self.other / name)
        who = f"{damage.__name__} {name}"
        changed = self._bytes() != self.bytes
        try:
            outcome = "harmless" if same(everything(self.path), self.numbers) else "unnoticed"
        except StoreError as error:
            outcome = "noticed" if str(self.path) in str(error) else "unnamed"
        except Exception as error:
            outcome = f"traceback ({error!r})"
        assert outcome in ("noticed", "harmless"), f"{who}: {outcome}"
        self.counts[outcome] += 1
        self.counts["changed"] += changed
        write(self.path)  # the same call: what does not count is written again
        Store.open(self.path).repair()
        write(self.path)
        assert self._bytes() == self.bytes, f"{who}: not repaired"

    def _bytes(self) -> dict[str, bytes] | None:
        try:
            return contents(self.path)
        except OSError:
            return None


def test_a_sample_of_damages(tmp_path: Path) -> None:
    trial, draw = Trial(tmp_path), random.Random(0)
    names = ["zarr.json", "manifest/shard-00001.json", "inputs/label/c.0", "inputs/id/zarr.json",
             "sites/layer2/contribution/c.2.0.0", "sites/layer1.0/position/c.1.0",
             "sites/layer1.0/place_contribution/c.0.0.0"]  # fmt: skip
    for name in names:
        trial.run(draw.choice(DAMAGES), Path(name), draw)
    assert trial.counts["noticed"] + trial.counts["harmless"] == len(names)
    assert trial.counts["noticed"] >= 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_damages_to_every_file(tmp_path: Path) -> None:
    trial, draw = Trial(tmp_path), random.Random(15)
    for name in trial.bytes:
        for damage in DAMAGES:
            for _ in range(4 if damage in DRAWN else 1):
                trial.run(damage, Path(name), draw)
    counts = trial.counts
    tried = counts["noticed"] + counts["harmless"]
    sys.stdout.write(f"\nstore: {tried} damages of {len(trial.bytes)} files: {dict(counts)}\n")
    assert tried >= 1500
