"""Twins of a store: the same run under random weights or shuffled labels.

What training has done is told by the twins: a figure that an untrained network (Adebayo et al.
2018), or labels in another order, give as well is no result of it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import torch
from torch import Tensor, nn

from condec.attribution import Compute, Sites, prepare_inputs
from condec.attribution.targets import TargetLike, TopK, as_target
from condec.attribution.texts import as_method
from condec.basis.digests import differences
from condec.basis.errors import DataError, StoreError
from condec.basis.files import store_path
from condec.basis.options import Option
from condec.basis.texts import Part, Texts
from condec.data import UNLABELLED, Inputs, as_inputs, spread
from condec.data.inputs import bytes_of
from condec.network import find_sites
from condec.store.batches import fingerprint, recipe_of, usable
from condec.store.collection import collect
from condec.store.random_weights import modules_from, randomize
from condec.store.store import Store

N_ESTIMATE: Final = 256
"""Inputs on which batch normalization is estimated."""
_BATCH: Final = 64
_SAME: Final = (
    "model", "data", "n_samples", "sites", "method", "target", "reduction", "compute"
)  # fmt: skip
"""Entries of the recipe that a twin shares with the real store."""


class _Named(Option):
    __slots__ = ()

    @property
    def name(self) -> str:
        """Text form, as `TWINS` reads it."""
        return TWINS.words(self)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RandomWeights(_Named):
    """The same network with its weights drawn again, see `randomize`.

    Statistics of batch normalization are estimated on up to 256 inputs, spread over the data.
    """

    seed: int = 0
    from_module: str | None = None

    def check(self, model: nn.Module, inputs: Inputs) -> None:
        """Refuse a module that is not there: OptionError lists the nearest."""
        modules_from(model, self.from_module)

    def changes_numbers(self, target: TargetLike) -> bool:
        """Return True: contributions differ from the real ones."""
        return True


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffledLabels(_Named):
    """The same network and inputs, the labels in another order, drawn with the seed.

    Each labelled sample has the label of another one (an equal one where samples share a label);
    samples without stay without. Contributions change only where the target depends on labels.
    """

    seed: int = 0

    def check(self, model: nn.Module, inputs: Inputs) -> None:
        """Refuse data without two different labels, by a DataError."""
        self.shuffle(inputs.needed_labels(f"the twin {self.name}"))

    def changes_numbers(self, target: TargetLike) -> bool:
        """Tell whether the target depends on labels, and contributions with it."""
        return as_target(target).uses_labels

    def shuffle(self, labels: Tensor) -> Tensor:
        """Permute labels, with no labelled sample left in its place.

        DataError where there are no two different labels.

        Examples
        --------
        >>> ShuffledLabels().shuffle(torch.tensor([0, 1, 2, -1, 3])).tolist()
        [3, 2, 0, -1, 1]
        """
        rows = (labels != UNLABELLED).nonzero().flatten()
        if len(set(labels[rows].tolist())) < 2:
            raise DataError(
                f"the twin {self.name} needs two different labels or more; all {len(rows)} "
                "labelled samples have the same one"
            )
        generator = torch.Generator().manual_seed(self.seed)
        own = order = torch.arange(len(rows))
        while bool((order == own).any()):  # about e times: all such orders are equally likely
            order = torch.randperm(len(rows), generator=generator)
        shuffled = labels.clone()
        shuffled[rows] = labels[rows[order]]
        return shuffled


Twin = RandomWeights | ShuffledLabels


_SEED: Final = Part("seed", "[#SEED]", r"(?:#(\d{1,9}))?", int, lambda n: f"#{n}" if n else "")
_FROM: Final = Part(
    "from_module", "[:FROM_MODULE]", "(?::([^#]+))?", str, lambda name: f":{name}" if name else ""
)
TWINS: Final[Texts[Any]] = Texts(
    "twin",
    {RandomWeights: ("random-weights", _FROM, _SEED), ShuffledLabels: ("shuffled-labels", _SEED)},
)
"""Text forms of twins, such as ``random-weights:block3#2``."""


def collect_twin(
    twin: Twin, model: nn.Module, data: Any, sites: Sites, *,
    out: str | Path, of: Store | None = None, **options: Any,
) -> Store:  # fmt: skip
    """Collect contributions of a whole data set under a twin, into a store of its own.

    Resumes as `condec.collect` does. The recipe is that of the real store, with the twin added.

    Parameters
    ----------
    twin : RandomWeights or ShuffledLabels
    model, data, sites
        Those of the real store.
    out : path
    of : Store, optional
        The real store. Where the twin changes labels only, its numbers are copied from there
        instead of computed once more (then in shards of the same size).
    **options
        As in `condec.collect`: give those of the real store.

    Raises
    ------
    CondecError
        As in `condec.collect` and the twin's `check`; StoreError: `of` is of something else.

    Examples
    --------
    >>> import condec, tempfile
    >>> model, data = condec.load_model("digits").model, condec.load_data("digits", limit=40)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     twin = collect_twin(RandomWeights(), model, data, "block*", out=f"{folder}/twin.zarr",
    ...                         method=condec.ActGrad(), progress=False)
    ...     condec.layer_statistics(twin)["site"].tolist()
    ['block1', 'block2', 'block3', 'block4']
    """
    inputs, out = as_inputs(data), store_path(out, write=True)
    found = under(twin, model, inputs, str(options.get("on_bad", "raise")))
    if of is None or twin.changes_numbers(options.get("target") or TopK()):
        return collect(
            found.model, found.inputs, sites, out=out, recorded=found.recorded, **options
        )
    _check_real(of, model, inputs, sites, options)
    return _copied(of, found.inputs.needed_labels(twin.name), out, found.recorded)


class UnderTwin(NamedTuple):
    """What is collected under a twin, and what its recipe says besides."""

    model: nn.Module
    inputs: Inputs
    recorded: Mapping[str, Any]


def under(twin: Twin, model: nn.Module, inputs: Inputs, on_bad: str) -> UnderTwin:
    """Draw the weights of a twin, or shuffle its labels."""
    if isinstance(twin, ShuffledLabels):
        labels = twin.shuffle(inputs.needed_labels(f"the twin {twin.name}"))
        recorded = {"data": inputs.fingerprint, "twin": twin.to_dict()}
        return UnderTwin(model, replace(inputs, labels=labels), recorded)
    # Drawn on only where there is batch normalization to estimate.
    batches = _spread_batches(model, inputs, on_bad)
    drawn = randomize(model, seed=twin.seed, from_module=twin.from_module, inputs=batches)
    noted = twin.to_dict() | {"parameters": _digest(drawn)}
    return UnderTwin(drawn, inputs, {"model": fingerprint(model), "twin": noted})


def is_twin(store: Store, of: Store) -> bool:
    """Tell whether a store is a twin of another: of the same model, data, method and target."""
    same = all(store.recipe.get(key) == of.recipe.get(key) for key in _SAME)
    return same and "twin" in store.recipe


def _spread_batches(model: nn.Module, inputs: Inputs, on_bad: str) -> Iterator[Tensor]:
    """Up to `N_ESTIMATE` samples, evenly spread over the data, in batches of similar size."""
    good = [sample for _, sample in usable(inputs, spread(len(inputs), N_ESTIMATE), on_bad)]
    if good:
        for batch in torch.stack(good).tensor_split(-(-len(good) // _BATCH)):
            yield prepare_inputs(model, batch)


def _digest(model: nn.Module) -> str:
    """Hash the parameters alone."""
    # Estimated statistics may differ in their last bits with the number of threads, and a run
    # that goes on after an interruption must not be refused for that.
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode() + bytes_of(parameter))
    return digest.hexdigest()[:16]


def _check_real(
    of: Store, model: nn.Module, inputs: Inputs, sites: Sites, options: Mapping[str, Any]
) -> None:
    """Refuse to copy numbers of something else."""
    fit_on = options.get("fit_on")
    keys = [of.info(site).site.key for site in find_sites(model, sites)]  # as that store spells it
    wanted = recipe_of(
        model, inputs, sorted(keys),
        as_method("collect_twin", options.get("method"), model),
        as_target(options.get("target") or TopK()), options.get("compute") or Compute(),
        None if fit_on is None else as_inputs(fit_on),
    )  # fmt: skip
    found = {name: of.recipe[name] for name in ("fit_on", *wanted) if name in of.recipe}
    if lines := differences(found | {"sites": sorted(of.recipe.get("sites", ()))}, wanted):
        shown = "\n  ".join(lines)
        raise StoreError(
            f"{of.path} is not the real store of this twin:\n  {shown}\nGive that "
            "store, or leave `of` out to compute all numbers again."
        )


def _copied(of: Store, labels: Tensor, out: Path, recorded: Mapping[str, Any]) -> Store:
    """Write a store of the same numbers with other labels."""
    sizes = {"n_samples": of.n_samples, "shard_size": of.shard_size}
    store = Store.create(out, recipe=of.recipe | dict(recorded), sites=of.infos, **sizes)
    for index in store.missing():
        span = of.shard_rows(index)
        changed = {"inputs/label": labels[span.start : span.stop]}
        store.write_shard(index, of.read_shard(index) | changed)
    return Store.open(out)
