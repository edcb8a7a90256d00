"""What a checkpoint holds: named objects with flat state."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from genus.parts import Part

State = dict[str, Tensor | Part | int | float | str]
"""A piece of state: tensors go to the checkpoint's shards, scalars to its JSON."""


class Stateful(Protocol):
    """Anything with state that a run must find again."""

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> Any: ...


def take(mine: Tensor | Part | int | float | str, stored: object) -> None:
    """Copy what was stored into the memory of ``mine``."""
    if isinstance(mine, Part):
        assert isinstance(stored, Part)
        mine.copy_(stored)
    else:
        assert isinstance(mine, Tensor)
        assert isinstance(stored, Tensor)
        mine.copy_(stored)


def take_all(mine: State, stored: State) -> None:
    """``take`` for each of a network's tensors; KeyError where the names differ."""
    if mine.keys() != stored.keys():
        raise KeyError(f"weights {sorted(mine.keys() ^ stored.keys())[:3]}")
    for key, value in stored.items():
        take(mine[key], value)


def scalar(value: object) -> int | float | str:
    """A piece of state that is no tensor."""
    assert isinstance(value, int | float | str)
    return value
