"""The loop's contract, on two toy networks: phases, freezing, skipped updates, cadences, ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genus import config
from genus.checkpoint_reader import newest, published, read_meta, read_tensors
from genus.data.batch import Batch
from genus.data.stream import DataConfig, open_stream
from genus.errors import TrainingError
from genus.loop import TrainConfig, train
from genus.mirror import TrackingConfig
from genus.objectives.phase import Phase
from genus.optim.build import AdamWConfig, MuonConfig
from genus.optim.ema import PlainEMAConfig, PowerEMAConfig
from genus.parallel import World
from genus.run import Run, RunConfig
from genus.state import State
from genus.tracking import read_events, read_metrics

DATA = DataConfig(url=str(Path(__file__).parent / "data" / "fashion-1000"))


@dataclass(frozen=True, kw_only=True)
class Config:
    run: RunConfig
    train: TrainConfig
    tracking: TrackingConfig = field(default_factory=lambda: TrackingConfig(wandb="off"))


class Toy:
    """Two networks; ``b`` is trained every third step. Losses can be made to go wrong."""

    traits = None

    def __init__(self, bad_at: frozenset[int] = frozenset(), in_gradient: bool = False) -> None:
        self.phases = (
            Phase("first", ("a",), self.loss_a),
            Phase("second", ("b",), self.loss_b, every=3),
        )
        self.bad_at, self.in_gradient = bad_at, in_gradient
        self.seen: list[tuple[str, bool, bool]] = []
        self.steps = 0

    def loss_a(
        self, networks: Mapping[str, nn.Module], batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.seen.append(("a", *_trainable(networks)))
        x = batch["image"].float().flatten(1) / 255
        error = networks["a"](x) - networks["b"](x) - batch.draws.normal("target", (1,))
        loss = error.square().mean()
        if batch.position // 20 in self.bad_at:
            # sqrt at 0: a finite loss of infinite gradient; or a loss that is not finite itself
            loss = loss + ((error * 0).abs().sqrt().sum() if self.in_gradient else math.nan)
        return loss, {"loss": loss.detach()}

    def loss_b(
        self, networks: Mapping[str, nn.Module], batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.seen.append(("b", *_trainable(networks)))
        x = batch["image"].float().flatten(1) / 255
        loss = (networks["b"](x) - networks["a"](x)).square().mean()
        return loss, {"loss": loss.detach()}

    def after_step(self, networks: Mapping[str, nn.Module], samples: int) -> None:
        self.steps += 1

    def state_dict(self) -> State:
        return {"steps": self.steps}

    def load_state_dict(self, state: State) -> None:
        self.steps = int(state["steps"])


def _trainable(networks: Mapping[str, nn.Module]) -> tuple[bool, bool]:
    a, b = (all(p.requires_grad for p in networks[name].parameters()) for name in "ab")
    return a, b


def go(
    folder: Path,
    toy: Toy,
    optim: AdamWConfig | MuonConfig | None = None,
    evaluations: tuple[Any, ...] = (),
    **train_fields: Any,
) -> tuple[Path, dict[str, nn.Module]]:
    values = {"samples": 200, "batch": 20, "status_every": 20, "checkpoint_every": 0}
    cfg = Config(
        run=RunConfig(root=str(folder), name="toy"), train=TrainConfig(**(values | train_fields))
    )
    world = World()
    stream = open_stream(DATA, batch=cfg.train.batch, seed=0, **world.place)
    command = config.Command(cfg, "toy", False)
    with Run(command, __file__, world, stream.info) as run:
        networks: dict[str, nn.Module] = {name: nn.Linear(784, 1) for name in "ab"}
        optim = optim or AdamWConfig(lr=1e-3)
        ema = PowerEMAConfig()
        train(run, networks, toy, stream, cfg.train, optim, ema, evaluations)  # type: ignore[arg-type]
    return folder / "toy", networks


def test_each_phase_trains_its_own_networks_when_due(tmp_path: Path) -> None:
    toy = Toy()
    folder, _ = go(tmp_path, toy)
    expected = []
    for step in range(10):
        expected.append(("a", True, False))
        expected += [("b", False, True)] if step % 3 == 0 else []
    assert toy.seen == expected
    assert toy.steps == 10
    steps = {k: v for k, v in read_tensors(newest(folder), "optimizers.").items() if "step" in k}
    assert {k: float(v) for k, v in steps.items()} == {
        "a/weight/step": 10, "a/bias/step": 10, "b/weight/step": 4, "b/bias/step": 4,
    }  # fmt: skip


@pytest.mark.parametrize("in_gradient", [False, True])
@pytest.mark.parametrize("optim", [AdamWConfig(lr=1e-3), MuonConfig()])
def test_a_non_finite_update_is_skipped_counted_and_its_samples_kept(
    tmp_path: Path, in_gradient: bool, optim: AdamWConfig | MuonConfig
) -> None:
    folder, networks = go(tmp_path, Toy(frozenset({4, 6}), in_gradient), optim, clip=0.0)
    for network in networks.values():
        assert all(p.isfinite().all() for p in network.parameters())
    steps = read_tensors(newest(folder), "optimizers.a/bias/")["step"]
    assert float(steps) == 8
    assert read_meta(newest(folder))["scalars"]["progress"]["skipped"] == 2
    kept = [row for row in read_metrics(folder) if "skipped_ids" in row]
    assert [row["samples"] for row in kept] == [80, 120]
    stream = open_stream(DATA, batch=20, seed=0)
    batches = iter(stream)
    ids = [next(batches).ids.tolist() for _ in range(5)]
    assert kept[0]["skipped_ids"] == ids[4]
    assert [e["samples"] for e in read_events(folder) if e["event"] == "skipped"] == [80, 120]


def test_a_skipped_update_changes_nothing_but_the_averages(tmp_path: Path) -> None:
    before = read_tensors(newest(go(tmp_path / "1", Toy(), samples=80)[0]), "networks.a/")
    after = read_tensors(
        newest(go(tmp_path / "2", Toy(frozenset({4})), samples=100)[0]), "networks.a/"
    )
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_too_many_non_finite_updates_in_a_row_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="5 steps in a row were not finite"):
        go(tmp_path, Toy(frozenset(range(3, 10))), bad_steps=5, checkpoint_every=20)
    assert read_meta(newest(tmp_path / "toy"))["samples"] <= 140
    assert any(
        e["event"] == "fault" and "in a row" in e.get("error", "")
        for e in read_events(tmp_path / "toy")
    )


@dataclass
class Record:
    """An evaluation that notes when it was called, and with which weights."""

    networks: list[float]
    name: str = "record"
    every: int = 60

    def run(self, samples: int) -> dict[str, Any]:
        self.networks.append(samples)
        return {"seen": samples}


def test_cadences_are_in_samples_and_the_last_step_is_always_due(tmp_path: Path) -> None:
    record = Record([])
    folder, _ = go(
        tmp_path, Toy(), evaluations=(record,), status_every=40, checkpoint_every=100, keep_last=9
    )
    assert record.networks == [60, 120, 180, 200]
    assert [r["samples"] for r in read_metrics(folder)] == [40, 80, 120, 160, 200]
    names = [path.name for path in published(folder / "checkpoints")]
    assert names == ["samples-000000000100", "samples-000000000200"]
    assert (folder / "done").exists()
    row = read_metrics(folder)[-1]
    assert {"first/loss", "first/grad_norm", "step_ms", "data_wait_share", "samples_per_second",
            "memory_gib"} <= set(row)  # fmt: skip


def test_micro_batches_give_the_same_losses_and_weights(tmp_path: Path) -> None:
    whole, _ = go(tmp_path / "1", Toy())
    micro, _ = go(tmp_path / "2", Toy(), micro=3)  # 20 = 6 x 3 + 2: parts of unequal size
    a, b = (read_tensors(newest(folder), "networks.") for folder in (whole, micro))
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=0, atol=1e-6)
    for one, other in zip(read_metrics(whole), read_metrics(micro), strict=True):
        assert other["first/loss"] == pytest.approx(one["first/loss"], abs=1e-5)


def test_a_time_limit_ends_the_run_cleanly_and_it_can_go_on(tmp_path: Path) -> None:
    folder, _ = go(tmp_path, Toy(), minutes=1e-9)
    assert read_meta(newest(folder))["samples"] == 20
    assert (folder / "requeue").exists()
    folder, _ = go(tmp_path, Toy())
    assert read_meta(newest(folder))["samples"] == 200


def test_plain_ema_and_clipping_run(tmp_path: Path) -> None:
    assert PlainEMAConfig().labels() == ["plain"]
    folder, _ = go(tmp_path, Toy(), clip=1e-3)
    assert all(row["first/grad_norm"] > 1e-3 for row in read_metrics(folder))
