"""The families of the conformance run, a row each: the model, its inputs, what is special.

Models have random weights, and are the smallest of their family at the smallest input that works.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from condec.models.language import LanguageModel
from condec.models.torchvision import import_torchvision
from family import (
    FEW,
    Family,
    Through,
    boxes_in_plain_torch,
    changed,
    hf,
    pool_of_any_size,
    seen,
    small_head,
    timm,
    tv,
)

# --- torchvision ------------------------------------------------------------------------------

_QUIET = {"init_weights": False}
TORCHVISION = {
    name: Family(tv(name, **FEW, **options), (3, size, size))
    for name, size, options in [
        ("convnext_tiny", 32, {}), ("densenet121", 32, {}),
        ("efficientnet_b0", 32, {}), ("efficientnet_v2_s", 32, {}),
        ("googlenet", 64, {**_QUIET, "aux_logits": False}),
        ("inception_v3", 75, {**_QUIET, "aux_logits": False}),
        ("mnasnet0_5", 32, {}), ("mobilenet_v2", 32, {}), ("mobilenet_v3_small", 32, {}),
        ("regnet_x_400mf", 32, {}), ("regnet_y_400mf", 32, {}), ("resnet18", 32, {}),
        ("resnext50_32x4d", 32, {}),
        ("squeezenet1_1", 64, {}),
    ]
}  # fmt: skip
_TV_SWIN = {"patch_size": [4, 4], "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2], **FEW}
TORCHVISION |= {
    "alexnet": Family(changed(tv("alexnet", **FEW), small_head), (3, 63, 63)),
    "vgg11": Family(changed(tv("vgg11", **FEW, **_QUIET), small_head)),
    "ssdlite320": Family(
        changed(tv("detection.ssdlite320_mobilenet_v3_large", **FEW, weights_backbone=None),
                boxes_in_plain_torch),
        (3, 64, 64), sites="backbone.features.0", refused="returned list without a tensor",
        note="a list of boxes, as many as it finds: no output of a sample",
    ),
    "maxvit": Family(
        tv("MaxVit", input_size=(32, 32), stem_channels=16, partition_size=2,
           block_channels=[16, 32], block_layers=[1, 1], head_dim=8, stochastic_depth_prob=0,
           **FEW)
    ),
    "shufflenet_v2_x0_5": Family(
        tv("shufflenet_v2_x0_5", **FEW), sites="stage[2-4].1@channels",
        note="blocks split their channels: the layout must be named",
    ),
    "swin_t": Family(tv("SwinTransformer", window_size=[4, 4], **_TV_SWIN), last=True),
    "vit": Family(tv("VisionTransformer", image_size=32, patch_size=16, num_layers=3, num_heads=2,
                     hidden_dim=32, mlp_dim=64, **FEW)),
}  # fmt: skip

# --- timm ---------------------------------------------------------------------------------------

_ANY_SIZE = """
repvgg_a0 mobileone_s0 regnetz_b16 convmixer_768_32 convnext_atto convnextv2_atto cs3darknet_s
cspresnet50 densenet121 dla46_c dpn68 efficientnet_b0 mnasnet_small mobilenetv2_035
efficientvit_b0 efficientvit_m0 fasternet_t0 ghostnet_050 hardcorenas_a hgnetv2_b0
hrnet_w18_small inception_next_atto mambaout_femto poolformer_s12 convformer_s18
mobilenetv3_small_050 lcnet_035 mobilenetv4_conv_small_035 nf_regnet_b0 nf_resnet26 pvt_v2_b0
regnetx_002 regnety_002 repghostnet_050 repvit_m0_9 res2net50_14w_8s resnest14d resnet10t
seresnet18 ecaresnet26t resnetv2_18 resnetv2_50x1_bit rexnet_100 selecsls42 legacy_seresnet18
skresnet18 starnet_s050 tresnet_m vovnet39a ese_vovnet19b_slim xception41
swiftformer_xs cspnext_tiny lcnetv2_small lowformer_b0 cpubone_nano shvit_s1 efficientvim_m1
iformer_t nextvit_small
"""
_SIZES = {
    "vgg11": 32, "ghostnetv2_100": 64, "ghostnetv3_050": 64, "edgenext_xx_small": 64,
    "mobilevit_xxs": 64, "csatv2": 64, "efficientformer_l1": 224,
    "mobilevitv2_050": 64, "fastvit_t8": 64, "tiny_vit_5m_224": 64,
    "davit_tiny": 32, "focalnet_tiny_srf": 32,
    "rdnet_tiny": 32, "inception_v3": 96, "inception_v4": 96, "inception_resnet_v2": 96,
    "legacy_xception": 64, "sequencer2d_s": 32,
}  # fmt: skip
_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 2, "depth": 3}
_GIVEN = {
    "beit_base_patch16_224": _VIT, "deit_tiny_patch16_224": _VIT, "deit3_small_patch16_224": _VIT,
    "deit_tiny_distilled_patch16_224": _VIT, "eva02_tiny_patch14_224": _VIT,
    "cait_xxs24_224": _VIT, "convit_tiny": _VIT | {"local_up_to_layer": 2},
    "vit_tiny_patch16_224": _VIT, "vit_relpos_small_patch16_224": _VIT,
    "samvit_base_patch16_224": _VIT, "xcit_nano_12_p16_224": _VIT | {"patch_size": 16},
    "vit_pe_core_tiny_patch16_384": _VIT, "vit_small_patch14_reg4_dinov2": _VIT,
    "mixer_s32_224": {"img_size": 32},
    "resmlp_12_224": {"img_size": 32},
    "gmlp_ti16_224": {"img_size": 32},
    "naflexvit_base_patch16_gap": {"img_size": 32, "embed_dim": 24, "num_heads": 2, "depth": 3},
    "coat_lite_tiny": {"img_size": 32}, "coat_tiny": {"img_size": 32},
    "levit_128s": {"img_size": 64},
    "mvitv2_tiny": {"img_size": 32}, "pit_ti_224": {"img_size": 64},
    "nest_tiny": {"img_size": 32}, "visformer_tiny": {"img_size": 32},
    "efficientformerv2_s0": {"img_size": 64},
    "twins_pcpvt_small": {"img_size": 32}, "twins_svt_small": {"img_size": 32},
    "vit_tiny_r_s16_p8_224": {"img_size": 64},
    "hiera_tiny_224": {"img_size": 64},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "window_size": 4, "embed_dim": 24,
                                     "depths": (2, 2), "num_heads": (2, 2)},
    "swinv2_tiny_window8_256": {"img_size": 32, "window_size": 4, "embed_dim": 24,
                                "depths": (2, 2), "num_heads": (2, 2)},
    "swinv2_cr_tiny_224": {"img_size": 32, "window_size": 4, "embed_dim": 24,
                           "depths": (2, 2), "num_heads": (2, 2)},
    "gcvit_xxtiny": {"img_size": 64, "window_size": (2, 2, 2, 1)},
    "coatnet_pico_rw_224": {"img_size": 64}, "maxvit_pico_rw_256": {"img_size": 64},
    "tnt_s_patch16_224": {"img_size": 32, "depth": 3},
    "botnet26t_256": {"img_size": 64},
    "lambda_resnet26t": {"img_size": 64},
    "volo_d1_224": {"img_size": 64},
    "vitamin_small_224": {"img_size": 64},
}  # fmt: skip
TIMM = {
    name: Family(timm(name), (3, size, size))
    for name, size in (dict.fromkeys(_ANY_SIZE.split(), 32) | _SIZES).items()
}
TIMM |= {
    name: Family(timm(name, **options), (3, options["img_size"], options["img_size"]))
    for name, options in _GIVEN.items()
}
TIMM |= {
    name: replace(family, last=True)
    for name, family in TIMM.items()
    if name.startswith(("swin_", "swinv2", "mambaout", "sequencer", "samvit", "volo"))
}
TIMM["csatv2"] = replace(TIMM["csatv2"], sites="stages.*")
TIMM["halonet26t"] = Family(
    timm("halonet26t", self_attn_kwargs={"block_size": 2, "halo_size": 1}), (3, 64, 64)
)
TIMM["crossvit_tiny_240"] = Family(timm("crossvit_tiny_240"), (3, 240, 240))

# --- Hugging Face: pictures, text, sound, video ---------------------------------------------------

_SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
          "intermediate_size": 24}  # fmt: skip
_HF_VIT = {"image_size": 16, "patch_size": 4, **_SMALL}
_HF_SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 1],
            "num_heads": [2, 2], "window_size": 2}  # fmt: skip
_PVT = {"image_size": 32, "num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [8, 16],
        "patch_sizes": [4, 2], "strides": [4, 2], "num_attention_heads": [1, 2],
        "mlp_ratios": [2, 2]}  # fmt: skip
HUGGINGFACE = {
    "vit": seen("ViTConfig", 16, **_HF_VIT),
    "deit": seen("DeiTConfig", 16, **_HF_VIT),
    "beit": seen("BeitConfig", 16, **_HF_VIT, use_relative_position_bias=True),
    "dinov2": seen("Dinov2Config", 16, **_HF_VIT, mlp_ratio=2),
    "ijepa": seen("IJepaConfig", 16, **_HF_VIT),
    "siglip": seen("SiglipConfig", 16, vision_config=_HF_VIT, text_config=_SMALL),
    "swin": seen("SwinConfig", 16, **_HF_SWIN),
    "swinv2": seen("Swinv2Config", 16, **_HF_SWIN),
    "focalnet": seen("FocalNetConfig", 16, image_size=16, patch_size=2, embed_dim=8,
                     hidden_sizes=[8, 16], depths=[1, 1], focal_levels=[2, 2],
                     focal_windows=[3, 3]),
    "convnext": seen("ConvNextConfig", num_stages=2, hidden_sizes=[8, 16], depths=[2, 1]),
    "convnextv2": seen("ConvNextV2Config", num_stages=2, hidden_sizes=[8, 16], depths=[2, 1]),
    "resnet": seen("ResNetConfig", embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1]),
    "regnet": seen("RegNetConfig", embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1],
                   groups_width=4),
    "mobilenet_v1": seen("MobileNetV1Config", depth_multiplier=0.25),
    "mobilenet_v2": seen("MobileNetV2Config", depth_multiplier=0.25),
    "mobilevit": seen("MobileViTConfig", 64, image_size=64, initializer_range=0.2,
                      hidden_sizes=[16, 16, 24], neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 24]),
    "levit": seen("LevitConfig", 64, image_size=64, hidden_sizes=[16, 24, 32],
                  num_attention_heads=[2, 2, 2], depths=[1, 1, 1], key_dim=[4, 4, 4]),
    "pvt": seen("PvtConfig", **_PVT, sequence_reduction_ratios=[2, 1]),
    "pvt_v2": seen("PvtV2Config", **_PVT, sr_ratios=[2, 1]),
    "poolformer": seen("PoolFormerConfig", num_encoder_blocks=2, depths=[1, 1],
                       hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2], padding=[2, 1]),
    "segformer": seen("SegformerConfig", num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1],
                      hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
                      num_attention_heads=[1, 2], mlp_ratios=[2, 2]),
    "hiera": seen("HieraConfig", 64, image_size=[64, 64], embed_dim=8, depths=[1, 1, 1],
                  num_heads=[1, 2, 2], num_query_pool=2, masked_unit_size=[4, 4],
                  masked_unit_attention=[True, True, False]),
    "vit_mae": Family(
        hf("ViTMAEModel", "ViTMAEConfig", **_HF_VIT), (3, 16, 16), sites="layers.*",
        index=(1, 1),
        refused="same inputs give the same", note="masks patches at random in every pass",
    ),
}  # fmt: skip


def _embedded(model: nn.Module) -> nn.Module:
    return Through(model, lambda inside, x: inside(inputs_embeds=x))


def text(config: str, blocks: str, **options: Any) -> Family:
    name = config.removesuffix("Config") + "ForSequenceClassification"
    make = hf(name, config, vocab_size=20, max_position_embeddings=12, **options)
    return Family(lambda: _embedded(make()), (6, 16), sites=blocks)


TEXT = {
    "bert": text("BertConfig", "**.encoder.layer.*.output", **_SMALL),
    "roberta": text("RobertaConfig", "**.encoder.layer.*.output.dense:input", **_SMALL),
    "distilbert": text("DistilBertConfig", "**.layer.*.ffn", dim=16, hidden_dim=24, n_layers=3,
                       n_heads=2),
    "electra": text("ElectraConfig", "**.encoder.layer.*", embedding_size=16, **_SMALL),
    "deberta v2": text("DebertaV2Config", "**.encoder.layer.*", **_SMALL),
}  # fmt: skip
SOUND = {
    "wav2vec2": Family(
        hf("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", **_SMALL, conv_dim=[8, 8, 8],
           conv_stride=[5, 2, 2], conv_kernel=[10, 3, 3], num_feat_extract_layers=3,
           num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, classifier_proj_size=8),
        (400,), sites="**.feature_extractor.conv_layers.1.conv,wav2vec2.encoder.layers.[02]",
    ),
    "hubert": Family(
        hf("HubertForSequenceClassification", "HubertConfig", **_SMALL, conv_dim=[8, 8, 8],
           conv_stride=[5, 2, 2], conv_kernel=[10, 3, 3], num_feat_extract_layers=3,
           num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, classifier_proj_size=8,
           feat_extract_norm="layer"),
        (400,), sites="**.feature_extractor.conv_layers.1.conv,hubert.encoder.layers.[02]",
    ),
    "audio spectrogram transformer": Family(
        hf("ASTForAudioClassification", "ASTConfig", **_SMALL, patch_size=4, frequency_stride=4,
           time_stride=4, max_length=16, num_mel_bins=8), (16, 8),
    ),
    "whisper": Family(
        hf("WhisperForAudioClassification", "WhisperConfig", d_model=16, encoder_layers=3,
           encoder_attention_heads=2, encoder_ffn_dim=24, decoder_layers=1, num_mel_bins=8,
           decoder_attention_heads=2, max_source_positions=8, classifier_proj_size=8,
           vocab_size=20, pad_token_id=0, bos_token_id=1, eos_token_id=2,
           decoder_start_token_id=1), (8, 16), sites="encoder.conv1,encoder.layers.*.fc2:input",
    ),
    "1-D convolutions": Family(
        lambda: nn.Sequential(
            nn.Conv1d(1, 8, 9, 4), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(8, 16, 3), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Conv1d(16, 12, 3),
            nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(12, 5),
        ), (1, 128), sites="1,4,7",
    ),
}  # fmt: skip


def _mvit() -> nn.Module:
    video = import_torchvision().models.video.mvit
    kernels = {"kernel_q": [3] * 3, "kernel_kv": [3] * 3}
    strides = {"stride_q": [1, 1, 1], "stride_kv": [1, 2, 2]}
    sizes: Any = {"num_heads": 2, "input_channels": 8, "output_channels": 8, **kernels, **strides}
    ways = {"residual_pool": True, "residual_with_cls_embed": False, "proj_after_attn": True}
    blocks = [video.MSBlockConfig(**sizes)] * 3
    return video.MViT((16, 16), 4, blocks, rel_pos_embed=True, **ways, **FEW)


_FRAMES = {"image_size": 8, "patch_size": 4, "num_frames": 4, **_SMALL}
VIDEO = {
    "r3d_18": Family(tv("video.r3d_18", **FEW), (3, 4, 16, 16)),
    "mc3_18": Family(tv("video.mc3_18", **FEW), (3, 4, 16, 16)),
    "r2plus1d_18": Family(tv("video.r2plus1d_18", **FEW), (3, 4, 16, 16)),
    "s3d": Family(changed(tv("video.s3d", **FEW), pool_of_any_size), (3, 8, 32, 32)),
    "mvit": Family(_mvit, (3, 4, 16, 16), sites="blocks.*"),
    "swin3d": Family(
        tv("video.SwinTransformer3d", patch_size=[2, 4, 4], embed_dim=8,
           depths=[2, 2], num_heads=[2, 2], window_size=[2, 4, 4], **FEW), (3, 4, 32, 32),
        sites="features.[0-2]@features", last=True,
    ),
    "videomae": Family(hf("VideoMAEForVideoClassification", "VideoMAEConfig", **_FRAMES),
                       (4, 3, 8, 8)),
    "timesformer": Family(hf("TimesformerForVideoClassification", "TimesformerConfig", **_FRAMES),
                          (4, 3, 8, 8)),
    "vivit": Family(
        hf("VivitForVideoClassification", "VivitConfig",
           **_FRAMES | {"patch_size": 16, "tubelet_size": [2, 4, 4]}), (4, 3, 8, 8)),
}  # fmt: skip
SEGMENTATION = {
    name: Family(
        tv(f"segmentation.{name}", **FEW, weights_backbone=None), (3, 64, 64), index=(1, 8, 8),
    )
    for name in ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
} | {
    "segformer": Family(
        hf("SegformerForSemanticSegmentation", "SegformerConfig", num_encoder_blocks=2,
           depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3],
           strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8),
        index=(1, 2, 2),
    ),
}  # fmt: skip

# --- recurrent and others of torch ----------------------------------------------------------------


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones; the last time point is read."""

    def __init__(self, kind: type[nn.RNNBase], *, batch_first: bool = True) -> None:
        super().__init__()
        self.inward, self.head = nn.Linear(6, 8), nn.Linear(10, 5)
        self.middle = kind(8, 10, 2, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        if self.middle.batch_first:
            return self.head(self.middle(x)[0][:, -1])
        return self.head(self.middle(x.transpose(0, 1))[0][-1])


class Encoder(nn.Module):
    """The transformer encoder of torch, without the shortcut that no module takes part in."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)[:, 0])


RECURRENT = {
    "LSTM": Family(lambda: Recurrent(nn.LSTM), (7, 6), sites="inward,middle,head:input"),
    "GRU": Family(lambda: Recurrent(nn.GRU), (7, 6), sites="inward,middle,head:input"),
    "RNN": Family(lambda: Recurrent(nn.RNN), (7, 6), sites="inward,middle,head:input"),
    "LSTM, time first": Family(
        lambda: Recurrent(nn.LSTM, batch_first=False),
        (7, 6),
        sites="middle",
        refused="shape|axis",
        note="the first axis at the site is time",
    ),
    "transformer encoder": Family(
        Encoder, (5, 8), sites="encoder.layers.0.linear1,encoder.layers.[12]"
    ),
}

# --- language models ------------------------------------------------------------------------------


def language(name: str, config: str, tolerance: float = 1e-10, **options: Any) -> Family:
    ends = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    make = hf(name, config, **{**ends, **options})
    return Family(
        lambda: LanguageModel(make()), (5, 16), tolerance=tolerance,
        note="" if tolerance < 1e-8 else "normalises in single precision",
        embed=lambda model: model.embed(torch.randint(0, 20, (2, 5))),
    )  # fmt: skip


_SHARED_KEYS = {"num_attention_heads": 4, "num_key_value_heads": 2}
LANGUAGE = {
    "gpt2": language("GPT2LMHeadModel", "GPT2Config", n_positions=8, n_embd=16, n_layer=3,
                     n_head=2),
    "opt": language("OPTForCausalLM", "OPTConfig", hidden_size=16, num_hidden_layers=3, ffn_dim=24,
                    num_attention_heads=2, max_position_embeddings=8, word_embed_proj_dim=16),
    "gpt neox": language("GPTNeoXForCausalLM", "GPTNeoXConfig", **_SMALL),
    "bloom": language("BloomForCausalLM", "BloomConfig", hidden_size=16, n_layer=3, n_head=2),
    "phi": language("PhiForCausalLM", "PhiConfig", **_SMALL),
    "falcon": language("FalconForCausalLM", "FalconConfig", hidden_size=16, num_hidden_layers=3,
                       num_attention_heads=2),
    "llama": language("LlamaForCausalLM", "LlamaConfig", 1e-6, **_SMALL | _SHARED_KEYS),
    "mistral": language("MistralForCausalLM", "MistralConfig", 1e-6, **_SMALL | _SHARED_KEYS),
    "qwen2": language("Qwen2ForCausalLM", "Qwen2Config", 1e-6, **_SMALL | _SHARED_KEYS),
    "gemma2": language("Gemma2ForCausalLM", "Gemma2Config", 1e-6, **_SMALL | _SHARED_KEYS,
                       head_dim=4),
}  # fmt: skip

LANGUAGE["bloom"] = replace(
    LANGUAGE["bloom"], no_map="forward-mode derivative", note="no maps: its activation has none"
)

# --- changed models -------------------------------------------------------------------------------


class Lora(nn.Module):
    """A linear layer with a low-rank part beside it, as adapters have it."""

    def __init__(self, base_layer: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Linear(base_layer.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base_layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def with_lora() -> nn.Module:
    model = HUGGINGFACE["vit"].make()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and not isinstance(module, Lora):
                setattr(module, name, Lora(child))
    return model


def with_peft() -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False,
                             task_type="CAUSAL_LM")  # fmt: skip
    return LanguageModel(peft.get_peft_model(LANGUAGE["gpt neox"].make().lm, config))


def quantised() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


CHANGED = {
    "LoRA, by hand": Family(with_lora, (3, 16, 16)),
    "LoRA, peft": Family(with_peft, (5, 16), embed=LANGUAGE["gpt neox"].embed),
    "quantised": Family(quantised, (6,), sites="1", refused="quantised",
                        note="no gradient passes"),
    "scripted": Family(
        lambda: torch.jit.script(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))), (6,),
        sites="1", refused="TorchScript", note="runs where nothing can be recorded",
    ),
}  # fmt: skip

FAMILIES = {
    "torchvision": TORCHVISION, "timm": TIMM, "Hugging Face, pictures": HUGGINGFACE,
    "Hugging Face, text": TEXT, "sound": SOUND, "video": VIDEO, "segmentation": SEGMENTATION,
    "recurrent": RECURRENT, "language models": LANGUAGE, "changed models": CHANGED,
}  # fmt: skip
"""Every family, by its group and name."""
