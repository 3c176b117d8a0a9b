"""Files are whole or not there, and a torn line of a killed process never damages the lines after it."""

import errno
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.core.files import (
    append_jsonl,
    link_or_copy,
    new_directory,
    read_jsonl,
    sha256_of,
    write_json,
    write_text,
)


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


def _replace_often(target: Path, word: str) -> None:
    for _ in range(30):
        with new_directory(target) as new:
            (new / "a").write_text(word)
            (new / "b").write_text(word)


def test_two_processes_that_make_one_directory_leave_one_of_the_two_complete(tmp_path):
    workers = [multiprocessing.Process(target=_replace_often, args=(tmp_path / "d", word)) for word in ("one", "two")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert (tmp_path / "d" / "a").read_text() == (tmp_path / "d" / "b").read_text()


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_makes_is_not(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from utils.core.files import new_directory\n"
        "with new_directory(Path(sys.argv[1])) as new:\n    print(new, flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "[d]")]
    root = Path(__file__).resolve().parents[1]
    dead, living = (subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2))
    try:
        left, busy = Path(dead.stdout.readline().strip()), Path(living.stdout.readline().strip())
        dead.kill()
        dead.wait()
        assert left.is_dir() and busy.is_dir()
        with new_directory(tmp_path / "[d]") as new:
            (new / "x").write_text("1")
        assert not left.exists() and busy.is_dir()
    finally:
        living.kill()
        living.wait()


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_a_file_is_copied_where_it_cannot_be_linked(tmp_path, monkeypatch, number):
    (tmp_path / "a").write_text("text")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")

    def refuse(source, target):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "text" and not (tmp_path / "c").samefile(tmp_path / "a")


def test_a_link_that_fails_for_another_reason_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        link_or_copy(tmp_path / "none", tmp_path / "b")
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    with pytest.raises(FileExistsError):
        link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "old"
