"""Hugging Face: tiny random models, saved and read again; language models by embeddings."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from condec import explain
from condec.attribution import (
    Constant,
    IntegratedGradients,
    Mean,
    MeanToken,
    Samples,
    SmoothGrad,
    Zeros,
    ZeroTokens,
)
from condec.attribution.contributions import contribute
from condec.attribution.targets import Logit
from condec.basis.errors import DataError, ModelError, OptionError
from condec.dictionary import PCA, TrainConfig, fit
from condec.models import load_model
from condec.models.huggingface import PooledEncoder
from condec.models.language import LanguageModel
from condec.models.torchvision import import_torchvision
from condec.modes import Modes
from condec.network.sites import find_sites
from condec.store import ShuffledLabels, collect, collect_twin

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def library() -> ModuleType:
    import_torchvision()
    return pytest.importorskip("transformers")


def scatter(model: nn.Module) -> nn.Module:
    """Weights with which something happens: those of a fresh model are nearly zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.4)
    return model.eval()


VIT = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def classifier(library: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    config = library.ViTConfig(**VIT, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    scatter(library.ViTForImageClassification(config)).save_pretrained(folder)
    library.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


def test_classifier_with_its_preprocessing(library: ModuleType, classifier: Path) -> None:
    loaded = load_model(f"huggingface:{classifier.name}", folder=classifier.parent)
    assert loaded.label_names == ("cat", "dog")
    assert loaded.input_shape == (3, 8, 8)
    assert not loaded.model.training
    pixels = torch.randint(0, 256, (2, 20, 20, 3), dtype=torch.uint8)
    assert loaded.preprocess is not None
    images = loaded.preprocess(pixels)
    assert images.shape == (2, 3, 8, 8)
    assert images.min() >= -1
    assert images.max() <= 1
    assert images.min() < 0  # (x - 0.5) / 0.5, and not divided by 255 alone
    theirs = library.ViTForImageClassification.from_pretrained(classifier).eval()
    with torch.no_grad():
        assert torch.equal(loaded.model(images).logits, theirs(images).logits)
    batch = contribute(loaded.model, images, "preset:vit_heads,preset:vit_blocks").reduce()
    assert [tuple(part.contribution.shape) for part in batch.by_site] == [
        (2, 2, 2), (2, 2, 8), (2, 2, 2), (2, 2, 8),
    ]  # fmt: skip
    assert set(batch.completeness()) == {"vit.layers.0@features", "vit.layers.1@features"}


def test_preprocessing_may_be_missing(classifier: Path, tmp_path: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((classifier / file).read_bytes())
    bare = load_model(f"huggingface:{tmp_path}")
    assert bare.preprocess is None
    assert bare.input_shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", '{"model_type": "vit", "architectures": 3}'),
        ("config.json", "[" * 100_000),
        ("preprocessor_config.json", '{"image_processor_type": "ViTImageProcessor", "size": {}}'),
        ("preprocessor_config.json", "{"),
        ("model.safetensors", "nothing"),
    ],
)
def test_folders_that_are_damaged_are_named(
    classifier: Path, tmp_path: Path, file: str, content: str
) -> None:
    for sound in classifier.iterdir():
        (tmp_path / sound.name).write_bytes(sound.read_bytes())
    (tmp_path / file).write_text(content)
    with pytest.raises(ModelError, match=rf"huggingface:{tmp_path}: not read .*Expected a folder"):
        load_model(f"huggingface:{tmp_path}")


def test_pictures_are_turned_as_the_library_does(classifier: Path) -> None:
    assert load_model(f"huggingface:{classifier}").orientation == "exif"


def test_weights_random_or_from_a_file(classifier: Path, tmp_path: Path) -> None:
    spec = f"huggingface:{classifier}"
    own = load_model(spec, "default").model.state_dict()
    random = load_model(spec, "random").model.state_dict()
    again = load_model(spec, "random").model.state_dict()
    filed = load_model(spec, classifier / "model.safetensors").model.state_dict()
    save_file(own, tmp_path / "own.safetensors")  # as this version of transformers names them
    renamed = load_model(spec, tmp_path / "own.safetensors").model.state_dict()
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="lack 40 entries of ViTForImageClassification"):
        load_model(spec, tmp_path / "other.safetensors")
    name = "classifier.weight"
    assert torch.equal(random[name], again[name])
    assert not torch.equal(random[name], own[name])
    assert all(torch.equal(filed[name], own[name]) for name in own)
    assert all(torch.equal(renamed[name], own[name]) for name in own)


def test_encoder_gives_one_vector_a_picture(library: ModuleType, tmp_path: Path) -> None:
    config = library.Dinov2WithRegistersConfig(**VIT, mlp_ratio=2, num_register_tokens=3)
    model = scatter(library.Dinov2WithRegistersModel(config))
    model.save_pretrained(tmp_path)
    loaded = load_model(f"huggingface:{tmp_path}")
    assert isinstance(loaded.model, PooledEncoder)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(loaded.model(images), model(images).pooler_output, atol=1e-6)
    sites = find_sites(loaded.model, "preset:vit_blocks@features[register]")
    assert [site.key for site in sites] == [
        f"encoder.encoder.layer.{i}@features[1:4]" for i in (0, 1)
    ]
    batch = contribute(loaded.model, images, sites, target=Logit(3)).reduce()
    assert batch.by_site[0].contribution.shape == (2, 2, 8)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: (f / "config.json").unlink(), OptionError, "holds no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), ModelError, "not read .OSError.*safetensor"),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            ModelError,
            "not read .*weights in safetensors",
        ),
        (
            lambda f: edit(f, num_hidden_layers=3),
            ModelError,
            "its weights lack 16 entries of ViTForImageClassification.*layers.2",
        ),
        (lambda f: edit(f, intermediate_size=13), ModelError, "not read .*mismatch"),
        (
            lambda f: edit(f, model_type="mine", auto_map={"AutoConfig": "code.MyConfig"}),
            ModelError,
            "custom code .*its own code is not run",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_read(
    classifier: Path, tmp_path: Path, spoil: Callable[[Path], Any], error: type, message: str
) -> None:
    for file in classifier.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "code.py").write_text("raise SystemExit('code of the model ran')\n")
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        load_model(f"huggingface:{tmp_path}")


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def test_other_kinds_of_models_are_refused(library: ModuleType, tmp_path: Path) -> None:
    library.BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="BertForMaskedLM: expected an image classifier"):
        load_model(f"huggingface:{tmp_path}")
    with pytest.raises(OptionError, match=r"there is no folder .*nowhere"):
        load_model("huggingface:./nowhere")


# --- language models ----------------------------------------------------------------------


def gpt2(library: ModuleType) -> nn.Module:
    config = library.GPT2Config(
        vocab_size=11, n_positions=16, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1
    )
    return scatter(library.GPT2LMHeadModel(config))


def llama(library: ModuleType, eps: float = 0.3) -> nn.Module:
    config = library.LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, bos_token_id=0, eos_token_id=1,
        rms_norm_eps=eps,
    )  # fmt: skip
    return scatter(library.LlamaForCausalLM(config))


MAKERS: dict[str, Callable[[ModuleType], nn.Module]] = {"gpt2": gpt2, "llama": llama}


@pytest.fixture(scope="module", params=MAKERS)
def theirs(request: pytest.FixtureRequest, library: ModuleType) -> nn.Module:
    model = MAKERS[request.param](library)
    return model.double()


def test_language_model_gives_next_token_logits(theirs: nn.Module) -> None:
    model = LanguageModel(theirs)
    assert not model.training
    ids = torch.randint(0, 11, (3, 6))
    embeddings = model.embed(ids)
    assert embeddings.shape == (3, 6, 8)
    with torch.no_grad():
        assert torch.allclose(model(embeddings), theirs(ids).logits[:, -1], atol=1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(theirs: nn.Module, side: str) -> None:
    model = LanguageModel(theirs)
    prompts = [torch.randint(0, 11, (1, n)) for n in (3, 6, 1)]
    width = [6 - p.shape[1] for p in prompts]
    pads = [(w, 0) if side == "left" else (0, w) for w in width]
    ids = torch.cat([nn.functional.pad(p, pad) for p, pad in zip(prompts, pads, strict=True)])
    mask = torch.cat([
        nn.functional.pad(torch.ones_like(p), pad) for p, pad in zip(prompts, pads, strict=True)
    ])  # fmt: skip
    embeddings = model.embed(ids, mask)
    assert embeddings.shape == (3, 6, 9)
    assert torch.equal(model.real(embeddings), mask.bool())
    assert model.real(model.embed(ids)) is None
    padded = contribute_to(model, embeddings)
    for i, prompt in enumerate(prompts):
        alone = contribute_to(model, model.embed(prompt))
        real = mask[i].bool()
        assert torch.allclose(padded.output[i], alone.output[0], atol=1e-9)
        assert padded.target_baseline[i].item() == pytest.approx(alone.target_baseline.item())
        for mine, wanted in zip(padded.by_site, alone.by_site, strict=True):
            assert torch.allclose(mine.contribution[i][real], wanted.contribution[0], atol=1e-9), (
                mine.site.key
            )
            assert not mine.contribution[i][~real].any(), mine.site.key


def contribute_to(model: LanguageModel, embeddings: Tensor):  # type: ignore[no-untyped-def]
    sites = "preset:lm_blocks,preset:lm_mlp_neurons,preset:lm_heads"
    method = IntegratedGradients(steps=3)
    return contribute(model, embeddings, sites, method=method, target=Logit(7))


def test_contributions_to_a_token_are_complete(theirs: nn.Module) -> None:
    model = LanguageModel(theirs)
    embeddings = model.embed(torch.randint(0, 11, (2, 5)))
    batch = contribute(
        model, embeddings, "preset:lm_blocks,preset:lm_mlp_neurons,preset:lm_heads",
        method=IntegratedGradients(steps=24), target=Logit(7),
    )  # fmt: skip
    complete = batch.completeness()
    blocks = [site.key for site in find_sites(model, "preset:lm_blocks")]
    assert list(complete) == blocks
    for values in complete.values():
        assert (values - 1).abs().max() < 2e-3
    shapes = {part.site.key: tuple(part.contribution.shape[2:]) for part in batch.reduce().by_site}
    heads, hidden = (2, 32) if "GPT2" in type(theirs).__name__ else (4, 12)
    assert sorted({shape[0] for shape in shapes.values()}) == sorted({8, heads, hidden})


def test_root_mean_square_norms_want_a_baseline_that_is_not_zero(library: ModuleType) -> None:
    """With the usual epsilon the path from zero is a jump that equal steps do not follow."""
    model = LanguageModel(llama(library, eps=1e-6).double())
    embeddings = model.embed(torch.randint(0, 11, (2, 5)))
    others = Samples(n_samples=1, values=model.embed(torch.randint(0, 11, (1, 5))))
    gaps = []
    for baseline in (Constant(0.0), others, Zeros()):
        method = IntegratedGradients(steps=32, baseline=baseline)
        jumps = isinstance(baseline, Constant)
        match = "add up to more than 100 times what the target changes"
        with pytest.warns(UserWarning, match=match) if jumps else nullcontext():
            batch = contribute(
                model, embeddings, "preset:lm_blocks", method=method, target=Logit(7)
            )
        gaps.append(max(float((c - 1).abs().max()) for c in batch.completeness().values()))
    assert gaps[0] > 1
    assert max(gaps[1:]) < 0.02


def test_where_no_baseline_is_named_paths_begin_at_the_mean_token(
    library: ModuleType, tmp_path: Path
) -> None:
    model = LanguageModel(llama(library, eps=1e-6).double())
    embeddings = model.embed(torch.randint(0, 11, (3, 5)))
    weight = model.lm.get_input_embeddings().weight.detach()
    mean = torch.stack([sum(row) / len(weight) for row in weight.T]).expand(1, 5, -1)
    named = Samples(n_samples=1, values=mean)
    for method, other in (
        (IntegratedGradients(steps=4), IntegratedGradients(steps=4, baseline=named)),
        (
            SmoothGrad(inner=IntegratedGradients(steps=2), n_samples=2),
            SmoothGrad(inner=IntegratedGradients(steps=2, baseline=named), n_samples=2),
        ),
    ):
        found, wanted = (
            contribute(model, embeddings, "preset:lm_heads", method=one, target=Logit(7))
            for one in (method, other)
        )
        for mine, its in zip(found.by_site, wanted.by_site, strict=True):
            assert torch.allclose(mine.contribution, its.contribution, atol=1e-12)
        assert torch.allclose(found.target_baseline, wanted.target_baseline, equal_nan=True)
    sites, target = "preset:lm_blocks", Logit(7)
    store = collect(model, embeddings, sites, target=target, out=tmp_path / "s", progress=False)
    assert store.recipe["method"]["baseline"] == {"name": "MeanToken"}
    labelled, copies = (embeddings, torch.tensor([0, 1, 0])), {"target": target, "progress": False}
    real = collect(model, labelled, sites, out=tmp_path / "real", **copies)
    twin = collect_twin(
        ShuffledLabels(), model, labelled, sites, out=tmp_path / "twin", of=real, **copies
    )
    assert torch.equal(twin.matrix(sites_of := real.sites[0]), real.matrix(sites_of))
    whole = TrainConfig(held_out=0.0)
    modes = [
        Modes.build(fit(PCA(n_modes=2), store.matrix(site), config=whole).dictionary, store, site)
        for site in store.sites
    ]
    for method in (None, IntegratedGradients()):
        explained = explain(model, embeddings[:1], modes, method=method)
        assert explained.method.to_dict() == store.recipe["method"]
    plain = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval()
    method = IntegratedGradients(baseline=MeanToken())
    with pytest.raises(OptionError, match="MeanToken: Sequential embeds no tokens; take another"):
        contribute(plain, torch.ones(1, 2), "0", method=method)
    with pytest.raises(OptionError, match=r"MeanToken: .* use start\(model, inputs\)"):
        MeanToken().make(embeddings)


@pytest.mark.parametrize("padded", [False, True])
def test_shorter_texts_are_compared_with_the_ends_of_a_baseline(
    theirs: nn.Module, padded: bool
) -> None:
    model, tokens = LanguageModel(theirs), torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 1]])
    mask = torch.ones_like(tokens)
    mask[0, 0] = 0 if padded else 1
    values, short = model.embed(tokens, mask), model.embed(tokens[:, 1:4])
    dim = short.shape[-1]
    assert values.shape[-1] == dim + padded
    for mine, its in (
        (Samples(n_samples=2, values=values), Samples(n_samples=2, values=values[:, 2:, :dim])),
        (Mean(values=values.mean(0)), Mean(values=values.mean(0)[2:, :dim])),
    ):
        found, wanted = (
            contribute(
                model, short, "preset:lm_blocks", target=Logit(7),
                method=IntegratedGradients(steps=2, baseline=baseline),
            )
            for baseline in (mine, its)
        )  # fmt: skip
        for one, other in zip(found.by_site, wanted.by_site, strict=True):
            assert torch.equal(one.contribution, other.contribution)
        assert torch.equal(found.target_baseline, wanted.target_baseline)
        longer = model.embed(torch.arange(6)[None])
        words = f"{type(mine).__name__}: the baseline was taken from texts of 5 tokens, .* has 6; "
        with pytest.raises(DataError, match=words):
            mine.start(model, longer)
    # Where inputs are padded, that stays as it is, whether or not the samples were padded.
    inputs = model.embed(tokens[:, :3], torch.tensor([[0, 1, 1], [1, 1, 1]]))
    start = Samples(n_samples=2, values=values).start(model, inputs, draw=1)
    assert torch.equal(start[..., -1], inputs[..., -1])
    assert torch.equal(start[..., :dim], values[1, 2:, :dim].expand(2, 3, dim))


def test_the_mask_stays_as_it_is_from_any_baseline(theirs: nn.Module) -> None:
    model = LanguageModel(theirs)
    padded = model.embed(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[0, 1, 1], [1, 1, 1]]))
    found = []
    for baseline in (Constant(0.0), ZeroTokens()):
        method = IntegratedGradients(steps=3, baseline=baseline)
        found.append(contribute(model, padded, "preset:lm_blocks", method=method, target=Logit(7)))
    for mine, wanted in zip(found[0].by_site, found[1].by_site, strict=True):
        assert torch.equal(mine.contribution, wanted.contribution)
    with pytest.raises(ModelError, match=r"by 0 and 1, and was changed; put it back as it was"):
        model(padded / 2)


class Adapter(nn.Module):
    """Wraps a model as peft does where no task type is given."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def get_base_model(self) -> nn.Module:
        return self.base

    def get_input_embeddings(self) -> nn.Module:
        return self.base.get_input_embeddings()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base(*args, **kwargs)


def test_an_adapter_that_hides_its_arguments_is_read(library: ModuleType) -> None:
    plain = LanguageModel(llama(library, eps=1e-6))
    adapted = LanguageModel(Adapter(plain.lm).eval())
    embeddings = plain.embed(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[0, 1, 1]] * 2))
    assert torch.equal(adapted(embeddings), plain(embeddings))


def test_models_without_logits_of_the_next_token_are_refused(library: ModuleType) -> None:
    config = library.BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=12,
    )  # fmt: skip
    for kind in (library.BertModel, library.BertForSequenceClassification):
        model = LanguageModel(kind(config).eval())
        with pytest.raises(ModelError, match=r"of a causal language model; .*condec.SeveralInputs"):
            model(model.embed(torch.tensor([[1, 2]])))


@pytest.mark.usefixtures("unchecked")
def test_mistakes_with_tokens(theirs: nn.Module) -> None:
    model = LanguageModel(theirs)
    with pytest.raises(DataError, match=r"expected tokens 0 to 10.*up to 11"):
        model.embed(torch.tensor([[11]]))
    with pytest.raises(DataError, match=r"mask of the tokens' shape \(1, 2\); got \(1, 3\)"):
        model.embed(torch.tensor([[1, 2]]), torch.tensor([[1, 0, 1]]))
    for mask in ([[1, 0, 1]], [[0, 0, 0]]):
        with pytest.raises(DataError, match=r"all on the left.*samples \[0\]"):
            model.embed(torch.tensor([[1, 2, 3]]), torch.tensor(mask))
    with pytest.raises(ModelError, match=r"expected embeddings \[sample, token, 8\]"):
        model(torch.zeros(1, 3, 7))
    with pytest.raises(ModelError, match="came without a tokenizer"):
        model.embed_text("hello")
    with pytest.raises(ModelError, match="expected a causal language model of Hugging Face"):
        LanguageModel(nn.Linear(2, 2))


WORDS = ["[UNK]", "the", "cat", "sat", "on", "mat"]


def test_language_model_from_a_folder_with_its_tokenizer(
    library: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    gpt2(library).save_pretrained(tmp_path)
    library.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(
        tmp_path
    )
    capfd.readouterr()
    loaded = load_model(f"huggingface:{tmp_path}")
    assert capfd.readouterr().err == ""  # no bar of progress, which the library shows
    assert library.utils.logging.is_progress_bar_enabled()
    model = loaded.model
    assert isinstance(model, LanguageModel)
    assert model.token("mat") == 5
    with pytest.raises(OptionError, match="'the mat' is 2 tokens"):
        model.token("the mat")
    with pytest.raises(DataError, match="at least one token"):
        model.embed_text([""])
    assert torch.equal(model.embed_text("the cat"), model.embed(torch.tensor([[1, 2]])))
    both = model.embed_text(["the cat sat", "the cat"])
    assert both[..., -1].tolist() == [[1, 1, 1], [0, 1, 1]]
    with torch.no_grad():
        assert torch.allclose(model(both)[1], model(model.embed_text("the cat"))[0], atol=1e-6)
