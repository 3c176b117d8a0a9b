"""Write and read the prepared directory: one Arrow data set per name and a manifest, replaced atomically."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.core.errors import InputError
from utils.data.records import PreparedSet

if TYPE_CHECKING:
    from datasets import Dataset

MANIFEST = "manifest.json"
STATISTICS = "statistics.json"
REMOVED = "removed_examples.jsonl"
FORMAT = 1
ROWS_PER_BATCH = 1000


def load_prepared(directory: Path, name: str) -> Dataset:
    """The data set `name` (train, validation, test_cnn_dm, ..., attack_evaluate), memory-mapped, checked for its rows.

    InputError if it is not there, is marked as missing, or is not what the manifest says.
    """
    from datasets import Dataset

    manifest = read_manifest(directory)
    if name not in manifest["sets"]:
        reason = manifest["missing"].get(name.removeprefix("test_"))
        known = ", ".join(manifest["sets"])
        raise InputError(f"{directory}: no {name} ({reason or 'there are ' + known}).")
    try:
        data = Dataset.load_from_disk(str(directory / name))
    except (OSError, ValueError) as error:
        raise InputError(f"{directory / name}: damaged ({error}). Run stage 1 again.") from None
    expected = manifest["sets"][name]["rows"]
    if len(data) != expected:
        raise InputError(f"{directory / name}: {len(data)} rows, the manifest says {expected}. Run stage 1 again.")
    return data


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a prepared directory; InputError if there is none that this version can read."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{directory}: no prepared data there. Run stage 1 first.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{directory}: prepared by another version. Run stage 1 again.")
    return manifest


def missing_datasets(directory: Path) -> dict[str, str]:
    """The data sets that could not be had, by key, with the reason; every output has to say so."""
    return dict(read_manifest(directory)["missing"])


class SplitWriter:
    """Writes rows to one Arrow file as they come, then the ones wanted to their place; hashes what it wrote.

    Columns: id, dataset (text), input_ids, labels (list of int32); with `texts` also document and summary.
    """

    def __init__(self, directory: Path, name: str, *, texts: bool) -> None:
        import pyarrow

        self._arrow = pyarrow
        self.name, self.directory, self.texts = name, directory, texts
        columns = {"id": pyarrow.string(), "dataset": pyarrow.string()}
        columns |= {"document": pyarrow.large_string(), "summary": pyarrow.string()} if texts else {}
        columns |= {column: pyarrow.list_(pyarrow.int32()) for column in ("input_ids", "labels")}
        self._schema = pyarrow.schema(list(columns.items()))
        self._scratch = directory / f".{name}.arrow"
        self._writer = pyarrow.ipc.new_stream(str(self._scratch), self._schema)
        self._rows: list[dict[str, Any]] = []
        self.ids: list[str] = []

    def add(self, row: dict[str, Any]) -> None:
        """Add one row with this writer's columns."""
        self._rows.append(row)
        self.ids.append(row["id"])
        if len(self._rows) >= ROWS_PER_BATCH:
            self._flush()

    def finish(self, positions: Sequence[int] | None = None) -> PreparedSet:
        """Put the rows (those at `positions`, in that order) to DIRECTORY/NAME; returns their manifest entry."""
        from datasets import Dataset

        self._flush()
        with _named(self._scratch):
            self._writer.close()
        data = Dataset.from_file(str(self._scratch))
        if positions is not None:
            data = data.select(positions)
            self.ids = [self.ids[position] for position in positions]
        digest = content_sha256(data)
        data._fingerprint = digest[:16]  # the library's own is random: the same content must give the same files
        with _no_bars(), _named(self.directory / self.name):
            data.save_to_disk(str(self.directory / self.name), max_shard_size="500MB")
        self._scratch.unlink()
        return PreparedSet(len(data), digest)

    def _flush(self) -> None:
        if self._rows:
            with _named(self._scratch):
                self._writer.write_batch(self._arrow.RecordBatch.from_pylist(self._rows, schema=self._schema))
            self._rows = []


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Arrow's OSErrors (a full disk) name no file: name it."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    import datasets

    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def content_sha256(data: Dataset) -> str:
    """Hex sha256 over ids, texts and token ids of every row in order, whatever files they lie in."""
    digest = hashlib.sha256()
    texts = [column for column in ("id", "dataset", "document", "summary") if column in data.column_names]
    for batch in data.with_format("arrow").iter(ROWS_PER_BATCH):
        for column in texts:
            for value in batch[column].to_pylist():
                encoded = value.encode("utf-8")
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
        for column in ("input_ids", "labels"):
            lists = batch[column].combine_chunks()
            digest.update(np.asarray(lists.value_lengths(), dtype="<i4").tobytes())
            digest.update(np.asarray(lists.flatten(), dtype="<i4").tobytes())
    return digest.hexdigest()
