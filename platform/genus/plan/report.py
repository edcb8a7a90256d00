"""A plan as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from genus.plan.estimate import Plan
from genus.plan.search import Change, Line


def lines(plan: Plan, line: Line | None = None, price: float = 0.0) -> Iterator[str]:
    """``line``: how activations grow; ``price``: dollars for a GPU and hour."""
    m = plan.memory
    many = f"{plan.processes} x " if plan.processes > 1 else ""
    yield (
        f"{plan.recipe} --preset {plan.preset} on {many}{plan.machine}, {plan.strategy}, "
        f"{plan.precision}{', recompute' if plan.recompute else ''}"
    )
    yield f"parameters      {plan.parameters:,}"
    passes = (
        f"{plan.micros} micro-batches of {plan.rows}" if plan.micros > 1 else f"{plan.rows} at once"
    )
    yield f"step            {plan.batch} samples; on a rank {passes}"
    yield "memory of a rank at the worst moment of a step"
    yield f"  weights       {size(m.parameters)}"
    yield f"  optimizer     {size(m.optimizer)}"
    yield f"  averages      {size(m.averages)}"
    yield f"  gradients     {size(m.gradients)}"
    yield f"  exchange      {size(m.buffers)}"
    growth = f"; {size(line.a_row)} a sample, by small batches" if line else ""
    yield f"  activations   {size(m.activations)}{growth}"
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    yield f"  peak          {size(m.peak)} of {size(plan.usable)} for tensors: {verdict}"
    if plan.processes > 1:
        yield f"sent            {size(plan.sent.total)} by a rank in a step"
    yield (
        f"checkpoint      {size(plan.checkpoint)}, written in {plan.checkpoint_seconds:.1f} s, "
        "beside the training"
    )
    if plan.step_seconds:
        yield (
            f"speed           {1000 * plan.step_seconds:.1f} ms a step, "
            f"{plan.samples_per_second:,.1f} samples/s"
        )
        yield f"whole run       {plan.hours:,.2f} h for {plan.samples:,} samples"
        if price:
            cost = plan.hours * plan.processes * price
            yield f"cost            {cost:,.2f} dollars at {price:g} for a GPU and hour"
    else:
        yield "speed           not estimated: processes that share cores slow each other down"


def advice(changes: Sequence[Change]) -> Iterator[str]:
    """What to set where a plan does not fit."""
    if not changes:
        yield "nothing tried makes it fit: take more or larger GPUs, or a smaller network"
        return
    yield "it fits with"
    for change in changes:
        yield f"  {' '.join(change.settings)}: peak {size(change.peak)}"


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"
