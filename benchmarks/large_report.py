"""Time, size and memory of the report of a large run: many sites, labels and modes.

The run is made of random numbers, without a model: `--sites` sites of few modes, and among them
`--wide` sites of `--modes` modes; labels from 0 to `--labels` - 1 with names, one input or more
each. With `--pictures` N modes of a wide site have maps, on six smooth pictures of 224 x 224 each,
and place maps of nine other inputs.
The report is built in a process of its own. Then a Chromium, where there is one, opens each type of
page from disk: how long until all that it shows at first is there. Writes results/NAME.json.

    python benchmarks/large_report.py
    python benchmarks/large_report.py --name report_of_modes --sites 16 --wide 16 --modes 3000 \
        --labels 1000 --pictures 12
    python benchmarks/large_report.py --folder RUN ...      keeps the run; made once, built again
"""

import argparse
import importlib.util
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

import torch
from torch.nn.functional import interpolate

sys.path.insert(0, str(Path(__file__).parent))

from measure import peak_memory_mib, write

from condec.basis.files import to_json
from condec.basis.npz import save_record
from condec.dictionary import Dictionary, KMeans, Quality, TrainConfig, Training
from condec.explanation import SiteMaps, leading_modes, strongest_units
from condec.modes import Modes
from condec.network import Site, Units
from condec.report import build_report
from condec.store import RunFolder, SiteInfo, Store


def make_store(place: RunFolder, size: Namespace) -> Store:
    """Write a store of sparse random contributions."""
    infos = [
        SiteInfo(
            site=Site(f"stages.{n // 50}.blocks.{n % 50}.mlp.act"), units=Units("channels"),
            n_units=units(n, size), n_positions=49, cut=n % 2 == 0,
        )
        for n in range(size.sites)
    ]  # fmt: skip
    recipe = {"method": {"name": "ActGrad"}, "target": {"name": "TopK", "k": 1}}
    sizes = {"n_samples": size.inputs, "shard_size": size.inputs}
    store = Store.create(place.store, recipe=recipe, sites=infos, **sizes)
    labels = torch.arange(size.inputs) % size.labels
    change = torch.ones(size.inputs)
    rows = {
        "inputs/id": tuple(f"input-{n}" for n in range(size.inputs)), "inputs/label": labels,
        "inputs/prediction": labels, "inputs/target": change, "inputs/target_baseline": 0 * change,
        "inputs/valid": torch.ones(size.inputs, dtype=torch.bool),
        "inputs/steps": torch.full((size.inputs,), 10),
    }  # fmt: skip
    for info in infos:
        values = torch.rand(size.inputs, 2, info.n_units).mul_(16).floor_()
        values /= values.sum((1, 2), keepdim=True)
        rows |= {f"{info.folder}/{name}": values for name in ("contribution", "activation")}
    store.write_shard(0, rows)
    place.write(place.labels, to_json([f"label number {n}" for n in range(size.labels)]))
    return Store.open(place.store)


def units(number: int, size: Namespace) -> int:
    """Return the units of a site: those with many modes have more, and lie apart."""
    return 256 if is_wide(number, size) else 4


def is_wide(number: int, size: Namespace) -> bool:
    return size.wide > 0 and number % (size.sites // size.wide) == size.sites // size.wide - 1


def add_modes(place: RunFolder, store: Store, number: int, size: Namespace) -> None:
    """Save a dictionary of random atoms, and modes that few inputs use."""
    site, n_units = store.sites[number], units(number, size)
    n_modes = size.modes if is_wide(number, size) else 8
    held_out, atoms = torch.arange(len(store)) % 5 == 0, torch.rand(n_modes, n_units) ** 8
    quality = Quality(n_rows=len(store), r2=0.5, r2_grand=0.6, cosine=0.7, l0=4.0, n_alive=n_modes)
    training = Training(
        config=TrainConfig(), n_rows=len(store), held_out_rows=held_out.nonzero().flatten(),
        metrics={"train": quality, "held_out": quality}, n_alive=n_modes, history=(1.0, 0.5),
    )  # fmt: skip
    loadings = torch.rand(len(store), n_modes)
    loadings *= loadings > 0.98
    modes = Modes(
        atoms=atoms, loadings=loadings, ids=torch.arange(n_modes), held_out=held_out, store=store,
        site=site, sign="positive", quantity="contribution", n_modes=n_modes,
    )  # fmt: skip
    folder = place.modes(site.key, "kmeans")
    Dictionary(KMeans(n_modes), {"atoms": atoms}, 1.0, training).save(folder)
    modes.save(folder)
    if size.pictures and is_wide(number, size):
        save_record(place.maps(site.key, "kmeans"), made_maps(modes, size))


def smooth(*shape: int) -> torch.Tensor:
    """Return random pictures of 224 x 224 that are smooth, as photos are: values 0 to 1."""
    coarse = torch.rand(*shape, 14, 14).view(-1, 1, 14, 14)
    return interpolate(coarse, (224, 224), mode="bicubic").clamp(0, 1).view(*shape, 224, 224)


def made_maps(modes: Modes, size: Namespace) -> SiteMaps:
    """Make up maps of the leading modes."""
    chosen = leading_modes(modes, size.pictures)
    rows = [modes.loadings[:, mode].topk(6).indices.tolist() for mode in chosen]
    kinds = (modes.typical, modes.random, modes.counter_examples)
    others = [[kind(mode, 3)["row"].tolist() for kind in kinds] for mode in chosen]
    every = {row for few in rows + [k for kind in others for k in kind] for row in few}
    used, store = sorted(every), modes.store
    pictures = (255 * smooth(len(used), 3)).permute(0, 2, 3, 1).to(torch.uint8)
    maps = {part: smooth(len(chosen), 6) - 0.5 for part in ("total", "positive", "negative")}
    number = {row: n for n, row in enumerate(used)}
    samples = torch.tensor([[number[row] for row in few] for few in rows])
    shown = torch.tensor([[[number[row] for row in few] for few in kind] for kind in others])
    return SiteMaps(
        site=modes.site.key, target={"name": "TopK", "k": 1}, mode_ids=modes.ids[chosen],
        units=torch.stack([strongest_units(modes, mode)[:3] for mode in chosen]), samples=samples,
        loadings=torch.stack([modes.loadings[few, m] for few, m in zip(rows, chosen, strict=True)]),
        ids=tuple(store.sample_ids[row] for row in used), labels=store.labels[used],
        predictions=store.predictions[used], held_out=modes.held_out[used], pictures=pictures,
        places=torch.randn(len(chosen), 6, 7, 7), others=shown,
        of_others=torch.randn(*shown.shape, 7, 7), **maps,
    )  # fmt: skip


def make_run(folder: Path, size: Namespace) -> Path:
    """Make the run folder."""
    torch.manual_seed(0)
    place = RunFolder(folder)
    store = make_store(place, size)
    for number in range(size.sites if size.modes else 0):
        add_modes(place, store, number, size)
    made = [place.labels, *place.path.glob("modes/*/*"), *place.path.glob("analysis/maps/*/*")]
    place.ledger.mark_done("made up", "run", {}, (), made)
    return place.path


def built(folder: Path) -> dict[str, float]:
    """Build the report; return what it took and what it is."""
    started, busy = time.perf_counter(), time.process_time()
    page = build_report(folder)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    files = [file for file in page.parent.rglob("*") if file.is_file()]
    kinds = {
        kind: sum(f.stat().st_size for f in files if f.relative_to(page.parent).parts[0] in parts)
        for kind, parts in (("data", ["data"]), ("pictures", ["pictures", "maps"]),
                            ("figures", ["figures"]))
    }  # fmt: skip
    return {
        "seconds": seconds, "of_processor": busy, "peak_mib": peak_memory_mib(),
        "files": len(files), "mb": sum(file.stat().st_size for file in files) / 1e6,
        **{f"mb_of_{kind}": size / 1e6 for kind, size in kinds.items()},
    }  # fmt: skip


def first_views(index: Path) -> dict[str, float]:
    """Return seconds until each type of page is there, median of three; nothing without a browser.

    From the click to the later of two: all that the page loads has come, and what scripts draw
    stands on it.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None or importlib.util.find_spec("playwright") is None:
        return {}
    from playwright.sync_api import sync_playwright

    root = index.parent
    site = sorted(root.glob("sites/*.html"), key=lambda page: page.stat().st_size)[-1]
    mode = re.search(r"mode\.html#[^\"]+", site.read_text(encoding="utf-8"))
    pages = {
        "overview": (index.as_uri(), ".network h3"),
        "site": (site.as_uri(), "[data-modes] table"),
        "labels": (f"{root.as_uri()}/label.html", "#label tbody tr"),
        "label": (f"{root.as_uri()}/label.html#0", "#label .eyebrow"),
    }
    if mode is not None:
        pages["mode"] = (f"{root.as_uri()}/{mode[0]}", "#neighbours")
    found = {}
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, (address, drawn) in pages.items():
            seconds = []
            for _ in range(3):
                context = browser.new_context(viewport={"width": 1280, "height": 900})
                page = context.new_page()
                page.goto(address)
                page.locator(drawn).first.wait_for()
                seconds.append(page.evaluate("performance.now()") / 1000)
                context.close()
            found[name] = statistics.median(seconds)
        browser.close()
    return found


def options() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("sites", 1000), ("labels", 10_000), ("modes", 5000), ("wide", 3), ("inputs", 10_000),
        ("pictures", 0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--name", default="large_report", help="of the file of results")
    parser.add_argument("--folder", type=Path, help="where the run is made, or was, and is kept")
    parser.add_argument("--built", type=Path, help="build the report of this folder, and no more")
    return parser.parse_args()


def main() -> None:
    size = options()
    if size.built is not None:
        print(json.dumps(built(size.built)))
        return
    with tempfile.TemporaryDirectory() as passing:
        folder = size.folder or Path(passing)
        if not (folder / "tasks").exists():
            make_run(folder, size)
        command = [sys.executable, __file__, "--built", str(folder)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        views = first_views(RunFolder(folder).report)
    own = ("built", "name", "folder")
    sizes = {name: value for name, value in vars(size).items() if name not in own}
    write(size.name, sizes | found | ({"first_view_s": views} if views else {}))


if __name__ == "__main__":
    main()
