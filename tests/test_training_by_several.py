"""One training by two processes (gloo, CPU): the losses of one, whole checkpoints, stops and errors passed on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.forks import TorchrunByForks
from tests.tiny import write_model
from tests.training_world import SETTINGS, STEPS, rows
from utils.core.errors import InputError, Interrupted, StageError
from utils.data.store import FORMAT, MANIFEST
from utils.modeling.models import load_model
from utils.training import launcher as training_launcher
from utils.training.batches import IGNORED_LABEL, TokenRows
from utils.training.checkpoints import complete_checkpoints
from utils.training.launcher import TrainingJob, run_training
from utils.training.train import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pretrained model without dropout (its draws differ between one process and two) and prepared data."""
    folder = tmp_path_factory.mktemp("several")
    pretrained = write_model(folder / "pretrained")
    config = json.loads((pretrained / "config.json").read_text())
    (pretrained / "config.json").write_text(json.dumps(config | {"dropout_rate": 0.0}))
    prepared = folder / "prepared"
    sets = {"train": rows(pretrained, 18, 0), "validation": rows(pretrained, 7, 1)}
    for name, data in sets.items():
        data.save_to_disk(str(prepared / name))
    manifest = {"format": FORMAT, "sets": {name: {"rows": len(data)} for name, data in sets.items()}, "missing": {}}
    (prepared / MANIFEST).write_text(json.dumps(manifest))
    return pretrained, prepared


def by_two(world: tuple[Path, Path], output: Path, **more: Any) -> dict[str, Any]:
    job = TrainingJob("monotonic", pretrained_dir=world[0], prepared_dir=world[1], output_dir=output, settings=SETTINGS)
    return training_launcher.train_in_processes(2, job, **more)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun, whose processes import everything anew: the other tests have seen it.

    And without the wrapper whose buckets hold all gradients a second time: who makes one fails.
    """
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", None)
    monkeypatch.setattr(training_launcher, "subprocess", SimpleNamespace(Popen=TorchrunByForks))
    monkeypatch.setattr(training_launcher, "SECONDS_BETWEEN_LOOKS", 0.1)


@pytest.fixture(scope="module")
def together(world: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """History and place of an undisturbed training by two processes of torchrun."""
    output = tmp_path_factory.mktemp("together")
    return by_two(world, output), output


def test_two_processes_train_as_one_does(
    world: tuple[Path, Path], together: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    pretrained, _ = world
    alone = train(
        arm="monotonic",
        pretrained_dir=pretrained,
        train_set=rows(pretrained, 18, 0),
        validation_set=rows(pretrained, 7, 1),
        output_dir=tmp_path,
        settings=SETTINGS,
    )
    shared, output = together
    assert shared["sessions"][0]["processes"] == 2 and alone["sessions"][0]["processes"] == 1
    assert shared["total_steps"] == alone["total_steps"] == 3 * STEPS
    for one, two in zip(alone["epochs"], shared["epochs"], strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
        assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-5)
        assert two["gradient_norm"]["mean"] == pytest.approx(one["gradient_norm"]["mean"], rel=1e-4)
    models = [load_model(folder / "best") for folder in (tmp_path, output)]
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert {path.name for path in (output / "best").iterdir()} == {path.name for path in (tmp_path / "best").iterdir()}


def test_a_stop_is_saved_and_resumed_from(
    world: tuple[Path, Path], together: tuple[dict[str, Any], Path], forked: None, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted, match="the checkpoint is saved"):
        by_two(world, tmp_path, stop_requested=lambda: True)  # noticed when the first epoch ends
    (newest,) = complete_checkpoints(tmp_path)
    assert newest.step == STEPS and newest.resumable
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in newest.directory.iterdir()}
    history = by_two(world, tmp_path)
    assert history["resumes"] == 1
    assert [row["train_loss"] for row in history["epochs"]] == [row["train_loss"] for row in together[0]["epochs"]]
    assert history["weights_sha256"] == together[0]["weights_sha256"]


def test_errors_of_a_process_are_the_stages(world: tuple[Path, Path], forked: None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        by_two((tmp_path / "nothing", world[1]), tmp_path / "out")


def test_shares_are_the_batch_and_weigh_as_much(world: tuple[Path, Path]) -> None:
    data = TokenRows(rows(world[0], 9, 3))
    batch = [4, 7, 2]
    whole = data.collate(batch)
    for processes in (1, 2, 4):
        parts = [data.share(batch, rank, processes) for rank in range(processes)]
        assert {part["num_batch_tokens"] for part in parts} == {whole["num_tokens"]}
        assert {float(part["batch_tokens"]) for part in parts} == {float(whole["num_tokens"])}
        assert sum(part["num_tokens"] for part in parts) == whole["num_tokens"]
        seen = [part["labels"][i][part["labels"][i] >= 0].tolist() for part in parts if part["num_tokens"]
                for i in range(len(part["labels"]))]  # fmt: skip
        assert sorted(seen) == sorted(row[row >= 0].tolist() for row in whole["labels"])
    nothing = parts[3]  # left for the fourth process: it takes part, and counts nothing
    assert nothing["num_tokens"] == nothing["num_examples"] == 0
    assert nothing["labels"].tolist() == [[IGNORED_LABEL]] and nothing["input_ids"].shape == (1, 1)


def test_processes_are_the_gpus_but_not_more_than_a_batch_has_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert training_launcher.processes_for("cpu", 4) == 1
    assert training_launcher.processes_for("cuda", 4) == 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert training_launcher.processes_for("cuda", 4) == 1


def test_a_process_that_dies_without_a_word_is_reported_with_its_exit_code(
    world: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_launcher, "CHECKOUT", tmp_path)  # where `utils` cannot be imported from
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageError, match=r"Training failed with exit code 1; see the traceback above\."):
        by_two(world, tmp_path / "out")


def test_a_job_is_the_same_in_every_process_and_one_gpu_needs_no_other(
    world: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=1, device="cpu")
    job = TrainingJob("baseline", *world, tmp_path / "out", settings)
    job.write(tmp_path / "job.json")
    assert TrainingJob.read(tmp_path / "job.json") == job
    assert run_training(job)["sessions"][0]["processes"] == 1
    several = []
    monkeypatch.setattr(training_launcher, "processes_for", lambda device, batch: 3)
    monkeypatch.setattr(training_launcher, "train_in_processes", lambda *arguments: several.append(arguments) or {})
    run_training(job)
    assert [arguments[:2] for arguments in several] == [(3, job)]
