"""Superclasses of a run's labels, from where its ``[data]`` says."""

from pathlib import Path
from urllib.parse import parse_qsl

from condec.basis.errors import DataError, OptionError
from condec.basis.files import user_path
from condec.data import Inputs, read_attributes
from condec.data.classes import synsets_of
from condec.modes import BUILT_IN, Hierarchy
from condec.run.plan import DataPlan


def superclasses_of(plan: DataPlan, inputs: Inputs, base: Path) -> Hierarchy:
    """Find the superclasses that a plan names; files start from `base`.

    DataError where they cannot be had, or are those of other labels.
    """
    name = str(plan.superclasses)
    try:
        return _found(name, plan, inputs, base)
    except OptionError as error:  # of what a file or the data say
        raise DataError(f"data: superclasses: {name}: {error}") from error


def _found(name: str, plan: DataPlan, inputs: Inputs, base: Path) -> Hierarchy:
    names, labels = inputs.label_names, inputs.labels
    needed = 0 if labels is None or not len(labels) else int(labels.max()) + 1
    needed = needed if names is None else len(names)
    if name in BUILT_IN:
        return Hierarchy.built_in(name, names or ())
    if name == "wordnet":
        return Hierarchy.from_wordnet(synsets_of(names or ()))
    file = user_path(name, base)
    if file.suffix not in (".json", ".csv"):
        labels = inputs.needed_labels("superclasses")
        return Hierarchy.from_column(labels, _column(name, plan, inputs, base), needed)
    found = Hierarchy.read(file, names)
    if len(found.groups) < needed or (names is not None and len(found.groups) > needed):
        raise DataError(
            f"{file}: superclasses of {len(found.groups)} labels; {inputs.name} has {needed}. Give "
            "a json list with one name for every label, in their order; '' for none"
        )
    return found


def _column(name: str, plan: DataPlan, inputs: Inputs, base: Path) -> list[str]:
    """Read what a column of the csv of the data says of every input."""
    file = plan.csv or dict(parse_qsl(plan.source.partition("?")[2])).get("csv")
    if file is None:
        raise DataError(
            f"data: superclasses: {name!r} is neither a json or csv file nor one of "
            f"{', '.join((*BUILT_IN, 'wordnet'))}, and the data have no csv with such a column"
        )
    table = read_attributes(user_path(file, base), inputs.ids, name)
    found: list[str] = table[name].fillna("").astype(str).tolist()
    return found
