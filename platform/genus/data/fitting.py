"""Whether other data than a model was trained on can be given to it."""

from __future__ import annotations

from genus.data.manifest import DataInfo
from genus.errors import DataError

SEQUENCES = ("tokens", "source", "target", "frames")


def check_fits(trained: DataInfo, other: DataInfo) -> None:
    """DataError where ``other`` has no sequences or vectors such as a model of ``trained`` reads.

    Images and labels are not compared: models take images of their size, with labels or without.
    """
    for what, one, two in (
        ("sequences", *([f for f in SEQUENCES if f in i.fields] for i in (trained, other))),
        ("numbers of a vector", trained.dims, other.dims),
        ("vocabulary", trained.vocabulary, other.vocabulary),
        ("vocabulary of sources", trained.source_vocabulary, other.source_vocabulary),
        ("end token", trained.end, other.end),
        ("tokenizer", trained.tokenizer, other.tokenizer or trained.tokenizer),
        ("numbers of a frame", trained.frame_features, other.frame_features),
    ):
        if one != two and (what != "tokenizer" or one):  # runs of old don't know theirs
            raise DataError(
                f"{other.url} is not such data as the model was trained on: the {what} of "
                f"{trained.url} are {one}, of {other.url} {two}"
            )
    for what, most, longest in (
        ("targets", trained.target_length, other.target_length),
        ("sources", trained.source_length, other.source_length),
    ):
        if longest > most:
            raise DataError(
                f"{other.url} has {what} of up to {longest}, and the model is made for the {most} "
                f"of {trained.url}: pack both with the same lengths (pack_pairs(lengths=...))"
            )
