"""The link ``retina``: responses and receptive fields of cells, and modes with both."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from condec.basis.errors import DataError, OptionError
from condec.basis.npz import save_record
from condec.data.inputs import spread
from condec.modes import Modes
from condec.retina.cells import mode_cell_correlation, table_of_cells
from condec.retina.combinations import combinations, fields_of_combinations, named
from condec.retina.fields import ReceptiveFields, receptive_fields
from condec.retina.movies.gated import write_circuit_recording
from condec.retina.movies.recording import Windows
from condec.retina.options import RetinaOptions
from condec.retina.probes import probe, standard_probes
from condec.retina.responses import Responses, respond
from condec.retina.sources import PartWeights, field_sources, fields_of_flip
from condec.run import Link, Outcome, Plan, Run, config
from condec.run.tasks import Task, carry_out, with_modes

TABLES: Final = ("cells", "combinations", "sources")
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
    """Return the plan of ``condec demo --retina``; its movie is written into the run folder."""
    plan = config.from_dict(DEMO)
    plan = replace(plan, out=out or plan.out, base=out or plan.out)
    write_circuit_recording(plan.out / "recording.npz")
    return plan


def retina(run: Run) -> Outcome:
    """Relate modes to the cells of a retina: correlations, combinations, receptive fields.

    All goes into analysis/retina/. A site of which no mode is alive is left out, with a note.
    OptionError where the data are no movie.
    """
    plan, windows = run.plan.options["retina"], windows_of(run)
    chosen, notes = with_modes(run.modes(plan.sites))
    tasks = [*_of_cells(run, windows)]
    made_from, name = (
        run.made_from("retina", without=("probes", "probe_contrast")),
        run.plan.fit.name,
    )
    of_cells = [run.folder.analysis("retina", file) for file in ("responses.npz", "fields.npz")]
    for modes in chosen:
        make = partial(_of_site, run, windows, modes)
        inputs = [run.folder.modes(modes.site.key, name), *of_cells]
        tasks.append(Task(f"retina {modes.site.key}", made_from, make, inputs, name, late=True))
    return replace(carry_out(run, "retina", tasks), notes=notes)


def windows_of(run: Run) -> Windows:
    """Return the data of a run; OptionError where they are no movie."""
    if not isinstance(run.inputs, Windows):
        raise OptionError(
            f"retina: the data {run.plan.data.source!r} are no movie; give [data] source = "
            "'movie:FILE', or leave that link out"
        )
    return run.inputs


def _of_cells(run: Run, windows: Windows) -> Iterator[Task]:
    """Yield the tasks that need no modes: rates, receptive fields, and rates to the probes."""
    plan, place = run.plan.options["retina"], partial(run.folder.analysis, "retina")

    def responses() -> list[Path]:
        found = respond(run.model_of_store, windows, batch_size=plan.batch_size)
        return [save_record(place("responses.npz"), found)]

    def fields() -> list[Path]:
        found = receptive_fields(
            run.model_of_store, windows, cells=plan.cells or None,
            rows=spread(len(windows), plan.n_fields), crop=plan.crop, batch_size=plan.batch_size,
        )  # fmt: skip
        return [save_record(place("fields.npz"), found.aligned())]  # signs that do not jump

    def probes() -> list[Path]:
        history, height, width = windows.sample_shape
        seconds = windows.recording.seconds_per_frame
        shown = standard_probes((height, width), seconds_per_frame=seconds)
        answer = partial(
            probe, run.model_of_store, history=history, contrast=plan.probe_contrast,
            batch_size=plan.batch_size,
        )  # fmt: skip
        files = {place("probes", f"{name}.npz"): one for name, one in shown.items()}
        return [save_record(file, answer(stimulus)) for file, stimulus in files.items()]

    inputs = [run.folder.store]  # Of its data.
    yield Task("retina responses", run.made_from(), responses, inputs)
    made_from = run.made_from("retina", "n_fields", "cells", "crop")
    yield Task("retina fields", made_from, fields, inputs)
    if plan.probes:
        made_from = run.made_from("retina", "probe_contrast")
        yield Task("retina probes", made_from, probes, inputs)
    else:
        run.folder.ledger.forget("retina probes")


def _of_site(run: Run, windows: Windows, modes: Modes) -> list[Path]:
    """Write the tables of one site, and the fields of combinations if there are any."""
    folder, plan, loadings = run.folder, run.plan.options["retina"], modes.loadings
    responses = folder.read_record(folder.analysis("retina", "responses.npz"), Responses)
    fields = folder.read_record(folder.analysis("retina", "fields.npz"), ReceptiveFields)
    correlation = mode_cell_correlation(loadings, responses.rates)
    counts = combinations(
        loadings, threshold=plan.threshold, n_shifts=plan.n_shifts, seed=plan.seed
    )
    weights = PartWeights.of_modes(modes, fields.rows, n_modes=plan.n_modes)
    sources = field_sources(
        run.model_of_store, windows, modes.site, fields, weights, batch_size=plan.batch_size
    )
    tables = {
        "cells": table_of_cells(correlation, responses.cells, modes.ids.tolist(), plan.seed),
        "combinations": counts.assign(
            combination=[named(columns, modes.ids) for columns in counts["combination"]]
        ),
        "sources": sources.table(),
        "flips": sources.flips(),
    }
    place = "retina", modes.site.key, run.plan.fit.name
    made = [folder.write_table(table, *place, part) for part, table in tables.items()]
    made.append(save_record(folder.analysis(*place, "sources.npz"), sources))
    if len(tables["flips"]):
        flip = fields_of_flip(run.model_of_store, windows, modes.site, fields, sources, weights)
        made.append(save_record(folder.analysis(*place, "flip.npz"), flip))
    file = folder.analysis(*place, "fields.npz")
    with suppress(DataError):  # every combination is rare: there is no mean field to show
        means = fields_of_combinations(fields, loadings[fields.rows], threshold=plan.threshold)
        made.append(save_record(file, means))
    return made


LINK: Final = Link(
    name="retina",
    function=retina,
    options=RetinaOptions,
    kinds=("movie",),
    check=windows_of,
)
