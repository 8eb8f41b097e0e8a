"""A run folder: where everything is, what is done, and the log of events.

run.toml                                 the plan, written out in full
contributions.zarr                       the store
log_odds/contributions.zarr              contributions to the label's log-odds, by which units are
log_odds/<site>/                         chosen, and their modes
activations/<site>/                      modes of activations, for the ranking by them
controls/<control>/contributions.zarr    its twins, under random weights or shuffled labels
modes/<site>/<learner>/                  dictionary and modes of a site
analysis/labels.json                     names of the labels: a list, or null
analysis/statistics.parquet              one row a site
analysis/statistics_controls.parquet     the same of the twins, with a column `control`
analysis/control.parquet                 control curves, and control_auc.parquet their areas
analysis/control_comparison.parquet      which of two rankings is the more selective one
analysis/control/<site>/<learner>.parquet   curves of one site, and beside it in
analysis/control_comparison/             what is compared
analysis/control_matrix/<site>/<learner>.parquet  effect of every label's edit on every label, and
analysis/steering/, analysis/interactions/        beside it of steering and of pairs of modes
analysis/superclasses.json               superclass of every label: a list
analysis/fit_controls/<site>/<learner>.parquet   controls of a site's dictionary
analysis/stability/<site>/<learner>.parquet      one row a mode: other seeds, halves of the rows
analysis/maps/<site>/<learner>.npz       input-space maps
analysis/retina/responses.npz            of a movie: rates of every cell, and fields.npz, receptive
analysis/retina/probes/<probe>.npz       fields; rates to the standard probes;
analysis/retina/<site>/<learner>/        tables of a site's modes beside them
report/index.html
steps/*.json                             what each finished step was made from
log.jsonl                                one line an event, with time and host
"""

import io
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from condec.basis.files import to_json, write_file, writing

if TYPE_CHECKING:
    import pandas

SIDE_EFFECTS: Final = {
    "matrix": "control_matrix",
    "steering": "steering",
    "interactions": "interactions",
}
"""What else edits do, and the folders of the tables."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths in a run folder, and records of its finished steps."""

    path: Path

    @property
    def store(self) -> Path:
        """The store of contributions."""
        return self.path / "contributions.zarr"

    @property
    def report(self) -> Path:
        """The report's first page."""
        return self.path / "report" / "index.html"

    @property
    def log_odds(self) -> Path:
        """The store of contributions to the label's log-odds, by which control ranks units."""
        return self.path / "log_odds" / "contributions.zarr"

    def log_odds_modes(self, site: str) -> Path:
        """Folder of a site's modes of these contributions."""
        return self.path / "log_odds" / quote(site, safe="")

    def activation_modes(self, site: str) -> Path:
        """Folder of a site's modes of activations."""
        return self.path / "activations" / quote(site, safe="")

    def twin(self, control: str) -> Path:
        """The store of a control, by its name."""
        return self.path / "controls" / quote(control, safe="") / "contributions.zarr"

    def modes(self, site: str, name: str) -> Path:
        """Folder of a site's dictionary and modes."""
        return self.path / "modes" / quote(site, safe="") / name

    def maps(self, site: str, name: str) -> Path:
        """A site's input-space maps."""
        return self.path / "analysis" / "maps" / quote(site, safe="") / f"{name}.npz"

    def retina(self, name: str) -> Path:
        """A record of all cells of a retina."""
        return self.path / "analysis" / "retina" / name

    def retina_table(self, site: str, name: str, part: str) -> str:
        """Name of a table of one site's modes beside cells."""
        return f"retina/{quote(site, safe='')}/{name}/{part}"

    def retina_fields(self, site: str, name: str) -> Path:
        """Mean receptive fields of combinations of one site's modes."""
        return self.retina(quote(site, safe="")) / name / "fields.npz"

    def table(self, name: str) -> Path:
        """One table of results; `name` may hold folders."""
        return self.path / "analysis" / f"{name}.parquet"

    def control(self, site: str, name: str) -> str:
        """Name of the table of one site's control curves."""
        return f"control/{quote(site, safe='')}/{name}"

    def comparison(self, site: str, name: str) -> str:
        """Name of the table that compares the rankings of one site."""
        return f"control_comparison/{quote(site, safe='')}/{name}"

    def side_effect(self, kind: str, site: str, name: str) -> str:
        """Name of the table of a kind of `SIDE_EFFECTS` at one site."""
        return f"{SIDE_EFFECTS[kind]}/{quote(site, safe='')}/{name}"

    @property
    def superclasses(self) -> Path:
        """Superclass of every label, where the plan has them."""
        return self.path / "analysis" / "superclasses.json"

    def fit_controls(self, site: str, name: str) -> str:
        """Name of the table of the controls of one site's dictionary."""
        return f"fit_controls/{quote(site, safe='')}/{name}"

    def stability(self, site: str, name: str) -> str:
        """Name of the table of how stable one site's modes are."""
        return f"stability/{quote(site, safe='')}/{name}"

    def write_table(self, name: str, table: "pandas.DataFrame") -> Path:
        """Write a table, whole or not at all."""
        content = io.BytesIO()
        table.to_parquet(content, index=False)
        return self.write(self.table(name), content.getvalue())

    def write(self, file: Path, content: bytes) -> Path:
        """Write a file, whole or not at all; folders are made.

        Raises
        ------
        StoreError
            The place cannot be written.
        """
        with writing(f"{file} cannot be written", lambda: "Make room, then run the same again."):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_file(file, content)
        return file

    def is_done(self, step: str, digest: str) -> bool:
        """Whether a step was finished with these inputs and its outputs are still there."""
        try:
            record = json.loads(self._record(step).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return record.get("digest") == digest and all(
            (self.path / output).exists() for output in record.get("outputs", ())
        )

    def mark_done(self, step: str, digest: str, outputs: Sequence[Path]) -> None:
        """Record that a step is finished, and what it was made from."""
        record = {
            "step": step,
            "digest": digest,
            "outputs": [output.relative_to(self.path).as_posix() for output in outputs],
        }
        self.write(self._record(step), to_json(record))

    def forget(self, step: str, outputs: Sequence[Path] = ()) -> None:
        """Remove the record of a step, then these outputs of it."""
        files = (self._record(step), *outputs)
        with writing(f"{self.path}: what {step!r} made before cannot be removed"):
            for file in files:
                file.unlink(missing_ok=True)

    def log(self, event: str, **details: Any) -> None:
        """Append one line to the log.

        Raises
        ------
        StoreError
            The log cannot be written.
        """
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "host": platform.node(),
            "process": os.getpid(),
            "event": event,
            **details,
        }
        file = self.path / "log.jsonl"
        with writing(f"{file} cannot be written"):
            self.path.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")

    def _record(self, step: str) -> Path:
        return self.path / "steps" / f"{quote(step, safe='')}.json"
