"""ADA's probability: how it follows the signs of the discriminator, and its state."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor

from genus.objectives.augmentation.config import AugmentConfig
from genus.objectives.augmentation.controller import Controller, updated
from genus.state import State

CONFIG = AugmentConfig(kind="ada", p=0.5, target=0.6, ramp=1000, interval=2)


def alone(tensor: Tensor) -> Tensor:
    return tensor


def logits(positive: int, negative: int) -> Tensor:
    return torch.cat([torch.full((positive,), 3.0), torch.full((negative,), -0.1)])


@pytest.mark.parametrize(
    ("p", "r_t", "samples", "want"),
    [
        (0.5, 0.7, 64, 0.564),
        (0.5, 0.5, 64, 0.436),
        (0.5, 0.6, 64, 0.5),
        (0.01, -1.0, 64, 0.0),
        (0.99, 1.0, 64, 1.0),
    ],
)
def test_p_moves_by_samples_over_ramp(p: float, r_t: float, samples: int, want: float) -> None:
    got = updated(torch.tensor([p]), torch.tensor([r_t]), samples, CONFIG)
    torch.testing.assert_close(got, torch.tensor([want]))


def saved(controller: Controller) -> State:
    state = controller.state_dict()
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}


def run(controller: Controller, batches: Sequence[Tensor], size: int, seen: int = 0) -> list[float]:
    p = []
    for batch in batches:
        controller.add(batch[:3])
        controller.add(batch[3:])
        seen += size
        controller.step(seen, alone)
        p.append(round(controller.p.item(), 6))
    return p


def test_updates_every_interval_with_the_mean_sign_since_the_last() -> None:
    controller = Controller(CONFIG)
    # r_t: (4 + 3 - 1) / 8 = 0.75, then (0 + 4) / 8 = 0.5
    batches = [logits(4, 0), logits(3, 1), logits(2, 2), logits(4, 0)]
    assert run(controller, batches, 10) == [0.5, 0.52, 0.52, 0.5]
    assert controller.overfitting.item() == 0.5


def test_the_sign_of_zero_counts_as_neither() -> None:
    controller = Controller(CONFIG)
    run(controller, [torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0])], 10)
    assert controller.overfitting.item() == 0.75


def test_without_signs_p_stays() -> None:
    controller = Controller(CONFIG)
    assert run(controller, [torch.zeros(0)] * 4, 10) == [0.5] * 4
    assert controller.p.isfinite().all()


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_resumed_at_any_step_it_goes_on_as_if_never_stopped(stop: int) -> None:
    # Of each pair, the second batch alone would move p the other way.
    batches = [logits(0, 4), logits(4, 0), logits(4, 0), logits(3, 1)] * 2
    whole = run(Controller(CONFIG), batches, 7)
    first, second = Controller(CONFIG), Controller(CONFIG)
    start = run(first, batches[:stop], 7)
    state = saved(first)
    second.add(logits(9, 0))  # what it knew before is forgotten
    second.load_state_dict(state)
    assert start + run(second, batches[stop:], 7, 7 * stop) == whole
    assert len(set(whole)) > 1


def test_ranks_together_do_what_one_does() -> None:
    batches = [logits(i % 5, 4 - i % 5) for i in range(6)]
    handed: list[Tensor] = [torch.zeros(2)] * 2
    barrier = Barrier(2, timeout=30)

    def of_rank(rank: int) -> list[State]:
        def mean(mine: Tensor) -> Tensor:
            handed[rank] = mine.clone()
            barrier.wait()
            both = torch.stack(handed).mean(0)
            barrier.wait()
            return both

        controller, states = Controller(CONFIG), []
        for i, batch in enumerate(batches):
            controller.add(batch[rank::2])
            controller.step((i + 1) * 7, mean)
            states.append(saved(controller))
        return states

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(of_rank, range(2))
    one = Controller(CONFIG)
    want = run(one, batches, 7)
    assert [round(state["p"].item(), 6) for state in first] == want  # type: ignore[union-attr]
    for mine, theirs in zip(first, second, strict=True):  # any rank's can be saved
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "p"), [("none", 0.0), ("fixed", 0.3), ("diffaugment", 0.0)])
def test_only_ada_adapts_and_only_it_talks_to_the_others(kind: str, p: float) -> None:
    def never(_: Tensor) -> Tensor:
        raise AssertionError("no reduction is due")

    controller = Controller(AugmentConfig(kind=kind, p=p, interval=1))  # type: ignore[arg-type]
    controller.add(logits(4, 0))
    controller.step(100, never)
    torch.testing.assert_close(controller.p, torch.tensor([p]))


def test_a_fixed_strength_can_grow_along_half_a_cosine() -> None:
    controller = Controller(AugmentConfig(kind="fixed", p=0.6, grows=100))
    for position, p in ((0, 0.0), (50, 0.3), (100, 0.6), (500, 0.6)):
        assert float(controller.strength(position)) == pytest.approx(p, abs=1e-6)
    assert float(Controller(CONFIG).strength(50)) == float(Controller(CONFIG).p)


def test_logits_that_are_not_finite_leave_nothing_behind() -> None:
    controller = Controller(CONFIG)
    controller.add(torch.tensor([float("nan"), 1.0]))
    controller.step(1, alone)
    for value in controller.state_dict().values():
        assert not isinstance(value, Tensor) or bool(value.isfinite().all())


def test_counting_keeps_no_graph() -> None:
    controller = Controller(CONFIG)
    controller.add(logits(2, 2).requires_grad_())
    controller.step(1, alone)
    assert not any(
        v.requires_grad for v in controller.state_dict().values() if isinstance(v, Tensor)
    )
