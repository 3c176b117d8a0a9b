"""Commands whose standard streams are closed or full do their work, and say in one line what they cannot."""

import subprocess

import pytest

from tests.shell_world import World

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("streams", [">&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>&1"])
def test_a_local_run_whose_output_goes_nowhere_is_done_to_the_end(tmp_path, streams):
    world = World(tmp_path)
    command = f"'{world.checkout}/run_all.sh' 3 --local --stop-stage 1 {streams}"
    done = subprocess.run(["bash", "-c", command], env=world.environment, capture_output=True, text=True, cwd="/")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert world.flags() == {"stage_0_setup", "stage_1_prepare_data"}


def test_a_question_whose_answer_cannot_be_written_fails_in_one_line(tmp_path):
    world = World(tmp_path)
    command = f"'{world.checkout}/check_training_status.sh' 3 >/dev/full"
    done = subprocess.run(["bash", "-c", command], env=world.environment, capture_output=True, text=True, cwd="/")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "output of this command: No space left" in done.stderr
