"""Weights and settings interchange with transformers; parameter counts of the published sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from genus.errors import ConfigError
from genus.networks.transformer import huggingface as hf
from genus.networks.transformer.cache import Cache
from genus.networks.transformer.decoder import TransformerConfig

V, T = 37, 10

GPT2_SIZES = {
    124_439_808: TransformerConfig(width=768, depth=12, heads=12, positions="learned"),
    354_823_168: TransformerConfig(width=1024, depth=24, heads=16, positions="learned"),
    774_030_080: TransformerConfig(width=1280, depth=36, heads=20, positions="learned"),
    1_557_611_200: TransformerConfig(width=1600, depth=48, heads=25, positions="learned"),
}
LLAMA3_8B = TransformerConfig(
    width=4096, depth=32, heads=32, kv_heads=8, mlp="swiglu", mlp_width=14336, norm="rms",
    rope_theta=500_000.0, tied=False, bias=False, eps=1e-5,
)  # fmt: skip


def random_(model: Any) -> Any:
    """Everything random, norms and biases too, and large enough to tell positions apart."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def gpt2(**settings: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": V, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3}
    return random_(GPT2LMHeadModel(GPT2Config(**sizes, **settings)))


def llama(**settings: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {
        "vocab_size": V, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 16, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    return random_(LlamaForCausalLM(LlamaConfig(**{**sizes, **settings})))


def tokens() -> torch.Tensor:
    return torch.randint(V, (3, T), generator=torch.Generator().manual_seed(1))


def check(theirs: Any, make: Any, convert: Any, back: Any, back_config: Any, kind: Any) -> None:
    config, vocabulary, length = make(theirs.config.to_dict())
    ours = config.build(vocabulary=vocabulary, length=length).eval()
    ours.load_state_dict(convert(theirs.state_dict(), config), strict=True)
    with torch.no_grad():
        expected = theirs(tokens()).logits
        torch.testing.assert_close(ours(tokens()), expected, rtol=1e-5, atol=1e-5)
        cache = Cache(T)
        cached = [ours(part, cache=cache) for part in tokens().split([4, 1, 5], 1)]
        torch.testing.assert_close(torch.cat(cached, 1), expected, rtol=1e-5, atol=1e-5)

    mine = random_(config.build(vocabulary=vocabulary, length=length))
    again = kind(type(theirs.config)(**back_config(config, vocabulary, length))).eval()
    again.load_state_dict(back(mine.state_dict(), config), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(again(tokens()).logits, mine(tokens()), rtol=1e-5, atol=1e-5)
    named = replace(config, kv_heads=config.groups) if config.norm == "rms" else config
    assert make(again.config.to_dict()) == (named, vocabulary, length)
    round_trip = convert(back(mine.state_dict(), config), config)
    assert round_trip.keys() == mine.state_dict().keys()
    assert all(torch.equal(round_trip[name], value) for name, value in mine.state_dict().items())


@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": False, "n_inner": 40}])
def test_gpt2(settings: dict[str, Any]) -> None:
    theirs = gpt2(**settings)
    check(theirs, hf.gpt2_config, hf.from_gpt2, hf.to_gpt2, hf.to_gpt2_config, type(theirs))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ],
    ids=["plain", "grouped, tied", "one group, biases", "theta"],
)
def test_llama(settings: dict[str, Any]) -> None:
    theirs = llama(**settings)
    check(theirs, hf.llama_config, hf.from_llama, hf.to_llama, hf.to_llama_config, type(theirs))


def test_what_has_no_counterpart_is_refused() -> None:
    with pytest.raises(ConfigError, match="activation_function='relu'"):
        hf.gpt2_config({"activation_function": "relu"})
    with pytest.raises(ConfigError, match="type 'llama3'"):
        hf.llama_config({"rope_parameters": {"rope_type": "llama3"}})
    with pytest.raises(ConfigError, match="mlp_bias=True"):
        hf.llama_config({"mlp_bias": True})
    with pytest.raises(ConfigError, match="gpt2: needs mlp=gelu"):
        hf.to_gpt2_config(LLAMA3_8B, V, T)
    with pytest.raises(ConfigError, match="llama: needs mlp=swiglu"):
        hf.to_llama_config(GPT2_SIZES[124_439_808], V, T)


@pytest.mark.parametrize("published", GPT2_SIZES)
def test_gpt2_sizes(published: int) -> None:
    """Radford et al. 2019, table 2, counted from the released weights."""
    with torch.device("meta"):
        network = GPT2_SIZES[published].build(vocabulary=50_257, length=1024)
    assert sum(parameter.numel() for parameter in network.parameters()) == published


def test_llama3_8b_size() -> None:
    """Dubey et al. 2024, table 3, counted from the released weights."""
    with torch.device("meta"):
        network = LLAMA3_8B.build(vocabulary=128_256, length=8192)
    assert sum(parameter.numel() for parameter in network.parameters()) == 8_030_261_248
