"""Errors that are written for the user: one message saying what, where and what to do."""

from __future__ import annotations


class GenusError(Exception):
    """Shown without a traceback by the recipes and the ``genus`` command."""


class ConfigError(GenusError, ValueError):
    """A config or request that can't be: the key, what is wrong and what would be right."""


class DataError(GenusError, ValueError):
    """Data, or a request for data, that can't be served: the shard, the sample, what to do."""


class AgreedDataError(DataError):
    """Raised by all ranks together: one of them says it."""


class MachineError(GenusError):
    """What this machine lacks (file descriptors, memory, room on its disks): no fault of the data,
    so it ends the run and is never made up for."""


class CheckpointError(GenusError):
    """A checkpoint that can't be written or read."""


class TrainingError(GenusError):
    """Training that can't go on."""


class EvaluationError(GenusError):
    """A figure that can't be measured, or may not be printed: what, why and what to do."""
