"""Shards, index, order, stream, decoders and built-in data sets."""
