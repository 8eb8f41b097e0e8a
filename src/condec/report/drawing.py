"""Writes the figures and pictures of a report, and says where they are."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from condec.basis.metrics import correlation_matrix
from condec.effects import MatrixQuantity
from condec.explain import SiteMaps
from condec.modes import membership
from condec.report import figures
from condec.report.cards import ModeLine
from condec.report.reading import Fitted, RunPart, SitePart
from condec.report.side_effects import matrices
from condec.report.words import control_words, fixed

PARTS = ("total", "positive", "negative")
_HEATMAP_MODES = 400
_RANKINGS_BY_LABEL = 4
_BY_LABEL = ("log_odds_modes", "modes", "contribution_difference", "random")
"""The rankings that are drawn for every label where there are more."""
_MATRIX_QUANTITIES: Final[tuple[tuple[MatrixQuantity, str], ...]] = (
    ("accuracy", "Accuracy"),
    ("logit", "Change of the output"),
)
SQUARES_UP_TO = 64
"""Pixels a side up to which pictures are shown as squares."""


@dataclass(frozen=True)
class Drawn:
    """A figure on a page: its file from the report's folder, what it shows, and a caption."""

    file: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Tile:
    """One input with its maps.

    Attributes
    ----------
    picture : str
        File from the report's folder.
    maps : tuple of str
        Files, in the order of `PARTS`.
    id, label, prediction : str
    right : bool
        Whether the prediction is the label; True where either is not known.
    loading : str
    held_out, squares : bool
        Whether the modes were fitted without it; whether its pixels are to be seen as squares.
    """

    picture: str
    maps: tuple[str, ...]
    id: str
    label: str
    prediction: str
    right: bool
    loading: str
    held_out: bool
    squares: bool


@dataclass(frozen=True)
class Studio:
    """Draws into the folder of one report."""

    folder: Path

    def overview(self, run: RunPart) -> dict[str, list[Drawn]]:
        """Figures of the first page by section."""
        drawn: dict[str, list[Drawn]] = {"statistics": [], "completeness": [], "control": []}
        if run.statistics is not None:
            twins = {
                control_words(twin.control): twin.statistics
                for twin in run.twins
                if twin.statistics is not None
            }
            for quantity, alt in (
                ("hoyer", "Sparsity of contributions and activations over the sites"),
                ("dims95", "Dimensions of contributions and activations over the sites"),
                ("participation_ratio", "Participation ratio over the sites"),
                ("sign_correlation", "Correlation of positive and negative part over the sites"),
            ):
                figure = figures.layer_statistics_figure(run.statistics, (quantity,), twins=twins)
                drawn["statistics"].append(self.figure(figure, quantity, alt))
        complete = {s.key: s.completeness for s in run.sites if s.completeness is not None}
        if complete:
            figure = figures.completeness_figure(complete)
            alt = "Completeness of contributions at every cut"
            drawn["completeness"].append(self.figure(figure, "completeness", alt))
        if run.areas is not None:
            for (edit, replacement), rows in run.areas.groupby(["edit", "replacement"], sort=False):
                figure = figures.auc_figure(rows, edit=str(edit))
                alt = f"Selectivity over the sites: {edit}, units replaced by {replacement}"
                drawn["control"].append(
                    self.figure(figure, f"selectivity-{edit}-{replacement}", alt)
                )
        return drawn

    def control(self, site: SitePart) -> list[Drawn]:
        """Control curves of a site, and selectivity by label."""
        drawn = []
        if site.curve is not None:
            for edit, replacement in site.curve[["edit", "replacement"]].drop_duplicates().values:
                figure = figures.control_figure(site.curve, edit=edit, replacement=replacement)
                alt = f"Accuracy over the share of units, {edit}, replaced by {replacement}"
                drawn.append(self.figure(figure, f"{site.folder}-{edit}-{replacement}", alt))
        if site.areas is not None and site.areas["label"].nunique() <= 40:
            for edit in site.areas["edit"].drop_duplicates():
                rows = site.areas[site.areas["edit"] == edit]
                rows = rows[rows["replacement"] == rows["replacement"].iloc[0]]
                if rows["ranking"].nunique() > _RANKINGS_BY_LABEL:
                    rows = rows[rows["ranking"].isin(_BY_LABEL)]
                figure = figures.auc_figure(rows, edit=edit, by="label_name")
                alt = f"Selectivity for every label, {edit}"
                drawn.append(self.figure(figure, f"{site.folder}-{edit}-labels", alt))
        return drawn

    def side_effects(self, run: RunPart, site: SitePart, fitted: Fitted) -> list[Drawn]:
        """Control matrices and interactions of modes, as far as they were measured."""
        stem, drawn = f"{site.folder}-{fitted.name}", []
        for matrix in matrices(fitted.matrix, site.info.n_units):
            for quantity, what in _MATRIX_QUANTITIES:
                figure = figures.control_matrix_figure(matrix, run.hierarchy, quantity=quantity)
                name = f"{stem}-matrix-{matrix.edit}-{matrix.replacement}-{quantity}"
                alt = (
                    f"{what} of every label with every label's units edited: {matrix.edit}, "
                    f"replaced by {matrix.replacement}"
                )
                drawn.append(self.figure(figure, name, alt))
        if fitted.interactions is not None:
            alt = "Effect of ablating pairs of modes, less the sum of what each does alone"
            figure = figures.interactions_figure(fitted.interactions)
            drawn.append(self.figure(figure, f"{stem}-interactions", alt))
        return drawn

    def steering(self, site: SitePart, fitted: Fitted) -> list[Drawn]:
        """What becomes of other labels' inputs, where that was measured."""
        if fitted.steering is None:
            return []
        alt = "Inputs of other labels that become the label, over the strength of steering"
        figure = figures.steering_figure(fitted.steering)
        return [self.figure(figure, f"{site.folder}-{fitted.name}-steering", alt)]

    def fitted(
        self, run: RunPart, site: SitePart, fitted: Fitted, lines: Sequence[ModeLine]
    ) -> list[Drawn]:
        """Figures on one dictionary: modes against labels."""
        stem, drawn = f"{site.folder}-{fitted.name}", []
        if fitted.has_labels and len(fitted.modes):
            best = {"modes": fitted.correlation.max(1).values, "single units": _best_units(fitted)}
            shuffled = run.shuffled_best(fitted)
            if shuffled is not None:
                best["shuffled labels"] = shuffled
            figure = figures.correlation_histogram_figure(best)
            alt = "Highest label correlation of modes and of single units"
            drawn.append(self.figure(figure, f"{stem}-correlations", alt))
            rows = [line.row for line in lines[:_HEATMAP_MODES]]
            present = sorted({int(label) for label in run.store.labels if label >= 0})
            figure = figures.correlation_heatmap_figure(
                fitted.correlation[rows][:, present], [run.label(label) for label in present], rows
            )
            alt = "Correlation of every mode with every label"
            drawn.append(self.figure(figure, f"{stem}-labels", alt))
        return drawn

    def use(self, site: SitePart, fitted: Fitted) -> list[Drawn]:
        """How many modes are used how often, on both splits."""
        found = {"training": fitted.density("train")}
        if fitted.has_held_out:
            found["held out"] = fitted.density("held_out")
        shares = {}
        for name, density in found.items():
            shares[name] = torch.zeros(fitted.modes.n_modes)
            shares[name][fitted.modes.ids] = density
        figure = figures.density_figure(shares)
        alt = "Number of modes by the share of the inputs that use them"
        return [self.figure(figure, f"{site.folder}-{fitted.name}-density", alt)]

    def stability(self, site: SitePart, fitted: Fitted) -> list[Drawn]:
        """How well other fits find the modes, where that was measured."""
        table = fitted.stability
        if table is None or table["seed_cosine"].isna().all():
            return []
        columns = (table[key].to_numpy() for key in ("seed_cosine", "half_cosine", "chance"))
        figure = figures.stability_figure(*(torch.tensor(column) for column in columns))
        alt = "Cosine of modes with their partners in other fits, and by chance"
        return [self.figure(figure, f"{site.folder}-{fitted.name}-stability", alt)]

    def training(self, site: SitePart, fitted: Fitted) -> list[Drawn]:
        """Loss over epochs, for learners that have them."""
        training = fitted.dictionary.training
        if training is None or not training.history:
            return []
        figure = figures.training_history_figure(training.history)
        return [self.figure(figure, f"{site.folder}-{fitted.name}-training", "Loss over epochs")]

    def tiles(self, run: RunPart, site: SitePart, fitted: Fitted, place: int) -> Iterator[Tile]:
        """Pictures and maps of the inputs that use a mode most."""
        maps = fitted.maps
        if maps is None:
            return
        for number, sample in enumerate(maps.samples[place].tolist()):
            if sample < 0:
                continue
            label, prediction = int(maps.labels[sample]), int(maps.predictions[sample])
            stem = f"maps/{site.folder}/{fitted.name}/{int(maps.mode_ids[place])}-{number}"
            picture = maps.pictures[sample].numpy()
            yield Tile(
                picture=self._image(picture, "pictures/" + _digest(picture)),
                maps=tuple(self._maps(maps, place, number, picture, stem)),
                id=maps.ids[sample],
                label=run.label(label),
                prediction=run.label(prediction),
                right=label < 0 or prediction < 0 or label == prediction,
                loading=fixed(float(maps.loadings[place, number])),
                held_out=bool(maps.held_out[sample]),
                squares=max(picture.shape[:2]) <= SQUARES_UP_TO,
            )

    def _maps(
        self, maps: SiteMaps, place: int, number: int, picture: np.ndarray, stem: str
    ) -> Iterator[str]:
        drawn = figures.draw_maps([getattr(maps, part)[place, number] for part in PARTS], picture)
        for part, pixels in zip(PARTS, drawn, strict=True):
            yield self._image(pixels, f"{stem}-{part}")

    def figure(self, figure: Figure, name: str, alt: str) -> Drawn:
        """Write one figure."""
        file = f"figures/{name}.svg"
        (self.folder / "figures").mkdir(exist_ok=True)
        figures.save_figure(figure, self.folder / file)
        return Drawn(file, alt)

    def moving(self, pictures: Sequence[np.ndarray], stem: str, *, seconds: float) -> str:
        """Write pictures, uint8 [y, x, 3], as one that moves; returns the file."""
        from PIL import Image

        file = f"{stem}.png"
        (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
        first, *others = (Image.fromarray(pixels) for pixels in pictures)
        first.save(
            self.folder / file, "PNG", save_all=True, append_images=others,
            duration=1000 * seconds, loop=0,
        )  # fmt: skip
        return file

    def _image(self, pixels: np.ndarray, stem: str) -> str:
        """Small pictures without loss; large ones as JPEG, a fifth of the size."""
        from PIL import Image

        large = max(pixels.shape[:2]) > 96
        file = f"{stem}.{'jpg' if large else 'png'}"
        path = self.folder / file
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()
            options = {"quality": 88, "subsampling": 0} if large else {}
            Image.fromarray(pixels).save(content, "JPEG" if large else "PNG", **options)
            path.write_bytes(content.getvalue())
        return file


def _best_units(fitted: Fitted) -> Tensor:
    """Highest label correlation of every single column of the matrix, on training rows."""
    modes = fitted.modes
    rows = ~modes.held_out & (modes.store.labels >= 0)
    member = membership(modes.store.labels)[rows]
    return correlation_matrix(modes.matrix()[rows], member).max(1).values


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]
