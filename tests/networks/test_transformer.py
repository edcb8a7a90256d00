"""The decoder-only transformer: causality, normalisation, documents, classes, its contract."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from genus.errors import ConfigError, DataError
from genus.networks.transformer.attention import attend
from genus.networks.transformer.decoder import Transformer, TransformerConfig
from genus.networks.transformer.documents import (
    block_mask,
    dense_mask,
    document_spans,
    flex_attention,
)
from genus.networks.transformer.rope import rotation_table

V, T, CLASSES = 5, 7, 3
CONFIGS = {
    "gpt2": TransformerConfig(width=8, depth=2, heads=2, positions="learned"),
    "llama": TransformerConfig(
        width=16, depth=2, heads=4, kv_heads=2, mlp="swiglu", mlp_width=24, norm="rms",
        tied=False, bias=False,
    ),
    "qk": TransformerConfig(width=12, depth=2, heads=3, kv_heads=1, qk_norm=True, norm="rms"),
}  # fmt: skip
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def built(config: TransformerConfig, classes: int = 0, length: int = T + 1) -> Transformer:
    """In float64 with large random weights, so that everything matters."""
    torch.manual_seed(0)
    network = config.build(vocabulary=V, length=length, classes=classes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network.double().eval()


def tokens(rows: int = 2, length: int = T) -> Tensor:
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(1))


def dependence(network: Transformer, x: Tensor, label: Tensor | None = None) -> Tensor:
    """Largest |d logits at t / d embedding of token s| (t, s), of one row x (1, T)."""

    def logits(embedded: Tensor) -> Tensor:
        hook = network.embedding.register_forward_hook(lambda *_: embedded)
        out = network(x, label=label)
        hook.remove()
        return out[0]

    jacobian = torch.autograd.functional.jacobian(logits, network.embedding(x).detach())
    return jacobian[:, :, 0].abs().amax((1, 3))


@every_config
def test_an_output_depends_on_its_token_and_those_before(config: TransformerConfig) -> None:
    sees = dependence(built(config), tokens(1)) > 0
    assert torch.equal(sees, torch.ones(T, T, dtype=torch.bool).tril())


@every_config
def test_behind_a_class_an_output_depends_on_tokens_before_its_own(
    config: TransformerConfig,
) -> None:
    network = built(config, classes=CLASSES)
    sees = dependence(network, tokens(1), torch.tensor([1])) > 0
    assert torch.equal(sees, torch.ones(T + 1, T, dtype=torch.bool).tril(-1))


@every_config
def test_all_strings_together_have_probability_1(config: TransformerConfig) -> None:
    """All 5^4 of them, for each class and for none."""
    network = built(config, classes=CLASSES)
    strings = torch.tensor(list(itertools.product(range(V), repeat=4)))
    for label in range(CLASSES + 1):
        labels = torch.full((len(strings),), label)
        nats, _ = network(strings[:, :-1], targets=strings, label=labels)
        assert abs((-nats.sum(1)).exp().sum().item() - 1) < 1e-12


@every_config
def test_documents_in_one_row_are_as_alone(config: TransformerConfig) -> None:
    network = built(config)
    x = tokens()
    lengths = [[2, 4, 1], [1, 1, 5]]
    # the third has the first one's number again: it is another document all the same
    document = torch.stack(
        [torch.tensor([4, 2, 4]).repeat_interleave(torch.tensor(n)) for n in lengths]
    )
    together = network(x, document=document)
    for row, parts in enumerate(lengths):
        alone = [network(part[None])[0] for part in x[row].split(parts)]
        torch.testing.assert_close(together[row], torch.cat(alone), rtol=1e-12, atol=1e-12)
    assert (together - network(x)).abs().max() > 1e-2


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attentions_mask_is_the_dense_one() -> None:
    generator = torch.Generator().manual_seed(0)
    document = torch.randint(3, (2, 200), generator=generator).sort(1).values
    number, _ = document_spans(document)
    q = torch.randn(2, 4, 200, 8, generator=generator)
    k, v = torch.randn(2, 2, 2, 200, 8, generator=generator)
    flex = flex_attention(q, k, v, block_mask(number)).transpose(1, 2).flatten(2)
    dense = attend(q, k, v, mask=dense_mask(number))
    torch.testing.assert_close(flex, dense, rtol=1e-5, atol=1e-5)


@every_config
def test_scores_are_the_cross_entropy_of_the_logits(config: TransformerConfig) -> None:
    network = built(config)
    x, y = tokens(), tokens().flip(1)
    y[0, 2] = -1
    nats, log_z = network(x, targets=y)
    logits = network(x)
    expected = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), y, reduction="none", ignore_index=-1
    )
    torch.testing.assert_close(nats, expected, rtol=1e-12, atol=1e-12)
    real = y >= 0
    torch.testing.assert_close(log_z[real], logits.logsumexp(-1)[real], rtol=1e-12, atol=1e-12)


@every_config
def test_gradient_reaches_every_parameter(config: TransformerConfig) -> None:
    network = built(config, classes=CLASSES)
    label = torch.tensor([0, 1, 2, 3])
    nats, _ = network(tokens(4, T), targets=tokens(4, T + 1), label=label)
    nats.sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@every_config
def test_classes(config: TransformerConfig) -> None:
    network = built(config, classes=CLASSES)
    x = tokens()
    none = network(x, label=torch.full((2,), CLASSES))
    assert none.shape == (2, T + 1, V)
    assert torch.equal(network(x), none)
    assert (network(x, label=torch.tensor([0, 1])) - none).abs().amax((1, 2)).min() > 1e-2
    assert network(x[:, :0]).shape == (2, 1, V)


@every_config
def test_only_the_last(config: TransformerConfig) -> None:
    network = built(config)
    x = tokens()
    logits = network(x)
    last = network(x, last_only=True)
    torch.testing.assert_close(last, logits[:, -1:], rtol=1e-12, atol=1e-12)
    ragged = network(x, last_only=True, lengths=torch.tensor([3, 1]))
    expected = torch.stack([logits[0, 2:3], logits[1, 0:1]])
    torch.testing.assert_close(ragged, expected, rtol=1e-12, atol=1e-12)


@every_config
def test_rows_are_independent(config: TransformerConfig) -> None:
    network = built(config)
    x = tokens(3)
    together = network(x)
    for row in range(3):
        alone = network(x[row : row + 1])[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-11, atol=1e-11)


@every_config
def test_state_dict_round_trip_through_the_meta_device(config: TransformerConfig) -> None:
    source = built(config, classes=CLASSES)
    with torch.device("meta"):
        shell = config.build(vocabulary=V, length=T + 1, classes=CLASSES).double()
        assert shell(torch.zeros(2, T, dtype=torch.long)).shape == (2, T + 1, V)
    shell.to_empty(device="cpu").load_state_dict(source.state_dict(), strict=True)
    assert torch.equal(shell.eval()(tokens()), source(tokens()))


@every_config
def test_bfloat16_autocast_is_close(config: TransformerConfig) -> None:
    network = built(config).float()
    x, y = tokens(4), tokens(4).flip(1)
    exact, exact_scores = network(x), network(x, targets=y)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, scores = network(x), network(x, targets=y)
    assert rounded.dtype == scores.nats.dtype == torch.float32
    assert 1e-5 < (rounded - exact).norm() / exact.norm() < 0.05
    torch.testing.assert_close(scores.nats, exact_scores.nats, rtol=0.1, atol=0.1)
    scores.nats.mean().backward()
    gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    network.zero_grad()
    exact_scores.nats.mean().backward()
    expected = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    assert (gradient - expected).norm() / expected.norm() < 0.1


@every_config
def test_compiles_as_one_graph(config: TransformerConfig) -> None:
    network = built(config)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    nats = compiled(tokens(), targets=tokens()).nats
    expected = network(tokens(), targets=tokens()).nats
    torch.testing.assert_close(nats, expected, rtol=1e-11, atol=1e-11)


def test_rope_turns_by_the_angle_of_the_distance() -> None:
    """q at i times k at j depends on i - j alone, and pair p turns by theta^(-2p/C) a position."""
    like = torch.zeros((), dtype=torch.float64)
    table = rotation_table(9, 6, 100.0, like)
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 6, generator=generator, dtype=torch.float64)
    turned_q, turned_k = table(q.expand(1, 9, 1, 6)), table(k.expand(1, 9, 1, 6))
    products = torch.einsum("bihc,bjhc->ij", turned_q, turned_k)
    for distance in range(-8, 9):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    x, y = turned_q[0, :, 0, :3], turned_q[0, :, 0, 3:]
    turned = torch.complex(x, y)
    angles = torch.arange(9.0).double()[:, None] * 100.0 ** (-torch.arange(3.0).double() / 3)
    expected = turned[:1] * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(turned, expected)


def test_initialisation_is_gpt2s() -> None:
    torch.manual_seed(0)
    network = TransformerConfig(width=128, depth=8, heads=4).build(vocabulary=500, length=8)
    small = 0.02 / 16**0.5
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert parameter.abs().max() == 0
        elif parameter.ndim == 2:
            std = small if name.endswith(("attention.out.weight", "mlp.down.weight")) else 0.02
            assert abs(parameter.std() / std - 1) < 0.03, name


def test_dropout_only_in_training() -> None:
    network = built(replace(CONFIGS["gpt2"], dropout=0.5))
    assert torch.equal(network(tokens()), network(tokens()))
    network.train()
    assert not torch.equal(network(tokens()), network(tokens()))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="width 10 is not a multiple of heads 4"):
        TransformerConfig(width=10, heads=4)
    with pytest.raises(ConfigError, match="heads 4 is not a multiple of kv_heads 3"):
        TransformerConfig(width=8, heads=4, kv_heads=3)
    with pytest.raises(ConfigError, match="width / heads is 3; make it even"):
        TransformerConfig(width=6, heads=2)
    with pytest.raises(ConfigError, match=r"in \[0, 1\)"):
        TransformerConfig(width=8, heads=2, dropout=1.0)
    with pytest.raises(DataError, match="9 positions, but it has learned 8"):
        built(CONFIGS["gpt2"])(tokens(1, 9))
    with pytest.raises(ConfigError, match="has no classes"):
        built(CONFIGS["gpt2"])(tokens(), label=torch.zeros(2, dtype=torch.long))
    with pytest.raises(DataError, match="cannot be packed"):
        built(CONFIGS["gpt2"], classes=2)(tokens(), document=torch.zeros(2, T, dtype=torch.long))
