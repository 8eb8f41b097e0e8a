"""The link ``retina``: responses and receptive fields of cells, and modes beside them."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from condec.basis.errors import OptionError
from condec.modes import Modes
from condec.retina.analysis import analyse, fields_of
from condec.retina.fields import ReceptiveFields
from condec.retina.movies.gated import write_circuit_recording
from condec.retina.movies.recording import Windows
from condec.retina.options import RetinaOptions
from condec.retina.probes import probe, standard_probes
from condec.retina.records import load_record, save_record
from condec.retina.responses import Responses, respond
from condec.run import config
from condec.run.plan import Plan
from condec.run.plugins import Link
from condec.run.run import Outcome, Run
from condec.run.tasks import Task, carry_out, fit_digest, with_modes

_RESPONSES: Final = "retina responses"
_FIELDS: Final = "retina fields"
_PROBES: Final = "retina probes"


def retina(run: Run) -> Outcome:
    """Modes beside the cells of a retina: correlations, combinations, receptive fields.

    All goes into analysis/retina/.

    A site of which no mode is alive is left out, with a note.

    Raises
    ------
    OptionError
        The data are no movie.
    """
    windows = _windows(run)
    chosen, notes = with_modes(run.modes(run.plan.options["retina"].sites))
    tasks = [
        *_of_cells(run, windows),
        *(
            Task(
                f"retina {modes.site.key}",
                run.digest(fit_digest(run, modes.site), run.plan.options["retina"]),
                partial(_of_site, run, windows, modes),
            )
            for modes in chosen
        ),
    ]
    return replace(carry_out(run, "retina", tasks), notes=notes)


DEMO: Final[dict[str, Any]] = {
    "sites": ["conv1", "relu1", "conv2", "relu2"],
    "out": "runs/retina",
    "model": {"spec": "circuit"},
    "data": {"source": "movie:recording.npz"},
    "collect": {"method": "ig:20", "target": "surprisal"},
    "fit": {"learner": "sae", "n_modes": "10x", "sign": "concat", "steps": 3000},
    "retina": {"n_fields": 600, "probe_contrast": 2.0},
    "report": {"title": "A retina whose circuit is known"},
}


def demo_plan(out: Path | None = None) -> Plan:
    """Return what ``condec demo --retina`` runs: the embedded circuit on a movie.

    The movie opens the circuit's gates. It is written into the run folder, so that it can be
    exchanged.
    """
    plan = config.from_dict(DEMO)
    plan = replace(plan, out=out or plan.out, base=out or plan.out)
    write_circuit_recording(plan.out / "recording.npz")
    return plan


def _of_cells(run: Run, windows: Windows) -> Iterator[Task]:
    """What needs no modes: rates, receptive fields, and rates to the probes."""
    plan, folder = run.plan.options["retina"], run.folder

    def responses() -> list[Path]:
        found = respond(run.model_of_store, windows, batch_size=plan.batch_size)
        return [save_record(folder.retina("responses.npz"), found)]

    def fields() -> list[Path]:
        return [
            save_record(folder.retina("fields.npz"), fields_of(run.model_of_store, windows, plan))
        ]

    def probes() -> list[Path]:
        history, height, width = windows.sample_shape
        seconds = windows.recording.seconds_per_frame
        made = []
        for name, stimulus in standard_probes((height, width), seconds_per_frame=seconds).items():
            found = probe(
                run.model_of_store,
                stimulus,
                history,
                contrast=plan.probe_contrast,
                batch_size=plan.batch_size,
            )
            made.append(save_record(folder.retina("probes") / f"{quote(name)}.npz", found))
        return made

    yield Task(_RESPONSES, run.digest(_RESPONSES), responses)
    yield Task(_FIELDS, run.digest(_FIELDS, plan.n_fields, plan.cells, plan.crop), fields)
    if plan.probes:
        yield Task(_PROBES, run.digest(_PROBES, plan.probe_contrast), probes)
    else:
        folder.forget(_PROBES, sorted(folder.retina("probes").glob("*.npz")))


def _windows(run: Run) -> Windows:
    if not isinstance(run.inputs, Windows):
        raise OptionError(
            f"retina: the data {run.plan.data.source!r} are no movie; give [data] source = "
            "'movie:FILE', or leave that link out"
        )
    return run.inputs


def _of_site(run: Run, windows: Windows, modes: Modes) -> list[Path]:
    """Tables of one site; fields that no combination shows are left out."""
    folder, site, name = run.folder, modes.site.key, run.plan.fit.name
    found = analyse(
        modes,
        load_record(folder.retina("responses.npz"), Responses),
        load_record(folder.retina("fields.npz"), ReceptiveFields),
        windows,
        run.plan.options["retina"],
    )
    tables = {
        "cells": found.cells,
        "combinations": found.combinations,
        "explained": found.explained,
    }
    made = [folder.write_table(table, "retina", site, name, part) for part, table in tables.items()]
    file = folder.analysis("retina", site, name, "fields.npz")
    file.unlink(missing_ok=True)
    if found.combination_fields is not None:
        made.append(save_record(file, found.combination_fields))
    return made


def forget_retina(run: Run, site: str, learner: str) -> None:
    """Remove what was made from a site's earlier modes."""
    parts = ("cells", "combinations", "explained")
    files = [run.folder.table("retina", site, learner, part) for part in parts]
    files.append(run.folder.analysis("retina", site, learner, "fields.npz"))
    run.folder.forget(f"retina {site}", files)


LINK: Final = Link(
    name="retina",
    function=retina,
    options=RetinaOptions,
    kinds=("movie",),
    forget=forget_retina,
)
