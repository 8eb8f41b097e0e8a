"""Single inputs of a run, explained: which ones, from where, and the page of each."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from condec.basis.checks import nearest
from condec.basis.errors import DataError, OptionError, StoreError
from condec.basis.files import file_digest, user_path
from condec.basis.npz import save_record
from condec.basis.records import short_repr
from condec.data import Inputs
from condec.explanation import (
    EXAMPLES,
    ExplainedInput,
    Explanation,
    SiteExplanation,
    example_rows,
    keep,
)
from condec.explanation.one_input import explainer
from condec.modes import Modes
from condec.network import match_sites
from condec.report.build import build_input_page
from condec.report.explained import summary
from condec.report.words import label_words
from condec.run.run import Outcome, Run
from condec.run.tasks import Task, carry_out, with_modes
from condec.store import fingerprint

_KNOWN: Final = 10_000
"""Ids among which the nearest to a wrong one are looked for."""


@short_repr
@dataclass(frozen=True, eq=False)
class OneInput:
    """One input to explain: its name, the inputs that hold it, its row there and its label."""

    name: str
    inputs: Inputs
    row: int
    label: int

    def explained(self, explain: Callable[[Tensor, int | None], Explanation]) -> Explanation:
        """Explain it, by what `condec.explanation.one_input.explainer` returns."""
        return explain(self.inputs.load(self.row)[None], None if self.label < 0 else self.label)

    @property
    def picture(self) -> Tensor | None:
        """Its picture, uint8 [y, x, 3]; None of what is no picture."""
        with suppress(DataError):
            return self.inputs.picture(self.row)
        return None


def explain_link(run: Run) -> Outcome:
    """Pages of single inputs: what every mode adds to the output and takes from it, and where.

    The inputs are those of the plan; pages of others, asked for by name, stay.
    """
    plan, ledger = run.plan.explain, run.folder.ledger
    modes, notes = with_modes(run.modes(plan.sites))
    made_from = run.made_from("explain", "n_modes")
    tasks = []
    for name, why in _chosen(run, modes[-1]).items() if modes else ():
        own = {"why": why, "n_modes": plan.n_modes}
        one = collected(run, name)
        tasks.append(_task(run, one, modes, made_from | {"why": why}, [], page=False, **own))
    kept = {task.record for task in tasks}
    for entry in list(ledger.entries.values()):
        if entry.link == "explain" and "why" in entry.made_from and entry.task not in kept:
            ledger.forget(entry.task)
    outcome = carry_out(run, "explain", tasks, separate=True)
    return replace(outcome, notes=(*notes, *outcome.notes))


def _chosen(run: Run, modes: Modes) -> dict[str, str]:
    """Return the ids of the inputs that the plan names, and why each was chosen."""
    plan, ids, found = run.plan.explain, modes.store.sample_ids, dict[str, str]()
    for word in plan.inputs:
        if word not in EXAMPLES:
            refuse_unknown("explain: inputs", word, ids)
            found.setdefault(word, "")
            continue
        names = [ids[row] for row in example_rows(modes, word, plan.n_inputs + len(found))]
        for name in [name for name in names if name not in found][: plan.n_inputs]:
            found[name] = word
    return found


def refuse_unknown(owner: str, name: str, ids: Sequence[str], beside: str = "") -> None:
    """Raise OptionError, which names the nearest ids, where an id is none of a run's."""
    if name not in ids:
        near = ", ".join(map(repr, nearest(name, ids[:_KNOWN], n=3))) or "none"
        raise OptionError(f"{owner}: {name!r} is no input of this run{beside}; nearest ids: {near}")


def collected(run: Run, name: str) -> OneInput:
    """Find a collected input by its id; StoreError where the model or the data have changed."""
    _ = run.model_of_store
    row = run.store.sample_ids.index(name)
    return OneInput(name, run.inputs, run.inputs.ids.index(name), int(run.store.labels[row]))


def given(run: Run, text: str) -> OneInput:
    """Find what a user names: the id of a collected input, else a file with one input.

    Files are images, or ``.npy`` and ``.npz`` with one sample; where a package brings the plan's
    source of data, files of that source.

    Raises OptionError: it is neither; DataError: the file holds no input of this model.
    """
    if text in run.store.sample_ids:
        return collected(run, text)
    file = user_path(text).absolute()
    if not file.exists():
        beside = f", and there is no file {file}"
        refuse_unknown("--input", text, run.store.sample_ids, beside)
    try:
        run.same_as_store(model=fingerprint(run.loaded.model))
        inputs = run.one_file(file)
        if len(inputs) > 1:
            raise DataError(f"{file}: holds {len(inputs)} inputs; save one by itself, [i : i + 1]")
        inputs.load(0)
    except DataError as error:
        why = str(error).rstrip(".")
        raise DataError(
            f"{why}. To explain an input give the id of one from {run.plan.data.source}, or a "
            "file as the model takes it: an image, or .npy or .npz with one sample, [1, ...]"
        ) from error
    # Of two files of one name each has a page; and none takes that of a collected input.
    name = f"{file.name}-{file_digest(file)[:8]}"
    label = -1 if inputs.labels is None else int(inputs.labels[0])
    return OneInput(name, inputs, 0, label)


def modes_by(run: Run, patterns: Sequence[str] = (), name: str = "") -> list[Modes]:
    """Load modes of those sites that match, by the plan's learner or another one.

    Raises StoreError: there are none, or none of a site; OptionError: none by that learner.
    """
    folder, name = run.folder, name or run.plan.fit.name
    by_site = {site: folder.learners(site.key) for site in run.store.sites}
    there = [site for site, learners in by_site.items() if name in learners]
    others = sorted({learner for learners in by_site.values() for learner in learners})
    if not there and others:
        raise OptionError(
            f"{folder.path}: no modes by {name!r}; there are some by {', '.join(others)}: name "
            "one with --name"
        )
    if not there:
        raise StoreError(f"{folder.path}: no modes yet; run 'condec fit {folder.path}' first")
    chosen = match_sites(there, patterns) if patterns else there
    found = [
        Modes.load(folder.ledger.found(folder.modes(s.key, name)) or "", run.store) for s in chosen
    ]
    alive, notes = with_modes(found)
    if not alive:
        raise DataError("; ".join(notes))
    return alive


def explain_inputs(
    run: Run, texts: Sequence[str], *, sites: Sequence[str] = (), name: str = "",
    show: Sequence[int] = (), label: str = "", out: Path | None = None,
) -> Outcome:  # fmt: skip
    """Make pages of inputs that a user names, in the run folder, or of one in a folder `out`.

    `sites` are patterns, `name` is the learner, by default the plan's; `show` are numbers of modes
    of one site, and `label` is that of the inputs, by number or by name.
    """
    modes = modes_by(run, sites, name)
    if show and len({one.site for one in modes}) > 1:
        there = ", ".join(one.site.key for one in modes)
        raise OptionError(f"--mode: numbers belong to one site; name it, --site, of {there}")
    if out is not None and len(texts) > 1:
        raise OptionError(f"--out: the folder of one page; got {len(texts)} inputs")
    found = [given(run, text) for text in texts]
    if label:
        found = [replace(one, label=_number_of(run, label)) for one in found]
    if out is None:
        made_from = run.made_from(sites=[one.site.key for one in modes], show=[*show])
        lines = list[str]()
        tasks = [_task(run, one, modes, made_from, lines, page=True, show=show) for one in found]
        outcome = carry_out(run, "explain", tasks)
        pages = [f"{one.name}: {run.folder.page(one.name) / 'index.html'}" for one in found]
        return replace(outcome, notes=(*lines, *pages))
    started, lines = time.perf_counter(), list[str]()
    one = _explained(run, found[0], modes, lines, show=show)
    place = build_input_page(one, out, names_of(run))
    return Outcome("explain", "made", (place,), time.perf_counter() - started, tuple(lines))


def _number_of(run: Run, label: str) -> int:
    """Return the number of a label that is given by number or by name."""
    names = names_of(run) or []
    if label in names:
        return int(names.index(label))
    if label.isdecimal() and (not names or int(label) < len(names)):
        return int(label)
    near = ", ".join(map(repr, nearest(label, names, n=3)))
    raise OptionError(
        f"--label {label!r}: no label of this run; "
        + (f"numbers go from 0 to {len(names) - 1}, the nearest names are {near}" if names
           else "it has no names of labels, give a number")
    )  # fmt: skip


def _task(
    run: Run, one: OneInput, modes: Sequence[Modes], made_from: Mapping[str, Any],
    lines: list[str], *, page: bool, **options: Any,
) -> Task:  # fmt: skip
    """Return the task of an input, with a page of its own or without; what it says is noted."""
    folder = run.folder
    # Of the plan's inputs one may be asked for as well, otherwise: neither takes the other's place.
    kind, kept = ("page", "asked") if page else ("explain", "explained")
    file = folder.explained(one.name, kept)

    def make() -> list[Path]:
        made = _explained(run, one, modes, lines, **options)
        save_record(file, made)
        if not page:
            return [file]
        report = "../../report/" if folder.report.exists() else ""
        build_input_page(made, folder.page(one.name), names_of(run), report)
        return [file, folder.page(one.name)]

    inputs = [folder.modes(m.site.key, m.name) for m in modes]
    made_from = {**made_from, "input": one.name, "label": one.label}
    return Task(f"{kind} {one.name}", made_from, make, inputs)


def _explained(
    run: Run, one: OneInput, modes: Sequence[Modes], lines: list[str], *,
    why: str = "", show: Sequence[int] = (), n_modes: int = 8,
) -> ExplainedInput:  # fmt: skip
    """Explain an input by its strongest modes, or those of the numbers `show`, of one site."""
    explain = explainer(
        run.loaded.model, modes, run.method, run.fitted_target, n_modes=n_modes, prove=True
    )
    found = one.explained(explain)
    if show:
        found = replace(found, by_site=(_showing(found.by_site[0], show),))
    of = run.store.recipe["target"]
    made = keep(found, one.name, of, why=why, label=one.label, picture=one.picture)
    lines.extend(summary(made, partial(label_words, names_of(run))))
    return made


def names_of(run: Run) -> Sequence[str] | None:
    """Return the names of labels, as the run folder has them; None where they have none."""
    names: Sequence[str] | None = run.folder.read_json(run.folder.labels)
    return names


def _showing(at: SiteExplanation, show: Sequence[int]) -> SiteExplanation:
    n_modes = len(at.sizes)
    if missing := [mode for mode in show if not 0 <= mode < n_modes]:
        raise OptionError(
            f"{at.site.key}: there is no mode {missing[0]}; the dictionary has {n_modes}, with the "
            f"numbers 0 to {n_modes - 1}"
        )
    return at.showing(tuple(dict.fromkeys(show)), others=True)
