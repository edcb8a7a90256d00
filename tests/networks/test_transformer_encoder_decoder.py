"""Encoder and decoder of the same blocks: what sees what, padding, and cached decoding."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from genus.errors import ConfigError
from genus.networks.transformer.cache import Cache
from genus.networks.transformer.encoder_decoder import (
    AlignedScores,
    EncoderDecoder,
    EncoderDecoderConfig,
    ctc_nats,
)

V, T, SOURCE, S, F = 5, 6, 7, 8, 3
CONFIGS = {
    "learned": EncoderDecoderConfig(width=8, depth=2, heads=2, positions="learned"),
    "rope": EncoderDecoderConfig(
        width=16, depth=2, heads=4, kv_heads=2, mlp="swiglu", mlp_width=24, norm="rms",
        bias=False, qk_norm=True, tied=False, encoder_depth=1,
    ),
}  # fmt: skip
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def built(config: EncoderDecoderConfig, *, frames: bool = False) -> EncoderDecoder:
    torch.manual_seed(0)
    network = config.build(
        vocabulary=V,
        length=T,
        source_length=S,
        source_vocabulary=0 if frames else SOURCE,
        source_features=F if frames else 0,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network.double().eval()


def inputs(rows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Source tokens, their mask of 3, 8, 5, ... real ones, and target tokens."""
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(SOURCE, (rows, S), generator=generator)
    mask = torch.arange(S) < torch.tensor([3, 8, 5])[torch.arange(rows) % 3, None]
    return source, mask, torch.randint(V, (rows, T), generator=generator)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@every_config
def test_outputs_depend_on_all_of_the_source_and_on_the_past(config: EncoderDecoderConfig) -> None:
    network = built(config, frames=True)
    x = inputs(1)[2]
    frames = torch.randn(1, S, F, dtype=torch.float64)

    def logits(frames: Tensor, embedded: Tensor) -> Tensor:
        hook = network.decoder.embedding.register_forward_hook(lambda *_: embedded)
        out = network(frames, x)
        hook.remove()
        return out[0]

    embedded = network.decoder.embedding(x).detach()
    of_source, of_target = torch.autograd.functional.jacobian(logits, (frames, embedded))
    assert (of_source[:, :, 0].abs().amax((1, 3)) > 0).all()
    sees = of_target[:, :, 0].abs().amax((1, 3)) > 0
    assert torch.equal(sees, torch.ones(T, T, dtype=torch.bool).tril())


@every_config
def test_what_pads_the_source_does_not_matter(config: EncoderDecoderConfig) -> None:
    network = built(config)
    source, mask, x = inputs()
    padded = network(source, x, source_mask=mask)
    close(network(source.where(mask, 0), x, source_mask=mask), padded)
    for row, real in enumerate(mask.sum(1)):
        alone = network(source[row : row + 1, :real], x[row : row + 1])
        close(padded[row : row + 1], alone)


@every_config
def test_all_targets_together_have_probability_1(config: EncoderDecoderConfig) -> None:
    network = built(config)
    strings = torch.tensor(list(itertools.product(range(V), repeat=3)))
    source = inputs(1)[0].expand(len(strings), -1)
    begun = torch.cat([torch.zeros(len(strings), 1, dtype=torch.long), strings[:, :-1]], 1)
    nats, _ = network(source, begun, targets=strings)
    assert abs((-nats.sum(1)).exp().sum().item() - 1) < 1e-12


@every_config
@pytest.mark.parametrize("static", [False, True])
def test_cached_equals_full(config: EncoderDecoderConfig, static: bool) -> None:
    network = built(config)
    source, mask, x = inputs()
    full = network(source, x, source_mask=mask)
    cache = Cache(T, static=static)
    with torch.no_grad():
        close(network(source, x[:, :2], source_mask=mask, cache=cache), full[:, :2])
        close(network(None, x[:, 2:3], cache=cache), full[:, 2:3])
        order = torch.tensor([2, 0, 0])
        cache.reorder(order)
        swapped = network(source[order], x[order], source_mask=mask[order])
        close(network(None, x[order, 3:4], cache=cache), swapped[:, 3:4])


def test_beams_of_one_source_are_reordered_without_it() -> None:
    network = built(CONFIGS["rope"])
    source, mask, x = inputs()
    cache, order, twice = Cache(T), torch.tensor([1, 0, 2, 2, 5, 5]), torch.arange(6) // 2
    with torch.no_grad():
        network(source, x[:, :1], source_mask=mask, cache=cache)
        cache.reorder(twice)
        beams = torch.cat([x[twice, :1], torch.arange(6)[:, None] % V], 1)
        network(None, beams[:, 1:], cache=cache)
        memory = [k.data_ptr() for k, _ in cache.memory]
        cache.reorder(order, memory=False)
        assert [k.data_ptr() for k, _ in cache.memory] == memory
        beams = torch.cat([beams[order], x[twice, 2:3]], 1)
        full = network(source[twice], beams, source_mask=mask[twice])
        close(network(None, beams[:, 2:], cache=cache), full[:, 2:])


def test_the_memorys_keys_are_computed_once() -> None:
    network = built(CONFIGS["rope"])
    source, mask, x = inputs()
    calls = []
    for name, module in network.named_modules():
        if name.endswith("cross.kv") or name == "encoder":
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    cache = Cache(T)
    for at in range(3):
        network(source if at == 0 else None, x[:, at : at + 1], source_mask=mask, cache=cache)
    assert sorted(calls) == ["decoder.blocks.0.cross.kv", "decoder.blocks.1.cross.kv", "encoder"]


@every_config
@pytest.mark.parametrize("frames", [False, True])
def test_gradient_reaches_every_parameter(config: EncoderDecoderConfig, frames: bool) -> None:
    network = built(config, frames=frames)
    source, mask, x = inputs(6)
    source = torch.randn(6, S, F, dtype=torch.float64) if frames else source
    nats, _ = network(source, x, targets=x.flip(1), source_mask=mask)
    nats.sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@every_config
def test_save_and_load(config: EncoderDecoderConfig) -> None:
    source = built(config)
    target = config.build(vocabulary=V, length=T, source_length=S, source_vocabulary=SOURCE)
    target.double().eval().load_state_dict(source.state_dict(), strict=True)
    s, mask, x = inputs()
    assert torch.equal(source(s, x, source_mask=mask), target(s, x, source_mask=mask))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="source_vocabulary"):
        CONFIGS["rope"].build(vocabulary=V, length=T, source_length=S)
    with pytest.raises(ConfigError, match="first call needs the source"):
        built(CONFIGS["rope"])(None, inputs()[2])


def test_ctc_sums_over_all_alignments() -> None:
    """Against the sum over all strings of the source's length that read as the target."""
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 3, dtype=torch.float64)  # tokens 0, 1 and nothing
    targets = torch.tensor([[0, 0, 9, -1], [1, 0, 9, -1]])  # 9: the end, which CTC does not say
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]])
    found = ctc_nats(logits, mask, targets)
    for row, said in enumerate(([0, 0], [1, 0])):
        S, total = int(mask[row].sum()), 0.0
        log_p = logits[row, :S].log_softmax(-1)
        for path in itertools.product(range(3), repeat=S):
            reading = [token for token, _ in itertools.groupby(path) if token != 2]
            if reading == said:
                total += float(sum(log_p[i, token] for i, token in enumerate(path)).exp())
        assert float(found[row].exp()) == pytest.approx(1 / total, rel=1e-10)
    short = ctc_nats(logits[:, :2], None, targets)  # "0 0" needs nothing in between
    assert short[0] == 0
    assert short[1] > 0


def test_the_encoder_s_own_reading_comes_with_the_scores() -> None:
    config = EncoderDecoderConfig(width=8, depth=1, heads=2)
    network = config.build(vocabulary=5, length=6, source_length=8, source_features=3, ctc=True)
    frames, tokens = torch.randn(2, 8, 3), torch.tensor([[4, 1], [4, 2]])
    targets = torch.tensor([[1, 4], [2, 4]])
    scores = network(frames, tokens, targets=targets)
    plain = network.decoder(tokens, targets=targets, memory=network.encoder(frames))
    assert isinstance(scores, AlignedScores)
    torch.testing.assert_close(scores.nats, plain.nats)
    scores.ctc.sum().backward()
    assert network.encoder.embedding.weight.grad.abs().sum() > 0
    assert network(frames, tokens).shape == (2, 2, 5)
