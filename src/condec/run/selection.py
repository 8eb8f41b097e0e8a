"""A selection: modes that a person has chosen, in a small toml, and the control curve of each.

[[modes]]
site = "block3"
mode = 17
label = 5          # by default the one that the mode goes with most on training rows
dictionary = "..." # by default any; its digest, so that after another fit no other mode is taken
"""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Final

import tomli_w

from condec.basis.errors import DataError, OptionError
from condec.basis.files import user_path
from condec.effects import RANKINGS, ByMode, CurveOptions, measure_curves, standard_rankings
from condec.effects.rankings import OfModes
from condec.modes import Modes
from condec.run.run import Outcome, Run, record_name
from condec.run.tasks import Task, carry_out, with_modes

TABLE: Final = "mode_control"
RANKING: Final = "mode"
"""Name of the mode's own order in the table, beside those of the baselines."""
_KEYS: Final = {"site": str, "mode": int, "label": int, "dictionary": str}


@dataclass(frozen=True, slots=True)
class Selected:
    """A mode by its site's key and its number in the dictionary, and the label it is edited for.

    With the digest of its `dictionary`, it is a mode of that one only.
    """

    site: str
    mode: int
    label: int | None = None
    dictionary: str | None = None


def read_selection(file: str | Path) -> tuple[Selected, ...]:
    """Read a selection; OptionError where the file is none."""
    place = user_path(file)
    try:
        found = tomllib.loads(place.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"{place}: expected a selection of modes in TOML: {error}") from error
    entries = found.get("modes")
    if not isinstance(entries, list) or not entries or found.keys() != {"modes"}:
        raise OptionError(f"{place}: expected tables [[modes]], with site and mode, and no others")
    for entry in entries:
        if (
            not isinstance(entry, dict)
            or not {"site", "mode"} <= entry.keys() <= _KEYS.keys()
            or any(type(value) is not _KEYS[name] for name, value in entry.items())
        ):
            raise OptionError(
                f"{place}: [[modes]]: expected site, a text, mode, a number, and no more than a "
                f"label, its number, or a dictionary, its digest; got {entry!r}"
            )
    return tuple(dict.fromkeys(Selected(**entry) for entry in entries))


def selection_toml(chosen: Iterable[Selected]) -> str:
    """Write a selection as a toml that `read_selection` reads."""
    entries = [{n: v for n, v in asdict(one).items() if v is not None} for one in chosen]
    return "\n".join(f"[[modes]]\n{tomli_w.dumps(entry)}" for entry in entries)


def with_label(modes: Modes, chosen: Selected) -> Selected:
    """Return a mode of a selection with its label.

    Raises OptionError: there is no such mode, or it is one of another dictionary; DataError: it
    goes with no label.
    """
    if chosen.dictionary not in (None, modes.dictionary):
        raise OptionError(
            f"selection: {modes.site.key}: modes were fitted again since mode {chosen.mode} was "
            "chosen, and its number is now that of another; in the explorer explain the input "
            "again, and choose again"
        )
    row = modes.row(chosen.mode)
    if chosen.label is not None:
        return chosen
    best = modes.correlation(split="train")[row].max(0)
    if not best.values > 0:
        raise DataError(
            f"selection: {modes.site.key}: mode {chosen.mode} goes with no label; name one, "
            "label = 3, say"
        )
    return replace(chosen, label=int(best.indices))


def control_selection(run: Run, selection: Sequence[Selected]) -> Outcome:
    """Measure a control curve of each mode of a selection, beside what needs no dictionary.

    For its label, units are edited in the order of the mode's atom, by every edit and replacement
    of the plan, and in the orders of those rankings of the plan that need nothing but the store.
    Those of a site go into analysis/mode_control, with those measured before; the column
    ``of_mode`` says which mode a row was measured for, or beside.

    Raises OptionError, DataError, StoreError: there is no such site or mode, or it has no label.
    """
    run.inputs.needed_labels("control")
    by_site = {modes.site.key: modes for modes in with_modes(run.modes())[0]}
    wanted: dict[str, list[Selected]] = {}
    for one in selection:
        if one.site not in by_site:
            there = ", ".join(by_site)
            raise OptionError(f"selection: {one.site!r} has no modes in this run; {there} have")
        wanted.setdefault(one.site, []).append(with_label(by_site[one.site], one))
    tasks = [_task(run, by_site[key], some) for key, some in wanted.items()]
    return carry_out(run, "control", tasks)


def _task(run: Run, modes: Modes, wanted: Sequence[Selected]) -> Task:
    """Return the task of a site; curves that were measured under the same plan are kept."""
    key, name, folder = modes.site.key, run.plan.fit.name, run.folder
    made_from = run.made_from("control")
    place, task = folder.modes(key, name), f"{TABLE} {key}"
    before = folder.ledger.entries.get(record_name(task, name))
    had = list[tuple[int, int]]()
    if before is not None and folder.ledger.is_done(before.task, before.made_from, [place]):
        same = {n: v for n, v in before.made_from.items() if n != "selected"} == made_from
        had = [(mode, label) for mode, label in before.made_from["selected"]] if same else []
    now = [(one.mode, int(one.label or 0)) for one in wanted]
    if run.again:
        had = [pair for pair in had if pair not in now]
    new = [pair for pair in dict.fromkeys(now) if pair not in had]
    made_from["selected"] = [list(pair) for pair in (*had, *new)]
    return Task(task, made_from, partial(_curves, run, modes, new, had), [place], name)


def _curves(
    run: Run, modes: Modes, new: Sequence[tuple[int, int]], had: Sequence[tuple[int, int]]
) -> list[Path]:
    """Measure the curves of modes with their labels, and put them behind those that are kept."""
    import pandas

    plan, folder, names = run.plan.control, run.folder, (TABLE, modes.site.key, run.plan.fit.name)
    every = standard_rankings(modes, n_random=plan.n_random, seed=plan.seed)
    others = [one for one in every if not isinstance(one, OfModes)]
    rivals = [one for one in others if one.name in plan.rankings]
    rivals = rivals or [one for one in others if one.name in RANKINGS]
    kept = folder.read_table(*names) if had else None
    pairs = [] if kept is None else zip(kept["of_mode"], kept["label"], strict=True)
    made = [] if kept is None else [kept[[pair in had for pair in pairs]]]
    for (mode, label), edit, replacement in product(new, plan.edits, plan.replacements):
        options = CurveOptions(
            labels=[label], fractions=plan.fractions, edit=edit, replacement=replacement,
            off=plan.off, rankings=[ByMode(modes=modes, mode=mode, name=RANKING), *rivals],
            n_bootstrap=plan.n_bootstrap, seed=plan.seed, batch_size=plan.batch_size,
            prove=run.plan.collect.prove,
        )  # fmt: skip
        found = measure_curves(run.model_of_store, run.inputs, modes, options)
        made.append(found.to_frame().assign(of_mode=mode))
    return [folder.write_table(pandas.concat(made, ignore_index=True), *names)]
