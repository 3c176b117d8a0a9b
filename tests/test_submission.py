"""What is handed to SLURM: the exact lines, the wrappers' headers, the answers of sbatch, the candidates of a site."""

import os
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from tests.shell_world import ROOT, World
from utils.core.environment import for_sbatch
from utils.core.errors import InputError, StageError, UsageError
from utils.core.paths import Paths
from utils.core.settings import load_settings
from utils.pipeline.plan import make_plan, to_run
from utils.pipeline.stages import STAGES, table
from utils.slurm import cluster, sbatch
from utils.slurm.run_record import JobRecord, new_directory, new_record, records
from utils.slurm.site import Site, resolve

GOLDEN = ROOT / "tests" / "golden" / "sbatch_lines.txt"
SINFO = """case "$*" in *%R*) printf '%s\\n' {partitions};; *%G*) printf '%s\\n' '{gres}';; esac"""
CASES = {
    "the defaults": ((), {}),
    "another seed, forced, up to the evaluation": (("7", "--force", "--stop-stage", "4"), {}),
    "arrays, another site, a QoS for both, more time": (
        ("--stage", "0"),
        {
            "EVAL_ARRAY_TASKS": "4",
            "ATTACK_ARRAY_TASKS": "3",
            "SLURM_PARTITION": "big gpu",
            "SLURM_CPU_PARTITION": "shared",
            "SLURM_QOS": "",
            "SLURM_CPU_QOS": "long",
            "SLURM_ACCOUNT": "",
            "SLURM_GRES": "gpu:2",
            "SLURM_TIME_SCALE": "1.5",
            "SLURM_MEMORY_SCALE": "0.5",
            "SLURM_KILL_ON_INVALID_DEP": "False",
            "SLURM_EXTRA_OPTIONS": "--mail-type=END --comment='two words'",
        },
    ),
}


def fake(directory: Path, **commands: str) -> str:
    """Directory with commands of these shell bodies; returns a PATH on which they come first."""
    directory.mkdir(exist_ok=True)
    for name, body in commands.items():
        (directory / name).write_text(f"#!/bin/bash\n{body}\n")
        (directory / name).chmod(0o755)
    return f"{directory}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def settings(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("MONO_S2S_")]:
        monkeypatch.delenv(name)
    return load_settings().replaced(SCRATCH_DIR=str(tmp_path / "scratch"), PROJECT_DIR=str(tmp_path / "project"))


def dry_run_lines(world: World, root: Path, path: str, options: tuple[str, ...], wanted: dict[str, str]) -> str:
    """The sbatch lines of a dry run, with names for what differs between machines."""
    environment = {f"MONO_S2S_{name}": value for name, value in wanted.items()}
    result = world.all("--slurm", "--dry-run", *options, PATH=path, **environment)
    assert result.returncode == 0, result.stderr
    text = "\n".join(line.strip() for line in result.stdout.splitlines() if line.startswith("  sbatch "))
    for found, name in (
        (shlex.quote(str(world.checkout)), "CHECKOUT"),
        (str(world.checkout), "CHECKOUT"),
        (str(root), "ROOT"),
        (world.environment["MONO_S2S_PYTHON"], "PYTHON"),
    ):
        text = text.replace(found, name)
    return text


def is_golden(text: str, path: Path) -> None:
    if not path.exists():
        path.write_text(text)
        pytest.fail(f"{path} was not there and is made now: read it, and commit it")
    assert text == path.read_text()


def test_sbatch_lines_are_those_of_the_golden_file(tmp_path):
    """After a change on purpose: rm tests/golden/sbatch_lines.txt, run this test twice, read the difference."""
    world = World(tmp_path)
    path = fake(tmp_path / "site", sinfo="exit 1", sacctmgr="exit 1")
    lines = {title: dry_run_lines(world, tmp_path, path, *case) for title, case in CASES.items()}
    is_golden("".join(f"# {title}\n{text}\n\n" for title, text in lines.items()), GOLDEN)


def site_settings() -> dict[str, dict[str, str]]:
    """The settings of each site that docs/sites.md walks through, by its letter."""
    sections = re.split(r"^## ([A-Z])\. ", (ROOT / "docs" / "sites.md").read_text(), flags=re.M)[1:]
    pairs = zip(sections[::2], sections[1::2], strict=True)
    blocks = {letter: body.partition("```python\n")[2].partition("```")[0] for letter, body in pairs}
    return {letter: dict(re.findall(r'^(\w+) = "(.*)"$', block, re.M)) for letter, block in blocks.items()}


HAS = {  # partitions and GRES as sinfo names them there, QoS as sacctmgr does ("": no accounting)
    "A": ("gpu batch debug", "gpu:v100:4(S:0-1),lscratch:400", ""),
    "B": ("p1_bygpu p2_bynode", "gpu:a100:4", "normal"),
    "C": ("gpu_a100 cpu gpu_debug cpu_debug", "gpu:a100:4(IDX:0-3)", "standard debug"),
}


@pytest.mark.parametrize("letter", HAS)
def test_the_sites_of_the_documentation_get_the_lines_of_the_golden_file(tmp_path, letter):
    """After a change on purpose: rm tests/golden/site_*.txt, run this test twice, read the difference."""
    partitions, gres, qos = HAS[letter]
    sinfo = SINFO.format(partitions=partitions, gres=gres)
    path = fake(tmp_path / "site", sinfo=sinfo, sacctmgr=f"printf '%s\\n' {qos}" if qos else "exit 1")
    text = dry_run_lines(World(tmp_path), tmp_path, path, (), site_settings()[letter])
    is_golden(f"{text}\n", ROOT / "tests" / "golden" / f"site_{letter}.txt")
    given = set(re.findall(r" --(partition|qos|account|gres|constraint)=", text))
    assert given == {"A": {"partition", "account", "gres", "constraint"}, "B": {"account", "gres"},
                     "C": {"partition", "qos", "account", "gres"}}[letter]  # fmt: skip
    gpu_jobs = [line for line in text.splitlines() if "--gres=" in line]
    assert len(gpu_jobs) == 5 and all(("--constraint=v100" in line) == (letter == "A") for line in gpu_jobs)
    assert text.count("--constraint") in (0, 5)


def test_a_walk_through_for_each_site_is_documented():
    assert set(site_settings()) == set(HAS)


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ("acpu,atesting", True),
        ("acpu,nosuch", False),
        ("nosuch|acpu,atesting", True),
        ("", True),
        ("acpu, aa100", True),
    ],
)
def test_a_list_of_partitions_is_taken_if_the_cluster_has_every_one(monkeypatch, settings, tmp_path, value, fits):
    sinfo = SINFO.format(partitions="acpu aa100 atesting", gres="gpu:a100_80gb:3")
    monkeypatch.setenv("PATH", fake(tmp_path / "site", sinfo=sinfo, sacctmgr="exit 1"))
    changed = settings.replaced(SLURM_CPU_PARTITION=value)
    if fits:
        assert resolve(changed).cpu_partition == value.split("|")[-1]
    else:
        with pytest.raises(UsageError, match=r"SLURM_CPU_PARTITION=acpu,nosuch.*It has acpu, aa100, atesting"):
            resolve(changed)


def header(wrapper: str) -> dict[str, str]:
    lines = (ROOT / wrapper).read_text().splitlines()
    words = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    return {word.split("=", 1)[0]: word.partition("=")[2] for word in words}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.key)
def test_a_wrapper_alone_asks_for_what_the_stage_table_says(settings, stage):
    candidates = {name: str(value).split("|")[0] for name, value in settings.all().items()}
    site = Site(
        candidates["SLURM_ACCOUNT"],
        candidates["SLURM_PARTITION"],
        candidates["SLURM_QOS"],
        candidates["SLURM_GRES"],
        candidates["SLURM_CPU_PARTITION"],
        candidates["SLURM_CPU_QOS"],
    )
    words = sbatch.command(stage, settings, site, name=f"mono_s2s_{stage.key}", arguments=[])
    planned = {word.split("=", 1)[0]: word.partition("=")[2] for word in words if word.startswith("--")}
    for name in ("--parsable", "--chdir", "--output", "--error"):
        planned.pop(name)
    alone = header(stage.wrapper)
    assert alone.pop("--output") == alone.pop("--error") == "/dev/null"  # common.sh opens the log
    alone["--mem"] = f"{int(alone['--mem'].removesuffix('G')) * 1024}M"
    assert alone == planned


def test_every_stage_has_its_wrapper_and_script_and_there_are_no_others():
    wrappers = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("jobs/job_[0-9]*.sh"))
    assert wrappers == [s.wrapper for s in STAGES]
    assert sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("scripts/stage_*.py")) == [s.script for s in STAGES]
    for stage in STAGES:
        assert os.access(ROOT / stage.wrapper, os.X_OK)
        assert f"run_stage {stage.number} " in (ROOT / stage.wrapper).read_text()


def test_the_readme_has_the_stage_table():
    assert table() in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("12\n", ("12", "")),
        ("12;alpine\n", ("12", "alpine")),
        ("NOTE: your project has 3 of 10 hours left\n12;al-pine_2\n", ("12", "al-pine_2")),
        ("12\n\n", ("12", "")),
    ],
)
def test_the_job_id_is_read_from_the_last_line(answer, expected):
    assert sbatch.parse_answer(answer) == expected


@pytest.mark.parametrize("answer", ["", "\n", "Submitted batch job 12", "12 13", "12;", "1x2", "-1", "١٢", "12;a b"])
def test_what_is_no_job_id_is_refused(answer):
    with pytest.raises(StageError, match="without a job id"):
        sbatch.parse_answer(answer)


def test_time_and_memory_scale_but_keep_a_floor(settings):
    training, last = STAGES[2], STAGES[7]
    settings = settings.replaced(SLURM_TIME_SCALE=2.0, SLURM_MEMORY_SCALE=2.0)
    assert (sbatch.time_limit(training, settings), sbatch.memory_mb(training, settings)) == (1440, 131072)
    settings = settings.replaced(SLURM_TIME_SCALE=1e-6, SLURM_MEMORY_SCALE=1e-6)
    assert (sbatch.time_limit(training, settings), sbatch.memory_mb(training, settings)) == (10, 512)
    assert sbatch.time_limit(last, settings) == 10


@pytest.mark.parametrize(
    "options",
    [
        "--output=x",
        "-d afterok:1",
        "--wrap='rm -rf'",
        "--array=0-3",
        "'unbalanced",
        "--out=x",
        "-Dx",
        "--clusters=b",
        "-Mb",
    ],
)
def test_extra_options_cannot_replace_those_of_the_submission(settings, options):
    with pytest.raises(UsageError, match="SLURM_EXTRA_OPTIONS"):
        sbatch.check_extra_options(settings.replaced(SLURM_EXTRA_OPTIONS=options))


def test_sbatch_variables_of_the_shell_do_not_reach_sbatch(monkeypatch):
    for name in ("SBATCH_PARTITION", "SBATCH_ARRAY_INX", "SBATCH_TIMELIMIT", "SBATCH_EXPORT", "SBATCH_RESERVATION"):
        monkeypatch.setenv(name, "x")
    left = {name for name in for_sbatch() if name.startswith("SBATCH_")}
    assert left == {"SBATCH_EXPORT", "SBATCH_RESERVATION"} and "PATH" in for_sbatch()


# ---- sites ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("partitions", "gres", "qos", "expected"),
    [
        ("acpu aa100", "gpu:a100_80gb:3(S:0-1)", "gpu-normal cpu-normal", ("acpu", "gpu:a100_80gb:1", "gpu-normal")),
        ("amilan aa100", "gpu:a100:3,gpu:a100-40gb:2", "normal long", ("amilan", "gpu:a100-40gb:1", "normal")),
    ],
    ids=["Alpine since August 2026", "Alpine before"],
)
def test_candidates_resolve_to_what_the_cluster_has(settings, monkeypatch, tmp_path, partitions, gres, qos, expected):
    sinfo = SINFO.format(partitions=partitions, gres=gres)
    monkeypatch.setenv("PATH", fake(tmp_path / "site", sinfo=sinfo, sacctmgr=f"printf '%s\\n' {qos}"))
    site = resolve(settings)
    assert (site.cpu_partition, site.gres, site.qos) == expected
    assert site.partition == "aa100"


def test_a_cluster_that_has_none_of_them_is_told_with_what_it_has(settings, monkeypatch, tmp_path):
    sinfo = SINFO.format(partitions="gpu shared", gres="gpu:h100:4")
    monkeypatch.setenv("PATH", fake(tmp_path / "site", sinfo=sinfo, sacctmgr="exit 1"))
    with pytest.raises(UsageError, match=r"SLURM_PARTITION=aa100.*gpu, shared"):
        resolve(settings)
    settings = settings.replaced(SLURM_PARTITION="gpu", SLURM_CPU_PARTITION="gpu")
    with pytest.raises(UsageError, match=r"SLURM_GRES=.*gpu:h100"):
        resolve(settings)


def test_no_answer_is_never_taken_for_an_empty_queue(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", fake(tmp_path / "site", squeue="echo slurm_load_jobs error >&2; exit 1"))
    with pytest.raises(cluster.NoAnswer, match="slurm_load_jobs"):
        cluster.queue(["12"])
    monkeypatch.setenv("PATH", fake(tmp_path / "site", squeue="exec sleep 9"))
    with pytest.raises(cluster.NoAnswer, match="did not answer"):
        cluster.ask("squeue", timeout=0.2)
    # The controller answers, but has forgotten the job.
    monkeypatch.setenv(
        "PATH", fake(tmp_path / "site", squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    )
    assert cluster.queue(["12"]) == []


def test_the_queue_is_read_field_by_field(monkeypatch, tmp_path):
    body = "printf '12|N/A|RUNNING|None|g1\\n13|2|PENDING|(Dependency)|\\nnoise\\n14|N/A|OUT_OF_MEMORY|x|c1\\n'"
    monkeypatch.setenv("PATH", fake(tmp_path / "site", squeue=body))
    states = cluster.queue(["12", "13", "14"])
    assert [(state.job_id, state.task, state.live) for state in states] == [
        ("12", "", True),
        ("13", "2", True),
        ("14", "", False),
    ]


# ---- plan and records -----------------------------------------------------------------------------------------------


def test_a_late_start_without_its_inputs_is_refused_and_says_where_to_start(settings):
    paths = Paths.of(settings)
    with pytest.raises(InputError, match=r"4_evaluate needs stage 2_train_baseline.*--stage 2"):
        make_plan(42, paths, settings, first=4)
    assert [step.stage.number for step in to_run(make_plan(42, paths, settings, last=1))] == [0, 1]


def test_two_submissions_of_one_second_get_directories_of_their_own(settings):
    made = [new_directory(Paths.of(settings), "20260101_000000_multi_seed").name for _ in range(3)]
    assert made == [f"20260101_000000_multi_seed{end}" for end in ("", "_1", "_2")]


def test_runs_are_kept_apart_newest_first_and_a_damaged_record_is_named(settings, caplog):
    paths = Paths.of(settings)
    made = [
        replace(new_record(paths, seed, profile="full", executor="slurm", python="p"), unix_timestamp=count)
        for count, seed in enumerate((1, 1, 2))
    ]
    made = [record.with_job("0_setup", JobRecord(str(count), tasks=3)) for count, record in enumerate(made)]
    assert len({record.directory for record in made}) == 3
    assert records(paths, 1) == [made[1], made[0]], "what is written is what is read"
    assert re.match(r"\d{8}_\d{6}_seed2", records(paths, 2)[0].run_id)
    for text in ('{"seed": 1', "[]", '{"seed": 1, "jobs": {"0_setup": {}}}'):
        caplog.clear()
        (made[0].directory / "run.json").write_text(text)
        assert records(paths, 1) == [made[1]]
        assert "damaged" in caplog.text and str(made[0].directory) in caplog.text
