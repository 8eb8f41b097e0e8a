"""Exposed attention gives the numbers of torch's, and runs its projections as modules."""

import pytest
import torch
from torch import Tensor, nn

from condec.attribution import ActGrad, UnitAblation
from condec.attribution.contributions import contribute
from condec.attribution.targets import Logit
from condec.basis.errors import SiteError
from condec.edits import Ablate, edited
from condec.models import load_model
from condec.models.attention import ExposedAttention, can_be_exposed, expose_attention
from condec.models.torchvision import import_torchvision
from condec.network.sites import find_sites


def pair(*, batch_first: bool = True, bias: bool = True) -> tuple[nn.Module, nn.Module]:
    plain = nn.MultiheadAttention(8, 2, batch_first=batch_first, bias=bias).double().eval()
    for parameter in plain.parameters():
        nn.init.normal_(parameter)  # biases are zero otherwise
    return plain, expose_attention(plain)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", ["nothing", "padding", "mask", "both", "bool", "per head"])
@pytest.mark.parametrize("other", [False, True])
def test_same_numbers(need_weights: bool, batch_first: bool, masked: str, other: bool) -> None:
    plain, exposed = pair(batch_first=batch_first, bias=masked != "bool")
    assert isinstance(exposed, ExposedAttention)
    query = torch.randn(3, 5, 8, dtype=torch.float64)
    key = torch.randn(3, 5, 8, dtype=torch.float64) if other else query
    options = {"need_weights": need_weights}
    if masked in ("padding", "both"):
        options["key_padding_mask"] = torch.arange(5).expand(3, 5) >= torch.tensor([[5], [3], [4]])
    if masked in ("mask", "both"):
        options["attn_mask"] = torch.randn(5, 5, dtype=torch.float64)
    if masked == "both":
        options["key_padding_mask"] = torch.zeros(3, 5, dtype=torch.float64).masked_fill(
            options["key_padding_mask"], -torch.inf
        )
    if masked == "bool":
        options["attn_mask"] = torch.ones(5, 5, dtype=torch.bool).triu(1)
    if masked == "per head":
        options["attn_mask"] = torch.randn(6, 5, 5, dtype=torch.float64)
    if not batch_first:
        query, key = query.transpose(0, 1), (query if key is query else key).transpose(0, 1)
        key = key if other else query
    wanted, weights = plain(query, key, key, **options)
    got, mine = exposed(query, key, key, **options)
    assert torch.allclose(got, wanted, atol=1e-12)
    assert (weights is None) == (mine is None) == (not need_weights)
    if need_weights:
        assert torch.allclose(mine, weights, atol=1e-12)


def test_causal_unbatched_and_weights_of_each_head() -> None:
    plain, exposed = pair()
    x = torch.randn(5, 8, dtype=torch.float64)
    mask = torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1)
    for need in (True, False):
        wanted = plain(
            x, x, x, attn_mask=mask, is_causal=True, need_weights=need, average_attn_weights=False
        )
        got = exposed(x, x, x, is_causal=True, need_weights=need, average_attn_weights=False)
        assert torch.allclose(got[0], wanted[0], atol=1e-12)
        if need:
            assert torch.allclose(got[1], wanted[1], atol=1e-12)


def test_unusual_attention_stays() -> None:
    for unusual in (
        nn.MultiheadAttention(8, 2, add_bias_kv=True),
        nn.MultiheadAttention(8, 2, kdim=4, vdim=4),
        nn.MultiheadAttention(8, 2, add_zero_attn=True),
    ):
        assert not can_be_exposed(unusual)
        assert isinstance(expose_attention(nn.Sequential(unusual))[0], nn.MultiheadAttention)


def small_vit(**options: int) -> nn.Module:
    vit = import_torchvision().models.vision_transformer.VisionTransformer
    model = vit(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=12,
        num_classes=5, **options,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)  # its head is zero otherwise
    return model


def test_vision_transformer_of_torchvision() -> None:
    model = small_vit()
    exposed = expose_attention(model)
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(model(images), exposed(images), atol=1e-6)
    # The original is as it was, and the weights are the same in memory.
    attention = model.encoder.layers[0].self_attention
    assert isinstance(attention, nn.MultiheadAttention)
    mine = exposed.encoder.layers[0].self_attention
    assert mine.in_proj.weight is attention.in_proj_weight
    assert mine.out_proj.weight is attention.out_proj.weight
    assert sum(p.numel() for p in exposed.parameters()) == sum(
        p.numel() for p in model.parameters()
    )
    batch = contribute(exposed, images, "preset:vit_heads").reduce()
    assert [part.contribution.shape for part in batch.by_site] == [(3, 2, 2)] * 2


def test_heads_of_a_model_that_hides_them() -> None:
    model = small_vit()
    with pytest.raises(SiteError, match=r"vit_heads.*presets that fit: vit_blocks, vit_mlp_neurons"
                       r"\. Its nn.MultiheadAttention.*condec.expose_attention"):  # fmt: skip
        find_sites(model, "preset:vit_heads")
    with pytest.raises(SiteError, match=r"did not run.*condec.expose_attention"):
        contribute(model, torch.randn(1, 3, 8, 8), "encoder.layers.*.self_attention.out_proj")


def test_loaded_models_are_exposed_and_take_weights_as_they_are_published(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from safetensors.torch import save_file

    published = import_torchvision().models.vit_b_32().state_dict()
    published = {name: value + 0.01 for name, value in published.items()}
    save_file(published, tmp_path / "w.safetensors")
    model = load_model("torchvision:vit_b_32", "w.safetensors", folder=tmp_path).model
    mine = model.state_dict()
    name = "encoder.layers.encoder_layer_3.self_attention.in_proj"
    assert torch.equal(mine[f"{name}.weight"], published[f"{name}_weight"])
    assert len(find_sites(model, "preset:vit_heads")) == 12


def test_encoder_layer_of_torch_keeps_off_its_fused_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    exposed = expose_attention(model)
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        assert torch.allclose(model(x), exposed(x), atol=1e-6)
    seen = []
    exposed.layers[0].self_attn.out_proj.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        exposed(x)
    assert seen == [1]


class Padded(nn.Module):
    """Sentences of features, padded with zeros at the end; averaged over what is no padding."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        padding = (x == 0).all(-1)
        h = self.encoder(x, src_key_padding_mask=padding)
        there = ~padding[..., None]
        return self.head((h * there).sum(1) / there.sum(1))


def padded_batch() -> Tensor:
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    x[1, 3:], x[2, 1:] = 0, 0
    return x


def padded_loop(model: nn.Module, x: Tensor, heads_off: set[int] = frozenset()) -> Tensor:  # type: ignore[assignment]
    """Run the original, sentence by sentence, without its padding, head by head."""
    outputs = []
    for sentence in x:
        h = sentence[~(sentence == 0).all(-1)]
        for number, layer in enumerate(model.encoder.layers):
            attention, mixed = layer.self_attn, []
            weights, biases = attention.in_proj_weight, attention.in_proj_bias
            for head in range(2):
                q, k, v = (
                    h @ weights[8 * part + 4 * head : 8 * part + 4 * head + 4].T
                    + biases[8 * part + 4 * head : 8 * part + 4 * head + 4]
                    for part in range(3)
                )
                out = (q @ k.T / 2).softmax(-1) @ v
                mixed.append(out * 0 if number == 1 and head in heads_off else out)
            h = layer.norm1(h + attention.out_proj(torch.cat(mixed, -1)))
            h = layer.norm2(h + layer.linear2(layer.linear1(h).relu()))
        outputs.append(model.head(h.mean(0)))
    return torch.stack(outputs).detach()


@pytest.mark.parametrize("gradient", [False, True])
def test_padded_batches_of_an_encoder(gradient: bool) -> None:
    torch.manual_seed(1)
    model, x = Padded().double().eval(), padded_batch()
    exposed = expose_attention(model)
    with torch.set_grad_enabled(gradient):
        torch.testing.assert_close(exposed(x), padded_loop(model, x), rtol=1e-12, atol=1e-12)
        if gradient:  # without, torch's own packs its batch, and warns
            torch.testing.assert_close(model(x), padded_loop(model, x), rtol=1e-12, atol=1e-12)
    site = "encoder.layers.1.self_attn.out_proj:input@heads"
    off = {head: padded_loop(model, x, {head}) for head in range(2)}
    for head in range(2):
        with edited(exposed, Ablate(find_sites(exposed, site)[0], units=[head])):
            torch.testing.assert_close(exposed(x), off[head], rtol=1e-12, atol=1e-12)
    batch = contribute(exposed, x, site, target=Logit(1), method=UnitAblation()).reduce()
    wanted = torch.stack([padded_loop(model, x)[:, 1] - off[head][:, 1] for head in range(2)], 1)
    found = batch.by_site[0].contribution.sum(1)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_padded_batches_of_an_encoder_that_is_not_exposed() -> None:
    torch.manual_seed(1)
    model, x = Padded().double().eval(), padded_batch()
    with torch.no_grad():
        sites = "encoder.layers.*.linear1"
        batch = contribute(model, x, sites, target=Logit(0), method=ActGrad())
    torch.testing.assert_close(batch.output, padded_loop(model, x), rtol=1e-12, atol=1e-12)
    assert model.encoder.use_nested_tensor
