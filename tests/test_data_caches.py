"""What users downloaded with load_dataset or huggingface_hub is used, without a network; the cache is named if not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hub import Hub
from tests.test_data_hub import CSV, DATA, SOURCE, as_csv, as_parquet, check_rows, get, hub  # noqa: F401 - fixture
from tests.tiny import write_model
from utils.core.errors import InputError, StageError
from utils.data.preflight import look
from utils.data.registry import Mirror
from utils.modeling.download import download_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
README = b"""---
configs:
- config_name: default
  data_files:
  - {split: train, path: train.csv}
  - {split: validation, path: validation.csv}
---
# A set
"""


def as_user(code: str, server: Hub, home: Path, **environment: str) -> None:
    """Run what the guide tells a user to run on the login node, in a process of its own."""
    variables = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    subprocess.run([sys.executable, "-c", code], env=variables | environment, check=True, capture_output=True)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    yield monkeypatch
    close_session()


def standard_cache(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(directory))


@pytest.mark.parametrize("readme", [True, False])
def test_a_warm_load_dataset_serves_stage_1_and_pre_flight_offline(hub, tmp_path, monkeypatch, readme):  # noqa: F811
    commit = hub.add("maker/set", {k: v for k, v in CSV.items() if k != "test.csv"} | {"README.md": README})
    if not readme:
        hub.add("maker/set", {f"{split}.csv": as_csv(data) for split, data in DATA.items()})
    code = "from datasets import load_dataset; load_dataset('maker/set')"
    as_user(code, hub, tmp_path / "home")
    hub.stop()
    standard_cache(monkeypatch, tmp_path / "home" / "hub")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetched, _ = get(tmp_path / "own")
    check_rows(fetched)
    assert fetched.origin["repository"] == "maker/set" and (not readme or fetched.origin["commit"] == commit)
    assert not (tmp_path / "own" / "hub").exists()  # nothing is copied
    finding = look(SOURCE, tmp_path / "own")
    assert finding.works and finding.revision == fetched.origin["commit"][:10]


@pytest.mark.parametrize("setting", ["home", "home/hub"])
def test_hf_cache_dir_may_be_hf_home_or_its_hub_for_data_and_model(hub, tmp_path, offline, setting):  # noqa: F811
    from huggingface_hub import constants

    offline.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.add("maker/set", CSV | {"README.md": README})
    model = {path.name: path.read_bytes() for path in write_model(tmp_path / "model").iterdir()}
    commit = hub.add("maker/t5", model, kind="models")
    code = (
        "from datasets import load_dataset; from huggingface_hub import snapshot_download; "
        "load_dataset('maker/set'); snapshot_download('maker/t5')"
    )
    as_user(code, hub, tmp_path / "home")
    hub.stop()
    offline.setattr(constants, "HF_HUB_OFFLINE", True)
    cache = tmp_path / setting
    check_rows(get(cache)[0])
    for revision in (None, commit):
        directory, found = download_model("maker/t5", revision, cache_dir=cache, max_retries=2, retry_delay=0.01)
        assert found == commit and (directory / "model.safetensors").read_bytes() == model["model.safetensors"]


def test_without_it_the_message_names_every_cache_and_pre_flight_agrees(hub, tmp_path, offline):  # noqa: F811
    standard_cache(offline, tmp_path / "home" / "hub")
    with pytest.raises(StageError, match="not in the cache") as caught:
        get(tmp_path / "own")
    for place in (tmp_path / "own" / "hub", tmp_path / "own", tmp_path / "home" / "hub"):
        assert str(place) in str(caught.value)
    finding = look(SOURCE, tmp_path / "own")
    assert not finding.works and not finding.hub_down  # another set may be there
    assert f"looked in {tmp_path / 'own' / 'hub'}" in finding.reasons[0]
    with pytest.raises(InputError, match=r"looked in .*home/hub"):
        download_model("maker/t5", None, cache_dir=tmp_path / "own", max_retries=1, retry_delay=0.01)


def test_after_a_good_stage_1_pre_flight_offline_says_the_same(hub, tmp_path, monkeypatch):  # noqa: F811
    from huggingface_hub import constants

    hub.add("maker/set", CSV)
    get(tmp_path / "own")
    hub.stop()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_rows(get(tmp_path / "own")[0])
    assert look(SOURCE, tmp_path / "own").works and not look(SOURCE, tmp_path / "other").works


def test_a_cache_that_lacks_a_split_or_is_old_is_completed_from_the_hub(hub, tmp_path, monkeypatch):  # noqa: F811
    hub.add("maker/set", {"train.csv": CSV["train.csv"], "README.md": b"# only a part"})
    as_user("from datasets import load_dataset; load_dataset('maker/set')", hub, tmp_path / "home")
    standard_cache(monkeypatch, tmp_path / "home" / "hub")
    commit = hub.add("maker/set", CSV)
    fetched, _ = get(tmp_path / "own")
    check_rows(fetched)
    assert fetched.origin["commit"] == commit
    short = {"train.csv": as_csv(DATA["train"][:-1]), "validation.csv": CSV["validation.csv"], "README.md": README}
    hub.add("maker/old", short)
    as_user("from datasets import load_dataset; load_dataset('maker/old')", hub, tmp_path / "home")
    hub.add("maker/old", CSV)
    check_rows(get(tmp_path / "own", replace(SOURCE, repository="maker/old", mirrors=()))[0])


def test_damaged_content_in_the_users_cache_is_not_used(hub, tmp_path, monkeypatch):  # noqa: F811
    hub.add("maker/set", CSV | {"README.md": README})
    as_user("from datasets import load_dataset; load_dataset('maker/set')", hub, tmp_path / "home")
    (train,) = (tmp_path / "home" / "hub").rglob("snapshots/*/train.csv")
    train.resolve().write_bytes(CSV["train.csv"].replace(b"ka", b"zu"))
    standard_cache(monkeypatch, tmp_path / "home" / "hub")
    check_rows(get(tmp_path / "own")[0])


def test_a_cache_that_cannot_be_written_is_used_with_a_warning(hub, tmp_path, caplog, monkeypatch):  # noqa: F811
    hub.add("maker/set", CSV)

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("utils.data.hub.write_json", refuse)
    with caplog.at_level("WARNING", "mono_s2s.data"):
        check_rows(get(tmp_path / "own")[0])
    assert [m for m in caplog.messages if "cannot be written (Permission denied)" in m]


def test_an_unreadable_file_of_the_users_cache_is_named_and_left(hub, tmp_path, monkeypatch, caplog):  # noqa: F811
    hub.add("maker/set", CSV | {"README.md": README})
    as_user("from datasets import load_dataset; load_dataset('maker/set')", hub, tmp_path / "home")
    (train,) = (tmp_path / "home" / "hub").rglob("snapshots/*/train.csv")
    blob = train.resolve()
    real = Path.open

    def open_(self: Path, *arguments: object, **options: object) -> object:
        if self.resolve() == blob:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_)
    standard_cache(monkeypatch, tmp_path / "home" / "hub")
    with caplog.at_level("WARNING", "mono_s2s.data"):
        check_rows(get(tmp_path / "own")[0])
    assert [m for m in caplog.messages if "cannot be read (Permission denied)" in m]


def test_mirrors_are_cached_under_their_own_revision(hub, tmp_path, monkeypatch):  # noqa: F811
    good = {f"default/{split}/0000.parquet": as_parquet(data, tmp_path) for split, data in DATA.items()}
    hub.add("maker/set", {"set.py": b""}, {"refs/convert/parquet": good})
    code = (
        "from huggingface_hub import snapshot_download; "
        "snapshot_download('maker/set', repo_type='dataset', revision='refs/convert/parquet')"
    )
    as_user(code, hub, tmp_path / "home")
    hub.stop()
    standard_cache(monkeypatch, tmp_path / "home" / "hub")
    source = replace(SOURCE, repository="gone/gone", mirrors=(Mirror("maker/set", "refs/convert/parquet"),))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_rows(get(tmp_path / "own", source)[0])
