"""--sweep optim.lr=1e-4,3e-4: the runs that a sweep is made of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from genus.errors import ConfigError


@dataclass(frozen=True)
class Member:
    """One run of a sweep: what its name ends in, and its overrides (key=value)."""

    suffix: str
    overrides: tuple[str, ...]


def members(sweeps: Sequence[str]) -> list[Member]:
    """Every combination of the values of several ``key=value,value``; one plain run without any.

    A value that holds commas itself is put in brackets: ``network.mults=(1,2),(1,2,2)``.
    """
    axes: list[list[tuple[str, str]]] = []
    for sweep in sweeps:
        key, _, text = sweep.partition("=")
        values = [value for value in re.split(r",(?![^(\[]*[)\]])", text) if value]
        if not key or not values:
            raise ConfigError(f"can't read --sweep '{sweep}': write key=value,value,...")
        axes.append([(key, value) for value in values])
    keys = [axis[0][0] for axis in axes]
    if len(set(keys)) < len(keys):
        raise ConfigError(f"--sweep names a key twice: {', '.join(keys)}")
    found = [
        Member(
            "".join(f"-{key.rpartition('.')[2]}-{_as_name(value)}" for key, value in choice),
            tuple(f"{key}={value}" for key, value in choice),
        )
        for choice in product(*axes)
    ]
    suffixes = [member.suffix for member in found]
    double = {suffix for suffix in suffixes if suffixes.count(suffix) > 1}
    if double:
        raise ConfigError(f"runs of this sweep would have the same name: ...{', '.join(double)}")
    return found


def _as_name(value: str) -> str:
    """A value as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", value).strip("_")
