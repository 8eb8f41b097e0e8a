"""run.toml to a plan and back.

>>> plan = from_dict({"sites": "block*", "collect": {"method": "ig:20", "target": "top1:softmax"}})
>>> plan.collect.method.n_passes, plan.collect.target
(21, TopK(k=1, probability=True))
>>> to_dict(plan)["collect"]["method"]
'ig:20'

Keys that are absent keep the defaults of `condec.run.plan`; keys that do not exist are
refused. Pydantic checks what a file says against the fields of the options, which are plain
dataclasses with checks of their own; from the same fields comes the schema for editors.
"""

import dataclasses
import os
import re
import tomllib
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, Union

import pydantic
import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    create_model,
)  # fmt: skip

from condec.attribution import METHODS, Method
from condec.attribution.targets import TARGETS, Target
from condec.basis.checks import nearest
from condec.basis.errors import CondecError, OptionError, printable
from condec.basis.files import user_path
from condec.basis.objects import ObjectPath
from condec.basis.texts import Texts
from condec.dictionary import TrainConfig
from condec.run.plan import IMPORT, KINDS, LEARNERS, ROWS_PER_MODE, FitPlan, Plan
from condec.run.plugins import default_links, default_options, link_names
from condec.store import TWINS, RunFolder, Twin

Made = TypeVar("Made")
DEFAULT_MODES: Final = {
    name: f"{'3x' if name == 'sae' else '1x'}, rows/{ROWS_PER_MODE:g}" for name in LEARNERS
}
_SECTIONS: Final[dict[str, Any]] = {
    name: kind
    for name, kind in typing.get_type_hints(Plan).items()
    if dataclasses.is_dataclass(kind) and kind is not FitPlan
}
_JOINED: Final = ("learner", "train", "modes_per_unit", "rows_per_mode")
"""Fields of `FitPlan` that run.toml says otherwise."""
_STRICT: Final = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
_DEEPEST: Final = 8
_MARK: Final = "# Written by condec: the plan of this run folder.\n"

DEMO: Final[Mapping[str, Any]] = {
    "sites": "block*",
    "out": "runs/demo",
    "model": {"spec": "digits"},
    "data": {"source": "digits"},
    "collect": {
        "method": "ig:10:fitted", "target": "predicted", "shard_size": 256,
        "twins": ["random-weights", "shuffled-labels"],
    },
    "fit": {"learner": "sae", "steps": 1500},
    "control": {
        "fractions": [0.05, 0.1, 0.2, 0.35, 0.5, 0.8], "matrix": True, "interactions": 10,
    },
    "report": {"title": "Handwritten digits"},
}  # fmt: skip
"""The plan of ``condec demo``: the embedded model on the digits that it has not seen."""


def read(path: str | Path) -> Plan:
    """Read a plan from a run.toml, or from the one in a run folder; OptionError without one."""
    return read_file(path, "run.toml", from_dict)


def read_file(path: str | Path, name: str, parse: Callable[..., Made]) -> Made:
    """Parse a TOML file, or the one of this name in a folder; errors say which file it is.

    What a run folder says, which may be somebody else's, is about that folder: its ``out`` is it.
    """
    named = user_path(path)
    file = named / name if named.is_dir() else named
    try:
        text = file.read_text(encoding="utf-8")
        found = tomllib.loads(text)
    except OSError as error:
        expected = f"expected a {name} or a folder with one"
        raise OptionError(f"{file}: not readable ({error.strerror}); {expected}") from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{file}: not TOML: {error}") from error
    try:
        _check_size(found)
        made = parse(found, folder=file.parent)
        placed: Made = _in_its_folder(made, file, named, text.startswith(_MARK))
        return placed
    except OptionError as error:
        raise OptionError(f"{file}: {error}") from error


def _check_size(value: Any, depth: int = 0) -> None:
    """Refuse tables and lists inside more than so many others, and numbers of more than 64 bits."""
    if depth > _DEEPEST:
        raise OptionError(f"tables inside more than {_DEEPEST} others; expected [section] key = 1")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise OptionError(
            f"a number of more than 64 bits, {str(value)[:12]}...; give a smaller one"
        )
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        _check_size(part, depth + 1)


def _in_its_folder(made: Any, file: Path, named: Path, marked: bool) -> Any:
    """Let a plan that was found in a run folder write there only; OptionError where it must not."""
    out, here = (Path(os.path.realpath(folder)) for folder in (made.out, file.parent))
    run = RunFolder(file.parent)
    of_run = (file.name == run.plan.name and marked) or (
        (file.name == run.plan.name or out == here) and run.store.exists()
    )
    if of_run and out != here:
        words = f"{file}: a run folder is opened where it lies; out = {str(made.out)!r} is ignored"
        warnings.warn(printable(words), UserWarning, stacklevel=4)
    if of_run or out == here:
        made = replace(made, out=file.parent)
    elif named != file and not out.is_relative_to(here):
        raise OptionError(
            f"out: {str(made.out)!r} leads out of the folder that was named; to write there, name "
            f"the file itself: {file}"
        )
    found = isinstance(made, Plan) and (of_run or named != file)
    return replace(made, of_folder=True) if found else made


def write(plan: Plan) -> Path:
    """Write a plan as run.toml into its run folder, whole or not at all.

    Paths in it then start from `Plan.base`, written relative to the run folder, so that both
    can be moved together.

    Raises OptionError: the run.toml that is there was written by hand: it would be lost.
    """
    folder = RunFolder(plan.out)
    by_hand = folder.plan.is_file() and not folder.plan.read_text("utf-8").startswith(_MARK)
    if by_hand and not folder.store.exists():
        raise OptionError(
            f"out: {folder.plan} was not written by condec, and the plan of the run, written "
            "out in full, would replace it; give a folder of its own, such as out = 'run'"
        )
    text = _MARK + tomli_w.dumps(to_dict(plan, folder=plan.out))
    return folder.write(folder.plan, text.encode())


def with_noted(plan: Plan) -> Plan:
    """Return the plan with the twins its run folder notes.

    They come first, so that their order does not depend on the command.
    """
    twins = plan.collect.twins
    with suppress(CondecError):  # none yet, or a run.toml that is about to be replaced
        twins = (*read(plan.out).collect.twins, *twins)
    return replace(plan, collect=replace(plan.collect, twins=tuple(dict.fromkeys(twins))))


def from_dict(record: Mapping[str, Any], *, folder: str | Path = ".") -> Plan:
    """Make a plan from the content of a run.toml; ``out`` and ``base`` start from `folder`.

    Raises OptionError: a key does not exist (the nearest is named), or a value is of the wrong
    kind.
    """
    fit = record.get("fit", {})
    learner = fit.get("learner", "sae") if isinstance(fit, Mapping) else "sae"
    if isinstance(learner, str) and learner.startswith(f"{IMPORT}:"):
        learner, path = learner.split(":", 1)
        fit = {**fit, "learner": learner, "path": path}
        record = {**record, "fit": fit}
    if not isinstance(learner, str) or learner not in KINDS:
        expected = f"one of {', '.join(LEARNERS)}, or {IMPORT}:PATH"
        raise OptionError(f"fit: learner: expected {expected}; got {learner!r}")
    _refuse_other_learners(learner, fit if isinstance(fit, Mapping) else {})
    found = checked(_file_model(learner), record)
    made: dict[str, Any] = {name: kind(**found.get(name, {})) for name, kind in _SECTIONS.items()}
    return Plan(
        **made, out=user_path(found.get("out", "run"), folder),
        base=user_path(found.get("base", "."), folder), sites=found.get("sites", ()),
        links=found.get("links", default_links(made["data"].source)),
        fit=_fit_plan(learner, found.get("fit", {})),
        options={n: type(o)(**found.get(n, {})) for n, o in default_options().items()},
    )  # fmt: skip


def _refuse_other_learners(learner: str, fit: Mapping[str, Any]) -> None:
    """Name all keys at once that belong to other learners: a plan written out in full has many."""
    own, others = (
        {field.name for kind in kinds for field in dataclasses.fields(kind)}
        for kinds in ((KINDS[learner], FitPlan, TrainConfig), LEARNERS.values())
    )
    if foreign := [key for key in fit if key in others - own]:
        raise OptionError(
            f"[fit] {', '.join(foreign)}: of another learner than {learner}; remove these keys"
        )


def to_dict(plan: Plan, *, folder: str | Path = ".") -> dict[str, Any]:
    """Write a plan out as `from_dict` takes it; what is None or empty is left out.

    Sections of links that packages bring are left out where the plan neither has that link
    nor says anything about it, [engine] where it says nothing.
    """
    start, brought = user_path(folder).resolve(), {**plan.options, "engine": plan.engine}
    said = {
        name: {n: value for n, value in values.items() if value not in (None, [], "")}
        for name, values in sections(plan).items()
        if name in plan.links or (own := brought.get(name)) is None or own != type(own)()
    }
    return {
        "sites": list(plan.sites), "out": relative(plan.out, start),
        "base": relative(plan.base, start), "links": list(plan.links), **said,
    }  # fmt: skip


def sections(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the sections of a plan as run.toml says them, with what is None or empty."""
    fit, own = plan.fit, {name: getattr(plan, name) for name in _SECTIONS}
    parts = _fields_of(fit.learner) | _fields_of(fit) | _fields_of(fit.train)
    of_fit = {"learner": fit.name} | {n: v for n, v in parts.items() if n not in _JOINED}
    if fit.modes_per_unit is not None:
        most = "" if fit.rows_per_mode is None else f", rows/{fit.rows_per_mode:g}"
        of_fit["n_modes"] = f"{fit.modes_per_unit:g}x{most}"
    found = {name: _fields_of(options) for name, options in own.items()}
    return found | {"fit": of_fit} | {n: _fields_of(one) for n, one in plan.options.items()}


def schema() -> dict[str, Any]:
    """Return the JSON schema of a run.toml, by which editors complete and check it."""
    found = _file_model(*LEARNERS).model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def checked(model: type[BaseModel], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a record, tables in it as dictionaries, as a model takes them."""
    try:
        return _given(model.model_validate(dict(record)))
    except pydantic.ValidationError as error:
        # A wrong key explains one that is missing.
        found = sorted(error.errors(include_url=False), key=lambda e: e["type"] == "missing")
        raise OptionError(_message(model, found[0])) from error


def relative(path: Path, start: Path) -> str:
    """Return a path from a resolved folder on, as it stands in a plan; an address as it is."""
    if isinstance(path, ObjectPath):
        return str(path)
    return Path(os.path.relpath(path.resolve(), start)).as_posix()


def changed(options: Any, section: str, changes: Mapping[str, Any]) -> Any:
    """Return the options of a section with some keys as a run.toml would say them.

    >>> from condec.run.plan import CollectPlan
    >>> changed(CollectPlan(), "collect", {"method": "ig:20", "batch_size": "auto"}).method.n_passes
    21
    """
    kind = type(options)
    found = checked(_section_model(section, kind), {**_fields_of(options), **changes})
    return kind(**found)


def unknown_key(section: str, key: str, keys: Iterable[str]) -> str:
    """Tell that a key does not exist, which one is nearest, and all that there are."""
    known = tuple(keys)
    near = nearest(key, known)
    where = f"[{section}] has" if section else "there is"
    return f"{where} no key {key!r}; nearest: {near[0]!r}. Keys: {', '.join(known)}"


def list_of(kind: Any) -> Any:
    """Return the type of a list in a TOML file, where one value stands for a list of one."""
    listed = lambda value: tuple(value) if isinstance(value, list | tuple) else (value,)  # noqa: E731
    either = list[kind] | kind
    return Annotated[tuple[kind, ...], BeforeValidator(listed, json_schema_input_type=either)]


def _number_of_modes(value: object) -> dict[str, Any]:
    """Read a number, a multiple of the units such as "3x", or that with a limit by the rows."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"n_modes": value}
    found = re.fullmatch(_TIMES, value) if isinstance(value, str) else None
    if found is None:
        raise OptionError(
            "expected a number, a multiple of the site's units such as '3x', or that and a limit "
            f"by the training rows, such as '3x, rows/4'; got {value!r}"
        )
    limits = {"modes_per_unit": found[1], "rows_per_mode": found[2]}
    return {name: float(text) for name, text in limits.items() if text}


_COUNT: Final = r"(\d{1,9}(?:\.\d{1,9})?)"
_TIMES: Final = f"{_COUNT}x(?:, ?rows/{_COUNT})?"
_AS_WRITTEN: Final = int | Annotated[str, Field(pattern=f"^{_TIMES}$")]
_N_MODES: Final = Annotated[
    Any, BeforeValidator(_number_of_modes, json_schema_input_type=_AS_WRITTEN)
]
_TEXTS: Final[dict[Any, Texts[Any]]] = {Method: METHODS, Target: TARGETS, Twin: TWINS}


def _kind(hint: Any) -> Any:
    """Return the type of a field as it stands in a TOML file."""
    if hint in _TEXTS:
        return Annotated[str, AfterValidator(_TEXTS[hint].parse)]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return list_of(_kind(arguments[0]))
    if typing.get_origin(hint) in (Union, types.UnionType):
        return Union[tuple(map(_kind, arguments))]  # noqa: UP007  # not known how many
    return hint


def _fields(option: type) -> dict[str, Any]:
    """Return the fields of a dataclass as `create_model` takes them."""
    kinds, found = typing.get_type_hints(option), {}
    for field in dataclasses.fields(option):
        default: Any = ...
        if field.default_factory is not dataclasses.MISSING:
            default = _plain(field.default_factory())
        elif field.default is not dataclasses.MISSING:
            default = _plain(field.default)
        found[field.name] = (_kind(kinds[field.name]), default)
    return found


def _fit_model(learner: str) -> type[BaseModel]:
    """Return the model of [fit]: keys of the plan, of the learner and of the training."""
    of_plan = {name: kind for name, kind in _fields(FitPlan).items() if name not in _JOINED}
    fields = of_plan | _fields(KINDS[learner]) | _fields(TrainConfig)
    fields["n_modes"] = (_N_MODES, DEFAULT_MODES.get(learner, 1))
    name: Any = Literal[learner]
    default = "sae" if learner == "sae" else ...
    return create_model(f"fit_{learner}", __config__=_STRICT, learner=(name, default), **fields)


def _section_model(name: str, option: type) -> type[BaseModel]:
    return create_model(name, __config__=_STRICT, **_fields(option))


@cache
def _file_model(*learners: str) -> type[BaseModel]:
    """Return the model of a run.toml, where [fit] is of one of these learners."""
    options = {name: type(option) for name, option in default_options().items()}
    every = {**_SECTIONS, **options}
    sections: dict[str, Any] = {n: (_section_model(n, kind), {}) for n, kind in every.items()}
    fit: Any = Union[tuple(map(_fit_model, learners))]  # noqa: UP007  # not known how many
    links: Any = Literal[link_names()]
    return create_model(
        "run", __config__=_STRICT, sites=(list_of(str), ...), out=(str, "run"), base=(str, "."),
        links=(list_of(links), None), fit=(fit, {}), **sections,
    )  # fmt: skip


def _fit_plan(learner: str, values: Mapping[str, Any]) -> FitPlan:
    number = values.get("n_modes") or _number_of_modes(DEFAULT_MODES.get(learner, 1))
    # A number that follows the site stands in the learner's place when the site is known.
    given = {**values, "n_modes": 1, **number}

    def made(kind: Any, **parts: Any) -> Any:
        names = {f.name for f in dataclasses.fields(kind)} - parts.keys()
        return kind(**{name: given[name] for name in names if name in given}, **parts)

    plan: FitPlan = made(FitPlan, learner=made(KINDS[learner]), train=made(TrainConfig))
    return plan


def _given(model: BaseModel) -> dict[str, Any]:
    """Return the values that a file gives, without defaults."""
    values = {name: getattr(model, name) for name in model.model_fields_set}
    return {n: _given(v) if isinstance(v, BaseModel) else v for n, v in values.items()}


_WORDS: Final = {
    "int_type": "a whole number", "float_type": "a number", "string_type": "text",
    "bool_type": "true or false", "dict_type": "a table", "list_type": "tables",
}  # fmt: skip


def _message(model: type[BaseModel], error: Any) -> str:
    """Say what is wrong with which key, of which section."""
    names, keys = list[str](), model.model_fields
    for name in error["loc"]:
        names.append(name)
        inner: Any = getattr(keys.get(name), "annotation", None)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        keys = inner.model_fields
    where, value, kind = ": ".join(names), error["input"], error["type"]
    if kind == "extra_forbidden":
        return unknown_key(" ".join(names[:-1]), names[-1], keys)
    if kind == "missing":
        return f"{where}: none given"
    if kind == "value_error":
        return f"{where}: {error['ctx']['error']}"
    if kind == "model_type":
        expected = f"a table [{where}]"
    elif kind == "literal_error":
        words = re.findall("'(.*?)'", error["ctx"]["expected"])
        expected = f"one of {', '.join(words)}"
    else:
        expected = _WORDS.get(kind, kind)
    return f"{where}: expected {expected}; got {value!r}"


def _plain(value: Any) -> Any:
    """Return an option as a TOML value."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return next((t.text(value) for kind, t in _TEXTS.items() if isinstance(value, kind)), value)


def _fields_of(option: Any) -> dict[str, Any]:
    """Return the fields of an option as TOML values."""
    return {f.name: _plain(getattr(option, f.name)) for f in dataclasses.fields(option)}
