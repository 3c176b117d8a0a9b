"""Build the splits in order of protection, each decontaminated against those before it.

Order of protection: test sets, the examples that attacks are optimised on, validation, training. A row that overlaps
(utils/data/contamination.py) something more protected is removed; a test row never is.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset

from utils.core.errors import StageError
from utils.core.files import write_jsonl
from utils.data.cleaning import clean_text
from utils.data.contamination import CHARACTERS_READ, METHOD, Fingerprint, OverlapIndex, fingerprint
from utils.data.judgement import check_kept, warnings_of
from utils.data.loading import Fetched
from utils.data.readers import Row, read_rows
from utils.data.records import DataStatistics, PreparedSet, SetFacts, SplitFacts
from utils.data.registry import DatasetSource
from utils.data.rows import Encoding, ProcessedRow, Task, process_rows
from utils.data.statistics import SplitStatistics, draw, draw_key
from utils.data.store import REMOVED, SplitWriter

OVERSAMPLING = 4  # rows looked at for each training row wanted, where only some are
# What is common among the documents that are compared is learnt from the first BACKGROUND_ROWS of each split: from all
# of BACKGROUND_FULL, then from ever fewer (row i with probability BACKGROUND_FULL / i). A template is seen there.
BACKGROUND_ROWS, BACKGROUND_FULL = 10_000, 1_000

log = logging.getLogger("mono_s2s.data")


@dataclass(frozen=True)
class Request:
    """Everything that decides what the prepared data are; `key` names it."""

    sources: Mapping[str, DatasetSource]
    train_keys: Sequence[str]
    test_keys: Sequence[str]
    attack_dataset: str
    encoding: Encoding
    tokenizer_sha256: str
    seed: int
    attack_optimize_size: int
    attack_evaluate_size: int
    use_full_test_sets: bool
    quick_test_size: int
    max_train_examples: int | None
    allow_partial: bool
    deduplicate_training: bool

    def described(self, fetched: Mapping[str, Fetched]) -> dict[str, Any]:
        """JSON-ready: what the manifest records, and the hash `key` is made of."""
        return {
            "train_keys": list(self.train_keys),
            "test_keys": list(self.test_keys),
            "attack_dataset": self.attack_dataset,
            "task_prefix": self.encoding.task_prefix,
            "max_input_length": self.encoding.max_input_length,
            "max_target_length": self.encoding.max_target_length,
            "tokenizer_sha256": self.tokenizer_sha256,
            "seed": self.seed,
            "attack_optimize_size": self.attack_optimize_size,
            "attack_evaluate_size": self.attack_evaluate_size,
            "quick_test_size": None if self.use_full_test_sets else self.quick_test_size,
            "max_train_examples": self.max_train_examples,
            "deduplicate_training": self.deduplicate_training,
            "overlap": METHOD,
            "origins": {key: item.origin for key, item in fetched.items()},
            "reading": {key: self.sources[key].reading for key in fetched},
        }


@dataclass
class Build:
    """One preparation: the splits in order of protection, each held against those before it."""

    request: Request
    fetched: Mapping[str, Fetched]
    missing: Mapping[str, str]
    directory: Path
    workers: int
    sets: dict[str, PreparedSet] = field(default_factory=dict)
    index: OverlapIndex = field(default_factory=OverlapIndex)
    splits: dict[str, dict[str, SplitFacts]] = field(default_factory=dict)
    removed: list[dict[str, Any]] = field(default_factory=list)
    overlap: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    duplicates: Counter[tuple[str, str]] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    attack_ids: list[str] = field(default_factory=list)
    test_digests: set[bytes] = field(default_factory=set)

    def run(self) -> DataStatistics:
        """Write every data set and the list of removed rows; the statistics of it all.

        judgement.NothingKept (a StageError) for a set of which nothing is left.
        """
        request = self.request
        self.index = OverlapIndex(self._background())
        for key in request.test_keys:
            if key not in self.missing:
                self._test(key)
        self._attack_optimize()
        train = [key for key in request.train_keys if key not in self.missing]
        self._training("validation", train)
        self._training("train", train)
        self.index = OverlapIndex()  # its files must not be open when they are deleted: NFS would keep them
        write_jsonl(self.directory / REMOVED, self.removed)
        for left in self.directory.glob(".index_*"):
            shutil.rmtree(left)
        return self._statistics()

    def _test(self, key: str) -> None:
        request = self.request
        writer = SplitWriter(self.directory, f"test_{key}", texts=True)
        attack = SplitWriter(self.directory, "attack_evaluate", texts=True) if key == request.attack_dataset else None
        marks: list[Fingerprint] = []
        seen: dict[bytes, str] = {}
        for id_, row, done in self._rows(key, "test", Task(request.encoding, test=True, keep_ngrams=True), seen):
            written = self._written(key, id_, row, done, texts=True)
            writer.add(written)
            if attack:
                attack.add(written)
            assert done.fingerprint is not None
            marks.append(done.fingerprint)
        if not writer.ids:
            raise StageError(f"{key}: no test row has text.")
        self.index.add(f"{key}/test", writer.ids, marks)
        digests = {mark.digest for mark in marks}
        if alike := len(digests & self.test_digests):
            self._warn([f"{key}/test: {alike:,} documents are in other test sets, too"])
        self.test_digests |= digests
        if attack:
            size = request.attack_evaluate_size
            self._check_size("attack_evaluate", size, len(attack.ids))
            chosen = draw(attack.ids, size, seed=request.seed, purpose="attack_evaluate")
            self.sets["attack_evaluate"] = attack.finish(chosen)
            self.attack_ids = attack.ids
        quick = None
        if not request.use_full_test_sets:
            quick = draw(writer.ids, request.quick_test_size, seed=request.seed, purpose="quick_test")
        self.sets[writer.name] = writer.finish(quick)

    def _attack_optimize(self) -> None:
        request, key = self.request, self.request.attack_dataset
        writer = SplitWriter(self.directory, "attack_optimize", texts=True)
        task = Task(request.encoding, index_directory=self._saved_index(), keep_ngrams=True)
        seen: dict[bytes, str] = {}
        for id_, row, done in self._rows(key, "validation", task, seen):
            writer.add(self._written(key, id_, row, done, texts=True))
        # Where the attacked set is trained on, too, half of its validation rows are left for choosing the epoch.
        available = len(writer.ids) // 2 if key in request.train_keys else len(writer.ids)
        self._check_size(writer.name, request.attack_optimize_size, available)
        size = min(available, request.attack_optimize_size)
        chosen = draw(writer.ids, size, seed=request.seed, purpose=writer.name)
        self.sets[writer.name] = writer.finish(chosen)
        if not writer.ids:
            raise StageError(f"{key}: no validation row is left to optimise attacks on.")
        optimise_on = Dataset.load_from_disk(str(self.directory / writer.name))
        marks = [fingerprint(document) for document in optimise_on["document"]]
        both = set(writer.ids) & set(self.attack_ids) or {mark.digest for mark in marks} & self.test_digests
        if both:
            raise AssertionError(f"attacks would be measured on what they were optimised on: {sorted(both)[:3]}")
        self.index.add(f"{key}/validation", writer.ids, marks)

    def _training(self, split: str, keys: Sequence[str]) -> None:
        request = self.request
        writer = SplitWriter(self.directory, split, texts=False)
        held_out = split == "validation"
        task = Task(request.encoding, index_directory=self._saved_index(), keep_ngrams=held_out)
        seen: dict[bytes, str] = {}
        for key in keys:
            ids: list[str] = []
            marks: list[Fingerprint] = []
            for id_, row, done in self._rows(key, split, task, seen):
                writer.add(self._written(key, id_, row, done, texts=False))
                if held_out:
                    ids.append(id_)
                    assert done.fingerprint is not None
                    marks.append(done.fingerprint)
            if held_out:
                self.index.add(f"{key}/{split}", ids, marks)
        if not writer.ids:
            raise StageError(f"nothing is left to use for {split}: every row was empty or overlaps held-out text.")
        chosen = None
        if request.max_train_examples is not None and split == "train":
            chosen = draw(writer.ids, request.max_train_examples, seed=request.seed, purpose=split)
        self.sets[split] = writer.finish(chosen)

    def _rows(
        self, key: str, split: str, task: Task, seen: dict[bytes, str]
    ) -> Iterator[tuple[str, Row, ProcessedRow]]:
        """The rows that stay, with their ids; all others are counted and listed with the reason."""
        source, files = self.request.sources[key], self.fetched[key].files[split]
        name = f"{key}/{split}"
        statistics = SplitStatistics(
            max_input_length=task.encoding.max_input_length,
            max_target_length=task.encoding.max_target_length,
            seed=self.request.seed,
        )
        began = time.monotonic()
        rows = self._drawn(read_rows(files, **source.reading), name, statistics)
        size = sum(path.stat().st_size for path in files)
        for row, done in process_rows(rows, task, workers=self.workers, size_bytes=size):
            id_ = f"{name}/{row.number}"
            reason = done.problem or self._conflict(id_, name, done, task, seen, statistics)
            if reason:
                statistics.remove(reason)
                continue
            words, tokens = (done.document_words, done.summary_words), (done.document_tokens, done.summary_tokens)
            statistics.keep(words, tokens, done.facts, row.references)
            if statistics.wants(id_):
                statistics.sample(id_, clean_text(row.document), clean_text(row.summary))
            yield id_, row, done
        result = statistics.result()
        log.info("%s: %d rows, %d kept, %.1f s", name, result.raw, result.kept, time.monotonic() - began)
        check_kept(source, split, result)
        self._check_usable(source, split, result.usable)
        self._warn(warnings_of(name, result))
        self.splits.setdefault(key, {})[split] = result

    def _conflict(
        self, id_: str, name: str, done: ProcessedRow, task: Task, seen: dict[bytes, str], statistics: SplitStatistics
    ) -> str | None:
        mark = done.fingerprint
        assert mark is not None
        if done.match:
            self.overlap[name, done.match.group, done.match.kind] += 1
            match = {"with": done.match.id, "kind": done.match.kind, "containment": done.match.containment}
            self.removed.append({"id": id_, "reason": "overlap", **match})
            return f"overlap:{done.match.group}"
        first = seen.setdefault(mark.digest, id_)
        if first == id_:
            return None
        statistics.repeated += 1
        self.duplicates[name, first.rsplit("/", 1)[0]] += 1
        if task.test or not self.request.deduplicate_training:
            return None
        self.removed.append({"id": id_, "reason": "duplicate", "with": first})
        return "duplicate"

    def _drawn(self, rows: Iterator[Row], name: str, statistics: SplitStatistics) -> Iterator[Row]:
        """All rows; or a seeded share of a large training set of which only few rows are wanted in the end."""
        share = self._share(name)
        for row in rows:
            if share < 1 and draw_key(self.request.seed, "train", f"{name}/{row.number}") >= share * 2**64:
                statistics.remove("not_drawn")
            else:
                yield row

    def _share(self, name: str) -> float:
        wanted = self.request.max_train_examples
        if wanted is None or not name.endswith("/train"):
            return 1.0
        published = [self.request.sources[key].raw_rows.get("train", 0) for key in self.request.train_keys]
        return min(1.0, OVERSAMPLING * wanted / sum(published)) if all(published) else 1.0

    def _written(self, key: str, id_: str, row: Row, done: ProcessedRow, *, texts: bool) -> dict[str, Any]:
        written: dict[str, Any] = {"id": id_, "dataset": key, "input_ids": done.input_ids, "labels": done.labels}
        if texts:
            written |= {"document": clean_text(row.document), "summary": clean_text(row.summary)}
        return written

    def _background(self) -> Iterator[Fingerprint]:
        """Fingerprints of a sample of all documents that will be compared with held-out ones."""
        request = self.request
        parts = [(key, split) for split in ("validation", "train") for key in request.train_keys]
        for key, split in [(request.attack_dataset, "validation"), *parts]:
            if key not in self.fetched:
                continue
            rows = read_rows(self.fetched[key].files[split], **request.sources[key].reading)
            for row in islice(rows, BACKGROUND_ROWS):
                drawn = draw_key(request.seed, "background", f"{key}/{split}/{row.number}")
                if drawn * (row.number + 1) < BACKGROUND_FULL * 2**64:
                    yield fingerprint(clean_text(row.document[: 2 * CHARACTERS_READ]))

    def _saved_index(self) -> Path:
        directory = self.directory / f".index_{len(self.index.groups)}"
        self.index.save(directory)
        return directory

    def _check_size(self, name: str, wanted: int, available: int) -> None:
        if available < wanted:
            self._warn([f"{name}: {wanted} examples asked for, only {available} are there"])

    def _check_usable(self, source: DatasetSource, split: str, usable: int) -> None:
        expected = source.usable_rows.get(split)
        if expected and usable != expected:
            self._warn([f"{source.key}/{split}: {usable} rows have text, {expected} are expected"])

    def _warn(self, texts: Sequence[str]) -> None:
        self.warnings += texts
        for text in texts:
            log.warning("%s", text)

    def _statistics(self) -> DataStatistics:
        request = self.request
        sets = {}
        for key, splits in self.splits.items():
            source = request.sources[key]
            trained = [name for name in request.train_keys if name in self.splits]
            inside = [name for name in trained if name == key or key in request.sources[name].contains]
            sets[key] = SetFacts(
                title=source.title,
                role=source.role,
                licence=source.licence,
                note=source.note,
                own=source.own,
                in_domain=inside if source.role == "test" else [],
                origin=self.fetched[key].origin,
                splits=splits,
            )
        return DataStatistics(
            sets=sets,
            missing=dict(self.missing),
            prepared=self.sets,
            overlap=[
                {"of": name, "with": group, "kind": kind, "rows": rows}
                for (name, group, kind), rows in sorted(self.overlap.items())
            ],
            duplicates=[
                {"of": name, "with": first, "rows": rows} for (name, first), rows in sorted(self.duplicates.items())
            ],
            attack_dataset=request.attack_dataset,
            deduplicate_training=request.deduplicate_training,
            overlap_method=METHOD,
            removed_ids=REMOVED,
            warnings=self.warnings,
        )
