"""What a checkpoint holds: named objects with flat state."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

State = dict[str, Tensor | int | float | str]
"""A piece of state: tensors go to the checkpoint's shards, scalars to its JSON."""


class Stateful(Protocol):
    """Anything with state that a run must find again."""

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> Any: ...
