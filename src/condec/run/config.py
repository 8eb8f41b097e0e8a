"""run.toml to a plan and back: the one place where strings stand for options.

>>> plan = from_dict({"sites": "block*", "collect": {"method": "ig:20", "target": "top1:softmax"}})
>>> plan.collect.method.n_passes, plan.collect.target
(21, TopK(k=1, probability=True))
>>> to_dict(plan)["collect"]["method"]
'ig:20'

Keys that are absent keep the defaults of `condec.run.plan`; keys that do not exist are
refused.
"""

import dataclasses
import difflib
import os
import re
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import tomli_w

from condec.attribution import Method, method_text, parse_method
from condec.attribution.targets import Target, parse_target, target_text
from condec.basis.errors import OptionError
from condec.dictionary import TrainConfig
from condec.retina import RetinaOptions
from condec.run.plan import (
    LEARNERS,
    LINKS_OF_IMAGES,
    LINKS_OF_MOVIES,
    CollectPlan,
    ControlPlan,
    DataPlan,
    FitPlan,
    Link,
    MapsPlan,
    ModelPlan,
    Plan,
    ReportPlan,
)
from condec.store import RunFolder, Twin, parse_twin

DEFAULT_MODES: Final = dict.fromkeys(LEARNERS, "1x") | {"sae": "3x"}
_SECTIONS: Final = {
    "model": ModelPlan,
    "data": DataPlan,
    "collect": CollectPlan,
    "control": ControlPlan,
    "maps": MapsPlan,
    "retina": RetinaOptions,
    "report": ReportPlan,
}
_OF_FIT: Final = ("sign", "sites", "controls", "stability_seeds", "check_sites")
"""Keys of [fit] that belong neither to the learner nor to its training."""
_TOP: Final = ("sites", "out", "base", "links", "fit", *_SECTIONS)

DEMO: Final[Mapping[str, Any]] = {
    "sites": "block*",
    "out": "runs/demo",
    "model": {"spec": "digits"},
    "data": {"source": "digits"},
    "collect": {
        "method": "ig:10",
        "target": "predicted",
        "shard_size": 256,
        "controls": ["random-weights", "shuffled-labels"],
    },
    "fit": {"learner": "sae", "n_modes": "3x", "steps": 1500},
    "control": {
        "fractions": [0.05, 0.1, 0.2, 0.35, 0.5, 0.8],
        "matrix": True,
        "interactions": 10,
    },
    "report": {"title": "Handwritten digits"},
}
"""What ``condec demo`` runs: the embedded model on the digits that it has not seen."""

DEMO_RETINA: Final[Mapping[str, Any]] = {
    "sites": ["conv1", "relu1", "conv2", "relu2"],
    "out": "runs/retina",
    "model": {"spec": "circuit"},
    "data": {"source": "movie:recording.npz"},
    "collect": {"method": "ig:20", "target": "surprisal"},
    "fit": {"learner": "sae", "n_modes": "10x", "sign": "concat", "steps": 3000},
    "retina": {"n_fields": 600, "probe_contrast": 2.0},
    "report": {"title": "A retina whose circuit is known"},
}
"""What ``condec demo --retina`` runs: the embedded circuit on a movie that opens its gates."""


def read(path: str | Path) -> Plan:
    """Read a plan from a run.toml, or from the one in a run folder.

    Raises
    ------
    OptionError
        No such file, not TOML, or keys or values that a plan does not have.
    """
    file = Path(path)
    file = file / "run.toml" if file.is_dir() else file
    try:
        return from_dict(read_record(file), folder=file.parent)
    except OptionError as error:
        raise OptionError(f"{file}: {error}") from error


def read_record(file: Path, expected: str = "a run.toml or a run folder") -> dict[str, Any]:
    """Content of a TOML file, not yet a plan; errors as in `read`."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"not readable ({error.strerror}); expected {expected}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"not TOML: {error}") from error


def write(plan: Plan) -> Path:
    """Write a plan as run.toml into its run folder, whole or not at all.

    Paths in it then start from `Plan.base`, written relative to the run folder, so that both
    can be moved together.
    """
    record = to_dict(plan, folder=plan.out)
    return RunFolder(plan.out).write(plan.out / "run.toml", tomli_w.dumps(record).encode())


def from_dict(record: Mapping[str, Any], *, folder: str | Path = ".") -> Plan:
    """Plan from the content of a run.toml.

    Parameters
    ----------
    record : mapping
    folder : path
        Where the file is: ``out`` and ``base`` start from there.

    Raises
    ------
    OptionError
        A key does not exist (the nearest is named), or a value is of the wrong kind.
    """
    check_keys("", record, _TOP)
    for name in ("fit", *_SECTIONS):
        if not isinstance(record.get(name, {}), Mapping):
            raise OptionError(f"{name}: expected a table [{name}]; got {record[name]!r}")
    sections = {
        name: _section(name, record.get(name, {}), option) for name, option in _SECTIONS.items()
    }
    return Plan(
        out=Path(folder) / _text("out", record.get("out", "run")),
        base=Path(folder) / _text("base", record.get("base", ".")),
        sites=_patterns("sites", record.get("sites", ())),
        fit=_fit(record.get("fit", {})),
        links=_patterns("links", record.get("links", _links(sections["data"]))),
        **sections,
    )


def to_dict(plan: Plan, *, folder: str | Path = ".") -> dict[str, Any]:
    """Inverse of `from_dict`; everything is written out, but what is None or empty."""
    start = Path(folder).resolve()
    record: dict[str, Any] = {
        "sites": list(plan.sites),
        "out": relative(plan.out, start),
        "base": relative(plan.base, start),
        "links": list(plan.links),
    }
    for name in ("model", "data", "collect"):
        record[name] = _plain_fields(getattr(plan, name))
    fit = plan.fit
    number = getattr(fit.learner, "n_modes")  # noqa: B009  # every learner has it
    record["fit"] = {
        "learner": fit.name,
        "n_modes": number if fit.modes_per_unit is None else f"{fit.modes_per_unit:g}x",
        **{k: v for k, v in _plain_fields(fit).items() if k in _OF_FIT},
        **{k: v for k, v in _plain_fields(fit.learner).items() if k != "n_modes"},
        **_plain_fields(fit.train),
    }
    for name in ("control", "maps", "retina", "report"):
        record[name] = _plain_fields(getattr(plan, name))
    return record


def parse_batch_size(text: str) -> int | Literal["auto"]:
    """A number, or ``auto``.

    >>> parse_batch_size("64"), parse_batch_size("auto")
    (64, 'auto')
    """
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise OptionError(f"batch size {text!r}: expected a whole number, or 'auto'")
    return int(text)


_PARSERS: Final[dict[Any, Callable[[str], object]]] = {
    Method: parse_method,
    Target: parse_target,
    Twin: parse_twin,
}


def _links(data: DataPlan) -> tuple[Link, ...]:
    """What ``condec run`` does unless it is told."""
    return LINKS_OF_MOVIES if data.source.startswith("movie:") else LINKS_OF_IMAGES


def _section(name: str, record: Mapping[str, Any], option: type) -> Any:
    """A plan of one link from its table."""
    kinds = typing.get_type_hints(option)
    check_keys(name, record, tuple(kinds))
    return option(**{key: _value(f"{name}: {key}", v, kinds[key]) for key, v in record.items()})


def _fit(record: Mapping[str, Any]) -> FitPlan:
    """[fit]: the learner's options, the training's, and what is learnt, in one table."""
    values = dict(record)
    name = _text("fit: learner", values.pop("learner", "sae"))
    if name not in LEARNERS:
        raise OptionError(f"fit: learner: expected one of {', '.join(LEARNERS)}; got {name!r}")
    number, per_unit = _number_of_modes(values.pop("n_modes", DEFAULT_MODES[name]))
    parts: dict[str, dict[str, Any]] = {}
    of_learner = typing.get_type_hints(LEARNERS[name])
    of_training = typing.get_type_hints(TrainConfig)
    of_plan = {key: typing.get_type_hints(FitPlan)[key] for key in _OF_FIT}
    kinds = {"learner": of_learner, "train": of_training, "plan": of_plan}
    for which, known in kinds.items():
        parts[which] = {
            key: _value(f"fit: {key}", values.pop(key), known[key])
            for key in list(values)
            if key in known
        }
    every = ("learner", *of_learner, *of_training, *of_plan)
    check_keys("fit", values, every)
    return FitPlan(
        learner=LEARNERS[name](n_modes=number, **parts["learner"]),  # type: ignore[call-arg]
        modes_per_unit=per_unit,
        train=TrainConfig(**parts["train"]),
        **parts["plan"],
    )


def _number_of_modes(value: Any) -> tuple[int, float | None]:
    """A number, or a multiple of the units such as "3x" (the number is then not used)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)x", value) if isinstance(value, str) else None
    if found is None:
        raise OptionError(
            f"fit: n_modes: expected a number, or a multiple of the site's units such as '3x'; "
            f"got {value!r}"
        )
    return 1, float(found[1])


def check_keys(section: str, record: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """Refuse keys that do not exist, naming the nearest.

    Raises
    ------
    OptionError
        With all that there are.
    """
    for key in record:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
            where = f"[{section}] has" if section else "there is"
            raise OptionError(
                f"{where} no key {key!r}; nearest: {near[0]!r}. Keys: {', '.join(keys)}"
            )


def _value(name: str, value: Any, kind: Any) -> Any:
    """A TOML value as the type that a field declares."""
    if kind in _PARSERS:
        return _PARSERS[kind](_text(name, value))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        literals = [a for a in inner if typing.get_origin(a) is typing.Literal]
        if any(value in typing.get_args(literal) for literal in literals):
            return value
        return _value(name, value, inner[0])
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_value(name, item, arguments[0]) for item in items)
    if origin is typing.Literal:
        if value not in arguments:
            known = ", ".join(map(str, arguments))
            raise OptionError(f"{name}: expected one of {known}; got {value!r}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise OptionError(f"{name}: expected {words.get(kind, kind.__name__)}; got {value!r}")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise OptionError(f"{name}: expected text; got {value!r}")
    return value


def _patterns(name: str, value: Any) -> tuple[Any, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise OptionError(f"{name}: expected text, or a list of texts; got {value!r}")
    return tuple(_text(name, item) for item in items)


def _plain_fields(option: Any) -> dict[str, Any]:
    """Fields of an option as TOML values; None and empty ones are left out."""
    record: dict[str, Any] = {}
    for field in dataclasses.fields(option):
        value = getattr(option, field.name)
        if isinstance(value, Method):
            value = method_text(value)
        elif isinstance(value, Target):
            value = target_text(value)
        elif isinstance(value, tuple):
            value = [item.name if isinstance(item, Twin) else item for item in value]
        if value is not None and value not in ([], ""):
            record[field.name] = value
    return record


def relative(path: Path, start: Path) -> str:
    """A path from a resolved folder on, as it stands in a plan."""
    return Path(os.path.relpath(path.resolve(), start)).as_posix()
