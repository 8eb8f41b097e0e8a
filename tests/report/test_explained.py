"""Pages of inputs that are no pictures: signals, texts, tokens of a picture."""

import pytest
import torch
from torch import Tensor, nn

import condec
from condec.basis.npz import load_record, save_record
from condec.explanation import ExplainedInput, keep
from condec.network import PackedInput
from condec.report import build_input_page


class Signals(nn.Module):
    """Of [sample, channel, time]."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.Sequential(nn.Conv1d(2, 4, 3, 2), nn.ReLU()), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).mean(2))


class Texts(PackedInput):
    """Of [sample, token, channel], where tokens have words."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 2)

    def fixed(self, inputs: Tensor) -> None:
        return None

    def words(self, inputs: Tensor) -> list[str]:
        return ["once", " ", "<upon>", " ", "a"][: inputs.shape[1]]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).mean(1))


@pytest.mark.parametrize(
    ("kind", "shape", "said", "underlined"),
    [(Signals, (2, 40), "<path", "moments"), (Texts, (5, 3), "&lt;upon&gt;", "tokens")],
    ids=["signal", "text"],
)
def test_a_page_draws_maps_over_what_was_given(tmp_path, kind, shape, said, underlined):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind()
    x = torch.rand(20, *shape, generator=torch.Generator().manual_seed(0))
    target = condec.Logit(0)
    store = condec.collect(
        model.eval(), x, "block", out=tmp_path / "store", target=target, progress=False
    )
    fitted = condec.fit(condec.PCA(1), store.matrix("block", sign="concat"))
    modes = condec.Modes.build(fitted.dictionary, store, "block", "concat")
    found = condec.explain(model, x[:1], modes)
    kept = keep(found, "it", target.to_dict())
    again = load_record(save_record(tmp_path / "it.npz", kept), ExplainedInput)
    assert again.words == kept.words
    page = build_input_page(again, tmp_path / "page")
    assert f"Underlined: the fewest {underlined} that hold 80 % of a map" in page.read_text()
    n_parts = len(found["block"].parts)
    for name in ("given", *(f"0-{part}" for part in range(n_parts))):
        drawn = page.parent / "figures" / "maps" / f"{name}.svg"
        assert said in drawn.read_text()
        assert f"figures/maps/{name}.svg" in page.read_text()
