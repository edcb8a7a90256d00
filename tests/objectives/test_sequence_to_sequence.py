"""Sequence to sequence: its loss by hand, probabilities that sum to 1, sources of every kind."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genus.data.batch import Batch
from genus.data.manifest import DataInfo
from genus.draws import Draws
from genus.errors import ConfigError
from genus.networks.transformer.encoder_decoder import EncoderDecoderConfig
from genus.objectives.phase import SampleOptions
from genus.objectives.sequence_to_sequence import SequenceToSequence, SequenceToSequenceConfig
from genus.objectives.sources import SourceConfig, masked, shifted, up_to

V, END, T, S = 5, 4, 20, 24
PAIRS = DataInfo(
    url="pairs", samples=9, channels=0, resolution=0, classes=0, class_names=(),
    fields=("source", "target"), fingerprint="", vocabulary=V, end=END, target_length=T,
    source_length=S, source_vocabulary=7,
)  # fmt: skip
SOUNDS = replace(PAIRS, fields=("frames", "target", "frames_length"), frame_features=3,
                 source_vocabulary=0)  # fmt: skip
IMAGES = replace(PAIRS, fields=("image", "target"), channels=3, resolution=8, source_length=0,
                 source_vocabulary=0)  # fmt: skip


def padded(rows: list[list[int]], length: int) -> Tensor:
    return torch.tensor([row + [-1] * (length - len(row)) for row in rows])


def batch_of(**fields: Tensor) -> Batch:
    ids = torch.arange(len(fields["target"]))
    return Batch(fields, ids, 0, Draws.of(ids.tolist()))


def pairs() -> Batch:
    generator = torch.Generator().manual_seed(1)
    sources, targets = [], []
    for long in (3, 19, 1, 12, 7):
        sources.append(torch.randint(0, 7, (long + 4,), generator=generator).tolist())
        targets.append([*torch.randint(0, 4, (long,), generator=generator).tolist(), END])
    return batch_of(source=padded(sources, S), target=padded(targets, T))


def made(
    info: DataInfo, config: SequenceToSequenceConfig | None = None
) -> tuple[nn.Module, SequenceToSequence]:
    torch.manual_seed(0)
    objective = (config or SequenceToSequenceConfig()).build(info)
    source = objective.source
    network = EncoderDecoderConfig(width=16, depth=1, heads=2).build(
        vocabulary=V,
        length=info.target_length,
        source_length=source.length,
        source_vocabulary=source.vocabulary,
        source_features=source.features,
    )
    for parameter in network.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return network.double(), objective


@pytest.mark.parametrize("groups", [1, 2, 4, 9])
def test_the_loss_is_the_surprise_of_the_targets_row_by_row(groups: int) -> None:
    network, objective = made(PAIRS, SequenceToSequenceConfig(groups=groups))
    batch, nats = pairs(), []
    for source, target in zip(batch["source"], batch["target"], strict=True):
        source, target = source[source >= 0], target[target >= 0]
        inputs = torch.cat([torch.tensor([END]), target[:-1]])
        logits = network(source[None], inputs[None])[0]
        nats.append(F.cross_entropy(logits, target, reduction="sum"))
    expected = torch.stack(nats)
    loss, metrics = objective.loss({"model": network}, batch)
    tokens = (batch["target"] >= 0).sum(1)
    torch.testing.assert_close(loss, expected.mean() / T, rtol=1e-10, atol=0)
    torch.testing.assert_close(
        metrics["loss"], (expected.sum() / tokens.sum()).detach(), rtol=1e-10, atol=0
    )
    density = objective.log_density({"model": network}, batch)
    torch.testing.assert_close(-density.nats, expected, rtol=1e-10, atol=0)
    assert density.counts is not None
    assert density.counts.tolist() == tokens.tolist() == [4, 20, 2, 13, 8]


def test_micro_batches_give_the_gradient_of_the_batch() -> None:
    network, objective = made(PAIRS)
    whole, _ = objective.loss({"model": network}, pairs())
    parts = [
        objective.loss({"model": network}, part)[0] * len(part) / 5
        for part in pairs().micro_batches(2)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=1e-10, atol=0)


def test_probabilities_of_all_targets_sum_to_one() -> None:
    """All strings of up to 3 tokens that end, and the beginnings of longer ones."""
    network, objective = made(replace(PAIRS, target_length=4))
    letters = range(4)
    strings = [[*head, END] for n in range(3) for head in itertools.product(letters, repeat=n)]
    strings += [list(head) for head in itertools.product(letters, repeat=3)]
    source = pairs()["source"][:1].expand(len(strings), -1)
    density = objective.log_density(
        {"model": network}, batch_of(source=source, target=padded(strings, 4))
    )
    assert float(density.nats.detach().exp().sum()) == pytest.approx(1, abs=1e-9)


def test_the_answer_is_the_most_probable_string() -> None:
    network, objective = made(replace(PAIRS, target_length=3))
    letters = range(4)
    strings = [[*head, END] for n in range(3) for head in itertools.product(letters, repeat=n)]
    strings += [list(head) for head in itertools.product(letters, repeat=3)]
    source = pairs()["source"][1:2]
    every = batch_of(source=source.expand(len(strings), -1), target=padded(strings, 3))
    best = int(objective.log_density({"model": network}, every).nats.argmax())
    wide = SampleOptions(beams=64, length_penalty=0.0)
    found = objective.translate({"model": network}, batch_of(source=source, target=source), wide)
    expected = strings[best] + [END] * (3 - len(strings[best]))
    assert found[0].tolist() == expected


def test_padding_and_company_change_no_answer() -> None:
    network, objective = made(PAIRS)
    batch, options = pairs(), SampleOptions(beams=3, length=6)
    together = objective.translate({"model": network}, batch, options)
    for row, part in enumerate(batch.micro_batches(1)):
        alone = objective.translate({"model": network}, part, options)
        assert torch.equal(alone[0], together[row])


def sounds(extra: int = 0) -> Batch:
    frames = torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(3)).double()
    length = torch.tensor([9, 6])
    frames[0, 9:] = extra
    frames[1, 6:] = extra
    return batch_of(frames=frames, frames_length=length, target=torch.tensor([[1, END], [2, END]]))


def test_frames_are_stacked_and_what_pads_them_does_not_count() -> None:
    network, objective = made(SOUNDS)
    source = objective.source.read(sounds())
    assert (objective.source.length, objective.source.features) == (6, 12)
    assert source.mask is not None
    assert source.mask.sum(1).tolist() == [3, 2]
    torch.testing.assert_close(source.values[0, 1], sounds()["frames"][0, 4:8].flatten())
    torch.testing.assert_close(source.values[1, 1, :6], sounds()["frames"][1, 4:6].flatten())
    values, mask, lengths = source
    assert lengths.tolist() == [3, 2]
    changed = values.clone()
    changed[~mask] = 7.0
    inputs = torch.tensor([[END], [END]])
    one = network(values, inputs, source_mask=mask)
    other = network(changed, inputs, source_mask=mask)
    torch.testing.assert_close(one, other)


def test_the_encoder_s_own_reading_is_part_of_the_loss() -> None:
    info = replace(SOUNDS, source_length=24)
    network, objective = made(info, SequenceToSequenceConfig(ctc=0.25, groups=2))
    torch.manual_seed(0)
    network.aligned = nn.Linear(16, V + 1).double()
    loss, metrics = objective.loss({"model": network}, sounds())
    tokens = 4
    expected = (0.75 * metrics["loss"] + 0.25 * metrics["ctc"]) * tokens / 2 / T
    torch.testing.assert_close(loss.detach(), expected)
    density = objective.log_density({"model": network}, sounds())
    torch.testing.assert_close(-density.nats.sum() / tokens, metrics["loss"])


def test_images_are_patches_in_raster_order() -> None:
    config = SequenceToSequenceConfig(source=SourceConfig(patch=4))
    network, objective = made(IMAGES, config)
    levels = torch.arange(3 * 8 * 8).reshape(1, 3, 8, 8).to(torch.uint8)
    batch = batch_of(image=levels, target=torch.tensor([[1, END]]))
    source = objective.source.read(batch)
    assert source.mask is None
    assert source.values.shape == (1, 4, 48)
    corner = levels[0, :, 0:4, 4:8].permute(1, 2, 0).flatten() / 127.5 - 1
    torch.testing.assert_close(source.values[0, 1], corner)
    loss, _ = objective.loss({"model": network.float()}, batch)
    assert torch.isfinite(loss)


def test_masks_hide_bands_in_training_only_and_belong_to_their_sample() -> None:
    config = SequenceToSequenceConfig(source=SourceConfig(masks=2, stack=1))
    _, objective = made(replace(SOUNDS, source_length=400, frame_features=40), config)
    frames = 1 + torch.rand(3, 400, 40, generator=torch.Generator().manual_seed(0))
    length = torch.tensor([400, 300, 200])
    targets = torch.tensor([[1, END]] * 3)
    batch = batch_of(frames=frames, frames_length=length, target=targets)
    plain = objective.source.read(batch).values
    assert torch.equal(plain, frames)
    changed = objective.source.read(batch, training=True).values
    hidden = changed != frames
    for row, n in enumerate(length.tolist()):
        assert not hidden[row, n:].any()
        rows, bands = hidden[row, :n].all(1), hidden[row, :n].all(0)
        assert rows.sum() + bands.sum() > 0
        assert rows.sum() <= 2 * (n // 10 + 1)
        assert bands.sum() <= 2 * 9
        assert (
            hidden[row, :n].sum()
            == hidden[row, :n][rows].sum() + hidden[row, :n][~rows][:, bands].sum()
        )  # nothing else
        filled = changed[row][hidden[row]]
        torch.testing.assert_close(filled, frames[row, :n].mean().expand_as(filled))
    part = replace(batch, fields={k: v[1:2] for k, v in batch.fields.items()},
                   draws=batch.draws.window(1, 2))  # fmt: skip
    assert torch.equal(masked(part["frames"], part["frames_length"], part, 2)[0], changed[1])


def test_shifts_move_a_whole_image_and_belong_to_their_sample() -> None:
    image = torch.rand(6, 2, 9, 7, generator=torch.Generator().manual_seed(0))
    batch = batch_of(target=torch.tensor([[1, END]] * 6))
    moved = shifted(image, batch, 2)
    by = batch.draws.integers("shift", 5, (2,)) - 2
    assert by.unique().numel() > 2
    for row, (down, right) in enumerate(by.tolist()):
        for i in range(9):
            for j in range(7):
                come = min(max(i - down, 0), 8), min(max(j - right, 0), 6)
                assert torch.equal(moved[row, :, i, j], image[row][:, come[0], come[1]])


def test_what_is_read_is_cut_to_few_lengths_and_keeps_all_that_is_real() -> None:
    assert [up_to(n, 16) for n in (1, 16, 17)] == [16, 16, 32]
    _, objective = made(PAIRS)
    source = objective.source.read(pairs())
    part = source.rows(torch.tensor([2, 0]), 7)
    assert part.values.shape == (2, 16)
    assert part.mask is not None
    assert part.mask.sum(1).tolist() == part.lengths.tolist() == [5, 7]
    assert torch.equal(part.values[0, :5], pairs()["source"][2, :5])


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (replace(PAIRS, fields=("image", "label")), "needs a target"),
        (replace(PAIRS, fields=("target",)), "without source"),
        (replace(IMAGES, resolution=9), "patch"),
    ],
)
def test_data_that_are_no_pairs_are_refused(info: DataInfo, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SequenceToSequenceConfig().build(info)


def test_options_that_a_search_has_not_are_refused() -> None:
    _, objective = made(PAIRS)
    with pytest.raises(ConfigError, match="has no --temperature"):
        objective.plan(SampleOptions(temperature=0.5))
    for wrong in ({"beams": 0}, {"groups": 0}, {"length_penalty": -1.0}, {"ctc": 1.0}):
        with pytest.raises(ConfigError, match="objective"):
            SequenceToSequenceConfig(**wrong)  # type: ignore[arg-type]
    assert str(objective.plan(SampleOptions(beams=1))) == "greedy, 20 NFE"
