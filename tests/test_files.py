"""Files are whole or not there, and a torn line of a killed process never damages the lines after it."""

import pytest

from utils.core.files import append_jsonl, new_directory, read_jsonl, sha256_of, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("inf")})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == '{\n  "a": 1\n}\n' and [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("torn", [b'{"a": 2', b"{", b'{"a": 2}'])
def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path, torn):
    path = tmp_path / "a.jsonl"
    append_jsonl(path, [{"a": 1}])
    with path.open("ab") as handle:
        handle.write(torn)
    assert list(read_jsonl(path)) == [{"a": 1}]
    append_jsonl(path, [{"a": 3}, {"a": 4}])
    assert list(read_jsonl(path)) == [{"a": 1}, {"a": 3}, {"a": 4}]


def test_a_file_that_is_one_torn_line_starts_again(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a')
    append_jsonl(path, [{"a": 1}])
    assert list(read_jsonl(path)) == [{"a": 1}]


def test_a_bad_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        list(read_jsonl(path))


def test_a_directory_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    with new_directory(target) as new:
        (new / "x").write_text("1")
    before = sha256_of(target)
    with pytest.raises(RuntimeError), new_directory(target) as new:
        (new / "x").write_text("2")
        raise RuntimeError
    assert sha256_of(target) == before and [p.name for p in tmp_path.iterdir()] == ["model"]
    with new_directory(target) as new:
        (new / "y").write_text("3")
    assert [p.name for p in target.iterdir()] == ["y"] and sha256_of(target) != before
