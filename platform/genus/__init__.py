"""Genus: one loop, one data engine, one evaluation for every family of deep generative model."""

__version__ = "0.1.0"
