"""What a sweep is to do, and how it stands in a sweep.toml.

>>> plan = from_dict({
...     "run": "runs/demo",
...     "seeds": [0, 1],
...     "grid": [{"learner": "topk", "n_modes": ["1x", "3x"], "k": [2, 4, 8]}],
... })
>>> [option.name for option in plan.configurations][:2]
['topk 1x k=2', 'topk 1x k=4']
>>> plan.configurations[4].fit.learner_for(32)
TopKSAE(n_modes=96, k=4, aux_weight=0.03125)
"""

import dataclasses
import difflib
import itertools
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

from condec.basis.errors import OptionError
from condec.dictionary import TrainConfig
from condec.run import config
from condec.run.plan import LEARNERS, FitPlan
from condec.store import QUANTITIES, Quantity, RunFolder, Sign

_TOP: Final = ("run", "store", "out", "sites", "quantity", "sign", "seeds", "train", "grid")
_EXPECTED: Final = "a sweep.toml or a folder with one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One way to fit, of those that a sweep tries at every site with every seed.

    Attributes
    ----------
    name : str
        The learner, its number of modes, and the options in which this sweep's fits differ.
    fit : FitPlan
    options : dict
        Values of the options that the sweep names and this learner, or its training, has.
    """

    name: str
    fit: FitPlan
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Every combination of some choices, for one learner.

    Parameters
    ----------
    learner : str
        A name of `condec.run.plan.LEARNERS`.
    choices : mapping of str to tuple
        Values by option: ``n_modes``, options of the learner, fields of `TrainConfig`.

    Raises
    ------
    OptionError
        No such learner, an option that it does not have, one without a value.
    """

    learner: str
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.learner not in LEARNERS:
            near = _nearest(self.learner, LEARNERS)
            raise OptionError(
                f"learner {self.learner!r}: there is no such one; nearest: {near!r}. Learners: "
                f"{', '.join(LEARNERS)}"
            )
        known = self.known(self.learner)
        for name, values in self.choices.items():
            if name == "seed":
                raise OptionError(f"{self.learner}: seeds are given once for all grids, as seeds")
            if name not in known:
                raise OptionError(
                    f"{self.learner} has no option {name!r}; nearest: {_nearest(name, known)!r}. "
                    f"Options: {', '.join(known)}"
                )
            if not values:
                raise OptionError(f"{self.learner}: {name}: no value is given; give one or more")

    @staticmethod
    def known(learner: str) -> tuple[str, ...]:
        """Options that a learner's fits have, those of `TrainConfig` at the end."""
        names = (f.name for f in dataclasses.fields(LEARNERS[learner]))  # type: ignore[arg-type]
        return tuple(dict.fromkeys((*names, *_training())))

    def fits(self, sign: Sign) -> list[tuple[dict[str, Any], FitPlan]]:
        """Every combination: the values chosen, and the plan that they make."""
        found = []
        for values in itertools.product(*self.choices.values()):
            chosen = dict(zip(self.choices, values, strict=True))
            record = {"learner": self.learner, "sign": sign, **chosen}
            found.append((chosen, config.from_dict({"sites": "*", "fit": record}).fit))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """What a sweep fits: every configuration of its grids, at every site, with every seed.

    Parameters
    ----------
    store : Path
        The store of contributions.
    out : Path
        Folder of the results.
    sites : tuple of str
        Patterns among the sites of the store; empty: all of them.
    quantity : {"contribution", "activation"}
    sign : {"positive", "negative", "sum", "concat"}
    seeds : tuple of int
        Of the fits, all with the same held-out rows.
    grids : tuple of Grid

    Raises
    ------
    OptionError
        No grid or no seed, a seed given twice, a quantity or sign that does not exist; a
        configuration that no learner takes, or that holds no rows out.
    """

    store: Path
    out: Path
    sites: tuple[str, ...] = ()
    quantity: Quantity = "contribution"
    sign: Sign = "positive"
    seeds: tuple[int, ...] = (0, 1, 2)
    grids: tuple[Grid, ...]

    def __post_init__(self) -> None:
        for name, known in (("quantity", QUANTITIES), ("sign", get_args(Sign))):
            value = getattr(self, name)
            if value not in known:
                raise OptionError(f"{name}: expected one of {', '.join(known)}; got {value!r}")
        if not self.grids:
            raise OptionError('grid: none is given; add one, such as [[grid]] learner = "topk"')
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            given = ", ".join(map(str, self.seeds)) or "none"
            raise OptionError(f"seeds: expected one or more, all different; got {given}")
        for configuration in self.configurations:
            if not configuration.fit.train.held_out:
                raise OptionError(
                    f"{configuration.name}: fits are compared on held-out rows; held_out must be "
                    "above 0"
                )
            for seed in self.seeds:
                dataclasses.replace(configuration.fit.train, seed=seed)

    @property
    def configurations(self) -> tuple[Configuration, ...]:
        """All that the grids say, each once, in their order."""
        made = []
        for number, grid in enumerate(self.grids, 1):
            try:
                made += [(grid, *fit) for fit in grid.fits(self.sign)]
            except OptionError as error:
                raise OptionError(f"grid {number} ({grid.learner}): {error}") from error
        named = dict.fromkeys(n for grid in self.grids for n in grid.choices if n != "n_modes")
        options = [{n: _value(fit, n) for n in named if _has(fit, n)} for _, _, fit in made]
        differ = {n for n in named if len({str(each[n]) for each in options if n in each}) > 1}
        found: dict[str, Configuration] = {}
        for (grid, chosen, fit), values in zip(made, options, strict=True):
            size = chosen.get("n_modes", config.DEFAULT_MODES[grid.learner])
            shown = (f"{name}={text(value)}" for name, value in values.items() if name in differ)
            name = " ".join((grid.learner, str(size), *shown))
            found.setdefault(name, Configuration(name=name, fit=fit, options=values))
        return tuple(found.values())


def read(path: str | Path) -> SweepPlan:
    """Read a plan from a sweep.toml, or from the one in a folder of results.

    Raises
    ------
    OptionError
        No such file, not TOML, or keys or values that a plan does not have.
    """
    file = Path(path)
    file = file / "sweep.toml" if file.is_dir() else file
    try:
        return from_dict(config.read_record(file, _EXPECTED), folder=file.parent)
    except OptionError as error:
        raise OptionError(f"{file}: {error}") from error


def from_dict(record: Mapping[str, Any], *, folder: str | Path = ".") -> SweepPlan:
    """Plan from the content of a sweep.toml.

    Parameters
    ----------
    record : mapping
    folder : path
        Where the file is: ``run``, ``store`` and ``out`` start from there.

    Raises
    ------
    OptionError
        A key does not exist (the nearest is named), or a value is of the wrong kind.
    """
    check_keys("", record, _TOP)
    train, tables = record.get("train", {}), record.get("grid", ())
    if not isinstance(train, Mapping):
        raise OptionError(f"train: expected a table [train]; got {train!r}")
    if not isinstance(tables, list | tuple) or not all(isinstance(t, Mapping) for t in tables):
        raise OptionError(f"grid: expected tables [[grid]]; got {tables!r}")
    check_keys("train", train, _training())
    found = {key: record[key] for key in ("quantity", "sign") if key in record}
    for key, kind, word in (("sites", str, "text"), ("seeds", int, "a whole number")):
        if key in record:
            found[key] = _list(key, record[key], kind, word)
    return SweepPlan(
        store=_store(record, Path(folder)),
        out=Path(folder) / _one("out", record.get("out", "sweep")),
        grids=tuple(_grid(number, train, table) for number, table in enumerate(tables, 1)),
        **found,
    )


def to_dict(plan: SweepPlan, *, folder: str | Path = ".") -> dict[str, Any]:
    """Inverse of `from_dict`; what holds for all grids stands in each of them."""
    start = Path(folder).resolve()
    record: dict[str, Any] = {
        name: config.relative(getattr(plan, name), start) for name in ("store", "out")
    }
    record |= {"sites": list(plan.sites)} if plan.sites else {}
    record |= {"quantity": plan.quantity, "sign": plan.sign, "seeds": list(plan.seeds)}
    record["grid"] = [
        {"learner": grid.learner, **{name: list(values) for name, values in grid.choices.items()}}
        for grid in plan.grids
    ]
    return record


def check_keys(section: str, record: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """Refuse keys that do not exist."""
    for key in record:
        if key not in keys:
            raise OptionError(config.unknown_key(section, key, keys))


def _store(record: Mapping[str, Any], folder: Path) -> Path:
    """Path of the store, of which a run folder has one, and a run.toml names the run folder."""
    given = [key for key in ("run", "store") if key in record]
    if len(given) != 1:
        raise OptionError(
            "expected either run (a run folder or a run.toml) or store (a store of "
            f"contributions); got {' and '.join(given) or 'neither'}"
        )
    path = folder / _one(given[0], record[given[0]])
    if given[0] == "store":
        return path
    return RunFolder(config.read(path).out if path.suffix == ".toml" else path).store


def _one(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise OptionError(f"{key}: expected one text; got {value!r}")
    return value


def _grid(number: int, train: Mapping[str, Any], table: Mapping[str, Any]) -> Grid:
    """A grid from its table, over what holds for all of them."""
    values = {**train, **table}
    learner = values.pop("learner", None)
    try:
        if not isinstance(learner, str):
            raise OptionError(f"learner: expected one of {', '.join(LEARNERS)}; got {learner!r}")
        kinds = typing.get_type_hints(LEARNERS.get(learner, TrainConfig))
        choices = {name: _choices(value, kinds.get(name)) for name, value in values.items()}
        return Grid(learner=learner, choices=choices)
    except OptionError as error:
        raise OptionError(f"grid {number}: {error}") from error


def _choices(value: Any, kind: Any) -> tuple[Any, ...]:
    """A list is a choice, and one value a choice of one; values may be lists themselves."""
    if not isinstance(value, list | tuple):
        return (value,)
    if typing.get_origin(kind) is tuple and not any(isinstance(v, list | tuple) for v in value):
        return (tuple(value),)
    return tuple(tuple(v) if isinstance(v, list) else v for v in value)


def _list(name: str, value: Any, kind: type, word: str) -> tuple[Any, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    for item in items:
        if not isinstance(item, kind) or isinstance(item, bool):
            raise OptionError(f"{name}: expected {word}; got {item!r}")
    return tuple(items)


def _training() -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(TrainConfig) if f.name != "seed")


def _has(fit: FitPlan, name: str) -> bool:
    return hasattr(fit.learner, name) or hasattr(fit.train, name)


def _value(fit: FitPlan, name: str) -> Any:
    owner = fit.learner if hasattr(fit.learner, name) else fit.train
    return getattr(owner, name)


def text(value: Any) -> str:
    """A value of an option as it stands in names and tables."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(text, value))
    return str(value)


def _nearest(name: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(name, tuple(known), n=1, cutoff=0.0)[0]
