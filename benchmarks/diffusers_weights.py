"""diffusers' weights under our networks' names: for the tests and the side-by-side benchmarks.

Each function returns a state dict for ``load_state_dict`` (strict) of our network of the same
configuration, and raises KeyError or a size mismatch where the configurations differ.
"""

from __future__ import annotations

import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from einops import rearrange
from torch import Tensor

State = dict[str, Tensor]


class _Renamed:
    """Collects our names; ``take`` moves a layer's weight and bias."""

    def __init__(self, theirs: State) -> None:
        self.theirs = dict(theirs)
        self.ours: State = {}

    def take(self, ours: str, *theirs: str) -> None:
        """Our layer from theirs; several of theirs are stacked along the output."""
        for kind in ("weight", "bias"):
            if f"{theirs[0]}.{kind}" in self.theirs:
                parts = [self.theirs.pop(f"{name}.{kind}") for name in theirs]
                self.ours[f"{ours}.{kind}"] = torch.cat(parts) if len(parts) > 1 else parts[0]

    def finish(self) -> State:
        """Our state dict; ValueError where some of theirs found no place."""
        if self.theirs:
            raise ValueError(f"diffusers: weights without a place here: {sorted(self.theirs)}")
        return self.ours


def unet_weights(peer: UNet2DModel) -> State:
    """For ``UNetConfig(style="ddpm")`` with the peer's widths."""
    state = _Renamed(peer.state_dict())
    last = len(peer.config["block_out_channels"]) - 1

    def residual(ours: str, theirs: str) -> None:
        state.take(f"{ours}.norm0", f"{theirs}.norm1")
        state.take(f"{ours}.conv0", f"{theirs}.conv1")
        state.take(f"{ours}.project", f"{theirs}.time_emb_proj")
        state.take(f"{ours}.norm1", f"{theirs}.norm2")
        state.take(f"{ours}.conv1", f"{theirs}.conv2")
        state.take(f"{ours}.skip", f"{theirs}.conv_shortcut")

    def attention(ours: str, theirs: str) -> None:
        state.take(f"{ours}.attend.norm", f"{theirs}.group_norm")
        qkv = [f"{theirs}.to_{name}" for name in "qkv"]
        state.take(f"{ours}.attend.attention.qkv", *qkv)
        state.take(f"{ours}.attend.attention.out", f"{theirs}.to_out.0")

    state.take("conditioning.linear0", "time_embedding.linear_1")
    state.take("conditioning.linear1", "time_embedding.linear_2")
    state.take("conditioning.table", "class_embedding")
    state.take("stem", "conv_in")
    for level in range(last + 1):
        for block in range(peer.config["layers_per_block"]):
            ours, theirs = f"encoder.{level}.blocks.{block}", f"down_blocks.{level}"
            residual(ours, f"{theirs}.resnets.{block}")
            attention(ours, f"{theirs}.attentions.{block}")
        # Our halving opens a level, theirs closes the one before.
        state.take(f"encoder.{level + 1}.down.conv", f"down_blocks.{level}.downsamplers.0.conv")
        for block in range(peer.config["layers_per_block"] + 1):
            ours, theirs = f"decoder.{level}.blocks.{block}", f"up_blocks.{level}"
            residual(ours, f"{theirs}.resnets.{block}")
            attention(ours, f"{theirs}.attentions.{block}")
        state.take(f"decoder.{level}.up.conv", f"up_blocks.{level}.upsamplers.0.conv")
    residual("middle.0", "mid_block.resnets.0")
    attention("middle.0", "mid_block.attentions.0")
    residual("middle.1", "mid_block.resnets.1")
    state.take("norm", "conv_norm_out")
    state.take("head", "conv_out")
    return state.finish()


def tie_embeddings(peer: DiTTransformer2DModel) -> None:
    """One embedding of noise level and class for all blocks, as DiT has it, without label dropout.

    diffusers gives every block a copy of its own, equal in its released weights, and drops labels
    at random in training mode; our conditioning is shared and dropout is the objective's matter.
    """
    shared = peer.transformer_blocks[0].norm1.emb
    shared.class_embedder.dropout_prob = 0.0
    for block in peer.transformer_blocks:
        block.norm1.emb = shared


def dit_weights(peer: DiTTransformer2DModel) -> State:
    """For ``DiT(..., frequency_shift=1)``; the peer's blocks must agree in their embeddings."""
    state = _Renamed(peer.state_dict())
    for block in range(peer.config["num_layers"]):
        for name in [
            n for n in state.theirs if n.startswith(f"transformer_blocks.{block}.norm1.emb.")
        ]:
            copy = state.theirs.pop(name)
            shared = name.replace(f"transformer_blocks.{block}.norm1.", "")
            if not torch.equal(state.theirs.setdefault(shared, copy), copy):
                raise ValueError(f"diffusers: block {block}'s {shared} differs from block 0's")
    state.take("conditioning.linear0", "emb.timestep_embedder.linear_1")
    state.take("conditioning.linear1", "emb.timestep_embedder.linear_2")
    state.take("conditioning.table", "emb.class_embedder.embedding_table")
    weight = state.theirs.pop("pos_embed.proj.weight")
    state.theirs["pos_embed.proj.weight"] = rearrange(weight, "d c p q -> d (c p q)")
    state.take("embed", "pos_embed.proj")
    for block in range(peer.config["num_layers"]):
        ours, theirs = f"blocks.{block}", f"transformer_blocks.{block}"
        state.take(f"{ours}.modulation", f"{theirs}.norm1.linear")
        qkv = [f"{theirs}.attn1.to_{name}" for name in "qkv"]
        state.take(f"{ours}.attention.qkv", *qkv)
        state.take(f"{ours}.attention.out", f"{theirs}.attn1.to_out.0")
        state.take(f"{ours}.mlp.0", f"{theirs}.ff.net.0.proj")
        state.take(f"{ours}.mlp.2", f"{theirs}.ff.net.2")
    state.take("modulation", "proj_out_1")
    state.take("head", "proj_out_2")
    state.ours["positions"] = peer.pos_embed.pos_embed[0]
    return state.finish()
