"""What the explorer asks of a run: why an input has its output, what turned modes change.

Long work is done by commands of their own (`condec.explorer.jobs`), and taken up once it is done.
"""

import base64
import dataclasses
import io
import json
import secrets
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import safetensors.torch
import tomli_w
import torch
from torch import Tensor

from condec.attribution import prepare_inputs
from condec.basis.checks import one_of, whole_number
from condec.basis.errors import DataError, ModelError, OptionError
from condec.dictionary import TrainConfig
from condec.dictionary.base import saved_digest
from condec.edits import baked
from condec.explanation import Explanation, keep
from condec.explanation.one_input import explainer
from condec.explanation.parts import Part, SiteExplanation
from condec.explanation.turning import Turning
from condec.explorer.jobs import Jobs
from condec.explorer.uploads import stored
from condec.figures.places import Ground, folded
from condec.figures.style import rankings_in
from condec.modes import annotations
from condec.network import run_model
from condec.report.build import build_input_page
from condec.report.words import label_words, target_words
from condec.run import Plan, Run, config
from condec.run.explain import OneInput, collected, given, modes_by, names_of
from condec.run.plan import LEARNERS, FitPlan
from condec.run.selection import TABLE, Selected, selection_toml, with_label
from condec.store import RunFolder

N_MODES: Final = 10
_N_OFFERED: Final = 24
_N_OUTPUTS: Final = 8
_MOST_KEPT: Final = 8
"""Explanations that are kept, so that their modes can be turned."""
_N_PICTURES: Final = 500
_NEAR: Final = 0.1
"""Of what sliders change in the target, as much as weights may do otherwise."""
_TAKEN: Final = "it came without a label: the predicted one is taken as its label"
_LINKS: Final = {"fit": "Modes", "control": "Control curves", "report": "The report"}


@dataclass(eq=False)
class _Asked:
    """An input that was asked for, its explanation, and what lies after the sites turned so far."""

    one: OneInput
    found: Explanation
    picture: Tensor | None
    why: str
    turnings: dict[str, Turning] = field(default_factory=dict)


class Session:
    """A run, its network and its modes, ready to be asked; for one caller at a time.

    Answers are plain lists, dicts, texts and numbers, for JSON. The network is never edited: what
    lies after a site is run again with another activation. `jobs` may be asked by any thread.

    Raises StoreError, OptionError, DataError: there are no modes, or the model is not the store's.
    """

    def __init__(self, run: Run) -> None:
        self.jobs = Jobs()
        self._pictures = lru_cache(_N_PICTURES)(
            lambda row: _png(self.run.inputs.picture(row), most=160)
        )
        self._kept: OrderedDict[str, _Asked] = OrderedDict()
        self.plan = run.plan  # with what jobs have fitted, taken up by the next question
        self._open(run)

    def _open(self, run: Run) -> None:
        modes = modes_by(run)
        self._explain = explainer(
            run.model_of_store, modes, run.method, run.fitted_target, n_modes=N_MODES, prove=False
        )
        self.run, self.modes = run, modes

    def refresh(self) -> None:
        """Take up the modes that a job has fitted."""
        plan = self.plan
        if plan is not self.run.plan:
            run = replace(self.run, plan=plan)
            # What no fit changes is not loaded again: cached properties.
            run.__dict__.update({n: v for n, v in self.run.__dict__.items() if n in _LOADED})
            self._open(run)

    @property
    def about(self) -> dict[str, Any]:
        """What the page says of the run: model, target, whether inputs are texts, fit, pages."""
        run, fit = self.run, config.sections(self.run.plan)["fit"]
        return {
            "model": run.plan.model.spec,
            "target": target_words(run.store.recipe["target"]),
            "text": self._is_text,
            "report": run.folder.report.exists(), "learners": list(LEARNERS),
            "learner": fit["learner"], "n_modes": str(fit["n_modes"]),
        }  # fmt: skip

    @property
    def _is_text(self) -> bool:
        return self.run.plan.data.source.partition(":")[0] in ("text", "tokens")

    def offered(self) -> list[dict[str, str]]:
        """List inputs to begin with: those that the report explains, then others of the store."""
        entries = self.run.folder.ledger.entries.values()
        asked = [entry.made_from for entry in entries if entry.link == "explain"]
        asked.sort(key=lambda made: "why" in made)  # of an input that is there twice, the plan's
        known = {str(made["input"]): str(made.get("why", "")) for made in asked if "input" in made}
        ids = self.run.store.sample_ids
        names = [
            *(name for name in known if name in self._rows),
            *ids[:: len(ids) // _N_OFFERED or 1],
        ]
        return [{"id": n, "why": known.get(n, "")} for n in dict.fromkeys(names)][:_N_OFFERED]

    def thumbnail(self, name: str) -> bytes:
        """Return the picture of a collected input as PNG; DataError where it is no picture."""
        return self._pictures(self._row(name))

    @cached_property
    def _rows(self) -> dict[str, int]:
        collected = {*self.run.store.sample_ids}  # inputs that could not be read are in no store
        return {name: row for row, name in enumerate(self.run.inputs.ids) if name in collected}

    def _row(self, name: str) -> int:
        if name not in self._rows:
            raise DataError(f"there is no input {name!r}")
        return self._rows[name]

    def explain(self, name: str) -> dict[str, Any]:
        """Explain a collected input, by its id."""
        self._row(name)
        return self._answer(collected(self.run, name))

    def explain_upload(self, content: bytes, *, text: bool = False) -> dict[str, Any]:
        """Explain what a user gives: a picture, an array of one sample, or a text."""
        with stored(content, text=text) as file:
            try:
                return self._answer(given(self.run, str(file)))
            except DataError as error:  # without the place of a file that is gone
                raise DataError(str(error).replace(f"{file.parent}/", "")) from error

    def turn(self, key: str, site: str, factors: Mapping[str, float]) -> dict[str, Any]:
        """Return the output with parts of a site turned, see `Explanation.turned`."""
        asked = self._asked(key)
        output = asked.found.turned(site, factors, self._turning(asked, site))
        return self._outputs(asked.found, output)

    def page(self, key: str) -> bytes:
        """Return the page of an input that was asked for, whole and by itself, as a zip."""
        asked = self._asked(key)
        one, of = asked.one, self.run.store.recipe["target"]
        own, why = asked.picture, asked.why
        made = keep(asked.found, one.name, of, label=one.label, picture=own, why=why)
        content = io.BytesIO()
        with TemporaryDirectory(prefix="condec-") as place:
            page = build_input_page(made, Path(place) / "page", self._names).parent
            with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
                for file in sorted(page.rglob("*")):
                    packed.write(file, file.relative_to(page))
        return content.getvalue()

    def weights(self, key: str, site: str, factors: Mapping[str, float]) -> bytes:
        """Return weights of the network, in safetensors, that hold what sliders do to an input.

        Raises SiteError, OptionError, ModelError: they cannot be held by weights, or not nearly.
        """
        asked = self._asked(key)
        edits = asked.found.edits(site, factors, self._turning(asked, site))
        if not edits:
            raise OptionError("weights: no slider of this site is turned; the weights are the own")
        x = asked.found.batch.setup.inputs[:1]  # type: ignore[union-attr]  # of `contribute`
        made = baked(self.run.loaded.model, edits, inputs=x)
        before, wanted = asked.found.target, self.turn(key, site, factors)["target"]
        with torch.no_grad():
            got = self._outputs(asked.found, run_model(made, x))["target"]
        if not abs(got - wanted) <= _NEAR * abs(wanted - before):
            raise ModelError(
                f"weights: on this input the sliders make the target {wanted:.4g}, from "
                f"{before:.4g}, and weights would make it {got:.4g}: they change a unit alike at "
                "all places and inputs, and a mode has another part in each. Turn a mode whose "
                "units are its alone, or edit them by condec.edited"
            )
        said = {
            "condec": metadata.version("condec"), "site": site, "factors": json.dumps(factors),
            "input": asked.one.name, "target": f"{before:.6g}", "with sliders": f"{wanted:.6g}",
            "with these weights": f"{got:.6g}",
        }  # fmt: skip
        usual = torch.contiguous_format  # and memory of its own: safetensors takes no other
        tensors = {n: value.clone(memory_format=usual) for n, value in made.state_dict().items()}
        return safetensors.torch.save(tensors, said)

    def selection(self, chosen: object) -> str:
        """Return a toml of chosen modes, [site, mode, dictionary] each, with their labels."""
        return selection_toml(self._chosen(chosen))

    def _chosen(self, chosen: object) -> list[Selected]:
        by_site, found = {modes.site.key: modes for modes in self.modes}, []
        for one in chosen if isinstance(chosen, list) else ():
            match one:
                case [str() as site, mode, str() as dictionary] if site in by_site:
                    mode = whole_number("selection: mode", mode)
                    wanted = Selected(site, mode, dictionary=dictionary)
                    found.append(with_label(by_site[site], wanted))
                case _:
                    expected = "expected [site, mode, dictionary] each"
                    raise OptionError(f"selection: {expected}; got {one!r}")
        if not found:
            raise OptionError("selection: no mode is chosen")
        return found

    def curves(self, site: str, mode: int, dictionary: str) -> list[dict[str, Any]]:
        """List the curves that were measured for a mode of a dictionary that still lies there."""
        folder, name = RunFolder(self.run.folder.path), self.run.plan.fit.name  # as jobs left it
        there = site in {modes.site.key for modes in self.modes}
        if not there or saved_digest(folder.modes(site, name)) != dictionary:
            return []
        table = folder.read_table(TABLE, site, name)
        if table is None:
            return []
        columns = ["fraction", "target_accuracy", "off_accuracy", "target_low", "target_high"]
        by = ["label", "ranking", "edit", "replacement"]
        mine = table[table["of_mode"] == mode]
        found = []
        for _, rows in mine.groupby(by, sort=False):
            words = {name: str(rows[name].iloc[0]) for name in by[1:]}
            words["label"] = self._label(int(rows["label"].iloc[0]))
            words["named"], _ = rankings_in([words["ranking"]])[words["ranking"]]
            found.append(words | {name: _numbers(rows[name]) for name in columns})
        return found

    def start(self, link: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Put a link of the chain into the queue, and say what it is.

        A fit takes a `learner` and its `n_modes`, as run.toml says them, if these are given;
        control curves take chosen `modes`, [site, mode, dictionary] each. What was fitted while
        they wait is in their plan.
        """
        if link not in _LINKS:
            raise OptionError(f"explore: link: expected one of {', '.join(_LINKS)}; got {link!r}")
        words, files, command = _LINKS[link], dict[str, str](), [link, "{plan.toml}"]
        if plan := _refitted(self.plan, given) if link == "fit" else None:
            words += f": {plan.fit.name}, {config.sections(plan)['fit']['n_modes']} at each site"
        elif link == "control" and "modes" in given:
            chosen = self._chosen(given["modes"])
            words += f" of {', '.join(f'{one.site} mode {one.mode}' for one in chosen)}"
            files["selection.toml"] = selection_toml(chosen)
            command += ["--selection", "{selection.toml}"]

        def begun() -> dict[str, str]:
            return {**files, "plan.toml": _toml(plan or self.plan)}

        def done() -> None:
            self.plan = plan or self.plan

        def undone() -> None:
            # The command noted its plan as it began; modes are still those of the one before.
            if plan and config.read(plan.out).fit == plan.fit != self.plan.fit:
                config.write(self.plan)

        return self.jobs.add(words, command, begun, done, undone).told()

    def _turning(self, asked: _Asked, site: str) -> Turning:
        if site not in asked.turnings:
            asked.turnings[site] = asked.found.turning(site)
        return asked.turnings[site]

    def _asked(self, key: str) -> _Asked:
        if key not in self._kept:
            raise OptionError("this explanation is no longer kept; ask for the input again")
        self._kept.move_to_end(key)
        return self._kept[key]

    def _answer(self, one: OneInput) -> dict[str, Any]:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            asked = replace(one, label=self._label_of(one))
            found = asked.explained(self._explain)
        picture = one.picture
        key = secrets.token_urlsafe(9)
        self._kept[key] = _Asked(asked, found, picture, "" if asked.label == one.label else _TAKEN)
        while len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        ground = found.ground(picture)
        baseline = found.target_baseline
        return {
            "key": key, "name": one.name, "label": self._label(one.label),
            "prediction": self._label(found.prediction),
            "baseline": baseline if baseline == baseline else None,
            "warnings": [str(one.message) for one in said if one.category is UserWarning],
            "picture": "" if ground.picture is None else _url(_png(ground.picture, most=640)),
            "words": list(ground.text or ()),
            "sites": [self._site(at, ground) for at in found.by_site],
            **self._outputs(found, found.batch.output[:1]),
        }  # fmt: skip

    def _label_of(self, one: OneInput) -> int:
        """Return the label of an input; the predicted one where none is known and one is needed."""
        if one.label >= 0 or not self.run.target.uses_labels:
            return one.label
        model = self.run.loaded.model
        x = prepare_inputs(model, one.inputs.load(one.row)[None])
        with torch.no_grad():
            label = int(run_model(model, x)[0].argmax())
        warnings.warn(
            f"It came without a label, which the target needs: {self._label(label)} is taken, "
            "which the model predicts", UserWarning, stacklevel=2,
        )  # fmt: skip
        return label

    def _site(self, at: SiteExplanation, ground: Ground) -> dict[str, Any]:
        parts = []
        for part in at.parts:
            label, correlation = part.best_label("train")
            values = folded(part.places.numpy())
            shape, beside = ground.grid(values), 0
            if shape is None:
                shape = values.shape if values.ndim == 2 else (1, values.size)
            else:
                beside = values.size - shape[0] * shape[1]
            parts.append({
                "name": part.name, "adds": part.adds, "takes": part.takes,
                "called": self._called(part),
                "label": self._label(label), "correlation": None if label < 0 else correlation,
                "shape": list(shape), "places": _short(values.reshape(-1)[beside:]),
                "beside": float(values.reshape(-1)[:beside].sum()),
            })  # fmt: skip
        misses = at.misses if at.misses == at.misses else None
        return {
            "key": at.site.key, "cut": at.cut, "misses": misses, "parts": parts,
            "dictionary": at.shares[0].modes.dictionary,
        }  # fmt: skip

    def _called(self, part: Part) -> str:
        """Return the name that people gave to a mode; empty without one."""
        if part.modes is None or part.row is None:
            return ""
        said = annotations(self.run.folder.path, part.modes).get(part.row)
        return "" if said is None else said.name

    def _outputs(self, found: Explanation, output: Tensor) -> dict[str, Any]:
        """Return the target, and the outputs that are largest with the network as it is or now."""
        setup = found.batch.setup
        assert setup is not None  # of `contribute`
        frozen = setup.target.freeze(found.batch.output, setup.labels)
        target = float(setup.target.value(output, None if frozen is None else frozen[:1])[0])
        rows = []
        if output.ndim == 2:
            before, now = found.batch.output[0].double(), output[0].double()
            k = min(_N_OUTPUTS, len(now))
            largest = _both(before.topk(k).indices, now.topk(k).indices)
            rows = [[self._label(n), float(before[n]), float(now[n])] for n in largest]
        return {"target": target, "outputs": rows}

    @cached_property
    def _names(self) -> Sequence[str] | None:
        return names_of(self.run)

    def _label(self, number: int) -> str:
        return "" if number < 0 else label_words(self._names, number)


_LOADED: Final = ("loaded", "inputs", "store", "batches", "method", "target", "superclasses")


def _refitted(plan: Plan, given: Mapping[str, Any]) -> Plan:
    """Return a plan with another learner or number of modes, as run.toml would say them."""
    record = config.to_dict(plan, folder=plan.base)
    fit, learner = record["fit"], given.get("learner") or plan.fit.name
    if learner != plan.fit.name:
        one_of("explore", "learner", learner, [*LEARNERS])  # import:PATH would open any file
        kept = {one.name for kind in (FitPlan, TrainConfig) for one in dataclasses.fields(kind)}
        fit = {name: value for name, value in fit.items() if name in kept}
    if number := given.get("n_modes"):
        text = str(number)
        fit["n_modes"] = int(text) if text.isdecimal() and len(text) < 16 else number
    made = config.from_dict({**record, "fit": {**fit, "learner": learner}}, folder=plan.base)
    return replace(made, of_folder=plan.of_folder)


def _toml(plan: Plan) -> str:
    """Write a plan as a run.toml that means the same in any folder."""
    here = plan.base.absolute()
    record = config.to_dict(plan, folder=here)
    return tomli_w.dumps(record | {"base": str(here), "out": str(plan.out.absolute())})


def _numbers(values: Any) -> list[float | None]:
    return [None if value != value else float(value) for value in values]


def _both(first: Tensor, second: Tensor) -> list[int]:
    """List the numbers of both, those of the first in their order, then what is new."""
    return list(dict.fromkeys([*first.tolist(), *second.tolist()]))


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def _png(picture: Tensor | np.ndarray, *, most: int) -> bytes:
    from PIL import Image

    pixels = np.asarray(picture)
    drawn = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    drawn.thumbnail((most, most))
    content = io.BytesIO()
    drawn.save(content, "PNG")
    return content.getvalue()


def _url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
