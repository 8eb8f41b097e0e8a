"""A run: the plan, what it needs, loaded when first asked for, and what a link of it did."""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import torch
from rich.console import Console
from torch import Tensor, nn

from condec.attribution import Method
from condec.attribution.targets import Target
from condec.basis.digests import differences
from condec.basis.errors import DataError, SiteError, StoreError, command, printable
from condec.basis.files import user_path
from condec.basis.records import short_repr
from condec.basis.trust import gated
from condec.data import SOURCES, Inputs, Language, load_data, read_attributes
from condec.models import LoadedModel, load_model
from condec.models.python import load_function
from condec.modes import Hierarchy, Modes, Properties
from condec.network import Site, find_site, find_sites, match_sites
from condec.run import config
from condec.run.plan import Plan
from condec.run.superclasses import superclasses_of
from condec.store import RunFolder, SiteInfo, Store, Twin, fingerprint, is_twin, usable_device
from condec.store.batches import BatchPlan
from condec.store.collection import Collecting, check_batches, samples_of, whole_store
from condec.store.ledger import Entry
from condec.store.twins import under


@short_repr
@dataclass(frozen=True, eq=False)
class Outcome:
    """Outcome of one link.

    `state` is ``made``, ``kept`` (nothing had changed), ``left out`` or ``failed``; `notes` say
    what the user should know, such as inputs that were left out.
    """

    link: str
    state: str
    outputs: tuple[Path, ...]
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """What a worker tells of a task: notes, sites silent in a shard, what Python warned of.

    With an `error` the task was not done.
    """

    notes: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str = ""


@runtime_checkable
class Engine(Protocol):
    """What does tasks ahead of the chain, which then finds them done."""

    def do(self, run: "Run", link: str, names: Sequence[str]) -> dict[str, Done]:
        """Have workers do tasks of a link; return those that they did, or failed at, by name."""

    def close(self) -> None:
        """End all workers."""


@short_repr
@dataclass(frozen=True, eq=False)
class Run:
    """A plan, and what it needs, loaded when first asked for.

    `progress` is shown on standard error. `again` does tasks although nothing has changed; but
    shards of contributions are never computed twice. `trust_code` runs the files of code that the
    plan of a run folder names, and remembers that. `left_out` are links and tasks that could not
    be done, and why; they come in as links are carried out. An `engine` does tasks ahead of them;
    in a worker of one, `asked` takes the tasks of a link that it may be told to do.
    """

    plan: Plan
    progress: bool = True
    again: bool = False
    trust_code: bool = False
    left_out: dict[str, str] = field(default_factory=dict)
    engine: "Engine | None" = None
    asked: dict[str, Any] | None = None

    @cached_property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.plan.out)

    @property
    def gate(self) -> AbstractContextManager[None]:
        """Context in which what the plan names is loaded: code of a run folder if it is trusted."""
        return gated(trusted=self.trust_code or not self.plan.of_folder)

    def check_devices(self) -> None:
        """Refuse devices of the plan that are not there, by an OptionError that lists those."""
        named = (self.plan.model.device, *self.plan.collect.devices)
        for device in filter(None, named):
            usable_device(device)

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model, on a GPU where there is one."""
        plan = self.plan.model
        device = usable_device(plan.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        with self.gate:
            loaded = load_model(plan.spec, plan.weights, folder=self.plan.base)
        loaded.model.to(device)
        return loaded

    @cached_property
    def inputs(self) -> Inputs:
        """The data, as the model takes them."""
        inputs = self._load(self.plan.data.source, self.plan.data.limit)
        if inputs.label_names is None and self.loaded.label_names is not None:
            inputs = replace(inputs, label_names=self.loaded.label_names)
        return inputs

    def one_file(self, file: Path) -> Inputs:
        """Open a file with one input, as those of the plan's data are opened.

        It is an image or numpy's arrays; of a run on texts, a text or its tokens, to be continued;
        or, where a package brings the source, one of that source.
        """
        kind, _, rest = self.plan.data.source.partition(":")
        _, mark, query = rest.partition("?")
        if of_text := kind in ("text", "tokens"):
            kind, mark, query = "tokens" if file.suffix == ".npz" else "text", "?", "labels=none"
        elif kind in {source.partition(":")[0] for source in SOURCES}:
            kind, query = "npz" if file.suffix in (".npy", ".npz") else "image", ""
        if "?" in str(file):
            raise DataError(f"{file}: a name that holds '?' names no source of data; rename it.")
        shape = None
        with suppress(DataError):  # without the data, the model may say; texts are of any length
            shape = None if of_text else self.inputs.sample_shape
        return self._load(f"{kind}:{file}{mark if query else ''}{query}", None, shape)

    @cached_property
    def superclasses(self) -> Hierarchy | None:
        """Superclasses of labels, where the plan has them; DataError where they cannot be had."""
        if self.plan.data.superclasses is None:
            return None
        return superclasses_of(self.plan.data, self.inputs, self.plan.base)

    @cached_property
    def properties(self) -> tuple[Properties, ...]:
        """Labels with superclasses, and attributes, of the store's samples; empty without any."""
        found, labels = [], self.store.labels
        if bool((labels >= 0).any()):
            names = self.folder.read_json(self.folder.labels)
            found.append(Properties.of_labels(labels, names, self.superclasses))
        if (name := self.plan.data.attributes) is not None:
            table = read_attributes(user_path(name, self.plan.base), self.store.sample_ids)
            found += Properties.of_table(table)
        return tuple(found)

    @cached_property
    def fit_on(self) -> Inputs | None:
        """Other data from which a target or baseline takes its numbers, where the plan has some."""
        source = self.plan.collect.fit_on
        return None if source is None else self._load(source, self.plan.data.limit)

    def _load(self, source: str, limit: int | None, shape: tuple[int, ...] | None = None) -> Inputs:
        plan, base, model = self.plan.data, self.plan.base, self.loaded.model
        with self.gate:
            own = None if plan.preprocess is None else load_function(plan.preprocess, folder=base)
        return load_data(
            source, csv=plan.csv if source == plan.source else None, label_names=plan.label_names,
            preprocess=own or self.loaded.preprocess,
            shape=shape or self.plan.model.input_shape or self.loaded.input_shape, limit=limit,
            scaling=self.loaded.scaling, cells=self.loaded.label_names, folder=base,
            orientation=plan.orientation or self.loaded.orientation,
            language=model if isinstance(model, Language) else None,
        )  # fmt: skip

    @cached_property
    def batches(self) -> BatchPlan:
        """What collecting computes, of the model proven for its batches, worked out once."""
        return self._batches(self.loaded.model, self.inputs)

    @cached_property
    def method(self) -> Method:
        """The method of the plan, with what its baseline takes from the data, if anything.

        That is not in the store's record of it, by which samples cannot be found again.
        """
        method = self.plan.collect.method.for_model(self.loaded.model)
        return method if method.is_fitted else method.fit(self.fit_on or self.inputs)

    @cached_property
    def target(self) -> Target:
        """The target of the plan, with numbers for names of labels and texts of tokens."""
        return self.plan.collect.target.numbered(lambda: self.loaded.label_names)

    @cached_property
    def fitted_target(self) -> Target | None:
        """The target with what it takes from outputs, which no record has; None of any other."""
        return None if self.target.is_fitted else self.batches.target

    def _batches(self, model: nn.Module, inputs: Inputs) -> BatchPlan:
        plan = self.plan.collect
        return BatchPlan.make(
            model, inputs, self.plan.sites, plan.method, self.target, plan.compute, plan.on_bad,
            self.fit_on, self.batch_size if plan.prove else None,
            plan.keep if plan.rows == "positions" else None, plan.seed,
        )  # fmt: skip

    def collection(self, twin: Twin | None = None) -> Collecting:
        """Return what is collected: of the model and the data, or under a twin."""
        if twin is None:
            return self.collecting(self.batches, self.folder.store)
        found = under(twin, self.loaded.model, self.inputs, self.plan.collect.on_bad)
        batches = self._batches(found.model, found.inputs)
        return self.collecting(batches, self.folder.twin(twin.name), found.recorded)

    def collecting(
        self, batches: BatchPlan, out: Path, recorded: Mapping[str, Any] | None = None
    ) -> Collecting:
        """Return a collection in batches, shards and on devices of the plan."""
        plan = self.plan.collect
        sizes = (plan.batch_size, plan.shard_size, plan.devices)
        return Collecting(batches, out, *sizes, recorded or {})

    @cached_property
    def known(self) -> tuple[tuple[SiteInfo, ...], Tensor]:
        """Sites, and labels [sample], -1 for none, before the first pass: one sample is run.

        Those of the store where it is whole.
        """
        if (store := whole_store(self.folder.store)) is not None:
            return store.infos, store.labels
        check_batches(self.batches, self.batch_size, self.plan.collect.shard_size)
        labels = self.inputs.labels
        none = torch.full((len(self.inputs),), -1)
        return self.batches.infos, none if labels is None else labels

    @property
    def batch_size(self) -> int:
        """Samples of a batch; of those by timing, about."""
        return samples_of(self.plan.collect.batch_size)

    @cached_property
    def store(self) -> Store:
        """The collected contributions.

        Raises StoreError: there are none, some shards are missing, or the plan has another method
        or target.
        """
        path = self.folder.store
        if not path.exists():
            raise StoreError(f"{path}: no contributions yet; {self.folder.first('collect')}")
        store, method = Store.open(path), self.plan.collect.method
        if store.recipe.get("method") != method.to_dict():
            method = method.for_model(self.loaded.model)
        wants = {"method": method.to_dict(), "target": self.target.to_dict()}
        if differ := differences({key: store.recipe.get(key) for key in wants}, wants):
            raise StoreError(
                f"{path}: of another plan: {'; '.join(differ)}; choose another run folder, or "
                "remove that store"
            )
        return self._whole(store)

    def twin(self, twin: Twin) -> Store:
        """Open the store of a twin.

        Raises StoreError: there is none, some shards are missing, or it belongs to another store.
        """
        path = self.folder.twin(twin.name)
        if not path.exists():
            raise StoreError(f"{path}: no such twin yet; {self.folder.first('collect')}")
        store = Store.open(path)
        if not is_twin(store, self.store):
            raise StoreError(
                f"{path}: a twin of another store than {self.folder.store}; remove that folder "
                f"and run {command('collect', self.folder.path)} again"
            )
        return self._whole(store)

    def _whole(self, store: Store) -> Store:
        if missing := store.missing():
            raise StoreError(
                f"{store.path}: {len(missing)} of {store.n_shards} shards are missing; run "
                f"{command('collect', self.folder.path)} again: it computes those, and keeps the "
                "others"
            )
        return store

    @cached_property
    def model_of_store(self) -> nn.Module:
        """The model, if it and the data are those that the store was made from.

        Raises StoreError: the model or the data have changed since.
        """
        model = self.loaded.model
        self.same_as_store(model=fingerprint(model), data=self.inputs.fingerprint)
        return model

    def same_as_store(self, **now: str) -> None:
        """Raise StoreError where fingerprints, by their names, are others than the store's."""
        if differ := differences({key: self.store.recipe.get(key) for key in now}, now):
            raise StoreError(
                f"{self.folder.store}: made from something else than the plan's: "
                f"{'; '.join(differ)}. Give that of the store again, or collect into another run "
                "folder"
            )

    def sites(
        self, patterns: Sequence[str], among: Sequence[Site], infos: Sequence[SiteInfo] = ()
    ) -> tuple[Site, ...]:
        """Return those of `among` that match the patterns; all of them without patterns.

        `infos` describe them; by default, those of the store.
        """
        if not patterns:
            return tuple(among)
        found, missing = dict[Site, None](), list[str]()
        known = {info.site: info.units for info in infos or self.store.infos}
        units = [known[site] for site in among]
        for site in find_sites(self.loaded.model, patterns):
            try:
                found[find_site(among, site, units)] = None
            except SiteError:
                missing.append(site.key)
        if missing:
            raise StoreError(
                f"{self.folder.path}: no result for {', '.join(missing[:5])}; there is "
                f"{', '.join(site.key for site in among)}"
            )
        return tuple(found)

    def modes(self, patterns: Sequence[str] = ()) -> tuple[Modes, ...]:
        """Load the fitted modes of the sites that match, but for those whose fit was left out.

        Raises StoreError: a site has none.
        """
        fitted = self.sites(self.plan.fit.sites, self.store.sites)
        chosen = self.sites(patterns, fitted)
        chosen = tuple(site for site in chosen if f"fit {site.key}" not in self.left_out)
        return tuple(self._modes(site.key) for site in chosen)

    def _modes(self, site: str) -> Modes:
        name, folder = self.plan.fit.name, self.folder.modes(site, self.plan.fit.name)
        entry = self.folder.ledger.entries.get(record_name(f"fit {site}", name))
        if entry is not None and (differ := self.differences(entry)):
            raise StoreError(f"{folder}: fit of {site}: {differ}: {self.folder.first('fit')}")
        if (found := self.folder.ledger.found(folder)) is None:
            raise StoreError(f"{folder}: no modes of {site} yet; {self.folder.first('fit')}")
        return Modes.load(found, self.store)

    def made_from(
        self, section: str = "", *keys: str, without: Collection[str] = (), **more: Any
    ) -> dict[str, Any]:
        """Return what a task is made from, in words: keys of a section of the plan, all by default.

        Keys that say for which sites something is made are no part of it. `more` are plain values;
        the version of condec comes with them.
        """
        found: dict[str, Any] = {"condec": metadata.version("condec"), **more}
        if section:
            known = self._sections.get(section, {})
            left_out = {"sites", "check_sites", *without}
            found[section] = {n: known[n] for n in keys or known if n not in left_out}
        return found

    def differences(self, entry: Entry) -> str:
        """Say in which sections of the plan a result was made from other values; else nothing."""
        return "; ".join(
            f"{section}.{key} had {json.dumps(had)}, the plan wants {json.dumps(wants[key])}"
            for section, values in entry.made_from.items()
            if (wants := self._sections.get(section)) and isinstance(values, Mapping)
            for key, had in values.items()
            if key in wants and wants[key] != had
        )

    def outdated(self, entry: Entry) -> str:
        """Say how a result differs from the plan that names it; nothing where it does not.

        Results of other learners, and of sites and links that the plan does not name, may stay.
        """
        plan, name = self.plan, self.plan.fit.name
        differ = self.differences(entry)
        if not differ or entry.link not in plan.links:
            return ""
        kind, per_site = entry.task.partition(" ")[0], entry.task.endswith(")")
        per_site = per_site and kind != "explain"  # whose tasks end in names of inputs
        options = plan.options.get(entry.link) or getattr(plan, _SECTION_OF.get(entry.link, "fit"))
        named = self.store.sites
        with suppress(SiteError):  # A preset needs the model: all are named then.
            named = match_sites(named, getattr(options, "sites", ()) or "*")
        names = {record_name(f"{kind} {site.key}", name) for site in named}
        return differ if not per_site or entry.task in names else ""

    def forget_outdated(self, link: str) -> None:
        """Remove what a link made with other options: a report would show it as the plan's."""
        for entry in list(self.folder.ledger.entries.values()):
            if entry.link == link and self.outdated(entry):
                self.folder.ledger.forget(entry.task)

    @cached_property
    def _sections(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = json.loads(json.dumps(config.sections(self.plan)))
        return found

    def say(self, text: str) -> None:
        """Print a line on standard error, where progress is shown."""
        if self.progress:
            Console(stderr=True).print(printable(text), markup=False)


_SECTION_OF: Final = {"control": "control", "map": "maps", "explain": "explain"}
"""Sections of the plan that name the sites of a link; [fit] for others."""


def record_name(task: str, learner: str = "") -> str:
    """Return the name of a task's record in the ledger of a run folder."""
    return f"{task} ({learner})" if learner else task
