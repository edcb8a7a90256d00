"""What an edit did to the images' attributes, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from genus.latent_directions import Direction


def print_table(
    direction: Direction, amounts: Sequence[float], found: Mapping[str, Tensor], whose: str
) -> None:
    """Mean attributes (``found``: (steps, N) of each) at each step, their standard error over the
    images, and how they went."""
    print(f"direction: {direction.name}; unit: {direction.unit_name}; means of {whose}")
    width = max(len(name) for name in (*found, "step"))
    print(f"{'step':<{width}}" + "".join(f"{by:>+9.2f}" for by in amounts))
    for name, values in found.items():
        cells = "".join(f"{float(value):>9.3f}" for value in values.mean(1))
        print(f"{name:<{width}}{cells}  {_course(values)}")


def _course(values: Tensor) -> str:
    """How (steps, N) goes: of the mean, and of how many images at every step."""
    change = values[1:] - values[:-1]
    if not len(change):
        return ""
    mean = change.mean(1)
    for word, sign in (("rises", 1), ("falls", -1)):
        if bool((sign * mean > 0).all()):
            share = float((sign * (values[-1] - values[0]) > 0).float().mean())
            return f"{word} at every step; in {share:.0%} of the images from end to end"
    return "not monotone"
