"""Files as people write them: read as pandas, csv and datasets do where these are right, else refused by line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path

import pandas
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tests.data_world import rows
from utils.core.errors import StageError
from utils.data.readers import count_rows, format_of, read_rows

TEXTS = ["plain", "a, b", 'said "yes"', "two\nlines", "N/A", "007", "", "nul\0", "ünïcode 日本"]
TEXTS += ["\U0001f469\u200d\U0001f467", "tail ", "\ttab", "back\\slash"]


def read(path: Path, **options: str) -> list[tuple[str, str]]:
    return [(row.document, row.summary) for row in read_rows([path], "document", "summary", **options)]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


REFUSED = {
    "an unquoted comma": ("document,summary\na b,ok\nThe council, which met, said no,no\n", 3, "5 fields|4 fields"),
    "an unquoted comma in the first row": ("document,summary\nThe council, which met,no\na,b\n", 2, "3 fields"),
    "an unquoted comma in every row": ("id,document,summary\n1,a, b,c\n2,d, e,f\n", 2, "4 fields"),
    "a trailing comma in every row": ("id,document,summary\n1,a,b,\n2,c,d,\n", 2, "4 fields, but the header has 3"),
    "a missing field": ("id,document,summary\n1,a,b\n2,c\n", 3, "2 fields"),
    "row names without a header": ("document,summary\n1,a,b\n2,c,d\n", 2, "3 fields"),
    "quotes escaped by backslash": ('document,summary\n"He said \\"go, now\\" and left","ok"\n', 2, "doubled"),
    "text after a closing quote": ('document,summary\na,b\n"one" two,c\n', 3, "follows a closing quote"),
    "a quote never closed": ('document,summary\na,b\n"never,c\nd,e\n', 3, "never closed"),
    "a quote never closed, long": ('document,summary\n"' + "x y\n" * 5_000_000, 2, "never closed"),
    "a lone carriage return": ("document,summary\na,b\nc,d\re, f\n", 3, "carriage return"),
    "a comma and a lone carriage return": ("document,summary\r\na,b\r\nx\ry,c\r\n", 3, "carriage return"),
    "two columns of one name": ("document,summary,summary\na,b,c\n", 0, "2 columns are called 'summary'"),
    "semicolons": ("document;summary\na;b\n", 0, "separated by ';'"),
    "other columns": ("text,summary\na,b\n", 0, "no column 'document'; there are text, summary"),
    "nothing at all": ("", 0, "not even a header"),
    "two files put together": ("document,summary\na,b\ndocument,summary\nc,d\n", 3, "the header again"),
    "no header": ("a text of the first row that goes on and on and on,b\n", 0, r"there are .{40}\.\.\., b\.$"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_doubtful_csv_row_is_refused_with_its_line(tmp_path, name):
    content, line, words = REFUSED[name]
    path = write(tmp_path / "rows.csv", content)
    with pytest.raises(StageError, match=words) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, line {line}:" if line else f"{path}:")
    assert "\n" not in str(caught.value)


def test_real_looking_rows_written_without_quotes_never_come_out_shifted(tmp_path):
    """The file that pandas with `usecols` reads shifted: no row of it may come out wrong, or at all."""
    data = [(row["dialogue"].replace("\n", ", "), row["summary"]) for row in rows("dialogsum", "train", 30)]
    path = write(tmp_path / "rows.csv", "document,summary\n" + "".join(f"{a},{b}\n" for a, b in data))
    shifted = pandas.read_csv(path, usecols=["document", "summary"], dtype=str, index_col=False)
    assert list(zip(shifted["document"], shifted["summary"], strict=True)) != data  # what is feared does happen
    with pytest.raises(StageError, match="line 2: 4 fields"):
        read(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=8),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_whatever_the_csv_module_writes_is_read_back(tmp_path, data, quoting, end):
    # Lone surrogates have no UTF-8; Python 3.10's csv stops at NUL.
    data = [tuple(t.encode("utf-8", "ignore").decode().replace("\0", "") for t in pair) for pair in data]
    if quoting == csv.QUOTE_MINIMAL:  # then the module writes a lone carriage return without quotes
        data = [(first.replace("\r", ""), second.replace("\r", "")) for first, second in data]
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=quoting, lineterminator=end)
    writer.writerows([("document", "summary"), *data])
    path = write(tmp_path / "rows.csv", out.getvalue())
    expected = list(csv.reader(io.StringIO(out.getvalue(), newline="")))[1:]
    assert read(path) == [tuple(row) for row in expected if row]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".csv.gz", ".jsonl.gz", ".json.gz"])
def test_every_format_gives_the_texts_that_pandas_wrote(tmp_path, suffix):
    texts = [text.replace("\0", "") for text in TEXTS]
    frame = pandas.DataFrame({"id": range(len(texts)), "summary": texts[::-1], "document": texts})
    path = tmp_path / f"rows{suffix}"
    if "csv" in suffix or "tsv" in suffix:
        frame.to_csv(path, index=False, sep="\t" if "tsv" in suffix else ",")
    elif "jsonl" in suffix:
        frame.to_json(path, orient="records", lines=True)
    elif "json" in suffix:
        frame.to_json(path, orient="records", indent=2)  # one array, over many lines
    else:
        frame.to_parquet(path)
    assert read(path) == list(zip(frame["document"], frame["summary"], strict=True))
    assert count_rows(path, "document", "summary") == len(texts) and format_of(path)


def test_datasets_reads_the_same(tmp_path):
    from datasets import load_dataset

    data = rows("dialogsum", "train", 40)
    table = pa.table({"document": [row["dialogue"] for row in data], "summary": [row["summary"] for row in data]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    frame = table.to_pandas()
    frame.to_csv(tmp_path / "rows.csv", index=False)
    frame.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    for kind, name in (("parquet", "rows.parquet"), ("csv", "rows.csv"), ("json", "rows.jsonl")):
        theirs = load_dataset(kind, data_files=str(tmp_path / name), split="train", cache_dir=str(tmp_path / "c"))
        assert read(tmp_path / name) == list(zip(theirs["document"], theirs["summary"], strict=True))
    theirs.save_to_disk(str(tmp_path / "saved"))
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    assert read(arrow) == read(tmp_path / "rows.csv")


def test_encodings_are_named_or_read(tmp_path):
    text = "document,summary\ncafé au lait,thé\n"
    for encoding in ("utf-8", "utf-8-sig"):
        assert read(write(tmp_path / "a.csv", text.encode(encoding))) == [("café au lait", "thé")]
    for encoding, words in (("utf-16", "written in utf-16"), ("latin-1", "line 2: not utf-8"), ("utf-32", "utf-32")):
        path = write(tmp_path / "b.csv", text.encode(encoding))
        with pytest.raises(StageError, match=words) as caught:
            read(path)
        assert '"encoding"' in str(caught.value)
        assert read(path, encoding=encoding) == [("café au lait", "thé")]
    line = json.dumps({"document": "café", "summary": "é"}, ensure_ascii=False) + "\n"
    assert read(write(tmp_path / "c.jsonl", line.encode("cp1252")), encoding="cp1252") == [("café", "é")]


def test_a_wrong_encoding_of_one_byte_a_character_does_not_pass_for_right(tmp_path):
    head = "document,summary\n" + "plain,row\n" * 20_000  # what is told comes late
    path = write(tmp_path / "a.csv", head + "café,thé\n")
    for encoding in ("latin-1", "cp1252", "mac-roman"):
        with pytest.raises(StageError, match=f"written in UTF-8, not in {encoding}"):
            read(path, encoding=encoding)
        assert (
            read(write(tmp_path / "b.csv", (head + "café,thé\n").encode(encoding)), encoding=encoding)[-1][1] == "thé"
        )
    text = write(tmp_path / "c.csv", "document,summary\n联通,联\n".encode("gbk"))  # these bytes are UTF-8, too
    assert read(text, encoding="gbk") == [("联通", "联")]


def test_old_macintosh_lines_and_blank_lines(tmp_path):
    assert read(write(tmp_path / "a.csv", "document,summary\ra,b\rc,d\r")) == [("a", "b"), ("c", "d")]
    assert read(write(tmp_path / "b.csv", "\ndocument,summary\n\na,b\n  \n")) == [("a", "b")]


_GZIP = gzip.compress(random.Random(0).randbytes(90))
OTHERWISE = {
    "zip": ("rows.csv", b"PK\x03\x04rest", "ZIP archive or a spreadsheet"),
    "parquet called csv": ("rows.csv", b"PAR1xxxx", "suffix .parquet"),
    "torn gzip": ("rows.csv.gz", gzip.compress(b"document,summary\n" + b"a,b\n" * 9999)[:60], "damaged gzip"),
    "torn parquet": ("rows.parquet", b"PAR1 torn", "not a readable parquet file"),
    "torn line": ("rows.jsonl", b'{"document": "a", "summary": "b"}\n{"document": "a', "line 2: not JSON"),
    "indented objects": ("rows.json", b'{\n "document": "a"\n}', "line 1: not JSON.*one JSON object a line"),
    "a name twice": ("rows.jsonl", b'{"document": "a", "summary": "b", "summary": "c"}', "'summary' occurs twice"),
    "a column late": ("rows.jsonl", b'{"document": "a", "summary": "b"}\n{"document": "a"}', "line 2: no column"),
    "an array in an array": ("rows.json", b'[["a", "b"]]', "line 1: expected an object"),
    "an open array": ("rows.json", b'[{"document": "a", "summary": "b"},\n', "not closed"),
    "a lone comma": ("rows.json", b'[{"document": "a", "summary": "b"},\n]', "line 2"),
    "no comma": (
        "rows.json",
        b'[{"document": "a", "summary": "b"}\n{"document": "a", "summary": "b"}]',
        "line 2.*comma",
    ),
    "more after an array": ("rows.json", b'[{"document": "a", "summary": "b"}] x', "follows the closing bracket"),
    "an error in row 3": (
        "rows.json",
        b'[{"document": "a", "summary": "b"},\n{"document": "a", "summary": "b"},\n{"document": a}]',
        "line 3: not JSON",
    ),
    "a pointer of Git LFS": (
        "rows.parquet",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d",
        "git lfs pull",
    ),
    "a quote over tabs and lines": (
        "rows.tsv",
        b'document\tsummary\n"I will go\tHe goes\nIt went on."\tIt ended\n',
        "line 2: a quote opens a text that goes over a tab and a line break",
    ),
    "gzip with wrong bytes": ("rows.csv.gz", _GZIP[:12] + bytes(255 - byte for byte in _GZIP[12:40]), "damaged gzip"),
    "lists without end": ("rows.jsonl", b'{"document": ' + b"[" * 100_000, "inside each other without end"),
    "an array without end": ("rows.json", b"[" * 100_000, "inside each other without end"),
    "an array in latin-1": ("rows.json", b'[{"document": "caf\xe9", "summary": "b"}]', "not utf-8"),
    "numbers": ("rows.jsonl", b'{"document": 5, "summary": "b"}', "line 1: column 'document' holds something"),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_is_no_such_file_is_named_in_one_line(tmp_path, name):
    file, content, words = OTHERWISE[name]
    with pytest.raises(StageError, match=words) as caught:
        read(write(tmp_path / file, content))
    assert str(tmp_path / file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_doubled_parquet_column_is_refused_and_a_missing_one_named(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"])] * 3, names=["document", "summary", "summary"])
    parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(StageError, match="2 columns are called 'summary'"):
        read(tmp_path / "rows.parquet")
    with pytest.raises(StageError, match="no column 'text'; there are document, summary, summary"):
        list(read_rows([tmp_path / "rows.parquet"], "text", "document"))


def test_bytes_in_parquet_that_are_no_text_are_refused(tmp_path):
    broken = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
    parquet.write_table(
        pa.Table.from_arrays([broken, pa.array(["b"])], names=["document", "summary"]), tmp_path / "a.parquet"
    )
    with pytest.raises(StageError, match=r"not a readable parquet file .*can't decode byte 0xe9"):
        read(tmp_path / "a.parquet")


def test_a_long_json_array_is_read_in_windows(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.data.readers.CHUNK", 64)
    rng = random.Random(0)
    data = [{"document": 'x, ["{ ' * rng.randrange(90), "summary": f"s{n}"} for n in range(300)]
    for indent in (None, 1):
        path = write(tmp_path / "rows.json", json.dumps(data, indent=indent))
        assert read(path) == [(row["document"], row["summary"]) for row in data]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_list_is_read_as_the_user_says_or_refused(tmp_path, suffix):
    from tests.data_world import write_file

    data = [{"document": ["One .", "Two ."], "summary": ["<S> we study x . </S>", "<S> we find y . </S>"]}] * 2
    path = write_file(tmp_path / f"rows{suffix}", data)
    with pytest.raises(StageError, match=r"(line|row) 1: column 'document' holds a list.*\"document_list\""):
        read(path)
    with pytest.raises(StageError, match=r"column 'summary' holds a list.*sentences.*references"):
        read(path, document_list="sentences")
    sentences = read(path, document_list="sentences", summary_list="sentences")
    assert sentences == [("One .\nTwo .", "we study x .\nwe find y .")] * 2
    rows_ = list(read_rows([path], "document", "summary", document_list="sentences", summary_list="references"))
    assert [(row.summary, row.references) for row in rows_] == [("<S> we study x . </S>", 2)] * 2
    write_file(path, [{"document": "a", "summary": []}, {"document": "a", "summary": ["b"]}])
    assert read(path, summary_list="references") == [("a", ""), ("a", "b")]
    with pytest.raises(StageError, match="holds a list"):  # also of one item: the next row may have two
        read(path)
