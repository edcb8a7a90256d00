"""Beam search against enumeration, greedy decoding and the model's own probabilities."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from genus.draws import Draws
from genus.errors import ConfigError
from genus.networks.transformer.cache import Cache
from genus.networks.transformer.decoder import Transformer, TransformerConfig
from genus.networks.transformer.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from genus.samplers.beam import beam_search, length_penalty
from genus.samplers.tokens import generate

V, END, COUNT = 4, 3, 4


def lively(network: nn.Module) -> nn.Module:
    """Weights far from 0, so that tokens matter; float64."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return network.double().eval()


def decoder(seed: int, classes: int = 0) -> Transformer:
    torch.manual_seed(seed)
    config = TransformerConfig(width=8, depth=1, heads=2)
    network = lively(config.build(vocabulary=V, length=16, classes=classes))
    assert isinstance(network, Transformer)
    return network


def translator(seed: int) -> EncoderDecoder:
    torch.manual_seed(seed)
    config = EncoderDecoderConfig(width=8, depth=1, heads=2)
    network = lively(config.build(vocabulary=V, length=16, source_length=8, source_vocabulary=5))
    assert isinstance(network, EncoderDecoder)
    return network


def all_strings(end: int) -> list[tuple[int, ...]]:
    """Strings of COUNT tokens without the end, and shorter ones with the end at their end."""
    inner = [token for token in range(V) if token != end]
    strings = list(itertools.product(inner, repeat=COUNT))
    for length in range(COUNT if end >= 0 else 0):
        strings += [(*head, end) for head in itertools.product(inner, repeat=length)]
    return strings


@torch.no_grad()
def log_probabilities(
    network: nn.Module, prompt: Tensor, strings: list[tuple[int, ...]], source: Tensor | None = None
) -> Tensor:
    """log p of each string after a prompt (T,), by passes without a cache."""
    values = []
    for string in strings:
        tokens = torch.cat([prompt, torch.tensor(string)])[None]
        logits = network(tokens) if source is None else network(source[None], tokens)
        log_p = logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        values.append(log_p.gather(1, tokens[0, len(prompt) :, None]).sum())
    return torch.stack(values)


def penalties(strings: list[tuple[int, ...]], alpha: float) -> Tensor:
    return torch.tensor([length_penalty(len(s), alpha) for s in strings], dtype=torch.float64)


def padded(string: tuple[int, ...]) -> list[int]:
    return [*string, *[END] * (COUNT - len(string))]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("end", [END, -1])
def test_a_wide_beam_is_exhaustive(alpha: float, end: int) -> None:
    """The best of all strings, for prompts of unequal length."""
    strings = all_strings(end)
    assert len(strings) == (1 + 3 + 9 + 27 + 81 if end >= 0 else 256)
    prompts, lengths = torch.tensor([[0, 1, 2], [2, 0, 0]]), torch.tensor([3, 1])
    for seed in range(3):
        network = decoder(seed)
        found = beam_search(
            network, prompts, lengths, COUNT, beams=len(strings), alpha=alpha, end=end
        )
        for row, length in enumerate(lengths.tolist()):
            scores = log_probabilities(network, prompts[row, :length], strings)
            scores = scores / penalties(strings, alpha)
            best = strings[int(scores.argmax())]
            assert found.tokens[row].tolist() == padded(best)
            assert float(found.scores[row]) == pytest.approx(float(scores.max()), abs=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_a_wide_beam_is_exhaustive_given_a_source(alpha: float) -> None:
    strings = all_strings(END)
    source = torch.tensor([[0, 1, 2, 3], [4, 4, 0, 0], [2, 2, 1, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    network = translator(0)
    begin = torch.zeros(3, 1, dtype=torch.long)
    found = beam_search(
        network,
        begin,
        None,
        COUNT,
        beams=130,
        alpha=alpha,
        end=END,
        source=source,
        source_mask=mask,
    )
    for row in range(3):
        scores = log_probabilities(network, begin[row], strings, source[row, mask[row]])
        scores = scores / penalties(strings, alpha)
        assert found.tokens[row].tolist() == padded(strings[int(scores.argmax())])
        assert float(found.scores[row]) == pytest.approx(float(scores.max()), abs=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("end", [END, -1])
def test_one_beam_is_greedy(alpha: float, end: int) -> None:
    prompts = torch.randint(V, (12, 3), generator=torch.Generator().manual_seed(0))
    network = decoder(5)
    found = beam_search(network, prompts, None, 8, beams=1, alpha=alpha, end=end)
    greedy = generate(network, prompts, None, 8, Draws.of(range(12)), temperature=0, end=end)
    assert found.tokens.equal(greedy)
    assert end < 0 or 0 < (greedy == end).any(1).sum() < 12  # some end and some do not


@pytest.mark.parametrize("alpha", [0.0, 0.6])
@pytest.mark.parametrize("beams", [2, 3])
def test_the_score_is_that_of_the_tokens_and_rows_are_alone(alpha: float, beams: int) -> None:
    prompts = torch.randint(V, (6, 2), generator=torch.Generator().manual_seed(0))
    network = decoder(1)
    found = beam_search(network, prompts, None, COUNT, beams=beams, alpha=alpha, end=END)
    for row in range(6):
        text = found.tokens[row].tolist()
        string = tuple(text[: text.index(END) + 1] if END in text else text)
        value = log_probabilities(network, prompts[row], [string])
        score = float(value) / length_penalty(len(string), alpha)
        assert float(found.scores[row]) == pytest.approx(score, abs=1e-10)
        assert text == padded(string)
        assert not found.tokens.is_inference()
        assert not found.scores.is_inference()
        alone = beam_search(
            network, prompts[row : row + 1], None, COUNT, beams=beams, alpha=alpha, end=END
        )
        assert alone.tokens[0].tolist() == text


class Table(nn.Module):
    """A model of written-down probabilities: rows[t] of the (t + 1)-th token after the prompt,
    whatever came before. It counts its calls."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.log_p = torch.tensor(rows, dtype=torch.float64).log()
        self.calls = 0

    def forward(self, tokens: Tensor, *, cache: Cache, last_only: bool = False) -> Tensor:
        at = self.log_p[self.calls]
        self.calls += 1
        return at.expand(len(tokens), 1, -1)


def test_it_stops_where_nothing_open_can_win_and_not_before() -> None:
    prompt = torch.zeros(1, 1, dtype=torch.long)
    # Ending at once has p = 0.3; going on is near certain, and 0.7 * 0.9^3 = 0.51 wins in the end.
    late = Table([[0.7, 0.3], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    found = beam_search(late, prompt, None, 4, beams=3, alpha=0, end=1)
    assert found.tokens.tolist() == [[0, 0, 0, 0]]
    assert late.calls == 4
    # Ending at once has p = 0.6: what remains has 0.4.
    soon = Table([[0.4, 0.6], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    found = beam_search(soon, prompt, None, 4, beams=3, alpha=0, end=1)
    assert found.tokens.tolist() == [[1, 1, 1, 1]]
    assert soon.calls == 1
    # With alpha 1 the longest, ln 0.4 / (9 / 6), is above ln 0.6 / 1 or not?
    # -0.916 / 1.5 = -0.611 < -0.511: it stops. For 0.45 against 0.55: -0.532 > -0.598: it goes on.
    for p, calls in ((0.4, 1), (0.45, 4)):
        table = Table([[p, 1 - p], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
        found = beam_search(table, prompt, None, 4, beams=3, alpha=1, end=1)
        assert table.calls == calls
        assert found.tokens.tolist() == [[1] * 4 if calls == 1 else [0] * 4]


def test_what_has_ended_keeps_its_place_in_the_beam() -> None:
    """The two best are "end" and "a"; with one place left, "ab" (p 0.18) goes on and "aa" (0.12)
    does not, although "aaa" (0.12) would win over "end" at this alpha, and "ab" ends below it."""

    class Chain(nn.Module):
        """Tokens a, b, end: the first three steps' probabilities by the last token."""

        calls = 0

        def forward(self, tokens: Tensor, **_: object) -> Tensor:
            after_a = [[0.3, 0.2, 0.5], [0.4, 0.6, 0.0], [1.0, 0.0, 0.0]][self.calls]
            after_b = [[0.3, 0.2, 0.5], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0]][self.calls]
            self.calls += 1
            p = torch.tensor([after_a, after_b, after_a], dtype=torch.float64)
            return p.log()[tokens[:, -1]][:, None]

    prompt = torch.zeros(1, 1, dtype=torch.long)
    # ln 0.12 / (8 / 6)^4 = -0.671 > ln 0.5 = -0.693 > ln 0.09 / (8 / 6)^4 = -0.762
    for beams, best in ((2, [2, 2, 2]), (3, [0, 0, 0])):
        found = beam_search(Chain(), prompt, None, 3, beams=beams, alpha=4, end=2)
        assert found.tokens.tolist() == [best]


def test_a_class_stands_in_front() -> None:
    network = decoder(0, classes=2)
    nothing = torch.zeros(2, 0, dtype=torch.long)
    label = torch.tensor([0, 1])
    found = beam_search(network, nothing, None, 2, beams=16, alpha=0, label=label, classes=2)
    pairs = torch.tensor(list(itertools.product(range(V), repeat=2)))
    for row in range(2):
        with torch.no_grad():
            log_p = network(pairs, label=label[row].expand(16)).log_softmax(-1)
        total = log_p[:, :2].gather(2, pairs[:, :, None]).sum((1, 2))
        assert found.tokens[row].equal(pairs[total.argmax()])
        assert float(found.scores[row]) == pytest.approx(float(total.max()), abs=1e-10)


def test_static_is_the_same() -> None:
    prompts, lengths = torch.tensor([[0, 1, 2], [2, 0, 0]]), torch.tensor([3, 1])
    network = decoder(2)
    found, static = (
        beam_search(network, prompts, lengths, COUNT, beams=3, end=END, static=static)
        for static in (False, True)
    )
    assert found.tokens.equal(static.tokens)


def test_settings_out_of_range() -> None:
    prompts = torch.zeros(1, 1, dtype=torch.long)
    with pytest.raises(ConfigError, match="beams=0"):
        beam_search(decoder(0), prompts, None, 2, beams=0)
    with pytest.raises(ConfigError, match="alpha=-1"):
        beam_search(decoder(0), prompts, None, 2, alpha=-1)
