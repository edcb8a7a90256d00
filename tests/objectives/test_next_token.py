"""Next-token prediction: its loss by hand, a source whose entropy is known, samples' shapes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genus.data.batch import Batch
from genus.draws import Draws
from genus.errors import ConfigError
from genus.networks.transformer.decoder import Transformer, TransformerConfig
from genus.objectives.next_token import NextTokenConfig
from genus.objectives.phase import SampleOptions
from genus.samplers.tokens import generate

V, T = 5, 12


def windows(tokens: Tensor, document: Tensor | None = None) -> Batch:
    ids = torch.arange(len(tokens))
    fields = {"tokens": tokens.int()}
    fields["document"] = torch.zeros_like(tokens) if document is None else document
    return Batch(fields, ids, 0, Draws.of(ids.tolist()))


def model(width: int = 16, classes: int = 0, vocabulary: int = V) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(width=width, depth=2, heads=2)
    network = config.build(vocabulary=vocabulary, length=T, classes=classes)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def test_the_loss_is_the_mean_surprise_of_the_next_token() -> None:
    network, tokens = model().double(), torch.randint(0, V, (3, T + 1))
    logits = network(tokens[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    objective = NextTokenConfig().build(T)
    loss, metrics = objective.loss({"model": network}, windows(tokens))
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    density = objective.log_density({"model": network}, windows(tokens))
    assert (density.kind, density.unit, density.dims) == ("exact", "nats/token", T)
    assert -float(density.nats.mean().detach()) / T == pytest.approx(float(metrics["loss"]))


def test_the_z_loss_is_the_mean_square_of_log_z() -> None:
    network, tokens = model().double(), torch.randint(0, V, (3, T + 1))
    plain, _ = NextTokenConfig().build(T).loss({"model": network}, windows(tokens))
    loss, metrics = NextTokenConfig(z_loss=0.3).build(T).loss({"model": network}, windows(tokens))
    log_z = network(tokens[:, :-1]).logsumexp(-1)
    assert float(loss - plain) == pytest.approx(0.3 * float(log_z.square().mean()), rel=1e-10)
    assert float(metrics["loss"]) == pytest.approx(float(plain.detach()))  # comparable without it


def test_documents_are_told_apart_where_that_is_asked_for() -> None:
    network, tokens = model().double(), torch.randint(0, V, (2, T + 1))
    document = (torch.arange(T + 1) >= 7).long().expand(2, -1)
    nats = []
    for documents in (True, False):
        objective = NextTokenConfig(documents=documents).build(T)
        changed = tokens.clone()
        changed[:, :7] = (changed[:, :7] + 1) % V  # the first document
        both = [objective._scores({"model": network}, windows(t, document), 0.0).nats.detach()
                for t in (tokens, changed)]  # fmt: skip
        nats.append(torch.equal(both[0][:, 7:], both[1][:, 7:]))
    assert nats == [True, False]


def test_images_are_rasters_with_their_channels_side_by_side() -> None:
    """The last pixel's last channel is given all others; its distribution sums to 1."""
    shape = (2, 1, 2)
    network = model(vocabulary=256, classes=3).double()
    objective = NextTokenConfig().build(4, 3, shape)
    image = torch.tensor([10, 20, 30, 0]).reshape(1, *shape)  # red 10 20, green 30 and the last
    images = image.repeat(256, 1, 1, 1)
    images[:, 1, 0, 1] = torch.arange(256)
    ids = torch.arange(256)
    batch = Batch(
        {"image": images.to(torch.uint8), "label": torch.ones(256, dtype=torch.long)},
        ids, 0, Draws.of(ids.tolist()),
    )  # fmt: skip
    found = objective.log_density({"model": network}, batch)
    assert (found.unit, found.dims) == ("bits/dim", 4)
    logits = network(torch.tensor([[10, 30, 20]]), label=torch.tensor([1])).log_softmax(-1)
    first = logits[0, 0, 10] + logits[0, 1, 30] + logits[0, 2, 20]
    torch.testing.assert_close(found.nats, first + logits[0, 3])
    assert float(found.nats.exp().sum().detach()) == pytest.approx(float(first.exp().detach()))


def test_the_entropy_rate_of_a_markov_source_is_reached() -> None:
    P = torch.tensor([[0.8, 0.15, 0.05], [0.1, 0.6, 0.3], [0.3, 0.2, 0.5]], dtype=torch.float64)
    values, vectors = torch.linalg.eig(P.T)
    stationary = vectors[:, values.real.argmax()].real
    stationary = stationary / stationary.sum()
    rate = -float((stationary[:, None] * P * P.log()).sum())
    generator = torch.Generator().manual_seed(0)
    state = torch.multinomial(stationary.repeat(4096, 1), 1, generator=generator)[:, 0]
    chain = [state]
    for _ in range(T):
        state = torch.multinomial(P[state], 1, generator=generator)[:, 0]
        chain.append(state)
    data = torch.stack(chain, 1)
    network, objective = model(vocabulary=3), NextTokenConfig().build(T)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for step in range(250):
        rows = slice(step * 64 % 4096, step * 64 % 4096 + 64)
        loss, _ = objective.loss({"model": network}, windows(data[rows]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        loss, _ = objective.loss({"model": network}, windows(data))
    exact = -P.log()[data[:, :-1], data[:, 1:]].mean()  # of these very strings
    assert abs(float(exact) - rate) < 0.01
    assert float(loss) == pytest.approx(float(exact), abs=0.005)


def test_samples_follow_their_prompt_or_fill_an_image() -> None:
    text = NextTokenConfig().build(T)
    prompt = torch.tensor([1, 2, 3])
    drawn = text.sample({"model": model()}, Draws.of(range(4)), None, SampleOptions(prompt=prompt))
    assert drawn.shape == (4, T - 3)
    short = SampleOptions(prompt=prompt, length=2)
    again = text.sample({"model": model()}, Draws.of(range(4)), None, short)
    assert torch.equal(again, drawn[:, :2])
    image = NextTokenConfig(label_dropout=0.1).build(8, 2, (2, 2, 2))
    drawn = image.sample(
        {"model": model(vocabulary=256, classes=2)},
        Draws.of(range(3)),
        torch.tensor([0, 1, 1]),
        SampleOptions(guidance=2.0),
    )
    assert drawn.shape == (3, 2, 2, 2)
    levels = (drawn + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4


def test_text_beyond_a_window_goes_on_from_its_second_half() -> None:
    text, network = NextTokenConfig().build(T), model()
    prompt = torch.tensor([1, 2, 3])
    draws = Draws.of(range(4))
    long = SampleOptions(prompt=prompt, length=T + 2)
    drawn = text.sample({"model": network}, draws, None, long)
    first = text.sample({"model": network}, draws, None, SampleOptions(prompt=prompt))
    assert torch.equal(drawn[:, : T - 3], first)
    half = torch.cat([prompt.expand(4, -1), first], 1)[:, -T // 2 :]
    rest = generate(network, half, None, 5, draws.scoped("window"))
    assert torch.equal(drawn[:, T - 3 :], rest)
    much = SampleOptions(prompt=torch.arange(3 * T) % V, length=2)
    assert text.sample({"model": network}, draws, None, much).shape == (4, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SampleOptions(), "give a --prompt"),
        (SampleOptions(steps=3), "has no --steps"),
        (SampleOptions(prompt=torch.zeros(T, dtype=torch.long)), "no room"),
        (SampleOptions(prompt=torch.zeros(1), guidance=2.0), "guidance needs classes"),
        (SampleOptions(prompt=torch.zeros(1), top_p=2.0), "top_p"),
    ],
)
def test_what_can_not_be_drawn_is_refused(options: SampleOptions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NextTokenConfig().build(T).sample({"model": model()}, Draws.of([0]), None, options)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="z_loss"):
        NextTokenConfig(z_loss=-1.0)
    assert math.isfinite(NextTokenConfig().z_loss)
