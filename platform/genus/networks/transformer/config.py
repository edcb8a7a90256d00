"""What transformer blocks are made of: sizes and variants, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from genus.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Sizes and variants of the blocks; what a data set decides is given to ``build``.

    GPT-2 (Radford et al. 2019): mlp gelu, norm layer, positions learned, tied, bias. Llama
    (Touvron et al. 2023): mlp swiglu, norm rms, positions rope, no biases.
    """

    width: int = 384
    """Channels of a token, a multiple of ``heads``."""
    depth: int = 6
    """Blocks."""
    heads: int = 6
    """Attention heads, of width / heads channels each."""
    kv_heads: int = 0
    """Heads of keys and values, each shared by heads / kv_heads queries (grouped-query attention,
    Ainslie et al. 2023); 0 means as many as ``heads``."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """GELU in its tanh form, or a SiLU gate times a linear layer (Shazeer 2020)."""
    mlp_width: int = 0
    """Hidden channels of the MLP; 0 means 4 width, or for swiglu 8/3 width rounded up to 256."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm or RMSNorm, before each branch and at the end."""
    positions: Literal["rope", "learned"] = "rope"
    """Rotary positions (Su et al. 2021) or a learned vector for each position."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies, which fall from 1 to about 1 / rope_theta."""
    qk_norm: bool = False
    """RMSNorm of each head's queries and keys (Henry et al. 2020): bounds the attention logits."""
    tied: bool = True
    """The output layer's weight is the table of token embeddings."""
    bias: bool = True
    """Biases in linear layers and LayerNorms."""
    dropout: float = 0.0
    """Probability of dropping a channel of the embeddings and of each branch's output. (Attention
    weights are never dropped: the fused kernels could not be used.)"""
    eps: float = 1e-5
    """Of the norms."""

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1 or min(self.kv_heads, self.mlp_width) < 0:
            raise ConfigError(
                "transformer: width, depth and heads are at least 1, kv_heads and mlp_width not "
                "negative"
            )
        if self.width % self.heads:
            raise ConfigError(
                f"transformer: width {self.width} is not a multiple of heads {self.heads}"
            )
        if self.heads % self.groups:
            raise ConfigError(
                f"transformer: heads {self.heads} is not a multiple of kv_heads {self.kv_heads}"
            )
        if self.positions == "rope" and self.head_width % 2:
            raise ConfigError(
                f"transformer: rope turns pairs of channels, but width / heads is "
                f"{self.head_width}; make it even"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"transformer: dropout={self.dropout} is to be in [0, 1)")

    @property
    def head_width(self) -> int:
        """Channels of a head."""
        return self.width // self.heads

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def hidden(self) -> int:
        """Hidden channels of the MLP."""
        if self.mlp_width:
            return self.mlp_width
        return 4 * self.width if self.mlp == "gelu" else -(-8 * self.width // (3 * 256)) * 256
