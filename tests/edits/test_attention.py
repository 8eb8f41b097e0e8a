"""Edges of attention: the right token loses the right one, in every way attention is computed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from condec.basis.errors import OptionError, SiteError
from condec.edits import Ablate, CutAttention, edited
from condec.models.attention import expose_attention
from condec.models.torchvision import import_torchvision
from condec.network.sites import Site
from condec.testing.contracts import EditInModelContract, count_hooks

EDGES = [(0, 2), (3, 2), (4, 1)]


class Attention(nn.Module):
    """Self-attention of 2 heads on 8 features, computed in one of several ways."""

    def __init__(self, way="fused", mask=None):
        super().__init__()
        torch.manual_seed(1)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.way, self.mask = way, mask
        self.soft = nn.Softmax(dim=-1)
        self.double().eval()

    def parts(self, x):
        return self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x):
        q, k, v = self.parts(x)
        if self.way in ("fused", "causal"):
            causal = self.way == "causal"
            out = F.scaled_dot_product_attention(q, k, v, self.mask, is_causal=causal)
        else:
            scores = q @ k.transpose(-2, -1) / 2.0
            scores = scores if self.mask is None else scores + self.mask
            weights = {
                "method": lambda: scores.softmax(dim=-1),
                "function": lambda: F.softmax(scores, -1, dtype=torch.float64),
                "torch": lambda: torch.softmax(input=scores, dim=3),
                "module": lambda: self.soft(scores),
                "flat": lambda: scores.flatten(0, 1).softmax(2).view_as(scores),
            }[self.way]()
            out = weights @ v
        return self.proj(out.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """One block of attention over 4 tokens, and a logit for every token."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.attention, self.head = nn.LayerNorm(8), Attention(), nn.Linear(32, 3)
        self.float().eval()

    def forward(self, x):
        return self.head((x + self.attention(self.norm(x))).flatten(1))


class TestCutAttentionContract(EditInModelContract):
    sites = ("attention",)

    def make_model(self):
        return Transformer()

    def make_inputs(self):
        return torch.linspace(-1.0, 1.0, 64).sin().view(2, 4, 8)

    def make_edit(self, site):
        return CutAttention(site, edges=[(0, 2), (3, 1)], heads=[1])


def tokens(n_tokens=5, n_samples=2):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(n_samples, n_tokens, 8, generator=generator, dtype=torch.float64)


def by_hand(model, x, edges, heads=(0, 1), shut=()):
    """Every weight of the attention matrix by the formula, number by number."""
    out = torch.zeros(len(x), x.shape[1], 8, dtype=torch.float64)
    for sample, row in enumerate(x):
        q, k, v = (part[0] for part in model.parts(row[None]))
        for head in range(2):
            for query in range(len(row)):
                cut = {key for key, to in edges if to == query} if head in heads else set()
                cut |= {key for key in range(len(row)) if (key, query) in shut}
                open_ = [key for key in range(len(row)) if key not in cut]
                size = {key: torch.exp(q[head, query] @ k[head, key] / 2.0) for key in open_}
                mixed = sum(size[key] / sum(size.values()) * v[head, key] for key in open_)
                out[sample, query, 4 * head : 4 * head + 4] = mixed
    return model.proj(out)


def cut(model, x, edges=EDGES, site="", **options):
    place = Site.parse(site) if site else Site("")
    with torch.no_grad(), edited(model, CutAttention(place, edges=edges, **options)):
        return model(x)


@pytest.mark.parametrize("way", ["fused", "method", "function", "torch", "module", "flat"])
def test_attention_matrix_by_hand(way):
    model, x = Attention(way), tokens()
    torch.testing.assert_close(model(x), by_hand(model, x, []))
    torch.testing.assert_close(cut(model, x), by_hand(model, x, EDGES), rtol=1e-12, atol=1e-12)
    if way != "flat":
        found = cut(model, x, heads=[1])
        torch.testing.assert_close(found, by_hand(model, x, EDGES, heads=[1]))


@pytest.mark.parametrize("way", ["fused", "function"])
def test_from_and_to_are_not_exchanged(way):
    model, x = Attention(way), tokens()
    plain, edge = model(x), cut(model, x, [(3, 1)])
    # Token 1 alone reads otherwise: it no longer reads from token 3.
    assert torch.equal(edge[:, [0, 2, 3, 4]], plain[:, [0, 2, 3, 4]])
    assert not torch.allclose(edge[:, 1], plain[:, 1])
    moved = x.clone()
    moved[:, 3] += 1.0
    torch.testing.assert_close(cut(model, moved, [(3, 1)])[:, 1], edge[:, 1])
    assert not torch.allclose(model(moved)[:, 1], plain[:, 1])
    assert not torch.allclose(cut(model, moved, [(1, 3)])[:, 1], plain[:, 1])


@pytest.mark.parametrize("kind", ["causal", "additive", "bool", "finite"])
def test_masks_of_the_model_stay_in_force(kind):
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    number = torch.finfo(torch.float64).min if kind == "finite" else -torch.inf
    mask = {"causal": None, "bool": ~causal}.get(
        kind, torch.zeros(5, 5, dtype=torch.float64).masked_fill(causal, number)
    )
    shut = {(key, query) for query in range(5) for key in range(query + 1, 5)}
    for way in ("causal",) if kind == "causal" else ("fused", "function")[: 1 + (kind != "bool")]:
        model, x = Attention(way, mask), tokens()
        expected = by_hand(model, x, EDGES, shut=shut)
        torch.testing.assert_close(cut(model, x), expected, rtol=1e-12, atol=1e-12)
        with pytest.raises(SiteError, match="all keys that token 0 may read are cut"):
            cut(model, x, [(0, 0)])


def test_other_tokens_are_read_than_read():
    class Cross(nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.options = options

        def forward(self, x, y):
            return F.scaled_dot_product_attention(x, y, y, **self.options)

    generator = torch.Generator().manual_seed(3)
    x, y = (
        torch.randn(2, n_heads, n, 4, generator=generator, dtype=torch.float64)
        for n_heads, n in ((4, 3), (2, 6))
    )
    open_ = torch.ones(4, 3, 6, dtype=torch.bool)
    open_[1, 2, 1] = open_[3, 2, 1] = False
    repeated = y.repeat_interleave(2, 1)
    # Heads are those of the queries, where several share keys.
    edit = CutAttention(Site(""), edges=[(1, 2)], heads=[1, 3])
    with edited(model := Cross(enable_gqa=True), edit):
        found = model(x, y)
    expected = F.scaled_dot_product_attention(x, repeated, repeated, open_)
    torch.testing.assert_close(found, expected)
    # The mask of is_causal begins with the first key, whatever the number of keys.
    with edited(model := Cross(is_causal=True), edit):
        found = model(x, repeated)
    expected = F.scaled_dot_product_attention(x, repeated, repeated, open_.tril())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("way", ["fused", "method"])
def test_query_that_reads_nothing_anyway(way):
    mask = torch.zeros(5, 5, dtype=torch.float64)
    mask[1] = torch.finfo(torch.float64).min  # token 1 is padding
    model, x = Attention(way, mask), tokens()
    found, plain = cut(model, x, [(0, 1), (0, 2)]), by_hand(model, x, [(0, 2)])
    rest = [0, 2, 3, 4]
    torch.testing.assert_close(found[:, rest], plain[:, rest])


@pytest.mark.parametrize("way", ["fused", "method"])
def test_query_without_keys(way):
    with pytest.raises(SiteError, match=r"all keys that token 2 may read are cut.*leave it one"):
        cut(Attention(way), tokens(), [(key, 2) for key in range(5)])
    # In one head only, too.
    with pytest.raises(SiteError, match="all keys that token 2 may read are cut"):
        cut(Attention(way), tokens(), [(key, 2) for key in range(5)], heads=[0])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("masked", ["nothing", "padding", "bool", "float", "causal", "per head"])
def test_attention_of_torch_equals_the_exposed_one(batch_first, need_weights, masked):
    plain = nn.MultiheadAttention(8, 2, batch_first=batch_first).double().eval()
    exposed, x = expose_attention(plain), tokens()
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    options = {
        "nothing": {},
        "padding": {"key_padding_mask": torch.arange(5).expand(2, 5) > 3},
        "bool": {"attn_mask": causal},
        "float": {"attn_mask": torch.randn(5, 5, dtype=torch.float64)},
        "causal": {
            "attn_mask": torch.zeros_like(causal, dtype=torch.float64).masked_fill(
                causal, -torch.inf
            ),
            "is_causal": True,
        },
        "per head": {"attn_mask": torch.randn(4, 5, 5, dtype=torch.float64)},
    }[masked]
    x = x if batch_first else x.transpose(0, 1)
    for heads in (None, [1]):
        edit = CutAttention(Site(""), edges=EDGES, heads=heads)
        outputs = []
        for model in (plain, exposed):
            with edited(model, edit), torch.no_grad():
                out, weights = model(x, x, x, need_weights=need_weights, **options)
            outputs.append(out)
            if need_weights and heads is None:
                assert all(float(weights[:, to, key].abs().max()) == 0.0 for key, to in EDGES)
                torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        torch.testing.assert_close(*outputs)
        assert not torch.allclose(outputs[0], plain(x, x, x, **options)[0])


def test_unbatched_attention_of_torch():
    plain = nn.MultiheadAttention(8, 2).double().eval()
    x = tokens(n_samples=1)[0]
    edit = CutAttention(Site(""), edges=EDGES, heads=[0])
    with edited(plain, edit):
        found = plain(x, x, x)[0]
        batch = plain(x[:, None], x[:, None], x[:, None])[0][:, 0]
    torch.testing.assert_close(found, batch)


def test_layer_of_torch_takes_no_fused_path_around_the_edges():
    # Within another model, so that no hook but that at the site is on the layer.
    layer = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).double().eval()
    x = tokens()
    with torch.no_grad():
        plain = layer(x)
        found = cut(layer, x, site="0.self_attn")
        assert torch.equal(layer(x), plain)
    expected = cut(expose_attention(layer), x, site="0.self_attn")
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found[:, 1:3], plain[:, 1:3])
    torch.testing.assert_close(found[:, [0, 3, 4]], plain[:, [0, 3, 4]])


def test_vit_of_torchvision():
    vit = import_torchvision().models.vision_transformer.VisionTransformer
    model = vit(8, 4, 1, 2, 8, 16, num_classes=3).double().eval()
    nn.init.normal_(model.heads.head.weight)
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    name = "encoder.layers.encoder_layer_0.self_attention"
    found = cut(model, images, [(4, 0)], name)
    assert not torch.allclose(found, model(images))
    torch.testing.assert_close(found, cut(expose_attention(model), images, [(4, 0)], name))
    # Only the class token is read after the last block: what else is cut does not show.
    torch.testing.assert_close(cut(model, images, [(0, 4)], name), model(images))


def test_attention_of_timm_fused_and_not():
    import_torchvision()  # timm imports it
    timm = pytest.importorskip("timm")
    kind = timm.models.vision_transformer.VisionTransformer
    model = kind(8, 4, num_classes=3, embed_dim=8, depth=2, num_heads=2).double().eval()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plain, found = model(images), {}
    for fused in (True, False):
        model.blocks[1].attn.fused_attn = fused
        found[fused] = cut(model, images, [(4, 0), (2, 0)], "blocks.1.attn", heads=[1])
        torch.testing.assert_close(cut(model, images, [(0, 4), (0, 2)], "blocks.1.attn"), plain)
    torch.testing.assert_close(found[True], found[False])
    assert not torch.allclose(found[True], plain)


@pytest.mark.parametrize("how", ["sdpa", "eager"])
def test_attention_of_hugging_face(how):
    import_torchvision()
    library = pytest.importorskip("transformers")
    config = library.GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=8, attn_implementation=how
    )
    torch.manual_seed(0)
    model = library.GPT2LMHeadModel(config).double().eval()
    ids = torch.tensor([[1, 2, 3, 4, 5], [5, 9, 3, 2, 7]])
    edit = CutAttention("transformer.h.0.attn", edges=[(1, 3)])
    other = ids.clone()
    other[:, 1] = 8
    with torch.no_grad():
        plain = model(ids).logits
        with edited(model, edit):
            found, moved = model(ids).logits, model(other).logits
        # Whatever number the mask adds: under it, the first token reads from itself alone.
        with pytest.raises(SiteError, match="all keys that token 0 may read are cut"):
            with edited(model, CutAttention("transformer.h.0.attn", edges=[(0, 0)])):
                model(ids)
    same = [0, 1, 2, 4]
    torch.testing.assert_close(found[:, same], plain[:, same])
    assert not torch.allclose(found[:, 3], plain[:, 3])
    # Token 3 does not see what becomes of token 1; token 4 does.
    torch.testing.assert_close(moved[:, 3], found[:, 3])
    assert not torch.allclose(moved[:, 4], found[:, 4])


def test_with_other_edits_and_nested():
    model, x = Transformer().double(), tokens(4)
    with edited(model, [CutAttention("attention", edges=[(0, 2)]), Ablate("norm", units=[1])]):
        both = model(x)
    with edited(model, Ablate("norm", units=[1])):
        with edited(model, CutAttention("attention", edges=[(0, 2)])):
            assert torch.equal(model(x), both)
    one, two = CutAttention("attention", edges=[(0, 2)]), CutAttention("attention", edges=[(3, 2)])
    with edited(model, [one, two]):
        torch.testing.assert_close(model(x), cut(model, x, [(0, 2), (3, 2)], "attention"))


def test_contexts_may_end_in_any_order():
    model, x = Transformer().double(), tokens(4)
    plain = model(x)
    alone = cut(model, x, [(3, 2)], "attention")
    given = model.attention.forward
    model.attention.forward = given  # of the instance, as some libraries put it
    first, second = (
        edited(model, CutAttention("attention", edges=[edge])) for edge in ((0, 2), (3, 2))
    )
    first.__enter__()
    second.__enter__()
    model(x)
    first.__exit__(None, None, None)
    assert torch.equal(model(x), alone)
    second.__exit__(None, None, None)
    assert torch.equal(model(x), plain)
    assert model.attention.forward is given


def test_a_copy_made_inside_computes_with_its_own_weights():
    model, x = Transformer().double(), tokens(4)
    with edited(model, CutAttention("attention", edges=[(0, 2)])):
        made = copy.deepcopy(model)
        assert torch.equal(made(x), model(x))
        nn.init.zeros_(made.attention.proj.weight)
        assert not torch.equal(made(x), model(x))


def test_one_call_of_a_shared_attention():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention()
            self.eval()

        def forward(self, x):
            return self.attention(self.attention(x))

    model, x = Twice(), tokens()
    with edited(model, CutAttention("attention#1", edges=EDGES)):
        found = model(x)
    inside = model.attention(x)
    torch.testing.assert_close(found, cut(model.attention, inside))
    with pytest.raises(SiteError, match=r"more than once .* attention#0, attention#1"):
        cut(model, x, site="attention")
    with pytest.raises(SiteError, match=r"attention#2 never ran .* called 2 times"):
        cut(model, x, site="attention#2")


def test_nothing_is_left_behind_after_an_interruption():
    model, x = Transformer().double(), tokens(4)
    before = model(x)
    model.head.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    model.attention.proj.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), edited(model, CutAttention("attention", edges=[(0, 2)])):
        model(x)
    for module in (model.head, model.attention.proj):
        module._forward_hooks.clear()
    assert count_hooks(model) == 0
    assert all("forward" not in module.__dict__ for module in model.modules())
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    ("edges", "heads", "message"),
    [
        ([(0, 5)], None, r"edges\[0\] goes from token 0 to token 5, but there are tokens 0 to 4"),
        ([(0, 1), (7, 1)], None, r"edges\[1\] goes from token 7 to token 1"),
        ([(0, 1)], [2], "the module has 2 heads, 0 to 1; there is no head 2"),
    ],
)
@pytest.mark.parametrize("way", ["fused", "module"])
def test_tokens_and_heads_that_are_not_there(way, edges, heads, message):
    model = Attention(way)
    with pytest.raises(SiteError, match=message):
        cut(model, tokens(), edges, heads=heads)
    assert count_hooks(model) == 0


def test_heads_that_cannot_be_told_apart():
    with pytest.raises(SiteError, match=r"samples and heads on one axis.*leave heads out"):
        cut(Attention("flat"), tokens(), heads=[0])


@pytest.mark.parametrize(("site", "times"), [("norm", 0), ("", 2)])
def test_modules_that_compute_no_attention_or_several(site, times):
    model = Transformer().double()
    model.head = nn.Sequential(nn.Unflatten(1, (4, 8)), Attention(), nn.Flatten())
    with pytest.raises(SiteError, match=rf"computes attention once; it did so {times} times"):
        cut(model.double(), tokens(4), [(0, 1)], site)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": []}, r"CutAttention\(a\): edges is empty"),
        ({"edges": [(1,)]}, r"pairs of tokens \(from, to\).*got \(1,\)"),
        ({"edges": [1]}, "pairs of tokens.*got 1"),
        ({"edges": [(0.5, 1)]}, "pairs of tokens"),
        ({"edges": [(0, -1)]}, r"tokens count from 0; got the edge \(0, -1\)"),
        ({"edges": [(0, 1)], "heads": []}, "heads: units is empty"),
    ],
)
def test_bad_edges(unchecked, options, message):
    with pytest.raises(OptionError, match=message):
        CutAttention("a", **options)


@pytest.mark.parametrize("site", ["a:input", "a@heads(2)"])
def test_site_is_a_whole_module(site):
    with pytest.raises(OptionError, match="without :input and layout, for example 'a'"):
        CutAttention(site, edges=[(0, 1)])


def test_no_activation_to_change():
    edit = CutAttention("a", edges=[(2, 1), (0, 1), (2, 1)])
    assert edit.edges == ((0, 1), (2, 1))
    with pytest.raises(SiteError, match=r"acts within the module.*edited"):
        edit.apply(torch.ones(1, 2))
