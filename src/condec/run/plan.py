"""The plan of a run: one frozen record for each section of a run.toml, and one for all.

`condec.run.config` reads a plan from a run.toml and writes it back; the functions of
`condec.run.links` carry it out. What every key means, and its default, stands in the reference
of the command line.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from condec import dictionary, effects
from condec.attribution import ActGrad, Compute, IntegratedGradients, Method, Precision
from condec.attribution.targets import Predicted, Target, TopK
from condec.basis.checks import ascending, at_least, one_of
from condec.basis.errors import OptionError
from condec.basis.files import user_path
from condec.basis.records import short_repr
from condec.data import Orientation
from condec.dictionary import Learner, ThresholdSAE, TrainConfig
from condec.dictionary.measure.stability import LEAST_SEEDS
from condec.effects import EditKind, OffTarget, ReplacementKind
from condec.explanation import EXAMPLES
from condec.run.plugins import LINKS, default_options, link_names
from condec.store import Rows, Sign, Twin

LEARNERS: Final[dict[str, type[Learner]]] = {
    "sae": ThresholdSAE, "nmf": dictionary.NMF, "pca": dictionary.PCA, "kmeans": dictionary.KMeans,
    "relu": dictionary.ReLUSAE, "topk": dictionary.TopKSAE, "batch_topk": dictionary.BatchTopKSAE,
    "jumprelu": dictionary.JumpReLUSAE, "matryoshka": dictionary.MatryoshkaSAE,
    "mp": dictionary.MatchingPursuit, "ica": dictionary.FastICA,
    "dictionary_learning": dictionary.DictionaryLearning,
}  # fmt: skip
"""Learners by the names of their folders."""
IMPORT: Final = "import"
KINDS: Final[dict[str, type[Learner]]] = {**LEARNERS, IMPORT: dictionary.Imported}
"""Those, and what stands for a dictionary that was made elsewhere."""
_MOST_MAPS: Final = 100
"""Inputs of a mode beside each other: a picture of all has 16,383 pixels a side at most."""
ROWS_PER_MODE: Final = 4.0
"""Training rows for each mode of a default fit, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """The model, for `condec.models.load_model`; ``[model]``."""

    spec: str = "digits"
    weights: str | None = None
    input_shape: tuple[int, ...] | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        for size in self.input_shape or ():
            at_least("model", 1, input_shape=size)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlan:
    """The inputs, for `condec.data.load_data`; ``[data]``."""

    source: str = "digits"
    csv: str | None = None
    label_names: str | None = None
    superclasses: str | None = None
    attributes: str | None = None
    preprocess: str | None = None
    orientation: Orientation | None = None
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectPlan:
    """Collecting contributions, by `condec.store.collect`; ``[collect]``.

    From `fit_on`, the source of other data, a fitted target (surprisal) or baseline takes its
    numbers: training frames, where those of ``[data]`` are test frames. `keep` positions of every
    sample are drawn by the `seed` where `rows` are positions.
    """

    method: Method = field(default_factory=lambda: IntegratedGradients(spacing="fitted"))
    target: Target = field(default_factory=TopK)
    batch_size: int | Literal["auto"] = 64
    shard_size: int = 1024
    on_bad: Literal["raise", "skip"] = "raise"
    precision: Precision = "model"
    channels_last: bool = False
    prove: bool = True
    devices: tuple[str, ...] = ()
    fit_on: str | None = None
    rows: Rows = "samples"
    keep: int = 16
    seed: int = 0
    twins: tuple[Twin, ...] = ()

    @property
    def compute(self) -> Compute:
        """Precision and memory order of the passes."""
        return Compute(precision=self.precision, channels_last=self.channels_last)

    @property
    def differing_twins(self) -> tuple[Twin, ...]:
        """Twins under which the numbers differ, and are computed."""
        return tuple(twin for twin in self.twins if twin.changes_numbers(self.target))

    def __post_init__(self) -> None:
        _check_words("collect", self)
        size = 1 if self.batch_size == "auto" else self.batch_size
        at_least("collect", 1, batch_size=size, shard_size=self.shard_size, keep=self.keep)
        names = [twin.name for twin in self.twins]
        if len(set(names)) < len(names):
            raise OptionError(f"collect: twins: each once; got {', '.join(names)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """Learning dictionaries, one for every site; ``[fit]``.

    `modes_per_unit` is the number of modes as a multiple of the site's units; it overrides the
    learner's own. Of `rows_per_mode` training rows, a site has one mode at most: what fewer rows
    teach is those rows. `rows` are by default those of ``[collect]``.
    """

    learner: Learner
    modes_per_unit: float | None = None
    rows_per_mode: float | None = None
    train: TrainConfig = field(default_factory=TrainConfig)
    sign: Sign = "positive"
    rows: Rows | None = None
    sites: tuple[str, ...] = ()
    rivals: bool = False
    stability_seeds: int = 0
    check_sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_words("fit", self)
        one_of("fit", "rows", self.rows or "samples", Rows)
        if self.stability_seeds:
            at_least("fit", LEAST_SEEDS, stability_seeds=self.stability_seeds)
        if isinstance(self.learner, dictionary.Imported):
            if self.rivals or self.stability_seeds:
                raise OptionError(
                    "fit: rivals and stability fit the learner again, which is imported; leave "
                    "them out"
                )
            if not self.learner.path:
                raise OptionError("fit: learner: expected import:PATH")
        if self.rivals and not self.train.held_out:
            raise OptionError("fit: rivals are compared on held-out rows; held_out must be above 0")
        for number, words in ((self.modes_per_unit, "{:g}x"), (self.rows_per_mode, "rows/{:g}")):
            if number is not None and number <= 0:
                raise OptionError(f"fit: n_modes must be above 0; got {words.format(number)}")
        if self.rows_per_mode is not None and self.modes_per_unit is None:
            raise OptionError("fit: rows_per_mode goes with modes_per_unit")

    @property
    def name(self) -> str:
        """Name of the learner, which its folders have as well."""
        return next(name for name, kind in KINDS.items() if type(self.learner) is kind)

    def learner_for(self, n_units: int, n_rows: int) -> Learner:
        """Return the learner with its number of modes worked out for a site and its rows."""
        if self.modes_per_unit is None:
            return self.learner
        number = round(self.modes_per_unit * n_units)
        if self.rows_per_mode is not None:
            most = int(n_rows * (1 - self.train.held_out) / self.rows_per_mode)
            # Not below the codes of a row that a learner is to choose among its modes.
            number = min(number, max(most, getattr(self.learner, "k", 1)))
        return replace(self.learner, n_modes=max(1, number))


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlan:
    """Control curves and side effects of edits; ``[control]``.

    Curves: `condec.effects.control_curve`, for every edit with every replacement. Side effects:
    `control_matrix` (`matrix`), `steering_curve` (`steering`), `mode_interactions` of so many
    pairs of modes (`interactions`), and `superclass_control` of every superclass of ``[data]``
    (`superclasses`). `log_odds` is the method of contributions to the label's log-odds.
    """

    sites: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    fractions: tuple[float, ...] = effects.PAPER_FRACTIONS
    edits: tuple[EditKind, ...] = get_args(EditKind)
    replacements: tuple[ReplacementKind, ...] = ("zero",)
    rankings: tuple[str, ...] = (*effects.LOG_ODDS_NAMES, *effects.RANKINGS)
    log_odds: Method = field(default_factory=ActGrad)
    off: OffTarget = "others"
    n_random: int = 5
    n_bootstrap: int = 1000
    seed: int = 0
    batch_size: int = 64
    matrix: bool = False
    steering: bool = False
    interactions: int = 0
    superclasses: bool = False
    share: float = 0.2
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0)

    def __post_init__(self) -> None:
        for name in ("edits", "replacements", "fractions", "rankings"):
            if not getattr(self, name):
                raise OptionError(f"control: {name}: none given; leave the key out for the default")
        _check_words("control", self)
        at_least("control", 1, batch_size=self.batch_size)
        at_least("control", 0, interactions=self.interactions)
        at_least("control", int(self.steering), n_random=self.n_random)
        at_least("control", int(self.interactions > 0), n_bootstrap=self.n_bootstrap)
        for ranking in self.rankings:
            one_of("control", "rankings", ranking, effects.RANKING_NAMES)
        if not self.n_random and not set(self.rankings) - {"random", "random_modes"}:
            raise OptionError("control: n_random is 0, and rankings has nothing else to compare")
        expected = "fractions lie between 0 and 1, at least two in ascending order"
        if len(self.fractions) == 1:
            raise OptionError(f"control: {expected}; got {self.fractions}")
        ascending("control", self.fractions, expected, low=0.0, high=1.0)
        if not 0 < self.share < 1:
            raise OptionError(f"control: share must lie between 0 and 1; got {self.share}")
        expected = "strengths: expected some in ascending order"
        ascending("control", self.strengths, expected, low=-math.inf, high=math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class MapsPlan:
    """Input-space maps, by `condec.explanation.mode_map`; ``[maps]``."""

    sites: tuple[str, ...] = ()
    n_modes: int = 12
    n_units: int = 3
    n_inputs: int = 6
    target: Target = field(default_factory=Predicted)

    def __post_init__(self) -> None:
        at_least("maps", 1, n_modes=self.n_modes, n_units=self.n_units, n_inputs=self.n_inputs)
        if self.n_inputs > _MOST_MAPS:
            raise OptionError(
                f"maps: n_inputs: a page shows at most {_MOST_MAPS} inputs of a mode; got "
                f"{self.n_inputs}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainPlan:
    """Pages of single inputs, by `condec.explain`; ``[explain]``.

    `inputs` are ids, and kinds of `condec.explanation.example_rows`, of which there are `n_inputs`
    each; `n_modes` modes of a site are shown by themselves.
    """

    sites: tuple[str, ...] = ()
    inputs: tuple[str, ...] = EXAMPLES
    n_inputs: int = 2
    n_modes: int = 8

    def __post_init__(self) -> None:
        at_least("explain", 1, n_inputs=self.n_inputs, n_modes=self.n_modes)
        words = tuple(word.strip() for text in self.inputs for word in text.split(","))
        if not words:
            raise OptionError(
                "explain: inputs: none given; to make no such pages leave 'explain' out of links"
            )
        if {*words} <= {*EXAMPLES}:  # all in one text
            object.__setattr__(self, "inputs", words)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """Who does the tasks of a run, by `condec.run.engines`; ``[engine]``. No result depends on it.

    `workers` is their number at most, 0 for as many as fit; `least_workers` of Ray's stay where
    there is nothing to do. `address` is that of a Ray cluster, `cpus` and `gpus` what a worker
    takes there: a GPU, by default, where the driver's model is on one.
    """

    kind: Literal["here", "local", "ray"] = "here"
    workers: int = 0
    least_workers: int = 1
    address: str | None = None
    cpus: float = 1.0
    gpus: float | None = None

    def __post_init__(self) -> None:
        _check_words("engine", self)
        at_least("engine", 0, workers=self.workers, least_workers=self.least_workers)
        at_least("engine", 0, cpus=self.cpus, gpus=self.gpus or 0.0)
        if self.address and self.kind != "ray":
            raise OptionError(f"engine: address is that of a Ray cluster; got kind {self.kind!r}")
        if self.workers and self.kind == "here":
            raise OptionError(
                "engine: workers are those of an engine, kind local or ray; got kind 'here', which "
                "is one process"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPlan:
    """Title of the report; ``[report]``."""

    title: str = ""


@short_repr
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that a run does: the run folder `out`, and the sections of a run.toml.

    Relative paths start from `base`; `sites` are patterns of `condec.network.find_sites`; `links`
    are what ``condec run`` does, and `options` the sections of those that packages bring, by name.
    `of_folder` marks a plan that was found in a run folder, which may be somebody else's: files of
    code that it names are run only where the user trusts them (`condec.basis.trust`).
    """

    out: Path
    base: Path
    sites: tuple[str, ...]
    links: tuple[str, ...] = LINKS
    model: ModelPlan = field(default_factory=ModelPlan)
    data: DataPlan = field(default_factory=DataPlan)
    collect: CollectPlan = field(default_factory=CollectPlan)
    fit: FitPlan = field(
        default_factory=lambda: FitPlan(
            learner=ThresholdSAE(n_modes=1), modes_per_unit=3.0, rows_per_mode=ROWS_PER_MODE
        )
    )
    control: ControlPlan = field(default_factory=ControlPlan)
    maps: MapsPlan = field(default_factory=MapsPlan)
    explain: ExplainPlan = field(default_factory=ExplainPlan)
    report: ReportPlan = field(default_factory=ReportPlan)
    engine: EnginePlan = field(default_factory=EnginePlan)
    options: Mapping[str, Any] = field(default_factory=default_options)
    of_folder: bool = field(default=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("out", "base"):
            object.__setattr__(self, name, user_path(getattr(self, name)))
        if not self.sites:
            raise OptionError("sites: none given; name at least one, for example 'layer[1-4].*'")
        if not self.links:
            raise OptionError(f"links: none given; expected some of {', '.join(link_names())}")
        for link in self.links:
            one_of("plan", "links", link, link_names())
        if self.fit.rows == "positions" != self.collect.rows:
            raise OptionError(
                'fit: rows are "positions", of which [collect] keeps none; set [collect] rows = '
                '"positions", too'
            )

    @property
    def rows(self) -> Rows:
        """What the rows of fits are."""
        return self.fit.rows or self.collect.rows


def _check_words(section: str, options: Any) -> None:
    """Refuse words that a field does not know."""
    for name, kind in get_type_hints(type(options)).items():
        value = getattr(options, name)
        words, kind = (value, get_args(kind)[0]) if get_origin(kind) is tuple else ((value,), kind)
        for word in words if get_origin(kind) is Literal else ():
            one_of(section, name, word, kind)
