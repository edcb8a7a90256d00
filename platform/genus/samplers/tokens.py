"""Tokens one after another from models that give the next one's distribution.

Shapes: B rows, T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genus.draws import Draws
from genus.errors import ConfigError, DataError
from genus.networks.transformer.cache import Cache
from genus.networks.transformer.decoder import Transformer
from genus.networks.transformer.encoder_decoder import EncoderDecoder
from genus.samplers.categorical import choose

CHECK_EVERY = {"cpu": 1}
"""Tokens between two looks at whether all rows have ended, by kind of device."""
CHECK_EVERY_ELSEWHERE = 16


@dataclass(frozen=True, kw_only=True)
class TokenSamplingConfig:
    """How the next token is chosen; the filters apply in this order."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest most probable tokens that have this probability together; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as probable as the most probable one; 0 keeps all."""
    guidance: float = 1.0
    """Weight of classifier-free guidance, for models with classes; 1 is none."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature:g}: must be finite and at least 0")
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k}: must be at least 0, which keeps all tokens")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p:g}: must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p={self.min_p:g}: must be between 0 and 1")
        if not abs(self.guidance) < float("inf"):
            raise ConfigError(f"guidance={self.guidance:g}: must be finite")

    def filtered(self, logits: Tensor) -> Tensor:
        """Logits (B, V) of the distribution to draw from, -inf where a token is excluded."""
        if self.temperature not in (0, 1):
            logits = logits / self.temperature
        return min_p(top_p(top_k(logits, self.top_k), self.top_p), self.min_p)


def top_k(logits: Tensor, k: int) -> Tensor:
    """Excludes all but the ``k`` most probable (and what ties with the last); 0 is no filter."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    least = logits.topk(k).values[..., -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Excludes all but the nucleus (Holtzman et al. 2020): the most probable tokens up to and
    including the one with which their probability reaches ``p``."""
    if p == 1:
        return logits
    ordered, order = logits.sort(descending=True)
    probability = ordered.softmax(-1)
    more_probable = probability.cumsum(-1) - probability
    # The first is always kept: what comes before it has probability 0 < p.
    excluded = (more_probable >= p).scatter(-1, order, more_probable >= p)
    return logits.masked_fill(excluded, -torch.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Excludes what is less than ``p`` times as probable as the first (Nguyen et al. 2024)."""
    if p == 0:
        return logits
    probability = logits.softmax(-1)
    return logits.masked_fill(probability < p * probability.amax(-1, keepdim=True), -torch.inf)


def guided(logits: Tensor, weight: float) -> Tensor:
    """log p(no class) + w (log p(class) - log p(no class)), (B, V), of logits (2 B, V) whose
    second half has no class. Not normalised."""
    conditional, free = logits.log_softmax(-1).chunk(2)
    return torch.lerp(free, conditional, weight)


class Reader:
    """A model with a cache, decoder only or encoder-decoder: logits (B, V) of each next token.

    ``room`` is the number of positions of prompt and continuation together. ``label`` (B,) and
    ``source`` with ``source_mask`` are those of the networks in ``networks/transformer``.
    """

    def __init__(self, model: nn.Module, room: int, *, static: bool = False) -> None:
        self.model = model
        self.cache = Cache(room, static=static)
        self.source = False

    def read(
        self,
        prompts: Tensor,
        lengths: Tensor | None,
        *,
        label: Tensor | None = None,
        source: Tensor | None = None,
        source_mask: Tensor | None = None,
    ) -> Tensor:
        """The prompts (B, T), padded on the right where ``lengths`` (B,) says so."""
        given: dict[str, Tensor | bool | None] = {"last_only": True}
        if lengths is not None and bool((lengths < prompts.shape[1]).any()):
            given["lengths"] = lengths  # without, rows need no masks
        if label is not None:
            given["label"] = label
        self.source = source is not None
        if source is None:
            logits = self.model(prompts, cache=self.cache, **given)
        else:
            given["source_mask"] = source_mask
            logits = self.model(source, prompts, cache=self.cache, **given)
        return logits[:, -1]  # type: ignore[no-any-return]

    def next(self, tokens: Tensor) -> Tensor:
        """One more token (B,) of each row."""
        new = tokens[:, None]
        # all of one position: no last_only
        if self.source:
            return self.model(None, new, cache=self.cache)[:, -1]  # type: ignore[no-any-return]
        return self.model(new, cache=self.cache)[:, -1]  # type: ignore[no-any-return]


def no_gradients(model: nn.Module) -> AbstractContextManager[object]:
    """Inference mode for a bare network: that saves a seventh of a small one's time on a CPU. FSDP2
    keeps tensors that it makes here for training, which cannot use those of inference mode."""
    bare = type(model) in (Transformer, EncoderDecoder)
    return torch.inference_mode() if bare else torch.no_grad()


def check_prompts(prompts: Tensor, lengths: Tensor | None, count: int, classes: int) -> None:
    """DataError or ConfigError where nothing can follow."""
    least = 0 if classes else 1
    shortest = prompts.shape[1] if lengths is None else int(lengths.min())
    if shortest < least:
        raise DataError(
            "prompts: a model without classes continues at least one token; begin with the token "
            "that stands between documents"
        )
    if lengths is not None and int(lengths.max()) > prompts.shape[1]:
        raise DataError(
            f"prompts: a length of {int(lengths.max())} for prompts of {prompts.shape[1]} tokens"
        )
    if count < 1:
        raise ConfigError(f"count={count}: ask for at least 1 token")


def generate(
    model: nn.Module,
    prompts: Tensor,
    lengths: Tensor | None,
    count: int,
    draws: Draws,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    label: Tensor | None = None,
    guidance: float = 1.0,
    classes: int = 0,
    end: int = -1,
    source: Tensor | None = None,
    source_mask: Tensor | None = None,
    static: bool = False,
) -> Tensor:
    """``count`` tokens (B, count) after each prompt; after ``end``, a row has ``end`` only.

    prompts (B, T), padded on the right where ``lengths`` (B,) says so; (B, 0) for a model with
    classes. Settings as in TokenSamplingConfig. Row i draws one number a token from its own seed in
    ``draws``, so it does not depend on the rest of the batch, up to the rounding of the logits.
    ``label`` (B,) with ``classes``, the model's number of them: guidance other than 1 runs each row
    a second time without its class. ``source`` and ``source_mask``: for encoder-decoders, (B, ...).
    ``static`` keeps all shapes the same from token to token, for compiled models.
    """
    settings = TokenSamplingConfig(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, guidance=guidance
    )
    check_prompts(prompts, lengths, count, classes)
    if label is not None and not classes:
        raise ConfigError("generate: a label needs classes, the model's number of them")
    if len(draws) != len(prompts):
        raise DataError(f"generate: {len(draws)} seeds for {len(prompts)} prompts")
    twice = guidance != 1 and label is not None
    if twice:
        assert label is not None
        prompts = torch.cat([prompts, prompts])
        lengths = None if lengths is None else torch.cat([lengths, lengths])
        label = torch.cat([label, torch.full_like(label, classes)])
    uniforms = draws.uniform("tokens", (count,), torch.float64).to(prompts.device).T.contiguous()
    check_every = CHECK_EVERY.get(prompts.device.type, CHECK_EVERY_ELSEWHERE)
    # The last token is not read; a class has one place more.
    reader = Reader(model, prompts.shape[1] + count - (0 if classes else 1), static=static)
    tokens = prompts.new_full((count, len(draws)), max(end, 0))
    ended = torch.zeros(len(draws), dtype=torch.bool, device=prompts.device)
    with no_gradients(model):
        logits = reader.read(prompts, lengths, label=label, source=source, source_mask=source_mask)
        for step in range(count):
            if twice:
                logits = guided(logits, guidance)
            if temperature == 0:
                token = logits.argmax(-1)
            else:
                token = choose(settings.filtered(logits), uniforms[step])
            if end >= 0:
                token = token.masked_fill(ended, end)
                ended |= token == end
            tokens[step] = token
            if step + 1 == count or (end >= 0 and step % check_every == 0 and bool(ended.all())):
                break
            logits = reader.next(torch.cat([token, token]) if twice else token)
    return tokens.T.contiguous()
