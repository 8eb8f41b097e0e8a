"""A run folder: where everything is, what is done, and the log of events.

run.toml                                 the plan, written out in full
contributions.zarr                       the store
log_odds/contributions.zarr              contributions to the label's log-odds, by which units are
log_odds/<site>/                         chosen, and their modes
activations/<site>/                      modes of activations, for the ranking by them
twins/<twin>/contributions.zarr          twins of the store: random weights or shuffled labels
modes/<site>/<learner>/                  dictionary and modes of a site
analysis/labels.json                     names of the labels: a list, or null
analysis/superclasses.json               superclass of every label: a list
analysis/left_out.json                   what the last run left out, and why: a list, if anything
analysis/statistics.parquet              one row a site
analysis/statistics_twins.parquet        the same of the twins, with a column `twin`
analysis/control.parquet                 control curves of all sites
analysis/<kind>/<site>/<learner>.parquet   tables of one dictionary, of the kinds of `TABLES`
analysis/maps/<site>/<learner>.npz       input-space maps
analysis/retina/                         what the link of `condec.retina` makes
report/index.html
tasks/*.json                             what each finished task of a link was made from
log.jsonl                                one line an event, with time and host
"""

import io
import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

from condec.basis.errors import StoreError
from condec.basis.files import (
    file_name,
    folder_in_place,
    remove_partial,
    to_json,
    user_path,
    write_file,
    writing,
)

if TYPE_CHECKING:
    import pandas

SIDE_EFFECTS: Final = ("control_matrix", "steering", "interactions")
"""Tables of what else edits do than change the accuracy of their label."""
TABLES: Final = ("control", "control_comparison", *SIDE_EFFECTS, "rivals", "stability")
"""Tables that a dictionary has of its own."""


class RunFolder:
    """Paths in a run folder, its tables, and records of its finished tasks.

    Sites are given by their keys, learners and twins by their names.
    """

    def __init__(self, path: str | Path) -> None:
        path = self.path = user_path(path)
        self.plan = path / "run.toml"
        self.store = path / "contributions.zarr"
        self.log_odds = path / "log_odds" / "contributions.zarr"
        self.labels = self.analysis("labels.json")
        self.superclasses = self.analysis("superclasses.json")
        self.left_out = self.analysis("left_out.json")
        self.report = path / "report" / "index.html"
        self.log_file = path / "log.jsonl"

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def log_odds_modes(self, site: str) -> Path:
        """Return the folder of a site's modes of contributions to the log-odds."""
        return self.path / "log_odds" / file_name(site)

    def activation_modes(self, site: str) -> Path:
        """Return the folder of a site's modes of activations."""
        return self.path / "activations" / file_name(site)

    def twin(self, name: str) -> Path:
        """Return the store of a twin."""
        return self.path / "twins" / quote(name, safe="") / "contributions.zarr"

    def twins(self) -> dict[str, Path]:
        """List the stores of twins that lie here, by their names."""
        found = sorted((self.path / "twins").glob("*/contributions.zarr"))
        return {unquote(path.parent.name): path for path in found}

    def modes(self, site: str, learner: str) -> Path:
        """Return the folder of a site's dictionary and modes."""
        return self.path / "modes" / file_name(site) / learner

    def learners(self, site: str) -> tuple[str, ...]:
        """List the learners whose modes of a site lie here, sorted."""
        found = (self.path / "modes" / file_name(site)).glob("*")
        whole = (one for one in found if folder_in_place(one / "modes.zarr").is_dir())
        return tuple(sorted(one.name for one in whole))

    def maps(self, site: str, learner: str) -> Path:
        """Return the file of a site's input-space maps."""
        return self.analysis("maps", site, f"{learner}.npz")

    def analysis(self, *parts: str) -> Path:
        """Return a place below analysis/; characters that file systems refuse are quoted."""
        return self.path.joinpath("analysis", *(file_name(part) for part in parts))

    def table(self, *parts: str) -> Path:
        """Return the file of a table: of the run, or of a kind of `TABLES`, a site, a learner."""
        place = self.analysis(*parts)
        return place.with_name(f"{place.name}.parquet")

    def tables(self) -> dict[str, Path]:
        """List all tables that lie here, by their names below analysis/."""
        start = self.analysis()
        found = {path.relative_to(start): path for path in sorted(start.rglob("*.parquet"))}
        return {name.with_suffix("").as_posix(): path for name, path in found.items()}

    def read_table(self, *parts: str) -> "pandas.DataFrame | None":
        """Read a table; None where there is none or it has no rows, StoreError if damaged."""
        import pandas

        file = self.table(*parts)
        if not file.is_file():
            return None
        try:
            table = pandas.read_parquet(file)
        except (OSError, ValueError) as error:
            raise StoreError(f"{file}: not readable as parquet ({error}); make it again") from error
        return None if table.empty else table

    def write_table(self, table: "pandas.DataFrame", *parts: str) -> Path:
        """Write a table, whole or not at all."""
        return self.write(self.table(*parts), to_parquet(table))

    def write(self, file: Path, content: bytes) -> Path:
        """Write a file, whole or not at all; folders are made. StoreError where that fails."""
        with writing(f"{file}"):
            file.parent.mkdir(parents=True, exist_ok=True)
            remove_partial(file)
            write_file(file, content)
        return file

    def is_done(self, task: str, digest: str) -> bool:
        """Tell whether a task was finished with these inputs and its outputs are still there."""
        try:
            record = json.loads(self._record(task).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        outputs = (self.path / output for output in record.get("outputs", ()))
        return record.get("digest") == digest and all(output.exists() for output in outputs)

    def mark_done(self, task: str, digest: str, outputs: Sequence[Path]) -> None:
        """Record that a task is finished, and what it was made from."""
        names = [output.relative_to(self.path).as_posix() for output in outputs]
        record = {"task": task, "digest": digest, "outputs": names}
        self.write(self._record(task), to_json(record))

    def done(self, besides: str) -> list[str]:
        """Return the records of all finished tasks but one, in order."""
        own = self._record(besides)
        files = sorted(self.path.glob("tasks/*.json"))
        return [file.read_text(encoding="utf-8") for file in files if file != own]

    def forget(self, task: str, outputs: Sequence[Path] = ()) -> None:
        """Remove the record of a task, then these outputs of it."""
        files = (self._record(task), *outputs)
        with writing(f"{self.path}: what {task!r} made before cannot be removed"):
            for file in files:
                file.unlink(missing_ok=True)

    def note_left_out(self, notes: Sequence[str]) -> None:
        """Keep what a run left out, for its report."""
        if notes:
            self.write(self.left_out, to_json(list(notes)))
        else:
            self.left_out.unlink(missing_ok=True)

    def notes_left_out(self) -> tuple[str, ...]:
        """Return what the last run left out; empty where nothing was."""
        try:
            return tuple(json.loads(self.left_out.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return ()

    def log(self, event: str, **details: Any) -> None:
        """Append one line to the log; StoreError where it cannot be written."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "host": platform.node(), "process": os.getpid(), "event": event}
        with writing(f"{self.log_file}"):
            self.path.mkdir(parents=True, exist_ok=True)
            with self.log_file.open("a", encoding="utf-8") as log:
                log.write(json.dumps(line | details) + "\n")

    def _record(self, task: str) -> Path:
        return self.path / "tasks" / f"{file_name(task)}.json"


def to_parquet(table: "pandas.DataFrame") -> bytes:
    """Return a table as the content of a parquet file."""
    content = io.BytesIO()
    table.to_parquet(content, index=False)
    return content.getvalue()
