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

import itertools
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pydantic import ConfigDict, create_model

from condec.basis.errors import OptionError
from condec.basis.records import short_repr
from condec.dictionary import TrainConfig
from condec.run import config
from condec.run.plan import LEARNERS, FitPlan, check_fields
from condec.store import Quantity, RunFolder, Sign

_FILE: Final = create_model(
    "sweep",
    __config__=ConfigDict(extra="forbid", strict=True),
    run=(str | None, None),
    store=(str | None, None),
    out=(str, "sweep"),
    sites=(config.list_of(str), ()),
    quantity=(Quantity, "contribution"),
    sign=(Sign, "positive"),
    seeds=(config.list_of(int), (0, 1, 2)),
    train=(dict[str, Any], {}),
    grid=(list[dict[str, Any]], ()),
)
"""Content of a sweep.toml; keys of [train] and [[grid]] depend on the learner."""


@short_repr
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


@short_repr
@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """What a sweep fits: every configuration of its grids, at every site, with every seed.

    Parameters
    ----------
    store, out : Path
        The store of contributions, and the folder of the results.
    sites : tuple of str
        Patterns among the sites of the store; empty: all of them.
    quantity : {"contribution", "activation"}
    sign : {"positive", "negative", "sum", "concat"}
    seeds : tuple of int
        Of the fits, all with the same held-out rows.
    grids : tuple of dict
        Values to choose from, by key of [fit]: ``{"learner": ("topk",), "k": (2, 4)}``.

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
    grids: tuple[Mapping[str, tuple[Any, ...]], ...]

    def __post_init__(self) -> None:
        check_fields("sweep", self)
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
                replace(configuration.fit.train, seed=seed)

    @property
    def configurations(self) -> tuple[Configuration, ...]:
        """All that the grids say, each once, in their order."""
        fits: list[tuple[str, FitPlan]] = []
        for number, grid in enumerate(self.grids, 1):
            for values in itertools.product(*grid.values()):
                chosen = dict(zip(grid, values, strict=True))
                try:
                    plan = config.from_dict({"sites": "*", "fit": {"sign": self.sign, **chosen}})
                except OptionError as error:
                    raise OptionError(f"grid {number}: {error}") from error
                size = chosen.get("n_modes", config.DEFAULT_MODES[plan.fit.name])
                fits.append((f"{plan.fit.name} {size}", plan.fit))
        named = dict.fromkeys(name for grid in self.grids for name in grid if name != "n_modes")
        options = [{n: v for n in named if (v := _value(fit, n)) is not ...} for _, fit in fits]
        differ = {n for n in named if len({str(each[n]) for each in options if n in each}) > 1}
        found: dict[str, Configuration] = {}
        for (name, fit), own in zip(fits, options, strict=True):
            name += "".join(f" {n}={option_text(value)}" for n, value in own.items() if n in differ)
            found.setdefault(name, Configuration(name=name, fit=fit, options=own))
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
        record = config.read_record(file, "a sweep.toml or a folder with one")
        return from_dict(record, folder=file.parent)
    except OptionError as error:
        raise OptionError(f"{file}: {error}") from error


def from_dict(record: Mapping[str, Any], *, folder: str | Path = ".") -> SweepPlan:
    """Make a plan from the content of a sweep.toml; its paths start from `folder`.

    Raises
    ------
    OptionError
        A key does not exist (the nearest is named), or a value is of the wrong kind.
    """
    found = config.checked(_FILE, record)
    given = {key: Path(folder) / found.pop(key) for key in ("run", "store") if key in found}
    if len(given) != 1:
        raise OptionError(
            "expected either run (a run folder or a run.toml) or store (a store of "
            f"contributions); got {' and '.join(given) or 'neither'}"
        )
    ((kind, path),) = given.items()
    if kind == "run":
        path = RunFolder(config.read(path).out if path.suffix == ".toml" else path).store
    train = found.pop("train", {})
    grids = tuple(_grid(n, {**train, **grid}) for n, grid in enumerate(found.pop("grid", ()), 1))
    out = Path(folder) / found.pop("out", "sweep")
    return SweepPlan(store=path, out=out, grids=grids, **found)


def _grid(number: int, values: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return what a grid lets choose from: a list is a choice, one value a choice of one."""
    learner = values.get("learner")
    if not isinstance(learner, str) or learner not in LEARNERS:
        known = ", ".join(LEARNERS)
        raise OptionError(f"grid {number}: learner: expected one of {known}; got {learner!r}")
    if "seed" in values:
        raise OptionError(f"grid {number}: seeds are given once for all grids, as seeds")
    kinds = typing.get_type_hints(TrainConfig) | typing.get_type_hints(LEARNERS[learner])
    found = {}
    for name, value in values.items():
        if name not in kinds and name != "learner":
            raise OptionError(f"grid {number}: {config.unknown_key('grid', name, kinds)}")
        # Values may be lists themselves: a list of numbers is then one value.
        of_lists = typing.get_origin(kinds.get(name)) is tuple
        choices = value if isinstance(value, list | tuple) else [value]
        if of_lists and not any(isinstance(choice, list | tuple) for choice in choices):
            choices = [choices]
        if not choices:
            raise OptionError(f"grid {number}: {name}: no value is given; give one or more")
        found[name] = tuple(tuple(c) if isinstance(c, list) else c for c in choices)
    return found


def to_dict(plan: SweepPlan, *, folder: str | Path = ".") -> dict[str, Any]:
    """Write a plan out as `from_dict` takes it; what holds for all grids stands in each."""
    start = Path(folder).resolve()
    return {
        "store": config.relative(plan.store, start),
        "out": config.relative(plan.out, start),
        "sites": list(plan.sites),
        "quantity": plan.quantity,
        "sign": plan.sign,
        "seeds": list(plan.seeds),
        "grid": [
            {name: list(values) for name, values in grid.items()} | {"learner": grid["learner"][0]}
            for grid in plan.grids
        ],
    }


def _value(fit: FitPlan, name: str) -> Any:
    """Return an option of the learner or its training, `...` where there is none."""
    return getattr(fit.learner, name, getattr(fit.train, name, ...))


def option_text(value: Any) -> str:
    """Return a value of an option as it stands in names and tables."""
    if isinstance(value, tuple):
        return ",".join(map(option_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
