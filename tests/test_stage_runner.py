"""Stages keep their promises: flags that tell the truth, exit codes, logs, envelopes, one-line errors."""

import errno
import json
import os
import re
from pathlib import Path

import pytest

from utils.core.errors import StageError
from utils.core.files import write_text
from utils.core.paths import Paths
from utils.core.settings import Settings
from utils.pipeline import runner as stage_runner
from utils.pipeline.flags import problem_of, read_flag
from utils.pipeline.plan import make_plan, to_run
from utils.pipeline.stages import STAGES, upstream

pytestmark = pytest.mark.slow

SEED = 7


@pytest.fixture
def paths(tmp_path, monkeypatch) -> Paths:
    for name in list(os.environ):
        if name.startswith("MONO_S2S_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # stages set it for their process, which is this one
    return Paths.of(use(monkeypatch, SCRATCH_DIR=str(tmp_path / "scratch"), PROJECT_DIR=str(tmp_path / "project")))


def use(monkeypatch, **changes) -> Settings:
    """Let stages have these settings."""
    settings = stage_runner.load_settings().replaced(**changes)
    monkeypatch.setattr(stage_runner, "load_settings", lambda: settings)
    return settings


@pytest.fixture
def settings(paths):
    return stage_runner.load_settings()


def run(number: int, *options: str, work=None) -> int:
    """Stage `number` with a work that only writes its outputs (the real ones have tests of their own)."""

    def write_outputs(context: stage_runner.StageContext) -> None:
        for path in context.stage.outputs(context.paths, context.seed):
            if path.suffix:
                write_text(path, f"made by {context.stage.key} with lr {context.settings.LEARNING_RATE}")
            else:
                write_text(path / "file", context.stage.key)

    return stage_runner.run_stage(number, work or write_outputs, ["--seed", str(SEED), *options])


def run_to(last: int) -> None:
    for number in range(last + 1):
        assert run(number) == 0


def test_only_stages_0_and_1_may_ask_the_hub(paths):
    run_to(1)
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    run(2)
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def problem(number: int, paths: Paths, settings) -> str | None:
    return problem_of(STAGES[number], SEED, paths, settings)


def never(context: stage_runner.StageContext) -> None:
    raise AssertionError("the stage must not run")


def test_the_graph_is_the_one_of_the_readme():
    assert [stage.number for stage in STAGES] == list(range(8))
    assert [stage.needs for stage in STAGES] == [(), (0,), (0, 1), (0, 1), (2, 3), (4,), (4,), (5, 6)]
    assert [s.number for s in upstream(7)] == list(range(7))
    root = Path(__file__).resolve().parents[1]
    for stage in STAGES:
        assert (root / stage.script).is_file() and (root / stage.wrapper).is_file()


def test_every_setting_a_stage_names_exists(settings):
    for stage in STAGES:
        settings.subset(stage.settings)


def test_a_finished_stage_is_skipped_and_all_hold(paths, settings, capsys):
    run_to(7)
    assert [problem(n, paths, settings) for n in range(8)] == [None] * 8
    assert run(4, work=never) == 0
    assert "already done" in capsys.readouterr().out


def test_flags_and_logs_have_the_names_of_the_contract(paths):
    run_to(4)
    work = paths.work
    assert (work / "stage_0_setup.flag").is_file() and (work / "stage_1_prepare_data.flag").is_file()
    assert (work / f"stage_4_evaluate_seed{SEED}.flag").is_file()
    assert (work / "stage_logs" / f"stage_4_evaluate_seed{SEED}.log").is_file()
    assert work.name == "mono_s2s_work"


def test_a_changed_setting_makes_its_stages_stale_and_names_itself(paths, settings, monkeypatch):
    run_to(7)
    settings = use(monkeypatch, LEARNING_RATE=1e-3)
    assert [problem(n, paths, settings) for n in (0, 1)] == [None, None]
    assert problem(2, paths, settings) == "settings changed: LEARNING_RATE 5e-05 -> 0.001"
    for number in (4, 5, 6, 7):
        assert "LEARNING_RATE" in problem(number, paths, settings)
    settings = use(monkeypatch, LEARNING_RATE=5e-5, HOTFLIP_NUM_FLIPS=3)
    assert problem(6, paths, settings) and problem(7, paths, settings)
    assert problem(5, paths, settings) is None


def test_inputs_missing_or_stale_are_refused_with_exit_3(paths, settings, monkeypatch, capsys):
    assert run(2, work=never) == 3
    assert "stage 0_setup: not done yet" in capsys.readouterr().out
    run_to(3)
    use(monkeypatch, MAX_INPUT_LENGTH=256)
    assert run(4, work=never) == 3
    assert "MAX_INPUT_LENGTH 512 -> 256" in capsys.readouterr().out


def with_outputs(word: str):
    """Work whose outputs say `word`."""

    def work(context: stage_runner.StageContext) -> None:
        for path in context.stage.outputs(context.paths, context.seed):
            write_text(path if path.suffix else path / "file", word)

    return work


def test_a_rerun_with_other_outputs_makes_what_read_them_stale_and_the_same_outputs_do_not(paths, settings):
    run_to(4)
    assert run(2, "--force") == 0
    assert problem(4, paths, settings) is None
    assert run(2, "--force", work=with_outputs("other")) == 0
    assert problem(4, paths, settings) == ("stage 2_train_baseline has other outputs now than those it was made from")


def test_repeating_the_shared_stages_leaves_every_seed_valid(paths, settings):
    """Their reports tell machine and time and differ each time; what seeds read is the same byte for byte."""

    def shared(word: str):
        def work(context: stage_runner.StageContext) -> None:
            for path in context.stage.outputs(context.paths, context.seed):
                report = path.name in context.stage.reports
                write_text(path if path.suffix else path / "file", word if report else "content")

        return work

    for number in (0, 1):
        assert run(number, work=shared("first")) == 0
    for number in range(2, 8):
        assert run(number) == 0
    for number in (0, 1):
        assert run(number, "--force", work=shared("second")) == 0
    assert [problem(n, paths, settings) for n in range(8)] == [None] * 8
    (paths.results_root / "setup_complete.json").unlink()
    assert "setup_complete.json is gone" in problem(0, paths, settings)
    assert [problem(n, paths, settings) for n in range(1, 8)] == [None] * 7
    steps = make_plan(SEED, paths, settings)
    assert [step.stage.number for step in to_run(steps)] == [0]
    assert run(0, work=shared("third")) == 0
    assert to_run(make_plan(SEED, paths, settings)) == []


@pytest.mark.parametrize("change", ["gone", "longer", "same length"])
def test_a_changed_output_makes_the_flag_invalid(paths, settings, change):
    run_to(4)
    path = paths.results(SEED) / "evaluation_results.json"
    text = path.read_text()
    if change == "gone":
        path.unlink()
    else:
        path.write_text(text + "x" if change == "longer" else text.replace("made", "fake"))
    assert str(path) in problem(4, paths, settings)
    assert run(5, work=never) == 3


def test_touching_an_output_without_changing_it_is_fine(paths, settings):
    run_to(4)
    path = paths.results(SEED) / "evaluation_results.json"
    os.utime(path, (1, 1))
    assert problem(4, paths, settings) is None


@pytest.mark.parametrize("content", ["", "done\n", "{}", b"\xff\xfe", '{"format": 1}'])
def test_empty_forged_and_damaged_flags_do_not_count(paths, settings, content):
    run_to(4)
    flag = paths.flag("4_evaluate", SEED)
    flag.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "flag" in problem(4, paths, settings)
    assert run(5, work=never) == 3
    assert run(4) == 0 and problem(4, paths, settings) is None


def test_an_edited_flag_does_not_count(paths, settings, monkeypatch):
    run_to(2)
    settings = use(monkeypatch, LEARNING_RATE=1.0)
    path = paths.flag("2_train_baseline", SEED)
    flag = json.loads(path.read_text())
    flag["settings"]["LEARNING_RATE"] = 1.0
    path.write_text(json.dumps(flag))
    assert "changed after it was written" in problem(2, paths, settings)


def test_another_seeds_flag_does_not_count(paths, settings):
    run_to(2)
    paths.flag("2_train_baseline", 8).write_text(paths.flag("2_train_baseline", SEED).read_text())
    assert problem_of(STAGES[2], 8, paths, settings)


def test_a_stage_clears_its_flag_when_it_starts(paths, settings):
    run_to(2)

    def check_and_fail(context: stage_runner.StageContext) -> None:
        assert not context.paths.flag("2_train_baseline", SEED).exists()
        raise StageError("out of luck, do this instead")

    assert run(2, "--force", work=check_and_fail) == 1
    assert not paths.flag("2_train_baseline", SEED).exists()


def test_a_stage_that_leaves_an_output_out_fails(paths, settings, capsys):
    assert run(0, work=lambda context: None) == 1
    assert "finished without writing" in capsys.readouterr().out
    assert problem(0, paths, settings) == "not done yet"


def test_an_expected_error_is_one_line_and_a_bug_keeps_its_traceback(paths, capsys):
    def fail(context: stage_runner.StageContext) -> None:
        raise StageError("the loss is NaN. Lower LEARNING_RATE")

    def bug(context: stage_runner.StageContext) -> None:
        raise KeyError("surprise")

    assert run(0, work=fail) == 1
    out = capsys.readouterr()
    assert "Traceback" not in out.out + out.err and "the loss is NaN. Lower LEARNING_RATE" in out.out.splitlines()[-1]
    assert run(0, work=bug) == 1
    assert "Traceback" in capsys.readouterr().out


def test_a_full_disk_is_said_in_words(paths, capsys):
    def fill(context: stage_runner.StageContext) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/scratch/file")

    assert run(0, work=fill) == 1
    assert "no space left for /scratch/file" in capsys.readouterr().out


def test_a_stop_signal_ends_the_stage_without_a_flag(paths, settings, capsys):
    import signal

    from utils.core.errors import Interrupted

    def stop(context: stage_runner.StageContext) -> None:
        assert not context.stop_requested()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert context.stop_requested()
        raise Interrupted

    run_to(1)
    kept = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)}
    try:
        assert run(2, work=stop) == 1
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    assert "Interrupted by SIGUSR1. Progress saved; run the same command to resume." in capsys.readouterr().out
    assert problem(2, paths, settings) == "not done yet"


@pytest.mark.parametrize("options", [["--sed", "1"], ["--seed", "abc"], ["--seed", "-1"], ["--shard", "2/2"], ["x"]])
def test_wrong_usage_exits_2_and_touches_nothing(paths, options, capsys):
    with pytest.raises(SystemExit) as stop:
        stage_runner.run_stage(0, never, options)
    assert stop.value.code == 2
    assert not paths.scratch.exists()


def test_an_unset_or_unwritable_scratch_exits_2(paths, settings, monkeypatch, capsys, tmp_path):
    use(monkeypatch, SCRATCH_DIR="")
    assert run(0, work=never) == 2
    assert "SCRATCH_DIR is not set" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    use(monkeypatch, SCRATCH_DIR=str(tmp_path / "file" / "below"))
    assert run(0, work=never) == 2
    assert "cannot write" in capsys.readouterr().err


def test_the_envelope_carries_its_provenance(paths):
    def work(context: stage_runner.StageContext) -> None:
        write_text(context.paths.pretrained / "file", "x")
        context.write_result("setup_complete.json", {"a": 1}, shared=True)

    assert run(0, work=work) == 0
    for path in (paths.results_root, paths.results(SEED)):
        envelope = json.loads((path / "setup_complete.json").read_text())
        assert set(envelope) == {"results", "_metadata"} and envelope["results"] == {"a": 1}
        facts = envelope["_metadata"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", facts["timestamp"])
        assert re.fullmatch(rf"\d{{8}}_\d{{6}}_seed{SEED}", facts["run_id"])
        assert facts["seed"] == SEED and isinstance(facts["unix_timestamp"], float)
        for name in ("code", "config_fingerprint", "profile", "versions", "device", "host", "slurm_job_id", "seconds"):
            assert name in facts


def test_not_a_number_never_reaches_a_result_file(paths):
    def work(context: stage_runner.StageContext) -> None:
        context.write_result("setup_complete.json", {"a": float("nan")}, shared=True)

    assert run(0, work=work) == 1
    assert not (paths.results(SEED) / "setup_complete.json").exists()
    assert not list(paths.results_root.rglob("*.tmp"))


def test_quick_runs_keep_apart(settings, monkeypatch):
    settings = use(monkeypatch, PROFILE="quick")
    quick = Paths.of(settings)
    assert quick.work.name == "mono_s2s_work_quick" and quick.results(1).parent.name == "mono_s2s_results_quick"
    assert quick.final(1).parent.name == "mono_s2s_final_results_quick"


def test_the_flag_records_what_made_it(paths, settings):
    run_to(2)
    flag = read_flag(STAGES[2], SEED, paths)
    assert flag.settings["LEARNING_RATE"] == settings.LEARNING_RATE
    assert set(flag.code) >= {"commit", "dirty"} and set(flag.needs) == {"0", "1"}
    assert {Path(path) for path in flag.outputs} == set(STAGES[2].outputs(paths, SEED))
    assert all(len(item.sha256) == 64 for item in flag.outputs.values())
