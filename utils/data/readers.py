"""Read rows of CSV, TSV, JSON, parquet and Arrow files as a stream, strictly: a doubtful row is refused with its line.

Strict means: every CSV row has as many fields as the header (pandas stops counting where `usecols` is given), nothing
follows a closing quote, no column name occurs twice. Everything stays text: a dialogue "N/A" is one. Memory does not
grow with the file.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from utils.core.errors import StageError
from utils.core.text import one_line

SUFFIXES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".arrow": "arrow"}
SUFFIX_NAMES = ".csv, .tsv, .jsonl, .json (each also with .gz), .parquet or .arrow"
LISTS = ("sentences", "references")

ROWS_AT_A_TIME = 500
MAX_CELL = 1 << 24  # characters: a CSV field beyond this is a quote that was never closed
LONGEST_NAME = 40  # characters of a column's name in a message: a file without a header has a row there
CHUNK = 1 << 20  # characters of a JSON array that are read at a time
_LFS_POINTER = b"version https://git-lfs."  # what a clone has in place of large files
_BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CSV_ERRORS = {
    "expected after": 'text follows a closing quote. A quote inside a field is doubled (""), not written \\"',
    "unexpected end of data": "a quote is opened here and never closed",
    "field larger than": "a quote is opened here and never closed",
    "new-line character": "a lone carriage return is outside quotes",
}

Cells = Iterator[tuple[str, Any, Any]]  # place in the file, cell of the document, cell of the summary


@dataclass(frozen=True)
class Row:
    """A row as published, not cleaned: number in its split (from 0), two texts, and how many references it has."""

    number: int
    document: str
    summary: str
    references: int = 1


def format_of(path: Path | str) -> str | None:
    """The format that a file name stands for, or None; .gz may follow the suffix of a text format."""
    name = str(path).lower()
    found = SUFFIXES.get(Path(name.removesuffix(".gz")).suffix)
    return None if name.endswith(".gz") and found in ("parquet", "arrow") else found


def read_rows(
    files: Sequence[Path],
    document: str,
    summary: str,
    *,
    document_list: str = "",
    summary_list: str = "",
    encoding: str = "utf-8",
) -> Iterator[Row]:
    """The rows of `files` in order, numbered through.

    A cell that is a list needs `document_list` or `summary_list`: "sentences" are joined, one a line; of "references"
    (alternatives) the first is used and the number kept. StageError names file, line and what is wrong: a column that
    is missing or doubled, a row that cannot be read, a list nobody explained, a cell that is not text.
    """
    number = 0
    for path in files:
        cells = _cells(path, (document, summary), encoding)
        for row in _rows(cells, path, number, (document, summary), (document_list, summary_list)):
            yield row
            number = row.number + 1


def rows_of_batch(
    batch: Any, path: Path, document: str, summary: str, *, document_list: str = "", summary_list: str = "", **_: str
) -> Iterator[Row]:
    """The rows of one Arrow record batch of the file `path`, as `read_rows` gives them."""
    columns = (document, summary)
    return _rows(_numbered(batch, columns, 0), path, 0, columns, (document_list, summary_list))


def _rows(cells: Cells, path: Path, first: int, columns: tuple[str, str], lists: tuple[str, str]) -> Iterator[Row]:
    for number, (place, document, summary) in enumerate(cells, first):
        text, _ = _as_text(document, lists[0], f"{path}, {place}", columns[0], "document")
        short, references = _as_text(summary, lists[1], f"{path}, {place}", columns[1], "summary")
        yield Row(number, text, short, references)


def count_rows(path: Path, document: str, summary: str, **options: str) -> int:
    """Rows of one file; of a parquet file without reading them."""
    if format_of(path) == "parquet":
        from pyarrow import parquet

        return parquet.read_metadata(path).num_rows
    return sum(1 for _ in read_rows([path], document, summary, **options))


def _as_text(value: Any, kind: str, place: str, column: str, side: str) -> tuple[str, int]:
    """The cell as text, and the number of alternatives in it."""
    if isinstance(value, str):
        return value, 1
    if value is None or value != value:  # NaN: how data frames write an empty cell
        return "", 1
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise StageError(f"{place}: column {column!r} holds something that is not text.")
    if not kind:
        choices = '"sentences" (joined)' + ("" if side == "document" else ' or "references" (alternatives)')
        raise StageError(f'{place}: column {column!r} holds a list. Give "{side}_list" in DATASETS_FILE: {choices}.')
    if kind == "references":
        return (value[0] if value else ""), max(1, len(value))
    return "\n".join(_untagged(item) for item in value), 1


def _untagged(sentence: str) -> str:
    """A sentence without the <S> ... </S> that the original arXiv release puts around it."""
    bare = sentence.strip()
    return bare[3:-4].strip() if bare[:3] in ("<S>", "<s>") and bare[-4:] in ("</S>", "</s>") else sentence


def _cells(path: Path, columns: tuple[str, str], encoding: str) -> Cells:
    kind = format_of(path)
    try:
        with path.open("rb") as handle:
            if handle.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise StageError(f"{path}: a pointer of Git LFS, not the data. Get them with git lfs pull.")
        if kind == "parquet":
            yield from _parquet(path, columns)
        elif kind == "arrow":
            yield from _arrow(path, columns)
        elif kind == "json":
            yield from _json(path, columns, encoding)
        else:
            yield from _csv(path, columns, encoding, "\t" if kind == "tsv" else ",")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise StageError(f"{path}: damaged gzip file ({error}).") from None
    except UnicodeError as error:
        fix = 'Save it as UTF-8, or give "encoding" in DATASETS_FILE (latin-1, cp1252, utf-16 ...)'
        raise StageError(f"{path}: not {encoding} ({error}). {fix}.") from None
    except RecursionError:
        raise StageError(f"{path}: objects or lists inside each other without end. Expected rows of text.") from None
    except OSError as error:
        raise StageError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _csv(path: Path, columns: tuple[str, str], encoding: str, delimiter: str) -> Cells:
    csv.field_size_limit(MAX_CELL)
    # Python 3.10 stops at NUL characters; cleaning removes them anyway.
    lines = (line.replace("\0", "") for line in _lines(path, encoding))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    first = second = 0
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            reason = next((text for key, text in _CSV_ERRORS.items() if key in str(error)), str(error))
            raise StageError(f"{path}, line {line}: {reason}.") from None
        if not row or (len(row) == 1 and not row[0].strip()):
            continue  # a blank line
        if not header:
            header = row
            check_columns(path, columns, header)
            first, second = header.index(columns[0]), header.index(columns[1])
            continue
        if row == header:
            raise StageError(
                f"{path}, line {line}: the header again. Of files put together only the first keeps its own."
            )
        if delimiter == "\t" and reader.line_num > line and any("\t" in cell and "\n" in cell for cell in row):
            raise StageError(
                f"{path}, line {line}: a quote opens a text that goes over a tab and a line break. Double it if it is "
                "part of the text; if the text has tabs, write spaces."
            )
        if len(row) != len(header):
            raise StageError(
                f"{path}, line {line}: {len(row)} fields, but the header has {len(header)}. A text with a separator "
                "or a line break must stand in double quotes, and no row may end in a separator of its own."
            )
        yield f"line {line}", row[first], row[second]
    if not header:
        raise StageError(f"{path}: empty, not even a header.")


def _json(path: Path, columns: tuple[str, str], encoding: str) -> Cells:
    rows = _array(path, encoding) if _head(path, encoding).lstrip()[:1] == "[" else _objects(path, encoding)
    for place, row in rows:
        if not isinstance(row, dict):
            raise StageError(f"{path}, {place}: expected an object with named columns.")
        check_columns(path, columns, row, place)
        yield place, row[columns[0]], row[columns[1]]


def _objects(path: Path, encoding: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(path, encoding), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line, object_pairs_hook=_unique)
            except ValueError as error:
                fix = "Expected one JSON object a line, or one array of objects"
                raise StageError(f"{path}, line {number}: not JSON ({error}). {fix}.") from None


def _array(path: Path, encoding: str) -> Iterator[tuple[str, Any]]:
    """The items of one JSON array, decoded one by one from a window that moves over the file."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    with _stream(path, encoding) as binary, io.TextIOWrapper(binary, _codec(encoding)) as handle:
        window, at, line, opened, comma = "", 0, 1, False, False
        while True:
            while at < len(window) and (window[at].isspace() or (window[at] == "[" and not opened)):
                opened = opened or window[at] == "["
                at += 1
            try:
                if at >= len(window):
                    raise ValueError("the array is not closed")
                if window[at] == "]" and not comma:
                    rest = window[at + 1 :] + handle.read(CHUNK)
                    if rest.strip():
                        raise StageError(f"{path}: something follows the closing bracket of the array.")
                    return
                item, after = decoder.raw_decode(window, at)
                while after < len(window) and window[after].isspace():
                    after += 1
                if after >= len(window):
                    raise ValueError("the array is not closed")
                if window[after] not in ",]":
                    raise StageError(f"{path}, line {_line(window, line, after)}: a comma is missing before this.")
            except ValueError as error:
                # Not JSON, or cut off by the window: read as much again before giving up, so the cost stays linear.
                more = "" if len(window) - at > 4 * MAX_CELL else handle.read(max(CHUNK, len(window) - at))
                if not more:
                    place = f"line {_line(window, line, getattr(error, 'pos', len(window)))}"
                    raise StageError(f"{path}, {place}: not JSON ({error}).") from None
                line += window.count("\n", 0, at)
                window, at = window[at:] + more, 0
                continue
            yield f"line {_line(window, line, at)}", item
            comma = window[after] == ","
            at = after + comma
            if at > CHUNK:
                line += window.count("\n", 0, at)
                window, at = window[at:], 0


def _line(window: str, first: int, position: int) -> int:
    return first + window.count("\n", 0, position)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return row


def _parquet(path: Path, columns: tuple[str, str]) -> Cells:
    import pyarrow
    from pyarrow import parquet

    try:
        # Reading ahead is off, and row groups come one by one: by default arrow keeps all it has read of the file.
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            check_columns(path, columns, file.schema_arrow.names)
            number = 0
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(ROWS_AT_A_TIME, row_groups=[group], columns=list(columns)):
                    yield from _numbered(batch, columns, number)
                    number += len(batch)
    except (pyarrow.ArrowException, UnicodeError, OSError) as error:
        raise StageError(f"{path}: not a readable parquet file ({one_line(error)}).") from None


def _arrow(path: Path, columns: tuple[str, str]) -> Cells:
    """The files that `datasets` writes (save_to_disk), memory-mapped."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as handle, pyarrow.ipc.open_stream(handle) as reader:
            check_columns(path, columns, reader.schema.names)
            number = 0
            for batch in reader:
                for start in range(0, len(batch), ROWS_AT_A_TIME):
                    yield from _numbered(batch.slice(start, ROWS_AT_A_TIME), columns, number + start)
                number += len(batch)
    except (pyarrow.ArrowException, UnicodeError, OSError) as error:
        raise StageError(f"{path}: not a readable Arrow stream ({one_line(error)}).") from None


def _numbered(batch: Any, columns: tuple[str, str], number: int) -> Cells:
    documents, summaries = (batch.column(batch.schema.names.index(name)).to_pylist() for name in columns)
    for offset, cells in enumerate(zip(documents, summaries, strict=True)):
        yield f"row {number + offset + 1}", *cells


def check_columns(path: Path, wanted: Sequence[str], present: Any, place: str = "") -> None:
    """StageError unless each of the `wanted` columns is there exactly once."""
    names = list(present)
    for column in wanted:
        if names.count(column) == 1:
            continue
        start = f"{path}, {place}" if place else str(path)
        if column in names:
            raise StageError(f"{start}: {names.count(column)} columns are called {column!r}. Rename all but one.")
        hint = next((mark for mark in ";\t|," if len(names) == 1 and mark in str(names[0])), "")
        fix = f" It seems to be separated by {hint!r}: save it with commas, or with tabs as .tsv." if hint else ""
        shown = ", ".join(
            str(name) if len(str(name)) <= LONGEST_NAME else f"{str(name)[:LONGEST_NAME]}..." for name in names
        )
        raise StageError(f"{start}: no column {column!r}; there are {shown}.{fix}")


@contextlib.contextmanager
def _stream(path: Path, encoding: str) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked if they are gzip; StageError for what can be no text in `encoding`."""
    with path.open("rb") as plain:
        start = plain.read(4)
        plain.seek(0)
        if start == b"PK\x03\x04":
            raise StageError(f"{path}: a ZIP archive or a spreadsheet. Unpack it, or save it as CSV.")
        if start == b"PAR1":
            raise StageError(f"{path}: a parquet file. Give it the suffix .parquet.")
        if start[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=plain) as unpacked:
                yield unpacked  # type: ignore[misc]  # GzipFile reads as IO[bytes] does
            return
        found = next((name for mark, name in _BOMS.items() if start.startswith(mark)), None)
        if found and _codec(encoding) == "utf-8-sig":
            raise StageError(f'{path}: written in {found}. Save it as UTF-8, or give "encoding": "{found}".')
        yield plain


def _codec(encoding: str) -> str:
    name = codecs.lookup(encoding).name
    return "utf-8-sig" if name == "utf-8" else name  # some programs put a mark before the first character


def _head(path: Path, encoding: str) -> str:
    with _stream(path, encoding) as handle:
        start = handle.read(1 << 16)
    _refuse_utf8(path, encoding, start)
    return start.decode(_codec(encoding), "replace")


def _refuse_utf8(path: Path, encoding: str, content: bytes) -> None:
    """StageError if `content`, said to be in an encoding of one byte a character, is UTF-8: never so by chance.

    (In encodings of two bytes it is: the Chinese for "Unicom" in GBK is also UTF-8.)
    """
    codec = _codec(encoding)
    if content.isascii() or codec == "utf-8-sig" or len(b"\xc3\xa9".decode(codec, "replace")) < 2:
        return
    with contextlib.suppress(UnicodeDecodeError):
        codecs.getincrementaldecoder("utf-8")().decode(content)  # the last character may be cut
        raise StageError(f'{path}: written in UTF-8, not in {encoding}. Remove "encoding" from DATASETS_FILE.')


def _lines(path: Path, encoding: str) -> Iterator[str]:
    """The lines of a text file with their ends. A lone carriage return ends a line only where no newline does."""
    head, codec = _head(path, encoding), _codec(encoding)
    newline = "\r" if "\r" in head and "\n" not in head else "\n"
    number = 1
    with _stream(path, encoding) as handle:
        try:
            if newline == "\r" or "\n".encode(codec.removesuffix("-sig")) != b"\n":
                for text in io.TextIOWrapper(handle, codec, newline=newline):
                    yield text
                    number += 1
                return
            # Decoded line by line: a byte that is no character is then known by its line.
            plain = True
            for number, line in enumerate(handle, 1):
                if plain and not line.isascii():
                    plain = False
                    _refuse_utf8(path, encoding, line)
                yield line.decode(codec if number == 1 else codec.removesuffix("-sig"))
        except UnicodeError as error:
            fix = 'Save it as UTF-8, or give "encoding" in DATASETS_FILE (latin-1, cp1252, utf-16 ...)'
            raise StageError(f"{path}, line {number}: not {encoding} ({error}). {fix}.") from None
