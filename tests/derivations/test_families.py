"""Every family of the presets against plain loops: float64, tiny, random weights, two sites each.

The loop takes one sample and one point of the path at a time, cuts the network at the site by
a hook of its own, and differentiates from there on.
"""

import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condec.attribution import Constant, IntegratedGradients
from condec.attribution.contributions import contribute
from condec.attribution.targets import Logit
from condec.models.attention import expose_attention
from condec.models.language import LanguageModel
from condec.models.torchvision import import_torchvision
from condec.network.presets import PRESETS, presets_of
from condec.network.sites import Site, find_sites

STEPS = 2


def tv() -> ModuleType:
    return import_torchvision().models


def timm(name: str, **options: Any) -> nn.Module:
    import_torchvision()
    return pytest.importorskip("timm").create_model(name, num_classes=5, **options)


def hf(name: str, config: str, **options: Any) -> nn.Module:
    import_torchvision()
    library = pytest.importorskip("transformers")
    return getattr(library, name)(getattr(library, config)(num_labels=5, **options))


def mobilenet_v3() -> nn.Module:
    setting = tv().mobilenetv3.InvertedResidualConfig
    rows = [(8, 3, 8, 8, True, "RE", 2, 1), (8, 3, 16, 8, False, "HS", 1, 1)]
    blocks = [setting(*row, width_mult=1) for row in rows]
    return tv().MobileNetV3(blocks, last_channel=8, num_classes=5)


HF_VIT = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip
TIMM_VIT = {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 8, "num_heads": 2}
HF_SWIN = {
    "image_size": 16, "patch_size": 2, "embed_dim": 4, "depths": [2, 1], "num_heads": [2, 2],
    "window_size": 2,
}  # fmt: skip
TV_SWIN = {
    "patch_size": [2, 2], "embed_dim": 4, "depths": [2, 1], "num_heads": [2, 2],
    "window_size": [2, 2], "num_classes": 5,
}  # fmt: skip

VIT = ("vit_blocks", "vit_mlp_neurons", "vit_attention_channels", "vit_heads")

FAMILIES: dict[str, tuple[Callable[[], nn.Module], int, tuple[str, ...]]] = {
    "torchvision resnet": (
        lambda: tv().ResNet(tv().resnet.BasicBlock, [1, 1, 1, 1], num_classes=5), 16,
        ("resnet_blocks",),
    ),
    "timm resnet": (
        lambda: timm("resnet50", layers=(1, 1, 1, 1), channels=(4, 4, 4, 4), stem_width=4), 16,
        ("resnet_blocks",),
    ),
    "hf resnet": (
        lambda: hf("ResNetForImageClassification", "ResNetConfig", embedding_size=4,
                   hidden_sizes=[8, 8], depths=[1, 1]), 16, ("resnet_blocks",),
    ),
    "torchvision vit": (
        lambda: expose_attention(tv().VisionTransformer(8, 4, 2, 2, 8, 12, num_classes=5)), 8, VIT,
    ),
    "timm vit": (lambda: timm("vit_tiny_patch16_224", **TIMM_VIT), 8, VIT),
    "timm vit with registers": (
        lambda: timm("vit_small_patch14_reg4_dinov2", **TIMM_VIT, mlp_ratio=2), 8, VIT,
    ),
    "timm eva": (
        lambda: timm("eva02_tiny_patch14_224", **TIMM_VIT, mlp_ratio=2, swiglu_mlp=False), 8, VIT,
    ),
    "hf vit": (lambda: hf("ViTForImageClassification", "ViTConfig", **HF_VIT), 8, VIT),
    "hf deit": (lambda: hf("DeiTForImageClassification", "DeiTConfig", **HF_VIT), 8, VIT),
    "hf dinov2": (
        lambda: hf("Dinov2ForImageClassification", "Dinov2Config", **HF_VIT, mlp_ratio=2), 8, VIT,
    ),
    "hf dinov2 swiglu": (
        lambda: hf("Dinov2ForImageClassification", "Dinov2Config", **HF_VIT, mlp_ratio=2,
                   use_swiglu_ffn=True), 8, VIT,
    ),
    "hf dinov2 with registers": (
        lambda: hf("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig",
                   **HF_VIT, mlp_ratio=2, num_register_tokens=3), 8, VIT,
    ),
    "torchvision swin": (lambda: tv().SwinTransformer(**TV_SWIN), 16, ("swin_blocks",)),
    "torchvision swin v2": (
        lambda: tv().SwinTransformer(
            **TV_SWIN, block=tv().swin_transformer.SwinTransformerBlockV2,
            downsample_layer=tv().swin_transformer.PatchMergingV2,
        ), 16, ("swin_blocks",),
    ),
    "timm swin": (
        lambda: timm("swin_tiny_patch4_window7_224", img_size=16, patch_size=2, embed_dim=4,
                     depths=(2, 1), num_heads=(2, 2), window_size=2), 16, ("swin_blocks",),
    ),
    "hf swin": (
        lambda: hf("SwinForImageClassification", "SwinConfig", **HF_SWIN), 16, ("swin_blocks",),
    ),
    "torchvision convnext": (
        lambda: tv().ConvNeXt(
            [tv().convnext.CNBlockConfig(4, 8, 1), tv().convnext.CNBlockConfig(8, None, 1)],
            num_classes=5,
        ), 16, ("convnext_blocks",),
    ),
    "timm convnext": (
        lambda: timm("convnext_atto", depths=(1, 1, 1, 1), dims=(4, 4, 8, 8)), 32,
        ("convnext_blocks",),
    ),
    "hf convnext": (
        lambda: hf("ConvNextForImageClassification", "ConvNextConfig", num_stages=2,
                   hidden_sizes=[4, 8], depths=[1, 1]), 16, ("convnext_blocks",),
    ),
    "torchvision mobilenet v2": (
        lambda: tv().MobileNetV2(
            num_classes=5, width_mult=0.25, inverted_residual_setting=[[1, 16, 1, 1], [2, 16, 2, 2]]
        ), 16, ("mobilenet_blocks",),
    ),
    "torchvision mobilenet v3": (mobilenet_v3, 16, ("mobilenet_blocks",)),
    "timm mobilenet v2": (lambda: timm("mobilenetv2_035"), 16, ("mobilenet_blocks",)),
    "timm mobilenet v3": (lambda: timm("mobilenetv3_small_050"), 16, ("mobilenet_blocks",)),
    "hf mobilenet v2": (
        lambda: hf("MobileNetV2ForImageClassification", "MobileNetV2Config", depth_multiplier=0.1,
                   min_depth=4), 16, ("mobilenet_blocks",),
    ),
}  # fmt: skip

N_UNITS = {
    "vit_blocks": 8, "vit_attention_channels": 8, "vit_heads": 2, "lm_blocks": 8, "lm_heads": 2,
}  # fmt: skip

LANGUAGE = ("lm_blocks", "lm_mlp_neurons", "lm_heads")
LANGUAGE_FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "gpt2": lambda: hf("GPT2LMHeadModel", "GPT2Config", vocab_size=9, n_positions=8, n_embd=8,
                       n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1),
    "gpt neox": lambda: hf("GPTNeoXForCausalLM", "GPTNeoXConfig", vocab_size=9, hidden_size=8,
                           num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
                           bos_token_id=0, eos_token_id=1),
    "llama": lambda: hf("LlamaForCausalLM", "LlamaConfig", vocab_size=9, hidden_size=8,
                        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                        intermediate_size=12, bos_token_id=0, eos_token_id=1),
    "gemma 2": lambda: hf("Gemma2ForCausalLM", "Gemma2Config", vocab_size=9, hidden_size=8,
                          num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                          intermediate_size=12, head_dim=4, bos_token_id=0, eos_token_id=1,
                          pad_token_id=0),
}  # fmt: skip


def scattered(make: Callable[[], nn.Module]) -> nn.Module:
    """In float64 and evaluation mode, with weights and statistics that let everything happen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = make().double().eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=max(parameter[0].numel(), 1) ** -0.5)
            else:  # scales of norms, and biases
                nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.3)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def slow(model: nn.Module, x: Tensor, site: Site) -> tuple[Tensor, Tensor]:
    """sum_k (h_k - h_{k-1}) (g_k + g_{k-1}) / 2 and h, of one sample x of shape [1, ...]."""
    module = model.get_submodule(site.name)
    points: list[tuple[Tensor, Tensor]] = []
    for k in range(STEPS + 1):
        leaf: list[Tensor] = []

        def cut(h: Tensor, leaf: list[Tensor] = leaf) -> Tensor:
            leaf.append(h.detach().clone().requires_grad_())
            return leaf[0] * 1

        def on_output(_: nn.Module, args: Any, out: Any, cut: Callable[..., Tensor] = cut) -> Any:
            return (cut(out[0]), *out[1:]) if isinstance(out, tuple) else cut(out)

        def on_input(_: nn.Module, args: Any, cut: Callable[..., Tensor] = cut) -> Any:
            return (cut(args[0]), *args[1:])

        hook = (
            module.register_forward_pre_hook(on_input)
            if site.tap == "input"
            else module.register_forward_hook(on_output)
        )
        try:
            out = model(x * (k / STEPS))
        finally:
            hook.remove()
        logits = out if isinstance(out, Tensor) else out.logits
        (gradient,) = torch.autograd.grad(logits[0, 1], leaf[0])
        points.append((leaf[0].detach(), gradient))
    total = torch.zeros_like(points[0][0])
    for (before, g_before), (after, g_after) in itertools.pairwise(points):
        total = total + (after - before) * (g_after + g_before) / 2
    return total, points[-1][0]


def check(model: nn.Module, inputs: Tensor, presets: tuple[str, ...]) -> None:
    for preset in presets:
        sites = find_sites(model, f"preset:{preset}")
        assert len(sites) >= 2
        chosen = (sites[0], sites[-1])
        method = IntegratedGradients(steps=STEPS, baseline=Constant(0.0))
        batch = contribute(model, inputs, chosen, method=method, target=Logit(1))
        assert {site.key for site in batch.sites} == {site.key for site in chosen}
        for part in batch.by_site:
            whole = not PRESETS[preset].inside
            assert part.cut == whole, part.site.key
            for i in range(len(inputs)):
                total, h = slow(model, inputs[i : i + 1], part.site)
                scale = float(total.abs().max())
                assert scale > 1e-9, part.site.key
                assert torch.allclose(part.contribution[i], total[0], atol=1e-9 * scale, rtol=0)
                assert torch.allclose(part.activation[i], h[0], atol=1e-9 * float(h.abs().max()))
        n_units = {part.contribution.shape[2] for part in batch.reduce().by_site}
        if preset in N_UNITS:
            assert n_units == {N_UNITS[preset]}


@pytest.mark.parametrize("family", FAMILIES)
def test_vision_family_equals_the_loop(family: str) -> None:
    make, size, presets = FAMILIES[family]
    model = scattered(make)
    assert presets_of(model) == presets
    check(model, torch.randn(2, 3, size, size, dtype=torch.float64), presets)


@pytest.mark.filterwarnings("ignore:contributions at .* add up to more")
@pytest.mark.parametrize("family", LANGUAGE_FAMILIES)
def test_language_family_equals_the_loop(family: str) -> None:
    model = LanguageModel(scattered(LANGUAGE_FAMILIES[family]))
    assert presets_of(model) == LANGUAGE
    check(model, model.embed(torch.randint(0, 9, (2, 4))), LANGUAGE)
