"""Maps of texts: the tokens of the inputs that use a mode most, and what it contributes at each."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import condec
from condec.attribution.baselines import Samples
from condec.basis.errors import DataError
from condec.data import as_inputs
from condec.explanation import SiteMaps, explain, site_maps
from condec.modes import Modes
from condec.network import PackedInput
from condec.report.drawing import tokens_of

N, LENGTH = 12, 5


class Reader(PackedInput):
    """Sums what it makes of every token; a token of zeros is padding."""

    def __init__(self, speaks: bool = True) -> None:
        super().__init__()
        self.speaks = speaks
        torch.manual_seed(0)
        self.first = nn.Linear(3, 6, bias=False)
        self.last = nn.Linear(6, 4)

    def fixed(self, inputs: Tensor) -> Tensor | None:
        return None

    def real(self, inputs: Tensor) -> Tensor | None:
        return inputs.any(-1)

    def words(self, inputs: Tensor) -> list[str] | None:
        real = self.real(inputs)
        assert real is not None
        return ["ab"[i % 2] if r else "" for i, r in enumerate(real[0])] if self.speaks else None

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu().sum(1))


def read(rows: condec.store.Rows, folder: Path, speaks: bool = True) -> tuple:
    gen = torch.Generator().manual_seed(2)
    texts = torch.randn(N, LENGTH, 3, generator=gen)
    texts[::2, 0] = 0
    inputs = as_inputs(TensorDataset(texts, torch.arange(N) % 4))
    model = Reader(speaks).eval()
    baseline = Samples(n_samples=2).fit(inputs)
    method = condec.IntegratedGradients(steps=4, baseline=baseline)
    store = condec.collect(model, inputs, "first", out=folder / "store", method=method,
                           target=condec.Label(), rows=rows, progress=False)  # fmt: skip
    found = condec.fit(condec.NMF(3), store.matrix("first", sign="positive")).dictionary
    return model, inputs, Modes.build(found, store, "first", sign="positive"), method


@pytest.mark.parametrize("rows", ["samples", "positions"])
def test_texts_with_what_a_mode_contributes_at_each_token(
    rows: condec.store.Rows, tmp_path: Path
) -> None:
    model, inputs, modes, method = read(rows, tmp_path)
    maps = site_maps(model, inputs, modes, n_modes=2, n_inputs=3, method=method)
    assert maps.pictures.shape[1:] == (0, 0, 3)
    assert maps.places is not None
    assert maps.places.shape == (2, 3, LENGTH)

    def contributed(sample: int, mode: int) -> Tensor:
        row = int(maps.ids[sample])
        said = explain(model, inputs.batch([row]), modes, method=method,
                       target=condec.Label(), label=int(inputs.labels[row]), n_modes=9)  # fmt: skip
        own = [part for part in said.by_site[0].modes if part.id == mode]
        return own[0].places.float() if own else torch.zeros(LENGTH)

    for place, mode in enumerate(maps.mode_ids.tolist()):
        for number, sample in enumerate(maps.samples[place].tolist()):
            row = int(maps.ids[sample])
            words = tuple("" if row % 2 == 0 and i == 0 else "ab"[i % 2] for i in range(LENGTH))
            assert maps.texts[sample] == words
            torch.testing.assert_close(maps.places[place, number], contributed(sample, mode))
        others = maps.others[place].flatten().tolist()
        for sample, values in zip(others, maps.of_others[place].flatten(0, 1), strict=True):
            expected = contributed(sample, mode) if sample >= 0 else torch.zeros(LENGTH)
            torch.testing.assert_close(values, expected)
    assert (maps.others >= 0).any()
    first = int(maps.samples[0, 0])
    shown = tokens_of(maps, 0, 0, maps.texts[first])
    assert [word for word, _, _ in shown] == [word for word in maps.texts[first] if word]
    values = [float(value) for value in maps.places[0, 0] if maps.texts[first]]
    assert all(colour.startswith("rgba(") for _, colour, _ in shown)
    strongest = max(range(LENGTH), key=lambda i: abs(values[i]))
    skipped = maps.texts[first][:strongest].count("")
    opaque = [float(colour.rsplit(",", 1)[1][:-1]) for _, colour, _ in shown]
    assert opaque[strongest - skipped] == max(opaque) > 0


def test_texts_without_a_tokenizer_are_refused(tmp_path: Path) -> None:
    model, inputs, modes, method = read("samples", tmp_path, speaks=False)
    with pytest.raises(DataError, match=r"is no picture"):
        site_maps(model, inputs, modes, method=method)


def test_maps_of_pictures_have_no_texts() -> None:
    assert SiteMaps.__dataclass_fields__["texts"].default == ()
