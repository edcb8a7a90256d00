"""Memory of a step: what can be worked out by hand, what recomputing saves, and by strategy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from planned_mlp import A, B, C, job
from torch.profiler import ProfilerActivity, profile

from genus.data.manifest import DataInfo
from genus.loop import TrainConfig
from genus.networks.transformer.decoder import TransformerConfig
from genus.objectives.next_token import NextTokenConfig
from genus.optim.build import MuonConfig
from genus.optim.ema import PowerEMAConfig
from genus.plan.estimate import Where, plan
from genus.plan.job import Job
from genus.plan.machines import GPU
from genus.plan.memory import memory_of
from genus.plan.rows import samples_of
from genus.plan.search import Search
from genus.plan.speed import Trial
from genus.plan.step import Traced, trace_step
from genus.plan.trace import Trace
from genus.strategies.choice import Choice

P = A * B + B + B * C + C
"""Parameters of the MLP; four tensors."""


def traced(one: Job, rows: int = 64) -> Traced:
    return trace_step(one, samples_of(one, rows)[0], rows)


def test_state_by_hand() -> None:
    w = traced(job(ema=PowerEMAConfig(widths=(0.05, 0.1, 0.2)))).weights
    assert (w.count, w.parameters, w.gradients, w.buffers) == (P, 4 * P, 4 * P, 0)
    assert w.optimizer == 2 * 4 * P + 4 * 4  # two moments; a step counter for each tensor
    assert w.averages == 3 * 4 * P


def test_muon_keeps_one_moment_of_matrices() -> None:
    """The hidden layer's matrix; the last one writes the result and is AdamW's, as vectors are."""
    w = traced(job(optim=MuonConfig())).weights
    by_hand = [4 * P + 4 * P, 2 * 4 * P]
    assert by_hand[0] < w.optimizer + 64
    assert w.optimizer <= by_hand[1] + 16


def test_activations_by_hand() -> None:
    """The worst moment is ReLU's backward: its output, the gradient that comes and the one that
    goes, (rows, B) each, beside the inputs (rows, A); of the weights' gradients the last
    layer's exist."""
    a, b = traced(job(), 64), traced(job(batch=128), 128)
    assert b.activations - a.activations == 64 * 4 * (A + 3 * B)
    assert a.gradients_at_peak == 4 * (B * C + C)
    assert 0 <= a.activations - 64 * 4 * (A + 3 * B) < 64, "and a few scalars"


def test_micro_batches_keep_gradients_through_the_forward_pass() -> None:
    once, twice = traced(job(), 64), traced(job(batch=128, micro=64), 64)
    assert once.gradients_at_peak < 4 * P == twice.gradients_at_peak
    assert twice.activations == pytest.approx(once.activations, rel=1e-3)


def test_memory_is_counted_once_and_until_it_is_freed() -> None:
    with Trace() as trace:
        x = torch.zeros(1000)
        y = x.view(10, 100)[1:]
        assert trace.live == 4000
        z = x + 1
        assert trace.live == trace.peak == 8000
        del z
        assert trace.live == 4000
        del x
        assert trace.live == 4000, "a view keeps the whole"
        del y
    assert (trace.live, trace.peak) == (0, 8000)


# ---- recomputing, against what the allocator saw -------------------------------------------------


def transformer(recompute: bool) -> Job:
    length, vocabulary, network = 64, 32, TransformerConfig(width=64, depth=6, heads=4)

    def build(cfg: Any, info: DataInfo) -> Any:
        model = network.build(vocabulary=vocabulary, length=length)
        return {"model": model}, NextTokenConfig().build(length)

    info = DataInfo(
        "nowhere", 0, 0, 0, 0, (), ("tokens", "document"), "made up", vocabulary, length
    )
    plain = job()
    train = TrainConfig(samples=640, batch=16, recompute=recompute)
    return replace(plain, build=build, info=info, config=replace(plain.config, train=train))


def allocated(one: Job) -> int:
    """Peak of a real step by torch's CPU allocator, whose account begins before the networks."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        trial = Trial(one)
        trial.take()
        with torch.profiler.record_function("second step"):
            trial.take()
    untyped: Any = profiled.profiler
    stack, totals, start = list(untyped.kineto_results.experimental_event_tree()), [], 0
    while stack:
        event = stack.pop()
        stack += event.children
        total = getattr(event.extra_fields, "total_allocated", None)
        if event.name == "second step":
            start = event.start_time_ns
        if total is not None:
            totals.append((event.start_time_ns, total))
    base = min(total for _, total in totals)  # what other tests left
    return max(total for when, total in totals if when >= start) - max(0, base)


def test_recomputing_saves_what_is_predicted() -> None:
    predicted, real = {}, {}
    for recompute in (False, True):
        one = transformer(recompute)
        predicted[recompute] = traced(one, 16).peak
        real[recompute] = allocated(one)
    assert predicted[True] < 0.6 * predicted[False]
    for recompute in (False, True):
        assert predicted[recompute] == pytest.approx(real[recompute], rel=0.05)


def test_blocks_are_recomputed_as_on_a_gpu() -> None:
    """The backward pass calls what the forward did: GPU kernels, in bfloat16."""
    found = {}
    for recompute in (False, True):
        one = replace(transformer(recompute), precision="bf16")
        found[recompute] = trace_step(one, samples_of(one, 16)[0], 16, gpu=True)
    assert found[True].peak < 0.6 * found[False].peak
    names = [operation.name for operation in found[True].forward]
    attention = "aten._scaled_dot_product_flash_attention_for_cpu"
    assert (names.count(attention), names.count(f"{attention}_backward")) == (12, 6)
    products = [o for o in found[True].forward if o.flops]
    assert {o.dtype for o in products} == {torch.bfloat16}


# ---- strategies ----------------------------------------------------------------------------------


def test_whole_copies_and_shares_by_hand() -> None:
    t, N = traced(job()), 4
    w = t.weights
    ddp = memory_of(t, Choice(), N)
    assert ddp.buffers == 4 * P, "DDP's buckets are a copy of the gradients"
    assert memory_of(t, Choice(), 1).buffers == 0
    assert (ddp.parameters, ddp.optimizer, ddp.averages) == (4 * P, w.optimizer, 4 * P)
    fsdp = memory_of(t, Choice("fsdp2"), N)
    assert (fsdp.parameters, fsdp.averages) == (P, P)
    assert memory_of(t, Choice("hybrid", replicas=2), N).averages == 2 * P
    zero = {n: memory_of(t, Choice(f"zero{n}"), N) for n in (1, 2, 3)}  # type: ignore[arg-type]
    assert zero[1].parameters == zero[2].parameters == 4 * P + P, "a master copy of its part"
    assert zero[1].gradients == zero[2].gradients == t.gradients_at_peak < P
    summed = traced(job(batch=128, micro=64))
    zero = {n: memory_of(summed, Choice(f"zero{n}"), N) for n in (1, 2, 3)}  # type: ignore[arg-type]
    assert (zero[1].gradients, zero[2].gradients) == (4 * P, P)
    assert zero[3].parameters == 2 * P


def test_the_search_finds_the_largest_that_fits() -> None:
    one = job(batch=64)
    need = {n: plan(job(batch=64, micro=n), Where(None), timed=False).memory.peak for n in (8, 16)}
    room = (need[8] + need[16]) / 2
    gpu = GPU("room", room / 0.95 / 2**30 + 1, 1, 1, 1, 1, 1)
    where = Where(gpu, disk_gbs=1.0)
    assert gpu.usable == pytest.approx(room)
    assert Search(where).largest_micro(one) == 8
    assert not plan(one, where, timed=False).fits
    found = Search(where).changes(one)
    assert found[0].settings == ("train.micro=8",)
    nothing = Where(GPU("none", 1.0001, 1, 1, 1, 1, 1), disk_gbs=1.0)
    assert Search(nothing).largest_micro(one) == 0
    assert Search(nothing).changes(one) == []


def test_a_line_through_one_and_two_rows() -> None:
    line = Search(Where(None)).line(job())
    one, two = (traced(job(micro=n), n).activations for n in (1, 2))
    assert (line.at(1), line.at(2)) == (one, two)
