"""The folder of a sweep: its fits, each with a record written last, and its results.

sweep.toml                         the plan
fits/<site>/<learner>/<id>/        dictionary.json, dictionary.safetensors, then fit.json
stability/<id>.json                how alike the fits of one configuration are
checkpoints/                       of fits that were interrupted; gone when all are done
results.parquet                    one row a fit
pareto.png                         R2 against L0, a panel a site
"""

import dataclasses
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import tomli_w
from torch import Tensor

from condec.basis.errors import StoreError
from condec.basis.files import remove_partial, to_json, write_file, writing
from condec.dictionary import Dictionary, FitReport, load_dictionary
from condec.run.sweeps.plan import SweepPlan, to_dict

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True)
class SweepFolder:
    """Paths in the folder of a sweep, and records of what is done."""

    path: Path

    @property
    def results(self) -> Path:
        """The table of results."""
        return self.path / "results.parquet"

    @property
    def figure(self) -> Path:
        """The figure of R2 against L0."""
        return self.path / "pareto.png"

    @property
    def checkpoints(self) -> Path:
        """Where interrupted fits go on from."""
        return self.path / "checkpoints"

    def fit(self, site: str, learner: str, identity: str) -> Path:
        """Folder of one fit."""
        return self.path / "fits" / quote(site, safe="") / learner / identity

    def write_plan(self, plan: SweepPlan) -> Path:
        """Write the plan as sweep.toml; paths in it start from this folder."""
        record = to_dict(plan, folder=self.path)
        return self.write(self.path / "sweep.toml", tomli_w.dumps(record).encode())

    def write_table(self, table: "pandas.DataFrame") -> Path:
        """Write the table of results."""
        content = io.BytesIO()
        table.to_parquet(content, index=False)
        return self.write(self.results, content.getvalue())

    def write(self, file: Path, content: bytes) -> Path:
        """Write a file, whole or not at all; folders are made.

        Raises
        ------
        StoreError
            The place cannot be written.
        """
        with writing(f"{file} cannot be written"):
            file.parent.mkdir(parents=True, exist_ok=True)
            remove_partial(file)
            write_file(file, content)
        return file

    def save_fit(self, folder: Path, report: FitReport, alive: Tensor) -> None:
        """Write a dictionary, and last the record by which the fit counts as done."""
        (folder / "fit.json").unlink(missing_ok=True)
        report.save(folder)
        record = {
            "metrics": {k: dataclasses.asdict(v) for k, v in report.metrics.items()},
            "n_epochs": len(report.history),
            "seconds": report.seconds,
            "alive": alive.nonzero().flatten().tolist(),
        }
        self.write(folder / "fit.json", to_json(record))

    def fit_record(self, folder: Path) -> dict[str, Any] | None:
        """The record of a fit; None where it is not done."""
        whole = all((folder / f"dictionary.{end}").is_file() for end in ("json", "safetensors"))
        record = _read(folder / "fit.json")
        return record if whole else None

    def dictionary(self, folder: Path) -> Dictionary:
        """The dictionary of a fit that is done.

        Raises
        ------
        StoreError
            It is damaged.
        """
        try:
            return load_dictionary(folder)
        except StoreError as error:
            raise StoreError(f"{error} Remove {folder} and run the same sweep again.") from error

    def stability(self, identity: str) -> dict[str, float] | None:
        """How alike fits are, by their folders' names; None where that is not known yet."""
        return _read(self._stability(identity))

    def write_stability(self, identity: str, found: Mapping[str, float]) -> None:
        """Record how alike fits are."""
        self.write(self._stability(identity), to_json(dict(found)))

    def clear_checkpoints(self) -> None:
        """Remove what interrupted fits left: all are done."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def _stability(self, identity: str) -> Path:
        return self.path / "stability" / f"{identity}.json"


def _read(file: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record
