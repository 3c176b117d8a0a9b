"""Training: the same for every arm, exact after any interruption, honest about what it did."""

import dataclasses
import json
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

import utils.training.trainer
from tests.forks import FORKS
from tests.tiny import write_model
from tests.training_world import BATCH, EPOCHS, EXAMPLES, SETTINGS, STEPS, child, rows, run
from utils.analysis.final import Training
from utils.core.codec import from_json
from utils.core.errors import InputError, Interrupted, StageError
from utils.core.hashes import weights_sha256
from utils.modeling.models import load_model
from utils.modeling.monotonic import constrain, ffn_layers, is_constrained
from utils.training.batches import TokenRows, sorted_batches
from utils.training.checkpoints import COMPLETE, complete_checkpoints
from utils.training.record import TrainingRecord
from utils.training.snapshots import snapshot_steps
from utils.training.train import TrainingSettings
from utils.training.trainer import validation_loss

pytestmark = pytest.mark.slow

TIMES = {"seconds", "examples_per_second", "tokens_per_second", "peak_memory_mb", "cumulative_seconds"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def undisturbed(pretrained, tmp_path_factory) -> dict[str, tuple[Path, dict]]:
    """Both arms trained to the end in one go: (output directory, history)."""
    root = tmp_path_factory.mktemp("undisturbed")
    return {arm: (root / arm, run(pretrained, root / arm, arm)) for arm in ("baseline", "monotonic")}


def timeless(history: dict) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in history["epochs"]]


# ---- the validation loss -------------------------------------------------------------------------------------------


def test_validation_loss_is_the_mean_per_token_however_rows_are_batched(pretrained):
    model = constrain(load_model(pretrained)).train()
    some = TokenRows(rows(pretrained, 25, 2))
    total, count = 0.0, 0
    model.eval()
    with torch.no_grad():
        for row in range(len(some)):
            batch = some.collate([row])
            tokens_here = batch.pop("num_tokens")
            total += model(**batch).loss.item() * tokens_here
            count += tokens_here
    model.train()
    for max_tokens in (1, 150, 10**6):
        assert validation_loss(model, some, autocast=False, max_tokens=max_tokens) == pytest.approx(
            total / count, rel=1e-6
        )
    assert model.training
    assert sum(len(batch) for batch in sorted_batches(some, max_tokens=150)) == 25
    assert len(sorted_batches(some, max_tokens=1)) == 25


# ---- one implementation for every arm ------------------------------------------------------------------------------


def test_a_run_leaves_plain_models_and_a_complete_history(undisturbed, pretrained):
    for arm, (output, history) in undisturbed.items():
        assert [row["epoch"] for row in history["epochs"]] == [1, 2, 3]
        for row in history["epochs"]:
            assert row["steps"] == STEPS and row["train_loss"] > 0
            assert row["gradient_norm"]["max"] >= row["gradient_norm"]["mean"] > 0
            assert row["examples_per_second"] > 0 and row["tokens_per_second"] > 0 and row["peak_memory_mb"] > 10
        losses = [row["validation_loss"] for row in history["epochs"]]
        assert losses[-1] < losses[0]
        assert history["best_epoch"] == 1 + losses.index(min(losses)) and history["best_validation_loss"] == min(losses)
        seconds = [row["cumulative_seconds"] for row in history["epochs"]]
        assert seconds == sorted(seconds) and history["total_seconds"] == seconds[-1]
        assert history["resumes"] == 0 and history["arm"] == arm and history["total_steps"] == STEPS * EPOCHS
        assert history["settings"]["learning_rate"] == SETTINGS.learning_rate
        assert json.loads(json.dumps(history, allow_nan=False)) == history
        best = load_model(output / "best")
        assert not is_constrained(best)
        data = TokenRows(rows(pretrained, 6, 1))
        assert validation_loss(best, data, autocast=False) == pytest.approx(min(losses), rel=1e-6)
        assert {path.name for path in (output / "best").iterdir()} == {
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        }
        assert [(output / f"epoch_{n}" / "optimizer.pt").exists() for n in (1, 2, 3)] == [False, True, True]
        assert weights_sha256(output / "best") == weights_sha256(output / f"epoch_{history['best_epoch']}")
        progress = json.loads((output / "progress.json").read_text())
        assert progress["step"] == progress["total_steps"] == STEPS * EPOCHS and progress["seconds_left"] == 0
    assert undisturbed["baseline"][1]["audit"]["kept"] and undisturbed["baseline"][1]["min_ffn_weight"] < 0
    audit = undisturbed["monotonic"][1]["audit"]
    assert audit["monotone_ffn_blocks"] and audit["min_weight"] == undisturbed["monotonic"][1]["min_ffn_weight"] >= 0


def test_times_are_in_the_history_only_if_they_are_tracked(finished, pretrained, undisturbed):
    """The setting decides what is reported, also of a training that is finished: nothing is trained again for it."""
    with_times = undisturbed["monotonic"][1]
    for row in with_times["epochs"]:
        assert row.keys() >= TIMES
        # Rates and seconds are of the same epoch, whose 18 examples are known.
        assert row["seconds"] * row["examples_per_second"] == pytest.approx(EXAMPLES)
        assert 0 < row["seconds"] <= row["cumulative_seconds"] <= with_times["total_seconds"]
    from_json(Training, with_times)  # as stage 7 reads it
    untimed = run(pretrained, finished, settings=dataclasses.replace(SETTINGS, track_training_time=False))
    from_json(Training, untimed)
    measured = TIMES - {"peak_memory_mb"}  # memory is not time
    assert all(row.keys() == with_times["epochs"][0].keys() - measured for row in untimed["epochs"])
    assert timeless(untimed) == timeless(with_times) and untimed["resumes"] == 0
    assert run(pretrained, finished)["epochs"] == with_times["epochs"]  # and on again: as measured then


def test_all_arms_see_the_same_batches_with_the_same_settings(pretrained, tmp_path, monkeypatch):
    seen: dict[str, list] = {}
    rates: dict[str, list] = {}
    original = utils.training.trainer.ArmTrainer.training_step

    def spy(self, model, inputs, *args):
        arm = self.record.arm
        seen.setdefault(arm, []).append({key: torch.as_tensor(value).clone() for key, value in inputs.items()})
        rates.setdefault(arm, []).append(
            [
                (g["lr"], g["betas"], g["eps"], g["weight_decay"] + g.get("effective_weight_decay", 0))
                for g in self.optimizer.param_groups
            ][:2]
        )
        return original(self, model, inputs, *args)

    monkeypatch.setattr(utils.training.trainer.ArmTrainer, "training_step", spy)
    for arm in ("baseline", "monotonic", "sign_frozen", "abs_init_free"):
        run(pretrained, tmp_path / arm, arm, dataclasses.replace(SETTINGS, epochs=2))
    for arm in ("monotonic", "sign_frozen", "abs_init_free"):
        assert rates[arm] == rates["baseline"]
        for ours, theirs in zip(seen[arm], seen["baseline"], strict=True):
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    first, second = seen["baseline"][:STEPS], seen["baseline"][STEPS:]
    assert not all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, second, strict=True))
    assert load_file(tmp_path / "abs_init_free/best/model.safetensors")


@pytest.mark.parametrize("arm", ["baseline", "monotonic"])
def test_no_step_reads_a_number_back_from_the_device(pretrained, tmp_path, monkeypatch, arm):
    steps, reads = [], []

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._local_scalar_dense.default:  # .item(), and a tensor in an `if`
                reads.append(len(steps))
            return func(*args, **(kwargs or {}))

    honest = TrainingRecord.after_batch
    monkeypatch.setattr(TrainingRecord, "after_batch", lambda *args: steps.append(1) or honest(*args))
    with Reads():
        run(pretrained, tmp_path, arm, settings=dataclasses.replace(SETTINGS, epochs=1))
    assert len(steps) == STEPS and reads, "reads at the end of the epoch are there to be seen"
    assert set(reads) <= {0, STEPS, *snapshot_steps(STEPS)}  # writing weights reads them


def test_schedule_is_linear_with_the_arms_own_warmup(pretrained, tmp_path, monkeypatch):
    rates = []
    original = utils.training.trainer.ArmTrainer.training_step

    def spy(self, model, inputs, *args):
        rates.append(self.optimizer.param_groups[0]["lr"])
        return original(self, model, inputs, *args)

    monkeypatch.setattr(utils.training.trainer.ArmTrainer, "training_step", spy)
    run(pretrained, tmp_path / "run", "baseline")
    total, warmup = STEPS * EPOCHS, 3  # 15 % of 15 steps, rounded up
    expected = [min(step / warmup, (total - step) / (total - warmup)) for step in range(total)]
    np.testing.assert_allclose(rates, np.array(expected) * SETTINGS.learning_rate, rtol=1e-9)


def test_the_seed_decides_and_decay_and_clip_are_used(pretrained, tmp_path, undisturbed):
    def final(name, **changes):
        run(pretrained, tmp_path / name, "baseline", dataclasses.replace(SETTINGS, epochs=1, **changes))
        return weights_sha256(tmp_path / name / "best")

    same = final("a")
    assert same == final("c", compute_gradient_norms=False, checkpoints_to_keep=1)
    assert len({same, final("d", seed=6), final("e", weight_decay=0.0), final("f", gradient_clip=0.01)}) == 4


# ---- interruptions ---------------------------------------------------------------------------------------------------


def live_and_die(*arguments, kill_after: float | None = None) -> int:
    """Exit code of a child that trains; negative: the signal that killed it."""
    process = FORKS.Process(target=child, args=arguments)
    process.start()
    if kill_after is not None:
        process.join(kill_after)
        process.kill()
    process.join(120)
    return process.exitcode


def check_same(output: Path, expected: tuple[Path, dict]) -> dict:
    history = json.loads((output / "history.json").read_text())
    reference, undisturbed_history = expected
    assert timeless(history) == timeless(undisturbed_history)
    for part in ("epoch_1", "epoch_2", "epoch_3", "best"):
        assert weights_sha256(output / part) == weights_sha256(reference / part), part
    ours, theirs = (torch.load(place / "epoch_3/optimizer.pt") for place in (output, reference))
    assert str(ours) == str(theirs)
    assert not list(output.glob(".*")) and not list(output.glob("step_*"))
    assert history["audit" if history["arm"] != "baseline" else "best_epoch"]
    return history


# In this order, each session goes on from what the ones before it left: nothing, step 4, torn epoch 1, epoch 1, ...
DEATHS = ["step 3", "usr1 4", "model 1", "seal 1", "validate 2", "usr1 2", "state 1", "prune 1", "step 1", "seal 2"]
DEATHS += ["best 1"]


def test_killed_again_and_again_the_result_is_the_same_to_the_last_bit(pretrained, tmp_path, undisturbed):
    output = tmp_path / "run"
    for death in DEATHS:
        code = live_and_die(pretrained, output, "monotonic", death)
        assert code == (1 if death.startswith("usr1") else -signal.SIGKILL), death
        assert not (output / "history.json").exists()
    assert live_and_die(pretrained, output, "monotonic", "") == 0
    history = check_same(output, undisturbed["monotonic"])
    assert history["resumes"] >= 6
    assert any(session["from_step"] % STEPS for session in history["sessions"])  # some within an epoch


def test_killed_from_outside_at_any_moment(pretrained, tmp_path, undisturbed):
    output, rng, deaths = tmp_path / "run", random.Random(0), 0
    while not (output / "history.json").exists():
        patience = rng.uniform(0.02, 0.15) * 1.4**deaths  # short at first: a quick machine must not get away
        deaths += live_and_die(pretrained, output, "baseline", "", kill_after=patience) != 0
    check_same(output, undisturbed["baseline"])
    assert deaths


def test_stop_request_saves_and_raises_and_resumes_exactly(pretrained, tmp_path, undisturbed):
    output, calls = tmp_path / "run", 0

    def stop_at(step):
        def asked():
            nonlocal calls
            calls += 1
            return calls == step

        return asked

    with pytest.raises(Interrupted, match="step 3"):
        run(pretrained, output, stop_requested=stop_at(3))
    assert {path.name for path in output.glob("*_*")} == {"step_3"}
    calls = 0
    with pytest.raises(Interrupted, match="step 5"):  # asked when the epoch is over, whose checkpoint is there
        run(pretrained, output, stop_requested=stop_at(2))
    assert {path.name for path in output.glob("*_*")} == {"epoch_1"}
    history = run(pretrained, output)
    assert timeless(history) == timeless(undisturbed["monotonic"][1]) and history["resumes"] == 2
    assert weights_sha256(output / "best") == weights_sha256(undisturbed["monotonic"][0] / "best")


def test_checkpoints_by_the_clock_change_nothing(pretrained, tmp_path, undisturbed):
    history = run(pretrained, tmp_path / "run", settings=dataclasses.replace(SETTINGS, checkpoint_minutes=1e-9))
    assert timeless(history) == timeless(undisturbed["monotonic"][1])
    assert {path.name for path in (tmp_path / "run").glob("*_*")} == {"epoch_1", "epoch_2", "epoch_3"}


# ---- checkpoints that are not what they seem -------------------------------------------------------------------------


@pytest.fixture
def finished(undisturbed, tmp_path) -> Path:
    return Path(shutil.copytree(undisturbed["monotonic"][0], tmp_path / "finished"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: truncate(d / "optimizer.pt"),
        lambda d: flip(d / "free_parameters.pt"),
        lambda d: (d / "model.safetensors").unlink(),
        lambda d: (d / COMPLETE).unlink(),
        lambda d: (d / COMPLETE).write_text("{"),
        lambda d: (d / COMPLETE).write_text("[]"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_with_a_message(finished, pretrained, undisturbed, damage, caplog):
    damage(finished / "epoch_3")
    history = run(pretrained, finished)
    assert f"Ignoring incomplete or corrupt checkpoint {finished / 'epoch_3'} (" in caplog.text
    assert history["resumes"] == 1 and history["sessions"][-1]["from_step"] == 2 * STEPS
    assert timeless(history) == timeless(undisturbed["monotonic"][1])
    assert weights_sha256(finished / "best") == weights_sha256(undisturbed["monotonic"][0] / "best")


def test_a_finished_training_is_not_repeated(finished, pretrained, undisturbed, monkeypatch):
    shutil.rmtree(finished / "best")
    monkeypatch.setattr(utils.training.trainer.ArmTrainer, "train", lambda *a, **k: pytest.fail("trained again"))
    history = run(pretrained, finished)
    assert timeless(history) == timeless(undisturbed["monotonic"][1]) and history["resumes"] == 0
    assert (finished / "best" / "config.json").exists()


def test_checkpoints_of_other_settings_are_never_resumed_from(finished, pretrained, tmp_path, caplog):
    settings = dataclasses.replace(SETTINGS, epochs=1, learning_rate=1e-3)
    history = run(pretrained, finished, settings=settings)
    assert f"Removing the checkpoints of another training in {finished} (epochs, learning_rate changed)" in caplog.text
    assert history["resumes"] == 0 and len(history["sessions"]) == 1
    run(pretrained, tmp_path / "fresh", settings=settings)
    assert weights_sha256(finished / "best") == weights_sha256(tmp_path / "fresh" / "best")


def test_another_arm_or_other_data_start_anew(finished, pretrained, caplog):
    history = run(pretrained, finished, "sign_frozen", dataclasses.replace(SETTINGS, epochs=1))
    assert "arm, arm_definition, epochs changed" in caplog.text and history["arm"] == "sign_frozen"
    assert not (finished / "epoch_2").exists()


def test_without_the_best_epoch_training_goes_back_to_where_it_can(finished, pretrained, undisturbed):
    best = undisturbed["monotonic"][1]["best_epoch"]
    shutil.rmtree(finished / f"epoch_{best}")
    history = run(pretrained, finished)
    assert timeless(history) == timeless(undisturbed["monotonic"][1])
    assert weights_sha256(finished / "best") == weights_sha256(undisturbed["monotonic"][0] / "best")


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["save_plain", "_save_rng_state"])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("write failed: [enforce fail]")]
)
def test_a_full_disk_is_one_clear_line_and_the_old_checkpoint_lives(pretrained, tmp_path, monkeypatch, moment, error):
    place = utils.training.trainer if moment == "save_plain" else utils.training.trainer.ArmTrainer
    output, original, calls = tmp_path / "run", getattr(place, moment), 0

    def full(*args, **kwargs):
        nonlocal calls
        calls += not any("snapshots" in str(argument) for argument in args)
        if calls == 2:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(place, moment, full)
    with pytest.raises(StageError, match=r"cannot write the checkpoint .*epoch_2.* GB are free"):
        run(pretrained, output)
    assert [checkpoint.directory.name for checkpoint in complete_checkpoints(output)] == ["epoch_1"]
    assert not list(output.glob(".*"))


def test_a_loss_that_explodes_stops_the_stage_and_keeps_what_was_good(pretrained, tmp_path, monkeypatch):
    original = utils.training.trainer.ArmTrainer.training_step

    def poison(self, model, *args, **kwargs):
        if self.state.global_step == STEPS + 2:
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))
        return original(self, model, *args, **kwargs)

    monkeypatch.setattr(utils.training.trainer.ArmTrainer, "training_step", poison)
    with pytest.raises(StageError, match=r"not finite any more.*LEARNING_RATE"):
        run(pretrained, tmp_path / "run")
    assert [checkpoint.directory.name for checkpoint in complete_checkpoints(tmp_path / "run")] == ["epoch_1"]


def test_empty_or_foreign_data_are_refused(pretrained, tmp_path):
    from utils.training.train import train

    data = rows(pretrained, 5, 0)
    common = {"arm": "baseline", "pretrained_dir": pretrained, "output_dir": tmp_path / "run", "settings": SETTINGS}
    with pytest.raises(StageError, match="training set is empty"):
        train(train_set=data.select([]), validation_set=data, **common)
    foreign = data.map(lambda row: {"labels": [31999, 1]}, features=data.features)
    with pytest.raises(InputError, match="token 31999"):
        train(train_set=data, validation_set=foreign, **common)


def test_bfloat16_is_refused_or_used_as_asked(pretrained, tmp_path):
    settings = dataclasses.replace(SETTINGS, precision="bf16", epochs=1)
    history = run(pretrained, tmp_path / "run", settings=settings)
    exact = run(pretrained, tmp_path / "exact", settings=dataclasses.replace(settings, precision="auto"))
    assert history["bfloat16"] and not exact["bfloat16"]
    ours, theirs = history["epochs"][0]["validation_loss"], exact["epochs"][0]["validation_loss"]
    assert ours != theirs and ours == pytest.approx(theirs, rel=0.02)


def test_log_lines_are_plain_and_tell_where_it_stands(pretrained, tmp_path, caplog, capfd, monkeypatch):
    import utils.training.record

    monkeypatch.setattr(utils.training.record, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(utils.training.record, "SECONDS_BETWEEN_LOG_LINES", 0.0)
    started = time.time()
    with caplog.at_level("INFO", logger="mono_s2s"):
        run(pretrained, tmp_path / "run", "baseline", dataclasses.replace(SETTINGS, epochs=1))
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("mono_s2s")]
    assert any(
        line.startswith("baseline, epoch 1 of 1, step 3 of 5: loss ") and line.endswith("left") for line in lines
    )
    assert any("validation loss" in line for line in lines)
    out, err = capfd.readouterr()
    assert "{" not in out and "{" not in err and "\r" not in err
    progress = json.loads((tmp_path / "run" / "progress.json").read_text())
    assert set(progress) == {
        "epoch",
        "epochs",
        "step",
        "total_steps",
        "loss",
        "examples_per_second",
        "seconds_left",
        "updated",
    }
    assert started <= progress["updated"] <= time.time()


def test_constrained_weights_never_go_below_zero_in_any_epoch(undisturbed):
    for epoch in range(1, EPOCHS + 1):
        model = load_model(undisturbed["monotonic"][0] / f"epoch_{epoch}")
        assert all(float(layer.weight.detach().min()) >= 0 for _, layer in ffn_layers(model))
    assert EXAMPLES % BATCH and isinstance(SETTINGS, TrainingSettings)


def test_snapshots_of_the_first_epoch_are_the_weights_at_their_steps(undisturbed, pretrained, tmp_path):
    output, _ = undisturbed["monotonic"]
    kept = sorted(path.name for path in (output / "snapshots").iterdir())
    assert kept == [f"step_{step}" for step in snapshot_steps(STEPS)] and kept
    digests = {weights_sha256(output / "snapshots" / name) for name in kept}
    assert len(digests) == len(kept) and weights_sha256(output / "epoch_1") not in digests
    assert not (output / "snapshots" / kept[0] / "optimizer.pt").exists()  # weights alone
    assert not is_constrained(load_model(output / "snapshots" / kept[0]))
