"""Weights and settings exchanged with transformers' ``GPT2LMHeadModel`` and ``LlamaForCausalLM``.

States are mappings of names to tensors (``state_dict()``), settings plain mappings
(``config.to_dict()``, config.json): transformers itself is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genus.errors import ConfigError
from genus.networks.transformer.decoder import TransformerConfig

State = Mapping[str, Tensor]

GPT2 = {
    "norm0": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "norm1": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
"""Our name of a part of a block to GPT-2's; its linear layers hold their weights transposed."""
LLAMA = {
    "norm0": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "norm1": ("post_attention_layernorm",),
    "mlp.up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}
"""Our name of a part of a block to the parts of Llama's whose rows it holds, one below another."""


def from_gpt2(state: State, config: TransformerConfig) -> dict[str, Tensor]:
    """Our state of a GPT2LMHeadModel's."""
    ours = {
        "embedding.weight": state["transformer.wte.weight"],
        "positions.weight": state["transformer.wpe.weight"],
    }
    for kind in ("weight", "bias"):
        ours[f"norm.{kind}"] = state[f"transformer.ln_f.{kind}"]
        for block in range(config.depth):
            for name, theirs in GPT2.items():
                value = state[f"transformer.h.{block}.{theirs}.{kind}"]
                ours[f"blocks.{block}.{name}.{kind}"] = value.t().contiguous()
    return ours | _head(config, state, "lm_head.weight", "head.weight")


def to_gpt2(state: State, config: TransformerConfig) -> dict[str, Tensor]:
    """A GPT2LMHeadModel's state of ours."""
    theirs = {
        "transformer.wte.weight": state["embedding.weight"],
        "transformer.wpe.weight": state["positions.weight"],
        "lm_head.weight": state["embedding.weight" if config.tied else "head.weight"],
    }
    for kind in ("weight", "bias"):
        theirs[f"transformer.ln_f.{kind}"] = state[f"norm.{kind}"]
        for block in range(config.depth):
            for ours, name in GPT2.items():
                value = state[f"blocks.{block}.{ours}.{kind}"]
                theirs[f"transformer.h.{block}.{name}.{kind}"] = value.t().contiguous()
    return theirs


def from_llama(state: State, config: TransformerConfig) -> dict[str, Tensor]:
    """Our state of a LlamaForCausalLM's."""
    ours = {
        "embedding.weight": state["model.embed_tokens.weight"],
        "norm.weight": state["model.norm.weight"],
    }
    for block in range(config.depth):
        for name, theirs in LLAMA.items():
            for kind in _kinds(name, config):
                parts = [state[f"model.layers.{block}.{part}.{kind}"] for part in theirs]
                ours[f"blocks.{block}.{name}.{kind}"] = torch.cat(parts)
    return ours | _head(config, state, "lm_head.weight", "head.weight")


def to_llama(state: State, config: TransformerConfig) -> dict[str, Tensor]:
    """A LlamaForCausalLM's state of ours."""
    theirs = {
        "model.embed_tokens.weight": state["embedding.weight"],
        "model.norm.weight": state["norm.weight"],
        "lm_head.weight": state["embedding.weight" if config.tied else "head.weight"],
    }
    queries, keys = (heads * config.head_width for heads in (config.heads, config.groups))
    rows = {"attention.qkv": [queries, keys, keys], "mlp.up": [config.hidden, config.hidden]}
    for block in range(config.depth):
        for ours, names in LLAMA.items():
            for kind in _kinds(ours, config):
                value = state[f"blocks.{block}.{ours}.{kind}"]
                parts = value.split_with_sizes(rows.get(ours, [len(value)]))
                for name, part in zip(names, parts, strict=True):
                    theirs[f"model.layers.{block}.{name}.{kind}"] = part.contiguous()
    return theirs


def gpt2_config(settings: Mapping[str, Any]) -> tuple[TransformerConfig, int, int]:
    """Our configuration, the vocabulary and the length of a GPT2Config.

    ConfigError where it asks for what we do not have.
    """
    _refuse(
        settings,
        activation_function="gelu_new",
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    if settings.get("embd_pdrop", 0.1) != settings.get("resid_pdrop", 0.1):
        raise ConfigError("gpt2: embd_pdrop and resid_pdrop differ; here one dropout is both")
    config = TransformerConfig(
        width=settings["n_embd"],
        depth=settings["n_layer"],
        heads=settings["n_head"],
        mlp_width=settings.get("n_inner") or 0,
        positions="learned",
        tied=settings.get("tie_word_embeddings", True),
        dropout=settings.get("resid_pdrop", 0.1),
        eps=settings.get("layer_norm_epsilon", 1e-5),
    )
    return config, settings["vocab_size"], settings["n_positions"]


def to_gpt2_config(config: TransformerConfig, vocabulary: int, length: int) -> dict[str, Any]:
    """Arguments of a GPT2Config; ConfigError where GPT-2 has no such variant."""
    _variant(config, "gpt2", "gelu", "layer", "learned")
    if not config.bias or config.groups != config.heads:
        raise ConfigError("gpt2: needs bias=True and kv_heads=0")
    return {
        "vocab_size": vocabulary,
        "n_positions": length,
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": config.heads,
        "n_inner": config.mlp_width or None,
        "activation_function": "gelu_new",
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "layer_norm_epsilon": config.eps,
        "tie_word_embeddings": config.tied,
    }


def llama_config(settings: Mapping[str, Any]) -> tuple[TransformerConfig, int, int]:
    """Our configuration, the vocabulary and the length of a LlamaConfig.

    ConfigError where it asks for what we do not have: scaled rotary frequencies, say.
    """
    bias = settings.get("attention_bias", False)
    _refuse(settings, hidden_act="silu", mlp_bias=bias)
    # rope_parameters since transformers 5; before, rope_theta and rope_scaling
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(f"llama: rotary frequencies of type '{rope['rope_type']}' are not made")
    width, heads = settings["hidden_size"], settings["num_attention_heads"]
    if (settings.get("head_dim") or width // heads) != width // heads:
        raise ConfigError(f"llama: head_dim {settings['head_dim']} is not hidden_size / heads")
    config = TransformerConfig(
        width=width,
        depth=settings["num_hidden_layers"],
        heads=heads,
        kv_heads=settings.get("num_key_value_heads") or 0,
        mlp="swiglu",
        mlp_width=settings["intermediate_size"],
        norm="rms",
        rope_theta=rope.get("rope_theta") or settings.get("rope_theta") or 10_000.0,
        tied=settings.get("tie_word_embeddings", False),
        bias=bias,
        eps=settings.get("rms_norm_eps", 1e-6),
    )
    return config, settings["vocab_size"], settings["max_position_embeddings"]


def to_llama_config(config: TransformerConfig, vocabulary: int, length: int) -> dict[str, Any]:
    """Arguments of a LlamaConfig; ConfigError where Llama has no such variant."""
    _variant(config, "llama", "swiglu", "rms", "rope")
    if config.dropout:
        raise ConfigError("llama: has no dropout but of attention; set dropout=0")
    return {
        "vocab_size": vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.groups,
        "max_position_embeddings": length,
        "rms_norm_eps": config.eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tied,
    }


def _head(config: TransformerConfig, state: State, source: str, target: str) -> dict[str, Tensor]:
    return {} if config.tied else {target: state[source]}


def _kinds(name: str, config: TransformerConfig) -> tuple[str, ...]:
    has_bias = config.bias and not name.startswith("norm")
    return ("weight", "bias") if has_bias else ("weight",)


def _refuse(settings: Mapping[str, Any], **wanted: Any) -> None:
    for name, value in wanted.items():
        if settings.get(name, value) != value:
            raise ConfigError(f"{name}={settings[name]!r} has no counterpart here, {value!r} has")


def _variant(config: TransformerConfig, name: str, mlp: str, norm: str, positions: str) -> None:
    if (config.mlp, config.norm, config.positions) != (mlp, norm, positions) or config.qk_norm:
        raise ConfigError(
            f"{name}: needs mlp={mlp}, norm={norm}, positions={positions} and no qk_norm"
        )
