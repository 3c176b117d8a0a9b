"""Clean, filter, decontaminate and tokenize rows, in a process pool for large inputs."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from utils.core.errors import StageError
from utils.data.cleaning import clean_text, count_words, is_written_value, problem_of
from utils.data.contamination import Fingerprint, Match, OverlapIndex, fingerprint
from utils.data.readers import Row
from utils.data.records import TextFacts

ROWS_PER_TASK, CHARACTERS_PER_TASK = 200, 2_000_000  # 16 parts of 200 papers each would be 100 MB
# Starting processes costs seconds: below this many bytes of input the rows are done in this process.
BYTES_WORTH_PROCESSES = 32 << 20
# Longer documents are first cut at a space after this many characters per token that fits: the tokenizer reads words
# apart from each other, so the first ids do not change, and a paper of 60 pages is not tokenised for its first two.
# English has 4 to 5 characters a token; where a text turns out to have more, more of it is read.
CHARACTERS_PER_TOKEN = 5
NO_NGRAMS = np.zeros(0, dtype=np.uint64)


@dataclass(frozen=True)
class Encoding:
    """How texts become ids. `tokenizer` is the `tokenizers.Tokenizer` of a T5; lengths are tokens with </s>."""

    tokenizer: Any
    task_prefix: str
    max_input_length: int
    max_target_length: int
    eos: int
    unk: int
    readable: dict[str, bool] = field(default_factory=dict, compare=False)  # cache: characters seen so far

    @classmethod
    def of(cls, tokenizer: Any, task_prefix: str, max_input_length: int, max_target_length: int) -> Encoding:
        """The encoding of a transformers T5 tokenizer, free of the truncation that its file may have stored."""
        from tokenizers import Tokenizer

        own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        own.no_truncation()
        own.no_padding()
        special = tokenizer.eos_token_id, tokenizer.unk_token_id
        return cls(own, task_prefix, max_input_length, max_target_length, *special)

    def unreadable(self, text: str) -> dict[str, int]:
        """Characters of `text` that the vocabulary has no piece for, with their counts.

        Characters, not tokens: a run of unknown characters becomes a single <unk>, however long it is.
        """
        counts = {}
        for character in set(text):
            known = self.readable.get(character)
            if known is None:
                known = self.unk not in self.tokenizer.encode(character, add_special_tokens=False).ids
                self.readable[character] = known
            if not known:
                counts[character] = text.count(character)
        return counts

    def documents(self, documents: Sequence[str]) -> list[tuple[np.ndarray, int]]:
        """Of each document: int32 ids of prefix and document, cut to `max_input_length`, ending in </s>; its length.

        The length is that before the cut; of a document much longer than the cut a lower bound (above the cut).
        """
        return self._encode([self.task_prefix + document for document in documents], self.max_input_length)

    def summaries(self, summaries: Sequence[str]) -> list[tuple[np.ndarray, int]]:
        """The same for summaries: no prefix, cut to `max_target_length`."""
        return self._encode(summaries, self.max_target_length)

    def _encode(self, texts: Sequence[str], limit: int) -> list[tuple[np.ndarray, int]]:
        characters = limit * CHARACTERS_PER_TOKEN
        parts = [_beginning(text, characters) for text in texts]
        encoded = [item.ids for item in self.tokenizer.encode_batch_fast(parts, add_special_tokens=False)]
        result = []
        for text, part, ids in zip(texts, parts, encoded, strict=True):
            read = characters
            while len(ids) < limit and len(part) < len(text):
                read *= 2
                part = _beginning(text, read)
                ids = self.tokenizer.encode(part, add_special_tokens=False).ids
            result.append((np.array([*ids[: limit - 1], self.eos], dtype=np.int32), len(ids) + 1))
        return result


def _beginning(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    space = text.find(" ", characters)
    return text if space < 0 else text[:space]


@dataclass(frozen=True)
class Task:
    """What is asked of every row of one split.

    `test`: a test set, whose rows all stay if they have text. `index_directory`: the held-out text to look for.
    `keep_ngrams`: the split is held out itself, its fingerprints are needed whole.
    """

    encoding: Encoding
    test: bool = False
    index_directory: Path | None = None
    keep_ngrams: bool = False


@dataclass(frozen=True)
class ProcessedRow:
    """One row after the work: `problem` says why it is dropped (the rest is empty then), `match` what it overlaps."""

    problem: str | None
    fingerprint: Fingerprint | None = None
    match: Match | None = None
    input_ids: np.ndarray | None = None
    labels: np.ndarray | None = None
    document_words: int = 0
    summary_words: int = 0
    document_tokens: int = 0
    summary_tokens: int = 0
    facts: TextFacts | None = None


class Worker:
    """Does rows of one split: a task, with its index open."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.index = OverlapIndex.open(task.index_directory) if task.index_directory else None

    def process(self, rows: Sequence[Row]) -> list[ProcessedRow]:
        texts = [(clean_text(row.document), clean_text(row.summary)) for row in rows]
        results = [self._judge(document, summary) for document, summary in texts]
        stay = [position for position, done in enumerate(results) if done.problem is None and done.match is None]
        documents = self.task.encoding.documents([texts[position][0] for position in stay])
        summaries = self.task.encoding.summaries([texts[position][1] for position in stay])
        for position, (input_ids, length), (labels, target) in zip(stay, documents, summaries, strict=True):
            results[position] = replace(
                results[position],
                input_ids=input_ids,
                labels=labels,
                document_tokens=length,
                summary_tokens=target,
                facts=self._facts(*texts[position], input_ids, labels),
            )
        return results

    def _facts(self, document: str, summary: str, input_ids: np.ndarray, labels: np.ndarray) -> TextFacts:
        encoding = self.task.encoding
        seen = _beginning(document, encoding.max_input_length * CHARACTERS_PER_TOKEN) + summary
        return TextFacts(
            summary_longer=len(summary) > len(document),
            identical=summary == document,
            written_list=is_written_value(document) or is_written_value(summary),
            characters=sum(map(len, seen.split())),
            unreadable=encoding.unreadable(seen),
            tokens=len(input_ids) + len(labels),
            unknown_tokens=int((input_ids == encoding.unk).sum() + (labels == encoding.unk).sum()),
        )

    def _judge(self, document: str, summary: str) -> ProcessedRow:
        problem = problem_of(document, summary, test=self.task.test)
        if problem:
            return ProcessedRow(problem)
        mark = fingerprint(document)
        return ProcessedRow(
            None,
            fingerprint=mark if self.task.keep_ngrams else Fingerprint(mark.digest, NO_NGRAMS),
            match=self.index.find(mark) if self.index else None,
            document_words=count_words(document),
            summary_words=count_words(summary),
        )


def process_rows(
    rows: Iterable[Row], task: Task, *, workers: int, size_bytes: int
) -> Iterator[tuple[Row, ProcessedRow]]:
    """Every row with what became of it, in order; in `workers` processes where there is enough to do.

    StageError if a worker is killed (out of memory, usually).
    """
    if workers <= 1 or size_bytes < BYTES_WORTH_PROCESSES:
        worker = Worker(task)
        for part in _parts(rows):
            yield from zip(part, worker.process(part), strict=True)
        return
    context = multiprocessing.get_context("spawn")  # the parent holds threads (arrow, tokenizers): no fork
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(task,)) as pool:
        pending: deque[tuple[list[Row], Future[list[ProcessedRow]]]] = deque()
        stream = _parts(rows)
        try:
            while True:
                while len(pending) < 2 * workers and (part := next(stream, [])):
                    pending.append((part, pool.submit(_process_part, part)))
                if not pending:
                    return
                part, future = pending.popleft()
                yield from zip(part, future.result(), strict=True)
        except BrokenProcessPool:
            raise StageError(
                "a worker process was killed, most likely for memory. "
                "Ask for more (SLURM_MEMORY_SCALE) or set NUM_WORKERS lower."
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _parts(rows: Iterable[Row]) -> Iterator[list[Row]]:
    part: list[Row] = []
    size = 0
    for row in rows:
        part.append(row)
        size += len(row.document)
        if len(part) >= ROWS_PER_TASK or size >= CHARACTERS_PER_TASK:
            yield part
            part, size = [], 0
    if part:
        yield part


_worker: Worker | None = None


def _start_worker(task: Task) -> None:
    global _worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    _worker = Worker(task)


def _exit_with(parent: Any) -> None:
    parent.join()  # a worker whose parent was killed would otherwise wait for tasks for ever
    os._exit(1)


def _process_part(rows: list[Row]) -> list[ProcessedRow]:
    assert _worker is not None
    return _worker.process(rows)
