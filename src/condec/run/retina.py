"""The link ``retina``: responses and receptive fields of cells, and modes beside them."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote

from condec.basis.errors import OptionError
from condec.modes import Modes
from condec.network import Site
from condec.retina.analysis import Responses, analyse, fields_of, respond
from condec.retina.fields import ReceptiveFields
from condec.retina.movies.movies import Windows
from condec.retina.probes import probe, standard_probes
from condec.retina.records import load_record, save_record
from condec.run.run import Outcome, Run
from condec.run.steps import Step, carry_out, fit_digest, with_modes

_RESPONSES: Final = "retina responses"
_FIELDS: Final = "retina fields"
_PROBES: Final = "retina probes"


def retina(run: Run) -> Outcome:
    """Responses, receptive fields, and what modes have to do with both, into analysis/retina/.

    A site of which no mode is alive is left out, with a note.

    Raises
    ------
    OptionError
        The data are no movie.
    """
    windows = _windows(run)
    chosen, notes = with_modes(run.modes(run.plan.retina.sites))
    steps = [
        *_of_cells(run, windows),
        *(
            Step(
                f"retina {modes.site.key}",
                run.digest(fit_digest(run, modes.site), run.plan.retina),
                partial(_of_site, run, windows, modes),
            )
            for modes in chosen
        ),
    ]
    return replace(carry_out(run, "retina", steps), notes=notes)


def _of_cells(run: Run, windows: Windows) -> Iterator[Step]:
    """What needs no modes: rates, receptive fields, and rates to the probes."""
    plan, folder = run.plan.retina, run.folder

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

    yield Step(_RESPONSES, run.digest(_RESPONSES), responses)
    yield Step(_FIELDS, run.digest(_FIELDS, plan.n_fields, plan.cells, plan.crop), fields)
    if plan.probes:
        yield Step(_PROBES, run.digest(_PROBES, plan.probe_contrast), probes)
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
        run.plan.retina,
    )
    tables = {
        "cells": found.cells,
        "combinations": found.combinations,
        "explained": found.explained,
    }
    made = [
        folder.write_table(folder.retina_table(site, name, part), table)
        for part, table in tables.items()
    ]
    file = folder.retina_fields(site, name)
    file.unlink(missing_ok=True)
    if found.combination_fields is not None:
        made.append(save_record(file, found.combination_fields))
    return made


def forget_retina(run: Run, site: Site) -> None:
    """Remove what was made from a site's earlier modes."""
    folder, name = run.folder, run.plan.fit.name
    parts = ("cells", "combinations", "explained")
    files = [folder.table(folder.retina_table(site.key, name, part)) for part in parts]
    folder.forget(f"retina {site.key}", [*files, folder.retina_fields(site.key, name)])
