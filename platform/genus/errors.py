"""Errors that are written for the user: one message saying what, where and what to do."""

from __future__ import annotations


class GenusError(Exception):
    """Shown without a traceback by the recipes and the ``genus`` command."""


class ConfigError(GenusError):
    """A config or request that can't be: the key, what is wrong and what would be right."""


class DataError(GenusError):
    """Data that can't be read: the shard, the sample and what to do."""


class CheckpointError(GenusError):
    """A checkpoint that can't be written or read."""


class TrainingError(GenusError):
    """Training that can't go on."""
