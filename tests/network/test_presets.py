"""Presets fit by architecture, wherever a pattern is taken; kinds of tokens are told apart."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condec.attribution import unit_effects
from condec.attribution.contributions import contribute
from condec.attribution.targets import Logit
from condec.basis.errors import OptionError, SiteError
from condec.models import load_model
from condec.models.torchvision import import_torchvision
from condec.network.presets import PRESETS, preset_sites, presets_of
from condec.network.sites import Site, find_sites
from condec.network.units import Units
from condec.run import config
from condec.testing.models import small_resnet


def timm(name: str, **options: Any) -> nn.Module:
    import_torchvision()
    return pytest.importorskip("timm").create_model(name, **options)


VIT = {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 8, "num_heads": 2}


class BasicBlock(nn.Sequential):
    pass


class InvertedResidual(nn.Identity):
    pass


class Block(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


@pytest.mark.parametrize("wrapped", [False, True])
def test_blocks_are_found_by_class_wherever_they_are(wrapped: bool) -> None:
    # The outermost only: a block in a block is a part of it.
    model: nn.Module = nn.Sequential(nn.Identity(), BasicBlock(BasicBlock()), InvertedResidual())
    model = nn.ModuleDict({"net": model}) if wrapped else model
    start = "net." if wrapped else ""
    assert presets_of(model) == ("resnet_blocks", "mobilenet_blocks")
    assert preset_sites(model, "resnet_blocks") == (f"{start}1",)
    assert preset_sites(model, "mobilenet_blocks") == (f"{start}2",)


def test_presets_mix_with_patterns_and_take_another_layout() -> None:
    model = timm("vit_tiny_patch16_224", **VIT).eval()
    sites = find_sites(model, "preset:vit_heads, norm, preset:vit_blocks@features[patch]")
    assert [site.key for site in sites] == [
        "blocks.0@features[1:]", "blocks.0.attn.proj:input@heads(2)",
        "blocks.1@features[1:]", "blocks.1.attn.proj:input@heads(2)", "norm",
    ]  # fmt: skip
    assert find_sites(model, ["preset:vit_heads"]) == find_sites(model, "preset:vit_heads")
    assert [s.key for s in find_sites(model, "preset:vit_mlp_neurons@tokens[class]")] == [
        f"blocks.{i}.mlp.fc2:input@tokens[0:1]" for i in (0, 1)
    ]
    batch = contribute(model, torch.randn(2, 3, 8, 8), "preset:vit_heads@heads[patch]").reduce()
    assert batch.by_site[0].contribution.shape == (2, 2, 2)


def test_preset_in_a_plan() -> None:
    plan = config.from_dict({"sites": "preset:vit_blocks,norm", "model": {"spec": "timm:x"}})
    assert ",".join(plan.sites) == "preset:vit_blocks,norm"


def test_a_preset_that_does_not_fit_says_which_do() -> None:
    model = nn.Sequential(BasicBlock())
    with pytest.raises(
        SiteError,
        match=r"'vit_heads' \(attention heads\) does not fit Sequential; presets that fit: resnet",
    ):
        find_sites(model, "preset:vit_heads")
    with pytest.raises(SiteError, match="does not fit SmallResNet; no preset fits it"):
        find_sites(small_resnet(), "preset:resnet_blocks")
    with pytest.raises(OptionError, match=r"no preset 'vit_block'; .*Did you mean 'vit_blocks'"):
        find_sites(model, "preset:vit_block")
    with pytest.raises(OptionError, match="there is no preset ''; expected one of resnet_blocks"):
        find_sites(model, "preset:")


def test_block_is_a_name_that_many_take() -> None:
    mlp = Block(fc1=nn.Linear(2, 2), fc2=nn.Linear(2, 2))
    vit = nn.Sequential(Block(attn=Block(proj=nn.Linear(2, 2)), mlp=mlp))
    assert presets_of(vit) == (
        "vit_blocks", "vit_mlp_neurons", "vit_attention_channels", "vit_heads",
    )  # fmt: skip
    assert presets_of(nn.Sequential(Block(conv=nn.Linear(2, 2)))) == ()
    with pytest.raises(SiteError, match="no enclosing module says how many heads"):
        find_sites(vit, "preset:vit_heads")
    assert find_sites(vit, "preset:vit_heads@heads(1)")[0].key == "0.attn.proj:input@heads(1)"


def test_attention_of_convolutions_has_no_presets_and_no_heads() -> None:
    """Features lie on axis 1: presets counted the columns of the picture, heads cut across them."""
    parts = {"qkv": nn.Conv2d(2, 6, 1), "proj": nn.Conv2d(2, 2, 1)}
    model = nn.Sequential(Block(attn=Block(**parts), mlp=nn.Conv2d(2, 2, 1)))
    assert presets_of(model) == ()
    with pytest.raises(
        SiteError, match=r"'vit_heads'.* does not fit Sequential; no preset fits it"
    ):
        find_sites(model, "preset:vit_heads")
    wanted = r"heads are counted along the last axis, and Conv2d .* Name 0.attn.proj:input@channels"
    with pytest.raises(SiteError, match=wanted):
        find_sites(model, "0.attn.proj:input@heads(2)")
    with pytest.raises(SiteError, match=wanted):
        find_sites(model, Site("0.attn.proj", "input", Units("heads", 2)))


def test_decoders_that_attend_to_an_encoder_are_no_language_models() -> None:
    class OneDecoderLayer(Block):
        pass

    parts = {"self_attn": Block(o_proj=nn.Linear(2, 2)), "mlp": Block(down_proj=nn.Linear(2, 2))}
    alone = nn.Sequential(OneDecoderLayer(**parts))
    assert presets_of(alone) == ("lm_blocks", "lm_mlp_neurons", "lm_heads")
    other = nn.Sequential(OneDecoderLayer(**parts, encoder_attn=nn.Linear(2, 2)))
    assert presets_of(other) == ()


def test_transformers_whose_tokens_lie_in_a_plane() -> None:
    """The rank alone would take [sample, y, x, feature] for channels."""
    model = timm("samvit_base_patch16", **(VIT | {"use_rope": False})).eval()
    batch = contribute(model, torch.randn(1, 3, 8, 8), "preset:vit_blocks")
    assert batch.by_site[0].activation.shape == (1, 2, 2, 8)
    assert batch.reduce().by_site[0].contribution.shape == (1, 2, 8)


def test_every_preset_says_what_it_is() -> None:
    for name, preset in PRESETS.items():
        assert preset.about
        assert preset.blocks
        assert name.replace("_", "").isalnum()


# --- kinds of tokens ----------------------------------------------------------------------


def spans(model: nn.Module, site: str, *kinds: str) -> list[str]:
    return [find_sites(model, f"{site}@features[{k}]")[0].key.partition("[")[2] for k in kinds]


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("vit_tiny_patch16_224", {}, {"class": "0:1]", "patch": "1:]"}),
        (
            "vit_small_patch14_reg4_dinov2", {"mlp_ratio": 2},
            {"class": "0:1]", "register": "1:5]", "patch": "5:]"},
        ),
        ("eva02_tiny_patch14_224", {}, {"class": "0:1]", "patch": "1:]"}),
        ("beit_base_patch16_224", {}, {"class": "0:1]", "patch": "1:]"}),
        ("deit_tiny_distilled_patch16_224", {}, {"class": "0:2]", "patch": "2:]"}),
        (
            "vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg", "reg_tokens": 3},
            {"register": "0:3]", "patch": "3:]"},
        ),
        (
            "vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, {"patch": "0:]"},
        ),
    ],
)  # fmt: skip
def test_tokens_of_timm(name: str, options: dict[str, Any], wanted: dict[str, str]) -> None:
    model = timm(name, **(VIT | options)).eval()
    for site in ("blocks.1", "blocks.0.attn.proj:input", "norm" if hasattr(model, "norm") else ""):
        if site:
            assert spans(model, site, *wanted) == list(wanted.values())
    for kind in {"class", "register", "patch"} - wanted.keys():
        with pytest.raises(SiteError, match=f"has no {kind} token; it has {', '.join(wanted)}"):
            find_sites(model, f"blocks.0@features[{kind}]")
    # What the model itself says, and the sizes of what it computes.
    prefix = int(wanted["patch"].partition(":")[0])
    assert model.num_prefix_tokens == prefix
    with torch.no_grad():
        assert model.forward_features(torch.zeros(1, 3, 8, 8)).shape[1] == prefix + 4


def test_tokens_of_torchvision_and_hugging_face() -> None:
    vit = load_model("torchvision:vit_b_32").model
    site = "encoder.layers.encoder_layer_3"
    assert spans(vit, site, "class", "patch") == ["0:1]", "1:]"]
    library = pytest.importorskip("transformers")
    small = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 12, "image_size": 8, "patch_size": 4,
    }  # fmt: skip
    model = library.ViTModel(library.ViTConfig(**small))
    assert spans(model, "layers.0", "class", "patch") == ["0:1]", "1:]"]
    registers = library.Dinov2WithRegistersConfig(**small, num_register_tokens=3)
    model = library.Dinov2WithRegistersForImageClassification(registers)
    site = "dinov2_with_registers.encoder.layer.0"
    assert spans(model, site, "class", "register", "patch") == ["0:1]", "1:4]", "4:]"]
    teacher = library.DeiTForImageClassificationWithTeacher(library.DeiTConfig(**small))
    assert spans(teacher, "deit.layers.0", "class", "patch") == ["0:2]", "2:]"]


def test_a_class_token_that_joins_late_is_refused() -> None:
    model = timm("cait_xxs24_224", **VIT)
    with pytest.raises(SiteError, match="in Cait the class token joins the patches late"):
        find_sites(model, "blocks.0@features[patch]")
    assert find_sites(model, "blocks.0@features[0:]")


class Grouped(nn.Module):
    """Attention with 4 heads of queries, of 2 features each, and 2 heads of keys and values."""

    def __init__(self, **said: int) -> None:
        super().__init__()
        vars(self).update(said)
        self.q, self.k, self.v, self.o = (nn.Linear(8, n) for n in (8, 4, 4, 8))
        self.qkv, self.k_norm, self.each = nn.Linear(8, 16), nn.LayerNorm(4), nn.LayerNorm(2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k_norm(self.k(x)), self.v(x)
        out = []
        for head in range(4):
            its = slice(head // 2 * 2, head // 2 * 2 + 2)
            weights = q[..., 2 * head : 2 * head + 2] @ k[..., its].transpose(1, 2)
            out.append(weights.softmax(-1) @ v[..., its])
        return self.o(torch.cat(out, -1)).mean(1)


@pytest.mark.parametrize(
    "said",
    [
        {"num_heads": 4, "head_dim": 2}, {"num_heads": 4, "dim": 8},
        {"num_attention_heads": 4, "head_dim": 2},
    ],
)  # fmt: skip
def test_heads_of_keys_and_values_are_fewer(said: dict[str, int]) -> None:
    said = {"num_key_value_heads": 2} | said
    model = nn.Sequential(Grouped(**said)).double().eval()
    heads = {"0.q": 4, "0.k": 2, "0.v": 2, "0.o:input": 4, "0.k_norm": 2}
    for site, n_heads in heads.items():
        assert str(find_sites(model, f"{site}@heads")[0].units) == f"heads({n_heads})"
    with pytest.raises(SiteError, match=r"0.qkv: it makes 16 features, and Grouped has 4 \(of keys "
                       r"and values 2\) heads of 2, so .* '0.qkv@heads\(4\)'"):  # fmt: skip
        find_sites(model, "0.qkv@heads")
    with pytest.raises(SiteError, match=r"0.each: it makes 2 features"):
        find_sites(model, "0.each@heads")
    # A head of values that is taken away is taken from the queries that share it, whole.
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    found = unit_effects(model, x, find_sites(model, "0.v@heads")[0], Logit(0))
    plain = model(x)
    for head in range(2):
        with torch.no_grad():
            other = copy.deepcopy(model)
            other[0].v.weight[2 * head : 2 * head + 2] = 0
            other[0].v.bias[2 * head : 2 * head + 2] = 0
        torch.testing.assert_close(found[:, head], (plain - other(x))[:, 0].detach())


def test_heads_of_unknown_size_are_refused_where_widths_differ() -> None:
    model = nn.Sequential(Grouped(num_heads=4))
    with pytest.raises(SiteError, match=r"0.k: it makes 4 features, and Grouped has 4 heads of "
                       "unknown size"):  # fmt: skip
        find_sites(model, "0.k@heads")
    assert find_sites(model, "0.k@heads(2)")[0].units == Units("heads", 2)


def test_heads_of_grouped_queries_in_hugging_face() -> None:
    library = pytest.importorskip("transformers")
    model = library.LlamaForCausalLM(
        library.LlamaConfig(
            hidden_size=16,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=11,
        )
    )
    attention = "model.layers.0.self_attn"
    for site, n_heads in {"q_proj": 4, "k_proj": 2, "v_proj": 2, "o_proj:input": 4}.items():
        assert find_sites(model, f"{attention}.{site}@heads")[0].units == Units("heads", n_heads)
    with pytest.raises(SiteError, match=r"queries, keys and values side by side"):
        find_sites(timm("vit_tiny_patch16_224", **VIT), "blocks.0.attn.qkv@heads")


def test_layers_that_hold_their_mlp_themselves() -> None:
    """As those of OPT do: nothing there is called mlp."""
    import_torchvision()  # which mends what transformers would stumble over
    library = pytest.importorskip("transformers")
    config = library.OPTConfig(
        vocab_size=11, hidden_size=8, word_embed_proj_dim=8, ffn_dim=12, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    model = library.OPTForCausalLM(config).eval()
    assert presets_of(model) == ("lm_blocks", "lm_mlp_neurons", "lm_heads")
    keys = [site.key for site in find_sites(model, "preset:lm_mlp_neurons,preset:lm_heads")]
    layer = "model.decoder.layers.0"
    assert keys[:2] == [f"{layer}.self_attn.out_proj:input@heads(2)", f"{layer}.fc2:input"]
    assert len(keys) == 4
