"""scripts/summarize.py: a summary of any model directory, and what to do where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_model
from utils.evaluation.decoding import DecodingSettings
from utils.evaluation.generation import generate
from utils.modeling.models import load_model
from utils.modeling.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "summarize.py"
TEXT = "Anna: I am looking for my book. Ben: It is at the station."


def summarize(root: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    places = {"SCRATCH": str(root), "PROJECT": str(root), "MONO_S2S_DEMO_DIR": str(root), "MONO_S2S_DEVICE": "cpu"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, env={**os.environ, **places}, check=False
    )


def test_it_decodes_as_the_evaluation_does(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "t5")
    tokenizer, model = load_tokenizer(directory), load_model(directory)
    ids = tokenizer("summarize: " + TEXT).input_ids
    expected = generate(model, tokenizer, [ids], DecodingSettings(), batch_tokens=len(ids)).texts[0]
    assert expected
    for arguments, stdin in ((("--model-dir", str(directory), TEXT), ""), (("--model-dir", str(directory), "-"), TEXT)):
        done = summarize(tmp_path, *arguments, stdin=stdin)
        assert (done.returncode, done.stdout) == (0, expected + "\n"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--seed", "7", TEXT], 3, "Run the experiment first (./run_all.sh 7), or give --model-dir."),
        (["--demo", TEXT], 3, "Run the experiment first (./run_all.sh --demo 42), or give --model-dir."),
        (["--model-dir", "nowhere", TEXT], 3, "summarize.py: no model in nowhere."),
        (["  \n"], 2, "summarize.py: the text is empty."),
        (["--seed", "-1", TEXT], 2, "seed -1: expected a whole number from 0 to 2147483647"),
        (["--model", "monotonous", TEXT], 2, "invalid choice: 'monotonous'"),
    ],
)
def test_what_is_missing_or_wrong_is_one_line(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    done = summarize(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr.splitlines()[-1]
