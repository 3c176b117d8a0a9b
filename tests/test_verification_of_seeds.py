"""The directory of several seeds: as it was made it matches; what is changed in it, or in what was read, is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import pytest

from tests.pipeline_world import ROOT, in_process
from tests.test_multi_seed import change, seeds  # noqa: F401
from utils.verification.several_seeds import verify_seeds

pytestmark = pytest.mark.slow


@pytest.fixture
def together(seeds, monkeypatch, capsys) -> Path:  # noqa: F811
    environment = {"PROJECT": str(seeds.parent), "SCRATCH": str(seeds.parent / "scratch")}
    assert in_process(monkeypatch, "aggregate_multi_seed", "1", "2", "3", environment=environment) == 0
    capsys.readouterr()
    return Path(seeds.parent / "mono_s2s_multi_seed_results")


def problems(directory: Path) -> list[str]:
    return [line for check in verify_seeds(directory) for line in check.problems]


def test_what_was_changed_is_named(together, seeds, monkeypatch, capsys):  # noqa: F811
    whole = json.loads((together / "multi_seed_results.json").read_text())
    jsonschema.validate(whole, json.loads((ROOT / "docs" / "multi_seed_results.schema.json").read_text()))

    code = in_process(monkeypatch, "verify_results", str(together))
    out = capsys.readouterr().out
    assert code == 0 and "everything matches" in out and "sha256 of multi_seed_results.json" in out, out
    assert in_process(monkeypatch, "verify_results", str(together), "--regenerate", "3") == 2
    moved = shutil.copytree(seeds.parent, seeds.parent.parent / "elsewhere") / together.name
    seeds.rename(seeds.parent / "gone")
    assert not problems(moved)  # the seeds' directories lie beside it

    edits = [
        (moved / "multi_seed_results.json",
         lambda r, m: r["evaluation"]["cnn_dm"]["baseline"]["rougeL"].update(mean=0.9),
         "evaluation.cnn_dm.baseline.rougeL.mean: 0.9 in the file"),
        (moved / "multi_seed_results.json", lambda r, m: r["verdict"].update(attack="Unbreakable."), "verdict.attack"),
        (moved / "multi_seed_results.json", lambda r, m: m.update(profile="quick"), "_metadata.profile"),
        (moved.parent / seeds.name / "seed_2" / "final_results.json", lambda r, m: m.update(host="x"),
         "seed_2/final_results.json is not what multi_seed_results.json was made from"),
    ]  # fmt: skip
    for path, edit, words in edits:
        before = path.read_text()
        change(path, edit)
        found = problems(moved)
        assert any(words in line for line in found), found
        path.write_text(before)
    for name in ("tables/comparison.csv", "report.html"):
        text = (moved / name).read_text()
        (moved / name).write_text(text.replace("e", "3", 1))
        found = problems(moved)
        assert f"{name} was changed" in found and any(f"{name} differs" in line for line in found), found
        (moved / name).write_text(text)
    assert not problems(moved)
