"""Language models, from embeddings of tokens to logits of the next one."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from condec.basis.errors import DataError, ModelError, OptionError
from condec.network import PackedInput


class LanguageModel(PackedInput):
    """A causal language model of Hugging Face, from embeddings to next-token logits.

    Token numbers cannot be scaled from a baseline to themselves; their embeddings can. The
    model therefore takes what `embed` makes of tokens, and gives the logits of the token after
    the last. Where prompts differ in length, `embed` adds a channel that says which tokens are
    real, and stays as it is on the way from a baseline.

    Models that normalise by the root mean square (Llama and its like) jump where a path leaves
    zero. Paths begin at the mean of all tokens therefore where no baseline is named
    (`condec.attribution.MeanToken`); other prompts (`condec.attribution.Samples`) are one as well.

    Parameters
    ----------
    model : torch.nn.Module
        Such as ``AutoModelForCausalLM`` makes; ModelError where it takes no ``inputs_embeds`` and
        ``attention_mask``. It is ``lm`` in the names of sites.
    tokenizer : optional
        Such as ``AutoTokenizer`` makes, for text.
    """

    def __init__(self, model: nn.Module, tokenizer: Any = None) -> None:
        super().__init__()
        # What wraps a model (compiled, in parallel) hides its arguments behind **kwargs; so does an
        # adapter of no task type, which hands all of them on.
        base: Any = getattr(model, "get_base_model", lambda: model)()
        given = [frozenset(inspect.signature(m.forward).parameters) for m in (model, base)]
        self._accepts = given[1] if given[0] == {"args", "kwargs"} else given[0]
        if not {"inputs_embeds", "attention_mask"} <= self._accepts:
            raise ModelError(
                f"{type(model).__name__}: expected a causal language model of Hugging Face, which "
                f"takes inputs_embeds and attention_mask; it takes {sorted(self._accepts)}"
            )
        self.lm = model
        self.tokenizer = tokenizer
        self.train(model.training)

    @property
    def table(self) -> nn.Embedding:
        """Return the embeddings of all tokens."""
        table: nn.Embedding = self.lm.get_input_embeddings()  # type: ignore[operator]
        return table

    def embed(
        self, ids: Int[Tensor, "sample token"], mask: Int[Tensor, "sample token"] | None = None
    ) -> Float[Tensor, "sample token channel"]:
        """Make the input of this model: embeddings of tokens.

        The mask is 1 for tokens, 0 for padding, on the left or on the right: padding is not seen
        by the model and has no contribution. Where there is some, the embeddings have one channel
        more, which is 1 for real tokens. DataError for a token that the model does not have, or a
        mask that does not fit.
        """
        known = self.table.num_embeddings
        if ids.numel() == 0 or int(ids.min()) < 0 or int(ids.max()) >= known:
            raise DataError(
                f"embed: expected tokens 0 to {known - 1}, at least one; got shape "
                f"{tuple(ids.shape)}" + (f", up to {int(ids.max())}" if ids.numel() else "")
            )
        device = self.table.weight.device
        with torch.no_grad():
            embedded: Tensor = self.table(ids.to(device))
        if mask is None or bool(mask.bool().all()):
            return embedded
        if mask.shape != ids.shape:
            shapes = f"{tuple(ids.shape)}; got {tuple(mask.shape)}"
            raise DataError(f"embed: expected a mask of the tokens' shape {shapes}")
        real = mask.to(device).bool()[..., None]
        _check_mask(real[..., 0])
        return torch.cat([embedded * real, real.to(embedded.dtype)], dim=-1)

    def embed_text(self, texts: str | Sequence[str]) -> Float[Tensor, "sample token channel"]:
        """Embed texts, padded on the left where they differ in length; DataError for empty ones."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = [self.tokens(text) for text in texts]
        if not rows or not all(rows):
            raise DataError(f"embed_text: expected texts of at least one token; got {texts[:3]}")
        tokens = [torch.tensor(row) for row in rows]
        both = tokens, [torch.ones_like(row) for row in tokens]
        return self.embed(*(pad_sequence(each, True, padding_side="left") for each in both))

    @property
    def mean_token(self) -> Tensor:
        """Return the mean of the embeddings of all tokens, [channel]: where paths begin."""
        return self.table.weight.detach().mean(0)

    @property
    def context(self) -> int | None:
        """Return how many tokens the model takes at most, where its configuration says so."""
        config = getattr(self.lm, "config", None)
        found: int | None = getattr(config, "max_position_embeddings", None)
        return found

    @property
    def vocabulary(self) -> tuple[str, ...] | None:
        """Return every token as text, where there is a tokenizer."""
        if self.tokenizer is None:
            return None
        return tuple(self._words(list(range(self.table.num_embeddings))))

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text; ModelError without a tokenizer."""
        found: list[int] = self._tokenizer()(text)["input_ids"]
        return found

    def prepare(
        self, tokens: Int[Tensor, "sample token *real"]
    ) -> Float[Tensor, "sample token channel"]:
        """Embed tokens as sources of text give them (`condec.load_data`), on the CPU.

        Where some texts are padded, every token comes with a 1 if it is real, and all embeddings
        have the channel that says so.
        """
        if tokens.ndim == 2:
            return self.embed(tokens).cpu()
        ids, real = tokens.unbind(-1)
        found = self.embed(ids, real)
        if found.shape[-1] == self.table.embedding_dim:
            found = torch.cat([found, torch.ones_like(found[..., :1])], dim=-1)
        return found.cpu()

    def token(self, text: str) -> int:
        """Find the one token that a text is, for ``Logit(model.token(" Paris"))``."""
        ids = self._tokenizer()(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise OptionError(
                f"token: {text!r} is {len(ids)} tokens ({ids}); a target is one. A leading space "
                "often belongs to the token."
            )
        return int(ids[0])

    def fixed(self, inputs: Tensor) -> Tensor | None:
        """Say that the channel of real tokens stays, where there is one."""
        dim = self.table.embedding_dim
        channels = torch.arange(inputs.shape[-1], device=inputs.device)
        return channels >= dim if inputs.shape[-1] > dim else None

    def real(self, inputs: Tensor) -> Tensor | None:
        """Say which tokens are real, where the channel that tells is there."""
        return inputs[..., -1] == 1 if inputs.shape[-1] > self.table.embedding_dim else None

    def words(self, inputs: Tensor) -> list[str] | None:
        """Find the tokens whose embeddings are nearest, where there is a tokenizer."""
        if self.tokenizer is None:
            return None
        given = inputs[0, :, : self.table.embedding_dim]
        ids = torch.cdist(given, self.table.weight.detach().to(given)).argmin(1).tolist()
        real = self.real(inputs)
        seen = [True] * len(ids) if real is None else real[0].tolist()
        words = zip(self._words(ids), seen, strict=True)
        return [word if there else "" for word, there in words]

    def forward(
        self, embeddings: Float[Tensor, "sample token channel"]
    ) -> Float[Tensor, "sample label"]:
        """Return logits of the token after the last, shape [sample, label]."""
        dim = self.table.embedding_dim
        if embeddings.ndim != 3 or embeddings.shape[-1] not in (dim, dim + 1):
            raise ModelError(
                f"{type(self.lm).__name__}: expected embeddings [sample, token, {dim}], as embed "
                f"makes them; got {tuple(embeddings.shape)}"
            )
        if embeddings.shape[-1] == dim:
            mask = embeddings.new_ones(embeddings.shape[:2], dtype=torch.bool)
        else:
            mask = _read_mask(embeddings[..., -1].detach())
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        last = mask.shape[1] - 1 - mask.flip(1).long().argmax(1)
        wanted = {"attention_mask": mask.long(), "position_ids": positions, "use_cache": False}
        # Logits at every token would take more memory than all the rest.
        keep = torch.unique(last)
        if "logits_to_keep" in self._accepts:
            wanted["logits_to_keep"] = keep
            last = torch.searchsorted(keep, last)
        given = {name: value for name, value in wanted.items() if name in self._accepts}
        output = self.lm(inputs_embeds=embeddings[..., :dim], **given)
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.ndim != 3:
            raise ModelError(
                f"{type(self.lm).__name__}: expected logits [sample, token, label] of a causal "
                "language model; give a model of another kind to condec.SeveralInputs(model, batch)"
            )
        return logits[torch.arange(len(logits), device=logits.device), last]

    def _words(self, ids: list[int]) -> list[str]:
        # Signs for a blank, of two kinds of tokenizers.
        tokens = self.tokenizer.convert_ids_to_tokens(ids)
        return [str(token).replace("\u2581", " ").replace("\u0120", " ") for token in tokens]

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ModelError(
                f"{type(self.lm).__name__} came without a tokenizer; give token numbers to embed"
            )
        return self.tokenizer


def _read_mask(channel: Tensor) -> Tensor:
    """Read which tokens are real from the last channel of embeddings."""
    mask = channel == 1
    if not bool((mask | (channel == 0)).all()) or not bool(mask.any(1).all()):
        raise ModelError(
            "the last channel of the embeddings says which tokens are real, by 0 and 1, and was "
            "changed; put it back as it was, as condec.attribution.ZeroTokens does"
        )
    return mask


def _check_mask(mask: Tensor) -> None:
    changes = (mask[:, 1:] != mask[:, :-1]).sum(1)
    wrong = ((changes > 1) | ~mask.any(1)).nonzero().flatten().tolist()
    if wrong:
        raise DataError(
            "embed: padding must lie all on the left or all on the right of at least one token; "
            f"it does not in samples {wrong[:5]}"
        )
