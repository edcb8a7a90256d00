"""What of a tensor sharded by FSDP2 (a DTensor) lies on this rank, as a plain tensor."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from genus.parts import Part


def local(tensor: Tensor) -> Tensor:
    """This rank's rows, the same memory; a plain tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def stored_as(like: Tensor, part: Tensor) -> Tensor | Part:
    """What a checkpoint takes for ``part``, which lies as the local rows of ``like``."""
    if not isinstance(like, DTensor):
        return part
    return Part.of_rows(like.shape, first_row(like), part)


def gathered(like: Tensor, part: Tensor) -> Tensor:
    """The whole of a tensor that lies as ``like``; this rank has ``part`` of it."""
    if not isinstance(like, DTensor):
        return part
    shape, stride = like.shape, like.stride()
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride
    ).full_tensor()


def first_row(tensor: DTensor) -> int:
    """Where this rank's rows begin in the whole."""
    mesh, placements = tensor.device_mesh, tensor.placements
    return int(compute_local_shape_and_global_offset(tensor.shape, mesh, placements)[1][0])


class LocalParameter(nn.Parameter):
    """What an optimizer holds in the place of a sharded parameter: its local rows, same memory."""

    whole: nn.Parameter

    @classmethod
    def of(cls, parameter: nn.Parameter) -> LocalParameter:
        part = cls(local(parameter).detach(), requires_grad=parameter.requires_grad)
        part.whole = parameter
        return part


def whole_of(part: nn.Parameter) -> nn.Parameter:
    """The sharded parameter that an optimizer's parameter stands for."""
    assert isinstance(part, LocalParameter)
    return part.whole
