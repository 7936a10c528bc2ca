"""What text a corpus is made of, and how it becomes tokens."""

from dataclasses import dataclass
from typing import Literal

from llmtrain.spec.check import check, check_between, check_folder, check_name, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which text, and how it becomes tokens."""

    name: str
    """Name of the corpus; its shards lie in a folder of this name plus a hash."""
    source: Literal["pysource", "local", "hub"]
    """Installed Python source, files on this machine, or the Hugging Face hub."""
    scope: Literal["stdlib", "all"]
    """pysource: the standard library, or every installed package too."""
    paths: tuple[str, ...]
    """local: files, folders or globs of txt, jsonl or parquet."""
    text_field: str
    """local jsonl and parquet, hub: the column that holds the text."""
    hub_path: str | None
    """hub: repository of the data set."""
    hub_config: str | None
    """hub: configuration name, where the set has several."""
    hub_split: str | None
    """hub: split that is read."""
    hub_revision: str | None
    """hub: pinned revision of the repository."""
    max_bytes: int | None
    """Stop reading after this many bytes of text; null reads all."""
    deduplicate: Literal["none", "exact", "near"]
    """Remove documents that are equal, or nearly so."""
    tokenizer: Literal["bytes", "bpe"]
    """One token a byte, or byte-level BPE trained on the corpus."""
    vocab_size: int
    """Number of token ids; 256 for bytes."""
    val_fraction: float
    """Share of the documents held out for validation, chosen by hash."""
    max_epochs: float
    """Refuse plans that read the training split more often than this."""
    root: str
    """Folder that holds prepared corpora."""

    def __post_init__(self) -> None:
        """Refuse what cannot be prepared."""
        check_name("data.name", self.name)
        check_folder("data.root", self.root)
        for path in self.paths:
            check_folder("data.paths", path)
        check_between("data.val_fraction", self.val_fraction, 1e-5, 0.5)
        check_positive("data.max_epochs", self.max_epochs)
        check(
            self.tokenizer != "bytes" or self.vocab_size == 256,
            f"data.vocab_size={self.vocab_size} must be 256 for the byte tokenizer",
        )
        check(
            self.tokenizer != "bpe" or 258 <= self.vocab_size <= 1_000_000,
            f"data.vocab_size={self.vocab_size} must lie in [258, 1000000] for BPE",
        )
        if self.max_bytes is not None:
            check_positive("data.max_bytes", self.max_bytes)
        check(
            self.source != "local" or len(self.paths) > 0,
            "data.paths is empty: name files, folders or globs, as in data.paths=[text/*.txt]",
        )
        check(
            self.source != "hub" or (self.hub_path is not None and self.hub_split is not None),
            "data.source=hub needs data.hub_path and data.hub_split",
        )
