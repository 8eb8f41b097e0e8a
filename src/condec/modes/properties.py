"""What samples may have in common: labels, superclasses, several labels at once, attributes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from condec.basis.errors import DataError
from condec.basis.records import short_repr
from condec.basis.shapes import Labels, Mask
from condec.modes.hierarchy import Hierarchy
from condec.modes.labels import check_any, label_name

if TYPE_CHECKING:
    import pandas

LEAST_SAMPLES: Final = 2
"""Samples that must have a property, and lack it, for it to be looked at."""
FEW_VALUES: Final = 12
"""Different numbers up to which an attribute of numbers is taken as one of kinds."""
_QUARTERS: Final = ("lowest quarter", "second quarter", "third quarter", "highest quarter")


@short_repr
@dataclass(frozen=True, eq=False)
class Properties:
    """Properties of samples, and which of these have them.

    Attributes
    ----------
    member : scipy.sparse.csr_array of shape [known sample, property]
        1 where a sample has a property.
    known : Tensor of shape [sample], bool
        Samples of which this is known; the others take no part.
    kinds, names : tuple of str
        ``label``, ``superclass`` or ``attribute``, and the name that is shown, of every property.
    numbers : tuple of int
        Number of a label; -1 of others.
    """

    member: Any
    known: Mask
    kinds: tuple[str, ...]
    names: tuple[str, ...]
    numbers: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    @staticmethod
    def of_labels(
        labels: Labels, label_names: Sequence[str] | None = None, hierarchy: Hierarchy | None = None
    ) -> "Properties":
        """Take labels, [sample], -1 for none, and the superclasses that they belong to.

        Labels no sample has are left out, and superclasses of one such label, which are that label.
        DataError where no sample has a label.
        """
        from scipy import sparse

        check_any(labels)
        known = labels >= 0
        present, place = np.unique(labels[known].numpy(), return_inverse=True)
        ones = np.ones(len(place), dtype=np.float32)
        one_hot = sparse.csr_array((ones, place, np.arange(len(place) + 1)))
        present = present.tolist()
        names = [label_name(label_names, label) for label in present]
        kinds, numbers = ["label"] * len(present), list(present)
        if hierarchy is not None:
            above = [hierarchy.above(label) for label in present]
            groups = [n for n in hierarchy.names if sum(n in names for names in above) > 1]
            table = np.array([[group in of for group in groups] for of in above], dtype=np.float32)
            table = table.reshape(len(present), len(groups))
            one_hot = sparse.hstack([one_hot, one_hot @ sparse.csr_array(table)], format="csr")
            names += groups
            kinds += ["superclass"] * len(groups)
            numbers += [-1] * len(groups)
        return Properties(one_hot, known, tuple(kinds), tuple(names), tuple(numbers))

    @staticmethod
    def of_matrix(
        member: Tensor | np.ndarray, names: Sequence[str], kind: str = "label"
    ) -> "Properties":
        """Take a matrix [sample, property] of 0 and 1: of samples that have several labels.

        DataError where its shape does not fit the names, or it holds other numbers.
        """
        from scipy import sparse

        found = member if isinstance(member, Tensor) else torch.from_numpy(np.array(member))
        if found.ndim != 2 or found.shape[1] != len(names):
            raise DataError(
                f"properties: expected a matrix [sample, {len(names)}], a column a name; got shape "
                f"{tuple(found.shape)}"
            )
        if not bool(((found == 0) | (found == 1)).all()):
            raise DataError("properties: expected 0 and 1, whether a sample has a property")
        n_samples, numbers = len(found), range(len(names)) if kind == "label" else [-1] * len(names)
        known = torch.ones(n_samples, dtype=torch.bool)
        kinds = (kind,) * len(names)
        one_hot = sparse.csr_array(found.numpy().astype(np.float32))
        return Properties(one_hot, known, kinds, tuple(names), tuple(numbers))

    @staticmethod
    def of_table(table: "pandas.DataFrame") -> "tuple[Properties, ...]":
        """Take attributes, a column each, as `condec.data.read_attributes` reads them.

        A column of words, or of few different numbers, has a property for every value; one of more
        numbers has its quarters: equal numbers go together, by their mean rank, and the lowest is
        of the lowest quarter, the highest of the highest, however many samples have it. Samples
        without a value take no part in that column; a value that only one sample has (a caption, an
        id) is no property.
        """
        import pandas
        from scipy import sparse

        found = []
        for name, column in table.items():
            known = column.notna().to_numpy()
            values = column[known]
            numeric = pandas.api.types.is_numeric_dtype(values) and values.dtype != bool
            if numeric and values.nunique() > FEW_VALUES:
                ranks = values.rank(pct=True, method="average")
                place = np.minimum((np.ceil(ranks * 4) - 1).astype(int), 3)
                place = place.mask(values == values.min(), 0).mask(values == values.max(), 3)
                values = place.map(dict(enumerate(_QUARTERS)))
            rows = np.flatnonzero(values.duplicated(keep=False))
            kinds = values.iloc[rows].astype("category").cat.remove_unused_categories().cat
            if n := len(kinds.categories):
                ones = np.ones(len(rows), dtype=np.float32)
                member = sparse.csr_array((ones, (rows, kinds.codes)), shape=(len(values), n))
                names = tuple(f"{name}: {value}" for value in kinds.categories)
                of = torch.from_numpy(known.copy())
                found.append(Properties(member, of, ("attribute",) * n, names, (-1,) * n))
        return tuple(found)

    def of(self, rows: Mask) -> "Properties":
        """Return the same of some samples only, [sample]; the others are as if unknown."""
        if len(rows) != len(self.known):
            raise DataError(
                f"properties: of {len(self.known)} samples; the loadings are of {len(rows)}"
            )
        kept = rows[self.known].numpy()
        return replace(self, member=self.member[kept], known=self.known & rows)

    def shuffled(self, seed: int = 0) -> "Properties":
        """Return the same with samples exchanged: every property has as many, at random.

        Labels and their superclasses move together. Statistics of these are what chance gives.
        """
        order = np.random.default_rng(seed).permutation(self.member.shape[0])
        return replace(self, member=self.member[order])

    def counts(self) -> np.ndarray:
        """Return how many samples have every property, [property]."""
        return np.asarray(self.member.sum(0)).astype(np.int64)

    def enough(self) -> np.ndarray:
        """Tell which properties two samples have, and two lack, [property]."""
        counts = self.counts()
        found: np.ndarray = np.minimum(counts, self.member.shape[0] - counts) >= LEAST_SAMPLES
        return found

    def chosen(self, which: np.ndarray) -> "Properties":
        """Return some of the properties, by a mask [property]."""
        places = np.flatnonzero(which)
        words: dict[str, Any] = {
            name: tuple(getattr(self, name)[place] for place in places)
            for name in ("kinds", "names", "numbers")
        }
        return replace(self, member=self.member[:, places], **words)
