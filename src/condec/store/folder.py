"""A run folder: where everything is (docs/how-to/store.md lists it), what is done, and the log.

Every result has a record, and is refused without; run.toml and log.jsonl are free, and so are
checkpoints/, fits that are under way, and workers/, logs of an engine's.
"""

import io
import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote, unquote

from condec.basis.errors import command
from condec.basis.files import (
    file_name,
    reading,
    to_json,
    user_path,
    write_file,
    writing,
)
from condec.basis.npz import load_record
from condec.store.ledger import Ledger

if TYPE_CHECKING:
    import pandas

Record = TypeVar("Record")
SIDE_EFFECTS: Final = ("control_matrix", "steering", "interactions", "superclass_control")
"""Tables of what else edits do than change the accuracy of their label."""
TABLES: Final = (
    "control", "control_comparison", "mode_control", *SIDE_EFFECTS, "meaning", "rivals",
    "stability", "units", "activation_units",
)  # fmt: skip
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
        self.all_modes = path / "modes"
        self.labels = self.analysis("labels.json")
        self.superclasses = self.analysis("superclasses.json")
        self.left_out = self.analysis("left_out.json")
        self.report = path / "report" / "index.html"
        self.log_file = path / "log.jsonl"
        self.ledger = Ledger(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def first(self, link: str) -> str:
        """Say which command is to be run first, as it can be pasted."""
        # Before the first collection, what the folder is to be stands in the user's own file.
        source = self.path if self.plan.exists() else "PLAN.toml"
        return f"run {command(link, source)} first"

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
        return self.all_modes / file_name(site) / learner

    def learners(self, site: str) -> tuple[str, ...]:
        """List the learners whose modes of a site lie here, or should, sorted."""
        start = self.all_modes / file_name(site)
        found = {one.name for one in start.glob("*") if (one / "modes.zarr").is_dir()}
        known = {place.name for place in self.ledger.outputs(start)}
        return tuple(sorted(known | {name for name in found if not name.startswith(".")}))

    def checkpoint(self, site: str, digest: str) -> Path:
        """Return the folder of a fit that is under way, by what it is made from."""
        return self.path / "checkpoints" / file_name(site) / digest

    def maps(self, site: str, learner: str) -> Path:
        """Return the file of a site's input-space maps."""
        return self.analysis("maps", site, f"{learner}.npz")

    def explained(self, name: str, kind: str = "explained") -> Path:
        """Return the file of an input that is explained, of the plan's or, ``asked``, a user's."""
        place = self.analysis(kind, name)
        return place.with_name(f"{place.name}.npz")

    def page(self, name: str) -> Path:
        """Return the folder of the page of an input that was asked for."""
        return self.path / "explain" / file_name(name)

    def analysis(self, *parts: str) -> Path:
        """Return a place below analysis/; characters that file systems refuse are quoted."""
        return self.path.joinpath("analysis", *(file_name(part) for part in parts))

    def table(self, *parts: str) -> Path:
        """Return the file of a table: of the run, or of a kind of `TABLES`, a site, a learner."""
        place = self.analysis(*parts)
        return place.with_name(f"{place.name}.parquet")

    def tables(self) -> dict[str, Path]:
        """List all tables that lie here, or should, by their names below analysis/."""
        start = self.analysis()
        known = (path for path in self.ledger.outputs(start) if path.suffix == ".parquet")
        found = {path.relative_to(start): path for path in (*start.rglob("*.parquet"), *known)}
        return {name.with_suffix("").as_posix(): path for name, path in sorted(found.items())}

    def read_table(self, *parts: str) -> "pandas.DataFrame | None":
        """Read a table; None where there is none or it has no rows; StoreError as `found`."""
        if self.ledger.found(self.table(*parts)) is None:
            return None
        table = read_parquet(self.table(*parts))
        return None if table.empty else table

    def read_json(self, file: Path) -> Any:
        """Read a result in JSON; None where there is none, StoreError as `Ledger.found`."""
        if self.ledger.found(file) is None:
            return None
        with reading(file, "JSON", "Make it again."):
            return json.loads(file.read_bytes())

    def read_record(self, file: Path, kind: type[Record]) -> Record:
        """Read a result of `save_record`; StoreError where there is none, and as `Ledger.found`."""
        return load_record(self.ledger.found(file) or file, kind)

    def write_table(self, table: "pandas.DataFrame", *parts: str) -> Path:
        """Write a table, whole or not at all."""
        return self.write(self.table(*parts), to_parquet(table))

    def write(self, file: Path, content: bytes) -> Path:
        """Write a file, whole or not at all; folders are made. StoreError where that fails."""
        with writing(f"{file}"):
            write_file(file, content, alone=True)
        return file

    def note_left_out(self, notes: Sequence[str]) -> None:
        """Keep what a run left out, for its report."""
        if notes:
            self.write(self.left_out, to_json(list(notes)))
            self.ledger.mark_done("left out", "run", {}, (), [self.left_out])
        else:
            self.ledger.forget("left out")

    def worker_log(self, name: str) -> Path:
        """Return the log of a worker of an engine."""
        return self.path / "workers" / f"{file_name(name)}.jsonl"

    def log(self, event: str, *, worker: str = "", **details: Any) -> None:
        """Append one line to the log, or a worker's; StoreError where it cannot be written."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "host": platform.node(), "process": os.getpid(), "event": event}
        file = self.worker_log(worker) if worker else self.log_file
        with writing(f"{file}"):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as log:
                log.write(json.dumps(line | details) + "\n")


def read_parquet(file: Path) -> "pandas.DataFrame":
    """Read a table; StoreError where the file is none."""
    import pandas

    with reading(file, "a table in parquet", "Make it again."):
        return pandas.read_parquet(file)


def to_parquet(table: "pandas.DataFrame") -> bytes:
    """Return a table as the content of a parquet file."""
    content = io.BytesIO()
    table.to_parquet(content, index=False)
    return content.getvalue()
