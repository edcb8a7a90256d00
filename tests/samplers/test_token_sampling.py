"""Sampling token by token: filters, exact distributions, prompts of unequal length, ends."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genus.draws import Draws
from genus.errors import ConfigError, DataError
from genus.networks.transformer.decoder import Transformer, TransformerConfig
from genus.networks.transformer.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from genus.samplers.categorical import choose
from genus.samplers.tokens import TokenSamplingConfig, generate, min_p, top_k, top_p

LENGTH = 16
INF = math.inf


def lively(network: nn.Module) -> nn.Module:
    """Weights far from 0, so that tokens matter; float64."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network.double().eval()


def decoder(vocabulary: int, classes: int = 0, positions: Any = "rope") -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(width=8, depth=2, heads=2, positions=positions)
    network = lively(config.build(vocabulary=vocabulary, length=LENGTH, classes=classes))
    assert isinstance(network, Transformer)
    return network


def kept(logits: Tensor) -> list[int]:
    return (logits > -INF).nonzero()[:, 0].tolist()


LOGITS = torch.tensor([0.1, 0.4, 0.2, 0.25, 0.05], dtype=torch.float64).log()


def test_which_tokens_survive() -> None:
    assert kept(top_k(LOGITS, 0)) == kept(top_k(LOGITS, 9)) == [0, 1, 2, 3, 4]
    assert kept(top_k(LOGITS, 1)) == [1]
    assert kept(top_k(LOGITS, 3)) == [1, 2, 3]
    assert kept(top_p(LOGITS, 1)) == [0, 1, 2, 3, 4]
    assert kept(top_p(LOGITS, 1e-9)) == [1]
    assert kept(top_p(LOGITS, 0.39)) == [1]
    assert kept(top_p(LOGITS, 0.41)) == [1, 3]
    assert kept(top_p(LOGITS, 0.84)) == [1, 2, 3]
    assert kept(top_p(LOGITS, 0.86)) == [0, 1, 2, 3]
    assert kept(min_p(LOGITS, 0)) == [0, 1, 2, 3, 4]
    assert kept(min_p(LOGITS, 0.24)) == [0, 1, 2, 3]
    assert kept(min_p(LOGITS, 0.26)) == [1, 2, 3]
    assert kept(min_p(LOGITS, 1)) == [1]


def test_what_survives_is_renormalised_and_the_order_is_as_said() -> None:
    p = top_k(LOGITS, 3).softmax(-1)
    torch.testing.assert_close(p, torch.tensor([0, 0.4, 0.2, 0.25, 0]).double() / 0.85)
    # top_p sees what top_k left, 0.4 and 0.25 of 0.65: together they are all.
    assert kept(TokenSamplingConfig(top_k=2, top_p=0.99).filtered(LOGITS)) == [1, 3]
    assert kept(TokenSamplingConfig(top_k=2, top_p=0.61).filtered(LOGITS)) == [1]
    # and all see the temperature: p^2 is 0.01, 0.16, 0.04, 0.0625, 0.0025 of 0.275
    half = TokenSamplingConfig(temperature=0.5, top_p=0.6)
    assert kept(half.filtered(LOGITS)) == [1, 3]
    torch.testing.assert_close(
        half.filtered(LOGITS).softmax(-1)[[1, 3]], torch.tensor([0.16, 0.0625]).double() / 0.2225
    )
    assert kept(TokenSamplingConfig(temperature=0.5, top_p=0.58).filtered(LOGITS)) == [1]
    assert kept(TokenSamplingConfig(temperature=0.5, min_p=0.3).filtered(LOGITS)) == [1, 3]


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_filters_are_those_of_transformers(scale: float) -> None:
    from transformers.generation import logits_process as peers

    logits = scale * torch.randn(64, 50, generator=torch.Generator().manual_seed(0)).double()
    nothing: Any = torch.zeros(64, 0, dtype=torch.long)
    for k in (1, 7, 50):
        assert top_k(logits, k).equal(peers.TopKLogitsWarper(k)(nothing, logits))
    for p in (0.05, 0.5, 0.9, 0.999):
        assert top_p(logits, p).equal(peers.TopPLogitsWarper(p)(nothing, logits))
        assert min_p(logits, p).equal(peers.MinPLogitsWarper(p)(nothing, logits))
    chain = peers.LogitsProcessorList(
        [
            peers.TemperatureLogitsWarper(0.7),
            peers.TopKLogitsWarper(20),
            peers.TopPLogitsWarper(0.8),
            peers.MinPLogitsWarper(0.1),
        ]
    )
    ours = TokenSamplingConfig(temperature=0.7, top_k=20, top_p=0.8, min_p=0.1)
    assert ours.filtered(logits).equal(chain(nothing, logits))


def test_inverse_cdf_at_its_edges() -> None:
    """No excluded token is drawn, whichever the number."""
    logits = torch.tensor([-INF, 1.0, -INF, 1.0, -INF])
    last = 1 - 2.0**-53
    uniforms = torch.tensor([0, 0.49, 0.51, last], dtype=torch.float64)
    assert choose(logits.expand(4, -1), uniforms).tolist() == [1, 1, 3, 3]
    # sums that are not 1 in floating point
    many = torch.randn(100, 999, generator=torch.Generator().manual_seed(0))
    many[:, 900:] = -INF
    assert choose(many, torch.full((100,), last, dtype=torch.float64)).max() < 900


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 2},
    "top_p": {"temperature": 1.5, "top_p": 0.75},
    "min_p": {"min_p": 0.3},
    "guidance": {"guidance": 2.5},
    "all": {"temperature": 0.8, "top_p": 0.9, "min_p": 0.1, "guidance": 1.7},
}


def law_of_next(
    network: Transformer, prefix: list[int], label: int, settings: dict[str, Any]
) -> list[float]:
    """Probabilities of three symbols, token by token in plain Python."""
    with torch.no_grad():
        tokens = torch.tensor([prefix, prefix], dtype=torch.long)
        both = network(tokens, label=torch.tensor([label, network.classes]))
    given, free = both[:, -1].log_softmax(-1).tolist()
    w = settings.get("guidance", 1)
    t = settings.get("temperature", 1)
    p = [math.exp((f + w * (g - f)) / t) for g, f in zip(given, free, strict=True)]
    ranked = sorted(range(3), key=lambda i: -p[i])[: settings.get("top_k", 3)]
    total, nucleus, before = sum(p[i] for i in ranked), [], 0.0
    for i in ranked:
        if before / total < settings.get("top_p", 1):
            nucleus.append(i)
        before += p[i]
    floor = settings.get("min_p", 0) * p[ranked[0]]
    final = [i for i in nucleus if p[i] >= floor]
    total = sum(p[i] for i in final)
    return [p[i] / total if i in final else 0.0 for i in range(3)]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_frequencies_of_strings_are_the_models_probabilities(settings: dict[str, Any]) -> None:
    """All 27 strings of three symbols after nothing but a class, by a chi-square test."""
    network, rows, label = decoder(3, classes=2), 30_000, 1
    sampled = generate(
        network,
        torch.zeros(rows, 0, dtype=torch.long),
        None,
        3,
        Draws.of([7], rows),
        label=torch.full((rows,), label),
        classes=2,
        **settings,
    )
    count = torch.bincount(sampled @ torch.tensor([9, 3, 1]), minlength=27)
    expected = []
    for string in itertools.product(range(3), repeat=3):
        laws = [law_of_next(network, list(string[:i]), label, settings) for i in range(3)]
        expected.append(rows * math.prod(laws[i][string[i]] for i in range(3)))
    want = torch.tensor(expected)
    assert float(want.sum()) == pytest.approx(rows)
    possible = want > 0
    assert bool((count[~possible] == 0).all())
    degrees = int(possible.sum()) - 1
    assert degrees > 1  # more than one string, else there is nothing to compare
    chi = float(((count - want)[possible] ** 2 / want[possible]).sum())
    assert chi < degrees + 4 * math.sqrt(2 * degrees)


def prompts(vocabulary: int, rows: int, longest: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(vocabulary, (rows, longest), generator=generator)
    lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
    lengths[0] = longest
    return x, lengths


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_sample_alone_is_that_of_the_batch(static: bool, positions: str, guidance: float) -> None:
    """In another batch, with another padding, or by itself without any."""
    classes = 3
    network = decoder(7, classes, positions)
    x, lengths = prompts(7, 6, 5)
    label = torch.arange(6) % classes
    options: dict[str, Any] = {"classes": classes, "guidance": guidance, "static": static}
    seeds = list(range(10, 16))
    together = generate(network, x, lengths, 8, Draws.of(seeds), label=label, **options)
    part = [4, 1, 2]
    some = generate(
        network, x[part], lengths[part], 8, Draws.of([14, 11, 12]), label=label[part], **options
    )
    assert some.equal(together[part])
    for row in range(6):
        alone = generate(
            network,
            x[row : row + 1, : lengths[row]],
            None,
            8,
            Draws.of([seeds[row]]),
            label=label[row : row + 1],
            **options,
        )
        assert alone.equal(together[row : row + 1])
    assert len({tuple(row) for row in together.tolist()}) == 6


def test_a_longer_sample_begins_with_the_shorter() -> None:
    network, x = decoder(7), torch.zeros(3, 1, dtype=torch.long)
    short, long = (generate(network, x, None, n, Draws.of([1, 2, 3])) for n in (5, 12))
    assert long[:, :5].equal(short)


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_greedy_is_the_argmax_of_full_passes(positions: str) -> None:
    network = decoder(7, positions=positions)
    x, lengths = prompts(7, 5, 4)
    # up to the last position that is learned: the last token is not read
    count = LENGTH - 4 + 1
    made = generate(network, x, lengths, count, Draws.of(range(5)), temperature=0)
    for row, length in enumerate(lengths.tolist()):
        text = x[row : row + 1, :length]
        for step in range(count):
            with torch.no_grad():
                best = network(text)[:, -1].argmax(-1)
            assert int(best) == int(made[row, step])
            text = torch.cat([text, best[:, None]], 1)
    with pytest.raises(DataError, match="has learned 16"):
        generate(decoder(7, positions="learned"), x, lengths, count + 1, Draws.of(range(5)))


def test_after_the_end_only_the_end() -> None:
    network, rows, end = decoder(5), 40, 2
    x = torch.zeros(rows, 1, dtype=torch.long)
    free = generate(network, x, None, 5, Draws.of(range(rows)))
    ended = generate(network, x, None, 5, Draws.of(range(rows)), end=end)
    met = free == end
    seen = met.cumsum(1) > 0
    assert ended.equal(free.masked_fill(seen, end))
    assert 0 < int(met.any(1).sum()) < rows


def test_it_stops_when_all_have_ended() -> None:
    class Counting(nn.Module):
        """The row's number of tokens, then the end: row i ends with its (i + 1)-th token."""

        calls = 0

        def forward(self, tokens: Tensor, **_: Any) -> Tensor:
            rows = torch.arange(len(tokens))
            logits = torch.zeros(len(tokens), 1, 4)
            logits[rows, 0, (rows <= self.calls).long() + 1] = 9
            self.calls += 1
            return logits

    model = Counting()
    x = torch.zeros(3, 1, dtype=torch.long)
    made = generate(model, x, None, 50, Draws.of(range(3)), temperature=0, end=2)
    assert model.calls == 3
    assert made.shape == (3, 50)
    assert made[:, :4].tolist() == [[2, 2, 2, 2], [1, 2, 2, 2], [1, 1, 2, 2]]
    assert bool((made[:, 4:] == 2).all())


def test_a_source_is_given_once() -> None:
    """The encoder-decoder: rows of unequal sources and prompts, as by full passes."""
    torch.manual_seed(0)
    config = EncoderDecoderConfig(width=8, depth=2, heads=2)
    network = lively(config.build(vocabulary=6, length=LENGTH, source_length=9, source_features=3))
    assert isinstance(network, EncoderDecoder)
    source = torch.randn(4, 9, 3).double()
    sizes = torch.tensor([9, 2, 5, 7])
    mask = torch.arange(9) < sizes[:, None]
    x, lengths = prompts(6, 4, 3)
    encoded = []
    network.encoder.register_forward_hook(lambda *_: encoded.append(1))
    made = generate(
        network, x, lengths, 8, Draws.of(range(4)), temperature=0, source=source, source_mask=mask
    )
    assert len(encoded) == 1
    for row in range(4):
        text = x[row : row + 1, : lengths[row]]
        for step in range(8):
            with torch.no_grad():
                best = network(source[row : row + 1, : sizes[row]], text)[:, -1].argmax(-1)
            assert int(best) == int(made[row, step])
            text = torch.cat([text, best[:, None]], 1)
    drawn = generate(network, x, lengths, 8, Draws.of(range(4)), source=source, source_mask=mask)
    alone = generate(network, x[1:2, : lengths[1]], None, 8, Draws.of([1]), source=source[1:2, :2])
    assert alone.equal(drawn[1:2])


def test_results_can_be_learnt_from() -> None:
    """They are ordinary tensors, and the network is left as it was."""
    network, x = decoder(7), torch.zeros(2, 1, dtype=torch.long)
    made = generate(network, x, None, 4, Draws.of([1, 2]))
    scores = network(made[:, :-1], targets=made[:, 1:])
    scores.nats.sum().backward()
    assert network.embedding.weight.grad is not None


def test_errors_say_what_to_do() -> None:
    network, x = decoder(7), torch.zeros(2, 1, dtype=torch.long)
    draws = Draws.of([1, 2])
    bad: list[tuple[str, Any]] = [
        ("temperature", -1), ("temperature", INF), ("top_k", -1), ("top_p", 0), ("top_p", 1.1),
        ("min_p", -0.1), ("min_p", 2), ("guidance", math.nan),
    ]  # fmt: skip
    for name, value in bad:
        with pytest.raises(ConfigError, match=name):
            TokenSamplingConfig(**{name: value})
        with pytest.raises(ConfigError, match=name):
            generate(network, x, None, 4, draws, **{name: value})
    with pytest.raises(DataError, match="at least one token"):
        generate(network, x[:, :0], None, 4, draws)
    with pytest.raises(DataError, match="a length of 2 for prompts of 1"):
        generate(network, x, torch.tensor([1, 2]), 4, draws)
    with pytest.raises(DataError, match="1 seeds for 2"):
        generate(network, x, None, 4, Draws.of([1]))
    with pytest.raises(ConfigError, match="count=0"):
        generate(network, x, None, 0, draws)
    with pytest.raises(ConfigError, match="needs classes"):
        generate(network, x, None, 4, draws, label=torch.tensor([0, 1]))
