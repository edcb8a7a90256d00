"""Samples that are vectors: drawn by their index alone, and shown as points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from genus import config
from genus.data.pack_vectors import pack_vectors
from genus.data.stream import DataConfig, read_info
from genus.draws import Draws
from genus.errors import EvaluationError
from genus.evaluate.scatter import save_scatter
from genus.mirror import TrackingConfig
from genus.objectives.phase import SampleOptions, SamplingPlan
from genus.parallel import World
from genus.run import Run, RunConfig
from genus.sampling import POINTS, SampleGrid, sample_batches


class Affine:
    """Samples are the network of standard normal (B, 3), plus ten times the class."""

    def __init__(self) -> None:
        self.drawn = 0

    def plan(self, options: SampleOptions) -> SamplingPlan:
        return SamplingPlan("affine", 1, None)

    def sample(
        self,
        networks: Mapping[str, nn.Module],
        draws: Draws,
        label: Tensor | None,
        options: SampleOptions,
    ) -> Tensor:
        vectors = networks["net"](draws.normal("x", (3,)))
        self.drawn += len(vectors)
        return vectors if label is None else vectors + 10 * label[:, None]


@pytest.fixture
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"net": nn.Linear(3, 3)}


def test_vectors_are_drawn_as_they_are(networks: dict[str, nn.Module]) -> None:
    def draw(indices: list[int], labels: list[int] | None, batch: int) -> Tensor:
        parts = sample_batches(
            Affine(), networks, indices, labels, seed=3, device="cpu", batch=batch
        )
        return torch.cat(list(parts))

    whole = draw(list(range(10)), None, 100)
    assert whole.dtype == torch.float32
    assert whole.shape == (10, 3)
    assert whole.abs().max() < 10
    assert not whole.eq(whole.round()).all()  # no levels
    part = draw([7, 2, 5], None, 2)
    assert torch.allclose(part, whole[[7, 2, 5]], atol=1e-6)
    with_labels = draw(list(range(10)), [0, 1] * 5, 4)
    assert torch.allclose(with_labels - whole, torch.tensor([0.0, 10.0] * 5)[:, None], atol=1e-5)


@dataclass(frozen=True, kw_only=True)
class Config:
    run: RunConfig
    tracking: TrackingConfig = field(default_factory=lambda: TrackingConfig(wandb="off"))


def test_a_run_shows_points(networks: dict[str, nn.Module], tmp_path: Path) -> None:
    pack_vectors(np.zeros((4, 3)), tmp_path / "data")
    info = read_info(DataConfig(url=str(tmp_path / "data")))
    cfg = Config(run=RunConfig(root=str(tmp_path), name="run"))
    objective = Affine()
    with Run(config.Command(cfg, "toy", False), __file__, World(), info) as run:
        grid = SampleGrid(run, networks, objective, every=1, classes=0, dims=info.dims)
        assert grid.run(500) == {"image": "samples/000000000500.png"}
        assert objective.drawn >= POINTS
        with Image.open(run.folder / "samples" / "000000000500.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5
        assert [path.name for path in (run.folder / "samples").iterdir()] == ["000000000500.png"]
        nn.init.constant_(networks["net"].bias, float("nan"))  # a run that went wrong goes on
        assert "none of" in grid.run(600)["error"]


# ---- the picture ---------------------------------------------------------------------------------


def drawn(vectors: Tensor, path: Path) -> np.ndarray:
    """The picture's ink (H, W): 0 where it is white."""
    save_scatter(vectors, path)
    with Image.open(path) as picture:
        return 255 - np.asarray(picture.convert("L")).astype(int)


def test_points_lie_where_they_belong(tmp_path: Path) -> None:
    """Two clouds, at the lower left and the upper right of the picture's middle."""
    torch.manual_seed(0)
    cloud = torch.randn(500, 2) / 10
    ink = drawn(torch.cat([cloud - 1, cloud + 1]), tmp_path / "two.png")
    middle = ink[120:480, 120:480]
    quarter = [middle[:180, :180], middle[:180, 180:], middle[180:, :180], middle[180:, 180:]]
    upper_left, upper_right, lower_left, lower_right = (int(part.sum()) for part in quarter)
    assert min(upper_right, lower_left) > 10 * max(upper_left, lower_right, 1)


@pytest.mark.parametrize(("count", "dims"), [(1, 2), (300, 1), (300, 5), (30_000, 2)])
def test_every_kind_of_vectors_is_drawn(tmp_path: Path, count: int, dims: int) -> None:
    torch.manual_seed(0)
    ink = drawn(torch.randn(count, dims), tmp_path / "new" / "a.png")
    assert ink.shape == (600, 600)
    assert (ink[100:500, 100:500] > 30).any()


def test_far_and_infinite_points_do_not_spoil_the_picture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sound = torch.randn(2000, 2)
    wild = torch.tensor([[1e9, 0.0], [float("nan"), 0], [0, float("inf")], [0, -1e30]])
    spoilt = drawn(torch.cat([sound, wild]), tmp_path / "a.png")[60:]  # below the title
    alone = drawn(sound, tmp_path / "b.png")[60:]
    assert (alone > 30).mean() > 0.02
    assert (spoilt > 30).mean() == pytest.approx((alone > 30).mean(), rel=0.1)


def test_nothing_to_draw(tmp_path: Path) -> None:
    for bad in (torch.zeros(0, 2), torch.zeros(3, 0), torch.zeros(3, 1, 4, 4)):
        with pytest.raises(EvaluationError, match=r"\(N, D\)"):
            save_scatter(bad, tmp_path / "a.png")
    with pytest.raises(EvaluationError, match="none of 3 vectors is finite"):
        save_scatter(torch.full((3, 2), torch.nan), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
