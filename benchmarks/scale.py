"""Bookkeeping at the size of ImageNet's training set: 1,281,167 inputs, 16 blocks of a ResNet-50.

The passes are stubbed, everything else is real, but that the files of sites are written for a
sample of shards, of true size, and stand for those of all others by hard links: what is read then
comes from memory. Writes results/scale.json.

    python benchmarks/scale.py [INPUTS]
"""

import hashlib
import json
import os
import sys
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from measure import write

import condec
from condec.attribution import Compute, IntegratedGradients
from condec.attribution.targets import TopK
from condec.basis.files import with_checksum
from condec.data import Inputs, images, load_data
from condec.dictionary import TopKSAE
from condec.network import Site, Units
from condec.store import RunFolder, Store, shards, statistics
from condec.store.batches import BatchPlan, recipe_of
from condec.store.collection import Collecting
from condec.store.seals import SEAL, seal
from condec.store.shards import SiteInfo, shard_file

N_INPUTS = 1_281_167
SHARD = 1024
WRITTEN = 8  # shards of true size
UNITS = (256,) * 3 + (512,) * 4 + (1024,) * 6 + (2048,) * 3
SECONDS_OF_AN_INPUT = 0.0059  # owed on one H200: 50,000 inputs in 5 minutes
SLICE = 128  # shards that a dictionary is fitted to
N_FILES = 50_000  # of a folder and a tar that are listed


class Reduced:
    """What a stubbed pass gives: numbers of a contribution's shape, half of them zero."""

    def __init__(self, infos: tuple[SiteInfo, ...], n: int) -> None:
        torch.manual_seed(0)
        self.prediction, self.steps = torch.zeros(n, dtype=torch.int64), torch.full((n,), 10)
        self.target, self.target_baseline = torch.rand(n), torch.zeros(n)
        self.contribution = torch.randn(n, max(UNITS))
        self.sites = {info.site: info for info in infos}
        self.reduce = lambda: self

    def __getitem__(self, site: Site) -> Any:
        values = self.contribution[:, : self.sites[site].n_units]
        parts = torch.stack((values.clamp(min=0), values.clamp(max=0)), 1)
        return type("Part", (), {"contribution": parts, "activation": parts})


@dataclass(frozen=True, eq=False, kw_only=True)
class Stubbed(BatchPlan):
    """A plan whose passes cost nothing."""

    reduced: Reduced

    def _attribute(self, method: object, batch: object) -> Any:
        return self.reduced


def plan_of(inputs: Inputs) -> Stubbed:
    infos = tuple(
        SiteInfo(site=Site(f"block.{n:02}"), units=Units("channels"), n_units=units,
                 n_positions=49, cut=True)
        for n, units in enumerate(UNITS)
    )  # fmt: skip
    model, method, target = torch.nn.Identity(), IntegratedGradients(steps=10), TopK()
    keys = [info.site.key for info in infos]
    return Stubbed(
        model=model, inputs=inputs, infos=infos, method=method, target=target, compute=Compute(),
        on_bad="raise", entries=1, reduced=Reduced(infos, 64),
        decides=recipe_of(model, inputs, keys, method, target, Compute(), None),
    )  # fmt: skip


def made_inputs(n: int) -> Inputs:
    image = torch.zeros(8, 8, 3, dtype=torch.uint8)
    return Inputs(
        "scale", tuple(f"n{row % 1000:08}/n{row % 1000:08}_{row}.JPEG" for row in range(n)),
        lambda row: image, torch.arange(n) % 1000,
        stored=lambda rows: (row.to_bytes(8, "little") for row in rows),
    )  # fmt: skip


def link_others(store: Store, plan: Stubbed) -> None:
    """Write inputs and records of the other shards; their sites' files are those of the first."""
    nodes, first = store._root.nodes, json.loads(store._record_path(0).read_bytes())
    names = sorted(first["files"])
    of_inputs = [name for name in names if name.startswith("inputs/")]
    for index in range(WRITTEN, store.n_shards):
        span, files, seals = store.shard_rows(index), dict(first["files"]), ""
        values: dict[str, Any] = {name: np.zeros(len(span)) for name in of_inputs}
        values["inputs/id"] = np.array(plan.inputs.ids[span.start : span.stop], dtype=object)
        values["inputs/valid"] = np.ones(len(span), dtype=bool)
        for place, name in enumerate(names):
            target = shard_file(store.path, name, index)
            if name in of_inputs:
                content = shards._encoded(nodes[name], span.start, values[name])
                target.write_bytes(content)
                files[name] = hashlib.sha256(content).hexdigest()
                seals += seal(content, nodes[name])
            else:
                os.link(shard_file(store.path, name, 0), target)
                seals += first["seals"][place * SEAL : (place + 1) * SEAL]
        record = shards.ShardRecord(**store._head(index), files=files, seals=seals)
        store._record_path(index).write_bytes(with_checksum(asdict(record)))


@contextmanager
def timed(found: dict[str, Any], name: str) -> Iterator[None]:
    clocks = {
        "seconds": time.perf_counter,
        "cpu": time.process_time,
        "main_thread": time.thread_time,
    }
    started = {clock: now() for clock, now in clocks.items()}
    yield
    found[name] = {clock: round(now() - started[clock], 3) for clock, now in clocks.items()}
    found[name]["rss_mib"] = round(rss())
    print(name, found[name], flush=True)


class Slice:
    """The first blocks of a stored matrix."""

    samples = None

    def __init__(self, matrix: Any) -> None:
        self.read, self.blocks = matrix.read, matrix.blocks[:SLICE]
        self.shape = (sum(self.blocks), matrix.shape[1])


def rss() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def of_sources(folder: Path, n: int, found: dict[str, Any]) -> None:
    """List a folder, and a tar, of many files, and hash what the fingerprint takes of them."""
    names = [f"n{row % 100:08}/{row:08}" for row in range(n)]
    for name in names:
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "photos" / f"{name}.jpg").touch()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(f"{name}.jpg"))
            tar.addfile(tarfile.TarInfo(f"{name}.cls"))
    images.WHOLE_BYTES = -1  # as of a large set
    for source in ("folder:photos", "webdataset:a.tar"):
        with timed(found, f"{source}, {n} images"):
            inputs = load_data(source, folder=folder)
        with timed(found, f"{source}, {n} images, digests"):
            deque(inputs.stored(range(n)), maxlen=0)


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else N_INPUTS
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        out, base = Path(folder) / "run" / "contributions.zarr", rss()
        with timed(found, "names of the inputs"):
            inputs = made_inputs(n)
        with timed(found, "fingerprint and recipe"):
            plan = plan_of(inputs)
        with timed(found, "estimate, manifest, first missing shards"):
            sizes = {"n_samples": n, "shard_size": SHARD}
            store = Store.create(out, recipe=plan.recipe(64), sites=plan.infos, **sizes)
            store.missing()
        with timed(found, f"{WRITTEN} shards"):
            Collecting(plan, out, 64, SHARD).write(store, range(WRITTEN), lambda _: None)
        link_others(store, plan)
        with timed(found, "resume: create, missing"):
            store = Collecting(plan, out, 64, SHARD).collect(progress=False)
        with timed(found, "open, missing"):
            Store.open(out).missing()
        with timed(found, "manifest"):
            _ = store.manifest
        with timed(found, "ids and labels"):
            _ = store.sample_ids, store.labels
        with timed(found, "digest of the store in a ledger"):
            RunFolder(out.parent).ledger.digest(out)
        with timed(found, f"statistics of a site of {UNITS[0]} units"):
            statistics._of_site(store, plan.infos[0], torch.ones(n))
        with timed(found, f"completeness of a site of {UNITS[0]} units"):
            one = Store.open(out)
            one.infos = one.infos[:1]
            one.completeness()
        with timed(found, f"an epoch out of core, {SLICE} shards of {UNITS[0]} units"):
            train = condec.TrainConfig(epochs=1, memory_gib=0.1, held_out=0.01)
            condec.fit(TopKSAE(n_modes=256, k=8), Slice(store.rows("block.00")), config=train)
        of_sources(Path(folder), N_FILES, found)
    write(
        "scale",
        {"inputs": n, "base_mib": base, "seconds_of_an_input": SECONDS_OF_AN_INPUT, "parts": found},
    )


if __name__ == "__main__":
    main()
