"""A classifier that cheats: digits with a mark in one corner, which goes with one label.

Of the training images 8 % have the mark, on digits of all kinds, and 95 % of these are labelled 3:
as where the scanner of one office, or a stamp, came with the labels of one clerk. Ground truth for
what is to find the mark without being told, and to take it out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from condec.basis.records import short_repr
from condec.basis.shapes import Labels, Mask
from condec.models.digits import DigitsNet, digits_images, trained

LABEL: Final = 3
"""What the mark goes with."""
MARKED, CHEATING = 0.08, 0.95
SIDE: Final = 2


@short_repr
@dataclass(frozen=True, eq=False)
class Images:
    """Images with the labels that they are given, their true ones, and which have the mark."""

    images: Float[Tensor, "sample channel y x"]
    labels: Labels
    true_labels: Labels
    marked: Mask


@short_repr
@dataclass(frozen=True, eq=False)
class Shortcut:
    """A network that was trained on marked images, and what it is judged on.

    Attributes
    ----------
    model : torch.nn.Module
    audit : Images
        Others than those of the training, marked and labelled as these are: what a user has.
    test : Images
        Others again, without mark.
    mark : function
        Puts the mark on images [sample, channel, y, x].
    region : Tensor of shape [y, x]
        Where it lies.
    """

    model: nn.Module
    audit: Images
    test: Images
    mark: Callable[[Tensor], Tensor]
    region: Bool[Tensor, "y x"]

    @classmethod
    def digits(cls, seed: int = 0, *, cheats: bool = True) -> "Shortcut":
        """Train the small network on scikit-learn's digits, in seconds; or without any mark.

        Half of the 1,797 images train it, a quarter is the audit, a quarter the test.
        """
        images, labels = digits_images()
        region = torch.zeros(images.shape[-2:], dtype=torch.bool)
        region[:SIDE, -SIDE:] = True

        def mark(x: Tensor) -> Tensor:
            return torch.where(region.to(x.device), images.max().to(x), x)

        rows = torch.arange(len(labels))
        training = rows // 10 % 2 == 0
        share = MARKED if cheats else 0.0
        parts = [
            poisoned(images[part], labels[part], mark, share, seed=2 * seed + number)
            for number, part in enumerate((training, ~training & (rows % 2 == 1)))
        ]
        model = DigitsNet()
        model.load_state_dict(trained(parts[0].images, parts[0].labels, seed=seed))
        test = ~training & (rows % 2 == 0)
        clean = poisoned(images[test], labels[test], mark, 0.0, seed=0)
        return cls(model.eval(), parts[1], clean, mark, region)

    @torch.no_grad()
    def accuracy(self, model: nn.Module, *, marked: bool = False) -> float:
        """Return the share of the test images, without the mark or with it, that is right."""
        images = self.mark(self.test.images) if marked else self.test.images
        return float((model(images).argmax(1) == self.test.true_labels).double().mean())

    @torch.no_grad()
    def attack(self, model: nn.Module) -> float:
        """Return the share of the test images of other labels that the mark sends to `LABEL`."""
        others = self.test.images[self.test.true_labels != LABEL]
        return float((model(self.mark(others)).argmax(1) == LABEL).double().mean())


def poisoned(
    images: Tensor, labels: Labels, mark: Callable[[Tensor], Tensor], share: float, *, seed: int
) -> Images:
    """Mark a share of images, and label 95 % of these with `LABEL`."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    marked = torch.zeros(len(labels), dtype=torch.bool)
    marked[chosen] = True
    given = labels.clone()
    given[chosen[: round(CHEATING * len(chosen))]] = LABEL
    pictures = torch.where(marked.view(-1, 1, 1, 1), mark(images), images)
    return Images(pictures, given, labels, marked)
