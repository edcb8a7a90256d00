"""TarFlow: transformers as autoregressive flows of image patches (Zhai et al. 2024).

Each block reads the patches in one direction with causal attention and transforms patch i given
those before it: z_i = (x_i - b_i) exp(-a_i). Blocks alternate in direction. Forward is one pass of
a transformer; inverse goes patch by patch, and keeps keys and values, so that N patches cost N
single steps instead of N whole passes.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from genus.errors import ConfigError
from genus.networks.flows.bijection import Bijection, Chain, Transformed, row_sum, zeros
from genus.networks.flows.linear import exact
from genus.networks.flows.reshape import Shape


class Cache:
    """Keys and values of one layer for the patches so far; memory for ``count`` is taken once.

    They are written in place, so that a backward pass through an inverse raises RuntimeError.
    """

    def __init__(self, count: int) -> None:
        self.count, self.used = count, 0
        self.kv: Tensor | None = None

    def join(self, kv: Tensor) -> Tensor:
        """Those of one more patch, (2, B, heads, 1, head width) -> of all so far."""
        if self.kv is None:
            self.kv = kv.new_empty(*kv.shape[:3], self.count, kv.shape[4])
        self.kv[:, :, :, self.used] = kv[:, :, :, 0]
        self.used += 1
        return self.kv[:, :, :, : self.used]


@dataclass(frozen=True, kw_only=True)
class TarFlowConfig:
    """A transformer autoregressive flow."""

    patch: int = 4
    """Side of a patch, pixels."""
    width: int = 256
    blocks: int = 4
    """T, autoregressive flows."""
    layers: int = 4
    """K, attention layers of each."""
    head_width: int = 64

    def build(self, *, channels: int, resolution: int, features: int = 0) -> Bijection:
        """(B, C, H, W) -> (B, C H W); ``features`` of a context. ConfigError."""
        if min(self.patch, self.blocks, self.layers) < 1 or resolution % self.patch:
            raise ConfigError(f"tarflow: {resolution} px are no multiple of patch={self.patch}")
        if resolution == self.patch:
            raise ConfigError(f"tarflow: one patch of {self.patch} px has nothing to depend on")
        if self.width % self.head_width:
            raise ConfigError(
                f"tarflow: width={self.width} holds no whole heads of head_width={self.head_width}"
            )
        count = (resolution // self.patch) ** 2
        maps: list[Bijection] = [Patches(channels, resolution, self.patch)]
        for number in range(self.blocks):
            maps.append(
                MetaBlock(
                    count,
                    channels * self.patch**2,
                    self.width,
                    self.layers,
                    self.width // self.head_width,
                    backwards=number % 2 == 1,
                    features=features,
                )
            )
        return Chain([*maps, Shape(count, channels * self.patch**2)])


def guided_inverse(
    flow: Bijection, y: Tensor, context: Tensor, nothing: Tensor, weight: float
) -> Tensor:
    """The inverse of a TarFlow with each ``MetaBlock`` guided."""
    if isinstance(flow, MetaBlock):
        return flow.guided_inverse(y, context, nothing, weight)
    if not isinstance(flow, Chain):
        return flow.inverse(y, context)
    for one in reversed(flow.maps):
        assert isinstance(one, Bijection)
        y = guided_inverse(one, y, context, nothing, weight)
    return y


class Patches(Bijection):
    """(B, C, H, W) -> (B, N, C p p)."""

    def __init__(self, channels: int, resolution: int, patch: int) -> None:
        super().__init__()
        self.sizes = {"c": channels, "h": resolution // patch, "p": patch, "q": patch}

    def forward(self, x: Tensor, context: Tensor | None = None) -> Transformed:
        p = self.sizes["p"]
        return rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=p), zeros(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        return rearrange(y, "b (h w) (c p q) -> b c (h p) (w q)", **self.sizes)


class MetaBlock(Bijection):
    """One autoregressive flow over N patches of D numbers, forwards or backwards."""

    def __init__(
        self,
        count: int,
        dims: int,
        width: int,
        layers: int,
        heads: int,
        *,
        backwards: bool,
        features: int = 0,
    ) -> None:
        super().__init__()
        self.backwards = backwards
        self.embed = nn.Linear(dims, width)
        self.positions = nn.Parameter(0.01 * torch.randn(count, width))
        self.context = nn.Linear(features, width) if features else None
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, 2 * dims)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Transformed:
        x = self._turned(x)
        out = self.predict(x[:, :-1], self.places(context)[..., :-1, :])
        a, b = F.pad(out, (0, 0, 1, 0)).to(x.dtype).chunk(2, dim=2)  # nothing precedes patch 0
        return self._turned((x - b) * (-a).exp()), -row_sum(a)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        x: Tensor = self._inverse(y, self.places(context), 1.0)
        return x

    def guided_inverse(self, y: Tensor, context: Tensor, nothing: Tensor, weight: float) -> Tensor:
        """With a and b moved away from what they are without a class, by ``weight`` times their
        difference (Zhai et al. 2024, section 3.5); ``nothing`` (B, F) is the context of no class.
        """
        x: Tensor = self._inverse(y, self.places(torch.cat([context, nothing])), weight)
        return x

    # a compiler would unroll the loop over patches
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _inverse(self, y: Tensor, places: Tensor, weight: float) -> Tensor:
        """``places`` of y's rows; or of twice as many, once with and once without the class."""
        y = self._turned(y)
        count = y.shape[1]
        copies = len(places) // len(y) if places.ndim == 3 else 1
        caches = [Cache(count - 1) for _ in self.layers]
        patches = [y[:, :1]]
        for i in range(1, count):
            last = patches[-1].repeat(copies, 1, 1)
            out = self.predict(last, places[..., i - 1 : i, :], caches)
            if copies == 2:
                out, free = out.chunk(2)
                out = torch.lerp(free, out, weight)
            a, b = out.to(y.dtype).chunk(2, dim=2)
            patches.append(torch.addcmul(b, y[:, i : i + 1], a.exp()))
        return self._turned(torch.cat(patches, dim=1))

    def places(self, context: Tensor | None) -> Tensor:
        """(N, width) or (B, N, width): what the embedding of each patch has added to it."""
        if self.context is None:
            return self.positions
        embedded: Tensor = self.context(context)
        return embedded[:, None] + self.positions

    def predict(self, x: Tensor, places: Tensor, caches: list[Cache] | None = None) -> Tensor:
        """(B, n, D) patches -> (B, n, 2 D): a and b of the ones after them. With caches, x is the
        one patch that follows those in them.

        Autocast serves training only: patch by patch its rounding is not that of all at once, and
        the inverse would be another map's (by two pixel levels at 256 patches in bfloat16).
        """
        with nullcontext() if self.training else exact(x):
            h = self.embed(x) + places
            for number, layer in enumerate(self.layers):
                h = layer(h, None if caches is None else caches[number])
            out: Tensor = self.last(self.norm(h))
        return out

    def _turned(self, x: Tensor) -> Tensor:
        return x.flip(1) if self.backwards else x


class Layer(nn.Module):
    """Causal attention and an MLP, normalised before."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm0 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """x (B, n, width). With a cache, x is the one patch that follows those in it, and joins."""
        qkv = rearrange(self.qkv(self.norm0(x)), "b n (s h d) -> s b h n d", s=3, h=self.heads)
        q, (k, v) = qkv[0], qkv[1:] if cache is None else cache.join(qkv[1:])
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        x = x + self.out(rearrange(attended, "b h n d -> b n (h d)"))
        out: Tensor = x + self.mlp(self.norm1(x))
        return out
