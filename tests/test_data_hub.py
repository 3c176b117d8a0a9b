"""Downloads from a hub that fails in every way that one does: recovered with the same bytes, or one clear error."""

from __future__ import annotations

import csv
import io
import logging
import os
import time
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data_world import all_rows, arguments, rows, write_file
from tests.forks import FORKS
from tests.hub import Hub
from utils.core.errors import StageError
from utils.data.hub import with_retries
from utils.data.loading import fetch
from utils.data.preparation import load_prepared, missing_datasets, prepare, read_manifest
from utils.data.readers import read_rows
from utils.data.registry import DEFAULTS, DatasetSource, Mirror, sources

pytestmark = pytest.mark.slow

SPLITS = {"train": 30, "validation": 6}
DATA = {split: rows("dialogsum", split, count) for split, count in SPLITS.items()}
SOURCE = DatasetSource(
    key="dialogsum",
    title="DialogSum",
    role="train",
    repository="maker/set",
    mirrors=(Mirror("maker/set", "refs/convert/parquet"),),
    document="dialogue",
    summary="summary",
    splits={"train": "train", "validation": "validation"},
    raw_rows=SPLITS,
)


def as_csv(data: list[dict[str, str]]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(data[0]))
    writer.writeheader()
    writer.writerows(data)
    return out.getvalue().encode()


def as_parquet(data: list[dict[str, Any]], directory: Path) -> bytes:
    return write_file(directory / "part.parquet", data).read_bytes()


CSV = {f"{split}.csv": as_csv(data) for split, data in DATA.items()} | {"README.md": b"# set", "test.csv": b"x"}


def place(url: str) -> dict[str, str]:
    """Constants of the client that say where the hub is; it read its variables when it was imported."""
    return {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client in this process talks to; the client's own pauses are 200 times shorter."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http, close_session

    quick = types.SimpleNamespace(**vars(time))
    quick.sleep = lambda seconds: time.sleep(seconds / 200)
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", quick)
    with Hub() as server:
        for name, value in place(server.url).items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
        close_session()
        yield server
    close_session()


def get(cache: Path, source: DatasetSource = SOURCE, **changes: Any) -> tuple[Any, dict[str, str]]:
    options = {"cache_dir": cache, "allow_partial": False, "max_retries": 4, "retry_delay": 0.01} | changes
    fetched, missing = fetch({source.key: source}, **options)
    return fetched.get(source.key), missing


def check_rows(fetched: Any) -> None:
    for split, data in DATA.items():
        texts = [(row.document, row.summary) for row in read_rows(fetched.files[split], "dialogue", "summary")]
        assert texts == [(row["dialogue"], row["summary"]) for row in data]


def no_leftovers(cache: Path) -> None:
    assert not [path for path in cache.rglob("*") if path.name.endswith((".incomplete", ".tmp"))]


def test_only_what_is_needed_is_downloaded_and_it_is_pinned(hub, tmp_path):
    commit = hub.add("maker/set", CSV)
    fetched, _ = get(tmp_path)
    check_rows(fetched)
    assert fetched.origin["commit"] == commit and set(fetched.origin["files"]) == {"train.csv", "validation.csv"}
    assert not [request for request in hub.requests if "README" in request or "test.csv" in request]
    hub.add("maker/set", {name: content.replace(b"ka", b"zu") for name, content in CSV.items()})  # the author edits
    before = len(hub.requests)
    again, _ = get(tmp_path)
    check_rows(again)
    assert again.origin == fetched.origin and len(hub.requests) == before  # not a single request
    fresh, _ = get(tmp_path / "fresh")
    assert fresh.origin["commit"] != commit


RECOVERED = {
    "revision 500 once": ("GET /api/datasets/maker/set/revision/main", "status", {"status": 500}),
    "revision 503 three times": ("GET /api/.*/revision/main", "status", {"status": 503, "times": 3}),
    "revision 429 twice": ("GET /api/.*/revision/main", "status", {"status": 429, "times": 2}),
    "head of a file 500 once": ("HEAD .*train.csv", "status", {"status": 500}),
    "head of a file 503 eight times": ("HEAD .*train.csv", "status", {"status": 503, "times": 8}),
    "head of a file stalls": ("HEAD .*train.csv", "stall", {"seconds": 1.5}),
    "content 500 once": ("GET .*train.csv", "status", {"status": 500}),
    "content 503 three times": ("GET .*train.csv", "status", {"status": 503, "times": 3}),
    "content 429 with Retry-After": ("GET .*train.csv", "status", {"status": 429, "headers": {"Retry-After": "2"}}),
    "content 429 eight times": ("GET .*train.csv", "status", {"status": 429, "times": 8}),
    "reset in the content, twice": ("GET .*train.csv", "reset", {"times": 2}),
    "reset before an answer": ("GET .*train.csv", "drop", {}),
    "content closed early, three times": ("GET .*train.csv", "close", {"times": 3}),
    "content stalls": ("GET .*train.csv", "stall", {"seconds": 1.5}),
    "short content called whole, once": ("GET .*train.csv", "short", {}),
    "wrong bytes of the right length, once": ("GET .*train.csv", "corrupt", {}),
    "README and script probes fail for ever": ("README|[.]py|yaml", "status", {"status": 503, "times": -1}),
}


@pytest.mark.parametrize("name", RECOVERED)
def test_recovered_with_the_same_bytes(hub, tmp_path, name):
    match, kind, options = RECOVERED[name]
    hub.add("maker/set", CSV)
    hub.fault(match, kind, **options)
    fetched, _ = get(tmp_path)
    check_rows(fetched)
    no_leftovers(tmp_path)


@pytest.mark.parametrize("kind", ["reset", "close", "corrupt", "short"])
def test_broken_parquet_is_recovered_too(hub, tmp_path, kind):
    content = {f"data/{split}-00000-of-00001.parquet": as_parquet(data, tmp_path) for split, data in DATA.items()}
    hub.add("maker/set", content)
    hub.fault("GET .*train", kind)
    fetched, _ = get(tmp_path / "cache")
    check_rows(fetched)
    no_leftovers(tmp_path / "cache")


REFUSED = {
    "503 for ever": ("GET .*train.csv", "status", {"status": 503, "times": -1}, "no success in 4 tries.*503"),
    "head 503 for ever": ("HEAD .*train.csv", "status", {"status": 503, "times": -1}, "no success in 4 tries.*503"),
    "429 for ever": ("GET .*train.csv", "status", {"status": 429, "times": -1}, "no success in 4 tries.*429"),
    "closed early for ever": ("GET .*train.csv", "close", {"times": -1}, "no success in 4 tries.*RemoteProtocolError"),
    "reset for ever": ("GET .*train.csv", "reset", {"times": -1}, "no success in 4 tries, last: ReadError"),
    "wrong bytes for ever": ("GET .*train.csv", "corrupt", {"times": -1}, "wrong hash.*so was a second copy"),
    "short for ever": ("GET .*train.csv", "short", {"times": -1}, "no success in 4 tries.*Consistency check failed"),
    "401 at the door": (
        "GET /api/",
        "status",
        {"status": 401, "times": -1},
        "the hub answers 401; it may want HF_TOKEN",
    ),
    "404 for a listed file": (
        "HEAD .*train.csv",
        "status",
        {"status": 404, "times": -1, "headers": {"X-Error-Code": "EntryNotFound"}},
        "maker/set/train.csv.*404",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_clear_line(hub, tmp_path, name):
    match, kind, options, message = REFUSED[name]
    hub.add("maker/set", CSV)
    hub.fault(match, kind, **options)
    with pytest.raises(StageError, match=message) as caught:
        get(tmp_path)
    assert "\n" not in str(caught.value) and "DATASETS_FILE" in str(caught.value)
    no_leftovers(tmp_path)
    hub.faults.clear()
    check_rows(get(tmp_path)[0])  # the same cache, the hub well again


def test_permanent_failures_are_not_tried_again(hub, tmp_path):
    with pytest.raises(StageError, match="no such repository"):
        get(tmp_path)
    assert len(hub.requests) == 2  # main and the mirror, once each
    hub.add("maker/set", CSV)
    hub.gated.add("maker/set")
    with pytest.raises(StageError, match="accept its terms on the hub and set HF_TOKEN"):
        get(tmp_path, max_retries=50, retry_delay=100)
    with pytest.raises(StageError, match="no such revision"):
        get(tmp_path, replace(SOURCE, revision="gone", mirrors=()), max_retries=50, retry_delay=100)


def test_a_script_repository_is_read_from_the_hubs_conversion(hub, tmp_path):
    converted = {f"default/{split}/0000.parquet": as_parquet(data, tmp_path) for split, data in DATA.items()}
    hub.add("maker/set", {"set.py": b"import datasets"}, {"refs/convert/parquet": converted})
    fetched, _ = get(tmp_path / "cache")
    check_rows(fetched)
    assert fetched.origin["revision"] == "refs/convert/parquet"
    hub.add("maker/set", {"set.py": b"import datasets"})
    with pytest.raises(StageError, match=r"holds a loading script instead of data files; .*no such revision"):
        get(tmp_path / "other")


def test_a_rewritten_conversion_is_asked_for_again(hub, tmp_path, caplog):
    def converted(data: dict) -> dict:
        return {f"default/{split}/0000.parquet": as_parquet(part, tmp_path) for split, part in data.items()}

    half = {split: data[::-1] for split, data in DATA.items()}
    hub.add("maker/set", {"set.py": b""}, {"refs/convert/parquet": converted(half)})
    first, _ = get(tmp_path / "cache")
    hub.repositories.clear()  # its commit is gone
    hub.add("maker/set", {"set.py": b""}, {"refs/convert/parquet": converted(DATA)})
    for left in (tmp_path / "cache" / "hub").rglob("*.parquet"):
        left.unlink()
    second, _ = get(tmp_path / "cache")
    check_rows(second)
    assert second.origin["commit"] != first.origin["commit"]


def test_a_renamed_column_and_wrong_counts_are_refused(hub, tmp_path):
    renamed = {split: [{"id": "0", "text": "a", "summary": "b"}] * len(data) for split, data in DATA.items()}
    hub.add("maker/set", {f"{split}.csv": as_csv(data) for split, data in renamed.items()})
    with pytest.raises(StageError, match="no column 'dialogue'; there are id, text, summary"):
        get(tmp_path / "a")
    hub.add("maker/set", CSV | {"train.csv": as_csv(DATA["train"][:-1])})
    with pytest.raises(StageError, match="dialogsum/train: 29 rows, but the published set has 30"):
        get(tmp_path / "b")
    check_rows_of = get(tmp_path / "b", replace(SOURCE, row_tolerance=0.05))[0]
    assert len(list(read_rows(check_rows_of.files["train"], "dialogue", "summary"))) == 29


def test_the_mirror_steps_in_for_a_bad_copy(hub, tmp_path):
    good = {f"default/{split}/0000.parquet": as_parquet(data, tmp_path) for split, data in DATA.items()}
    hub.add("maker/set", CSV | {"train.csv": b"id,dialogue,summary\n"}, {"refs/convert/parquet": good})
    fetched, _ = get(tmp_path / "cache")
    check_rows(fetched)
    assert fetched.origin["revision"] == "refs/convert/parquet"


def test_a_large_file_that_breaks_off_again_and_again_is_resumed(hub, tmp_path):
    big = [
        {"id": "0", "dialogue": rows("dialogsum", "x", 1, seed=n)[0]["dialogue"] * 2600, "summary": "a b"}
        for n in range(30)
    ]
    hub.add("maker/set", CSV | {"train.csv": as_csv(big)})
    hub.fault("GET .*train.csv", "close12", times=-1)  # each time after 12 MB: the client keeps pieces of 10 MiB
    fetched, _ = get(tmp_path)
    assert fetched.files["train"][0].stat().st_size > 24e6
    assert len([request for request in hub.requests if "GET" in request and "train.csv" in request]) > 2
    no_leftovers(tmp_path)


def test_another_place_steps_in_for_a_file_that_cannot_be_sent(hub, tmp_path):
    good = {f"default/{split}/0000.parquet": as_parquet(data, tmp_path) for split, data in DATA.items()}
    hub.add("maker/set", CSV, {"refs/convert/parquet": good})
    hub.fault("GET .*train.csv", "status", status=503, times=-1)
    fetched, _ = get(tmp_path / "cache")
    check_rows(fetched)
    assert fetched.origin["revision"] == "refs/convert/parquet"


def test_missing_shards_are_noticed(hub, tmp_path):
    hub.add("maker/set", {"data/train-00000-of-00002.parquet": b"", "data/validation.parquet": b""})
    with pytest.raises(StageError, match=r"1 files like data/train-00000-of-00002\.parquet"):
        get(tmp_path)


def test_hub_down_with_and_without_a_cache(hub, tmp_path, caplog):
    hub.add("maker/set", CSV)
    get(tmp_path / "full")
    hub.stop()
    check_rows(get(tmp_path / "full")[0])
    with caplog.at_level(logging.WARNING, "mono_s2s.data"), pytest.raises(StageError, match="ConnectError"):
        get(tmp_path / "empty")
    tries = [record.message for record in caplog.records if "try" in record.message]
    assert len(tries) == 3 and tries[1].startswith("maker/set@main: try 2 of 4 failed (ConnectError")


def test_offline_mode_is_respected(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    hub.add("maker/set", CSV)
    get(tmp_path / "full")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    before = len(hub.requests)
    check_rows(get(tmp_path / "full")[0])
    with pytest.raises(StageError, match="not in the cache, and HF_HUB_OFFLINE keeps the hub off"):
        get(tmp_path / "empty", retry_delay=100)
    assert len(hub.requests) == before


def test_bytes_that_rot_in_the_cache_are_fetched_again(hub, tmp_path):
    hub.add("maker/set", CSV)
    fetched, _ = get(tmp_path)
    path = fetched.files["train"][0].resolve()
    content = path.read_bytes()
    path.write_bytes(content.replace(b"ka", b"zu"))
    check_rows(get(tmp_path)[0])
    assert path.read_bytes() == content


def test_partial_goes_on_and_says_what_is_missing(hub, tmp_path):
    fetched, missing = get(tmp_path, allow_partial=True)
    assert fetched is None and "maker/set@main: no such repository" in missing["dialogsum"]


def test_a_full_disk_is_no_network_problem(tmp_path):
    def full() -> None:
        raise OSError(28, "No space left on device", "x")

    with pytest.raises(OSError, match="No space left"):
        with_retries(full, label="x", max_retries=5, retry_delay=100)


def test_pauses_double(monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr("utils.data.hub.time", types.SimpleNamespace(sleep=pauses.append))

    def reset() -> None:
        raise ConnectionResetError("again")

    with pytest.raises(Exception, match="no success in 5 tries, last: ConnectionResetError: again"):
        with_retries(reset, label="x", max_retries=5, retry_delay=10)
    assert len(pauses) == 4
    assert all(0.75 * 10 * 2**n <= pause <= 1.25 * 10 * 2**n for n, pause in enumerate(pauses))


def published(hub: Hub, directory: Path, *, without: tuple[str, ...] = ()) -> dict[str, DatasetSource]:
    """All six sets on the hub under their own names, in small; the sources that expect them."""
    data, known = all_rows(), {}
    for source in DEFAULTS:
        splits = data[source.key]
        known[source.key] = replace(
            source, raw_rows={split: len(part) for split, part in splits.items()}, usable_rows={}
        )
        if source.key in without:
            continue
        if source.key in ("arxiv", "cnn_dm"):
            files = {
                f"{source.config}/{split}-00000-of-00001.parquet": as_parquet(p, directory)
                for split, p in splits.items()
            }
            hub.add(source.repository, files)
        elif source.key == "xsum":
            files = {f"default/{split}/0000.parquet": as_parquet(part, directory) for split, part in splits.items()}
            hub.add(source.repository, {"xsum.py": b""}, {"refs/convert/parquet": files})
        else:
            hub.add(source.repository, {f"{split}.csv": as_csv(part) for split, part in splits.items()})
    return known


def test_all_six_from_the_hub_then_everything_without_it(hub, tmp_path):
    known = published(hub, tmp_path)
    prepare(**arguments(tmp_path, known))
    first = read_manifest(tmp_path / "prepared")
    assert first["made_from"]["origins"]["xsum"]["revision"] == "refs/convert/parquet"
    hub.stop()
    prepare(**arguments(tmp_path, known))
    assert read_manifest(tmp_path / "prepared") == first
    assert len(load_prepared(tmp_path / "prepared", "train")) == 90


def test_a_missing_test_set_is_named_and_no_attack_set_can_be_missing(hub, tmp_path):
    known = published(hub, tmp_path, without=("samsum",))
    with pytest.raises(StageError, match="SAMSum cannot be had"):
        prepare(**arguments(tmp_path, known))
    assert not (tmp_path / "prepared").exists()
    statistics = prepare(**arguments(tmp_path, known, allow_partial=True))
    assert set(statistics["missing"]) == set(missing_datasets(tmp_path / "prepared")) == {"samsum"}
    assert "test_samsum" not in statistics["prepared"]
    with pytest.raises(Exception, match=r"no test_samsum .*no such repository"):
        load_prepared(tmp_path / "prepared", "test_samsum")
    hub.repositories.pop(("datasets", "abisee/cnn_dailymail"))
    with pytest.raises(StageError, match="attacks are measured on cnn_dm"):
        prepare(**arguments(tmp_path, known, allow_partial=True, cache_dir=tmp_path / "other"))


def test_never_an_empty_training_set(hub, tmp_path):
    known = published(hub, tmp_path, without=("dialogsum", "highlightsum", "arxiv"))
    with pytest.raises(StageError, match="none of the training sets could be had"):
        prepare(**arguments(tmp_path, known, allow_partial=True))


def test_the_real_names_are_accepted_by_the_client():
    from huggingface_hub.utils import validate_repo_id

    for source in sources().values():
        for place in source.hub_copies:
            validate_repo_id(place.repository)
            assert place.repository.count("/") == 1


def _download(url: str, cache: Path) -> None:
    from huggingface_hub import constants

    vars(constants).update(place(url))
    check_rows(get(cache)[0])


@pytest.mark.slow
def test_two_processes_fill_one_cache(hub, tmp_path):
    hub.add("maker/set", CSV)
    hub.fault("GET .*train.csv", "stall", seconds=0.7, times=2)
    processes = [FORKS.Process(target=_download, args=(hub.url, tmp_path)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0]
    no_leftovers(tmp_path)


@pytest.mark.slow
def test_a_download_killed_in_the_middle_is_made_again_and_what_it_left_is_swept(hub, tmp_path):
    hub.add("maker/set", CSV)
    hub.fault("GET .*train.csv", "hang", seconds=30)  # half of the file, then silence
    process = FORKS.Process(target=_download, args=(hub.url, tmp_path))
    process.start()
    while not list(tmp_path.rglob("*.incomplete")):
        time.sleep(0.02)
    process.kill()
    process.join()
    check_rows(get(tmp_path)[0])
    (left,) = tmp_path.rglob("*.incomplete")  # it could be another process's, still at work
    os.utime(left, (0, 0))
    check_rows(get(tmp_path)[0])
    no_leftovers(tmp_path)
