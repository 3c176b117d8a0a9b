"""What README and docs/ tell people to type: every command is run here, or the reason why not stands in NOT_HERE."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline_world import SEED, Run, in_process
from tests.shell_world import ROOT, World
from tests.tiny import write_data, write_model

pytestmark = pytest.mark.slow

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
NOT_HERE = {
    "./tests/run.sh": "runs this test",
    "python3 -m venv": "installs: scripts/environment.sh does the same on CI's machine",
    "source .venv/bin/activate": "installs",
    "pip install": "installs",
    ".venv/bin/pip": "installs",
    "pre-commit": "not a dependency",
    "cd ": "where somebody keeps a clone",
    "git clone": "where somebody keeps a clone",
    "$EDITOR": "a person edits",
    "export ": "a variable of the reader's",
    "apt-get": "installs",
    "huggingface-cli": "needs the hub",
    "hf ": "needs the hub",
    "python scripts/benchmark.py": "tests/test_benchmark.py runs it",
    "rsync": "copies between machines",
    "scp": "copies between machines",
}
ON_RESULTS = ("verify_results.py", "summarize.py", "show_attack.py", "compare_runs.py")


def blocks(page: Path) -> list[str]:
    """Commands of a page's ```bash blocks, without comments, && chains taken apart."""
    found: list[str] = []
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"(^|\s+)# .*$", "", line).strip()
            found += [part.strip() for part in line.split(" && ") if part.strip() and not part.startswith("#")]
    return found


def spans(page: Path) -> list[str]:
    """Commands named within sentences: `./run_all.sh --local`."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return [
        span for span in re.findall(r"`([^`\n]+)`", text) if re.match(r"(MONO_S2S_\S+ )*(\./|python |sbatch )", span)
    ]


COMMANDS = list(dict.fromkeys(command for page in PAGES for command in blocks(page)))  # in the order of reading
SHELL = [c for c in COMMANDS if not c.startswith(tuple(NOT_HERE)) and not any(tool in c for tool in ON_RESULTS)]


def test_there_is_something_to_run():
    assert len(SHELL) >= 8 and any("run_multi_seed" in command for command in SHELL)


def program_of(words: list[str]) -> tuple[str, list[str]] | None:
    """The script that a command starts, relative to the checkout, and the options it is given."""
    words = [word for word in words if not re.match(r"MONO_S2S_\w+=", word)]
    for place, word in enumerate(words[:4]):
        if word.endswith((".sh", ".py")) and not word.startswith("-"):
            options = [w.split("=")[0] for w in words[place + 1 :] if w.startswith("--")]
            return word.removeprefix("./"), options
    return None


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    return {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_and_options_that_are_named_exist(page, helps):
    for command in [*blocks(page), *spans(page)]:
        named = program_of(re.sub(r"[\[\]]|\.\.\.", "", command).split())
        if named is None:
            continue
        script, options = named
        assert (ROOT / script).is_file() or (ROOT / "scripts" / script).is_file(), f"{page.name}: {command}"
        if options and "benchmark" not in script and "N" not in script.split("_"):
            start = ["bash"] if script.endswith(".sh") else [sys.executable]
            if script not in helps:
                done = subprocess.run([*start, script, "--help"], cwd=ROOT, capture_output=True, text=True)
                helps[script] = done.stdout
            for option in set(options) - {"--help"}:
                assert option in helps[script], f"{page.name}: {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.slurm
def test_what_the_pages_tell_people_to_type_runs(cluster, tmp_path):
    world, data = World(tmp_path), write_data(tmp_path / "data")
    world.environment |= cluster.environment | {
        "MONO_S2S_MODEL_NAME": str(write_model(tmp_path / "model")),
        "MONO_S2S_DATASETS_FILE": str(data),
        "MONO_S2S_DEVICE": "cpu",
        "PATH": f"{Path(sys.executable).parent}:{world.environment['PATH']}",
    }
    for command in SHELL:
        done = subprocess.run(
            ["bash", "-euc", command.replace("/path/to/datasets.json", str(data))],
            cwd=world.checkout,
            env=world.environment,
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )
        allowed = (0, 1) if "diagnose" in command else (0,)  # this test cancels jobs, and that is what it tells
        assert done.returncode in allowed, (
            f"{command}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
        cluster.cancel_all()


def test_what_the_pages_say_about_results_runs(done: Run, monkeypatch, capsys):
    commands = [command for command in COMMANDS if any(tool in command for tool in ON_RESULTS)]
    assert commands
    for command in commands:
        typed = command.replace("seed_42", f"seed_{SEED}").replace("$SCRATCH", str(done.scratch))
        python, script, *words = shlex.split(typed)
        if "--seed" not in words and "verify_results" not in script:
            words += ["--seed", str(SEED)]
        code = in_process(monkeypatch, Path(script).stem, *words, environment=done.environment)
        printed = capsys.readouterr()
        assert (python, code) == ("python", 0), f"{command}\n{printed.out[-2000:]}{printed.err[-2000:]}"
