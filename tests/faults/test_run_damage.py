"""Damages of every kind, to every kind of file of a run: none changes a number without a word.

A finished run of the digits is damaged in one place at a time (`DAMAGES`), then read as its
readers do: `verify`, the report's reading, and the modes as the links control and map take them.
Counted are damages that `verify` does not notice, readings that give other numbers without an
error, and errors that are not condec's own. All have to be 0.

    pytest tests/faults/test_run_damage.py -m slow -s
"""

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import condec.report
from condec.basis.errors import CondecError
from condec.report.reading import read_run
from condec.run import Run, config, links
from condec.run.compare import compare_runs
from condec.run.verify import repair_run, verify_run
from damages import DAMAGES, same
from small_runs import contents, quick_report

FREE = ("run.toml", "log.jsonl", ".lock")
PLAN = {
    "sites": "block[12]",
    "model": {"spec": "digits"},
    "data": {"source": "digits", "limit": 40},
    "collect": {"method": "actgrad", "target": "predicted", "shard_size": 20,
                "twins": ["shuffled-labels"]},
    "fit": {"learner": "kmeans", "n_modes": 4, "held_out": 0.4, "rivals": True},
    "control": {"sites": "block2", "fractions": [0.25, 0.5], "edits": ["ablate"], "n_random": 1,
                "n_bootstrap": 10, "matrix": True},
    "maps": {"n_modes": 2, "n_inputs": 2, "n_units": 1},
}  # fmt: skip


def make(folder: Path, **collect: Any) -> Path:
    record = PLAN | {"collect": {**PLAN["collect"], **collect}}  # type: ignore[dict-item]
    plan = replace(config.from_dict(record), out=folder)
    config.write(plan)
    list(links.chain(Run(plan, progress=False)))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Two runs with the same files and other numbers."""
    top = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(condec.report, "build_report", quick_report)
        yield make(top / "run"), make(top / "other", target="top1")


def numbers(folder: Path) -> dict[str, Any]:
    """Read all that a report shows, and the modes as links take them."""
    run = read_run(folder)
    found: dict[str, Any] = {
        "labels": run.label_names,
        "groups": run.hierarchy,
        "ids": run.store.sample_ids,
    }
    found |= {"recipes": str(run.recipes), "left out": run.left_out, "valid": run.store.labels}
    found["statistics"] = run.statistics
    for site, part in run.parts:
        found |= {f"{site.key} {name}": table for name, table in part.tables.items()}
        found[f"{site.key} maps"] = part.maps and part.maps.total
        found[f"{site.key} pictures"] = part.maps and part.maps.pictures
        found[f"{site.key} loadings"] = part.modes.loadings
        found[f"{site.key} atoms"] = part.dictionary.atoms
        found[f"{site.key} quality"] = str(
            part.dictionary.training and part.dictionary.training.metrics
        )
        found[f"{site.key} matrix"] = part.modes.matrix()
        found[f"{site.key} completeness"] = site.completeness
    for twin in run.twins:
        found[f"twin {twin.twin['name']}"] = twin.store.labels
    links_of = Run(config.read(folder), progress=False)
    found |= {f"link {m.site.key}": m.loadings for m in links_of.modes()}
    return found


def kind_of(name: str) -> str:
    first, *rest = name.split("/")
    return f"{first}/{rest[-1].rpartition('.')[2]}" if rest else first


def damaged(made: tuple[Path, Path], tmp_path: Path, n: int, seed: int) -> Counter[str]:
    """Damage a run in `n` places, one at a time and of every kind of file in turn; count."""
    whole, other = made
    truth, kept, chance = numbers(whole), contents(whole), random.Random(seed)
    kinds: dict[str, list[str]] = {}
    for name in filter(kept.get, sorted(kept)):
        kinds.setdefault(kind_of(name), []).append(name)
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    count: Counter[str] = Counter()
    for number in range(n):
        kind = sorted(kinds)[number % len(kinds)]
        name = chance.choice(kinds[kind])
        damage = chance.choice(DAMAGES)
        damage(folder / name, chance, other / name)
        what, harmless = f"{damage.__name__} {name}", contents(folder) == kept
        count["tried"] += not harmless
        if name not in FREE and not harmless and not verify_run(folder).damages:
            count["unnoticed by verify"] += 1
            print("UNNOTICED", what)
        try:
            found = numbers(folder)
            if not same(found, truth):
                count["other numbers without a word"] += 1
                print("OTHER NUMBERS", what)
        except CondecError:
            count["refused by readers"] += 1
        except Exception as error:
            count["errors of dependencies"] += 1
            print("TRACEBACK", what, repr(error))
        # As it was before, whatever the damage was.
        for path in folder.rglob("*"):
            if path.is_symlink():
                path.unlink()
            elif path.is_dir() and path.relative_to(folder).as_posix() in kept:
                path.rmdir()
        for path, content in kept.items():
            if not (folder / path).is_file() or (folder / path).read_bytes() != content:
                (folder / path).write_bytes(content)
    print(dict(count), f"in {len(kinds)} kinds of files")
    return count


def check(count: Counter[str]) -> None:
    for wrong in ("unnoticed by verify", "other numbers without a word", "errors of dependencies"):
        assert count[wrong] == 0, wrong


def test_a_sample_of_damages(made: tuple[Path, Path], tmp_path: Path) -> None:
    check(damaged(made, tmp_path, n=12, seed=1))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_damages_change_no_number_without_a_word(made: tuple[Path, Path], tmp_path: Path) -> None:
    count = damaged(made, tmp_path, n=600, seed=0)
    assert count["tried"] > 500
    check(count)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_repair_ends_equal_to_the_undamaged_run(made: tuple[Path, Path], tmp_path: Path) -> None:
    whole, other = made
    kept = contents(whole)
    for number, name in enumerate(sorted(kept)[:: max(1, len(kept) // 12)]):
        if name in FREE:
            continue
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        DAMAGES[number % len(DAMAGES)](folder / name, random.Random(number), other / name)
        run = Run(config.read(folder), progress=False)
        list(repair_run(run, verify_run(folder)))
        assert verify_run(folder).damages == (), name
        assert compare_runs(whole, folder) == (), name
        assert contents(folder) == kept, name
