"""What each parameter is to its network: an embedding, at one of the ends, or inside.

Parameters and their order do not say where a network's ends are: a tied transformer has no last
matrix, and a PixelCNN reads its image in several places. So networks say it (networks/roles.py);
they are found inside others (``EncoderDecoder``, DistributedDataParallel), and sharded, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from genus.errors import ConfigError
from genus.networks.roles import Roles


@dataclass(frozen=True)
class Ends:
    """Ids of parameters. Matrices and kernels that are in no set are inside; an embedding may read,
    too."""

    embeddings: set[int] = field(default_factory=set)
    """Tables of tokens, positions and classes."""
    reads: set[int] = field(default_factory=set)
    writes: set[int] = field(default_factory=set)


def ends_of(network: nn.Module) -> Ends:
    """The ends of a network and of its parts. Of what says nothing (U-Net, DiT, flows) the first
    matrix in order of parameters reads and the last writes; in U-Net and DiT the first one reads
    the noise level."""
    ends = Ends()
    known: set[int] = set()
    for part in network.modules():
        if isinstance(part, nn.Embedding):
            ends.embeddings.add(id(part.weight))
        roles = _roles(part)
        if roles is not None:
            ends.reads.update(map(id, roles.reads))
            ends.writes.update(map(id, roles.writes))
            known.update(map(id, part.parameters()))
    known |= ends.embeddings
    others = [id(p) for p in network.parameters() if p.ndim >= 2 and id(p) not in known]
    ends.reads.update(others[:1])
    ends.writes.update(others[-1:])
    return ends


def width_of(network: nn.Module) -> int:
    """Channels of a token; ConfigError where the network is no transformer."""
    said = [roles.width for part in network.modules() if (roles := _roles(part)) is not None]
    widths = {width for width in said if width}
    if len(widths) != 1:
        raise ConfigError(
            f"optim.tuned_width is for networks that say their width, as those of "
            f"networks/transformer do, and {type(network).__name__} does not: set it to 0, and "
            "tune optim.lr at the size that trains"
        )
    return widths.pop()


def _roles(part: nn.Module) -> Roles | None:
    if not hasattr(type(part), "roles"):  # the property's own errors are not to be swallowed
        return None
    roles = part.roles
    return roles if isinstance(roles, Roles) else None
