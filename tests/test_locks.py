"""One lock: real flock between real processes, and file systems that have none."""

import errno
import fcntl
import logging
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from tests.shell_world import World
from utils.core.errors import Interrupted
from utils.core.locks import LockHeld, file_lock, is_locked

ROOT = Path(__file__).resolve().parents[1]
RISK = "two of these at once would mix their files"


def holder(path: Path, seconds: float = 60) -> subprocess.Popen:
    """Another process that holds `path`; it says so before this returns."""
    code = f"""
        import time
        from pathlib import Path
        from utils.core.locks import file_lock
        with file_lock(Path({str(path)!r}), unprotected="x"):
            print("held", flush=True)
            time.sleep({seconds})
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    return process


@pytest.fixture
def other(tmp_path):
    process = holder(tmp_path / "room" / "a.lock")
    yield process
    process.kill()
    process.wait()


def test_a_held_lock_refuses_is_seen_and_ends_with_its_process(tmp_path, other):
    path = tmp_path / "room" / "a.lock"
    assert is_locked(path) is True
    with pytest.raises(LockHeld, match=r"a\.lock"), file_lock(path, unprotected=RISK, wait=False):
        pytest.fail("two holders")
    other.kill()  # SIGKILL: nothing of it can tidy up
    other.wait()
    assert is_locked(path) is False
    with file_lock(path, unprotected=RISK, wait=False) as waited:
        assert not waited and is_locked(path) is True


def test_who_waits_gets_it_and_knows_that_it_waited(tmp_path, other):
    told = []
    timer = threading.Timer(0.6, other.kill)
    timer.start()
    with file_lock(tmp_path / "room" / "a.lock", unprotected=RISK, on_wait=lambda: told.append(1)) as waited:
        assert waited and other.wait(5) is not None
    assert told == [1]


def test_who_is_asked_to_stop_while_waiting_stops(tmp_path, other):
    asked = iter([False, False, True])
    with (
        pytest.raises(Interrupted),
        file_lock(tmp_path / "room" / "a.lock", unprotected=RISK, stop_requested=lambda: next(asked)),
    ):
        pytest.fail("two holders")


def test_many_processes_are_in_the_block_one_at_a_time(tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    code = f"""
        from pathlib import Path
        from utils.core.locks import file_lock
        path = Path({str(counter)!r})
        for _ in range(25):
            with file_lock(path.with_suffix(".lock"), unprotected="x"):
                path.write_text(str(int(path.read_text()) + 1))
    """
    words = [sys.executable, "-c", textwrap.dedent(code)]
    workers = [subprocess.Popen(words, cwd=ROOT) for _ in range(4)]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert counter.read_text() == "100"


def test_probing_all_the_time_refuses_nobody_and_makes_no_file(tmp_path):
    path = tmp_path / "a.lock"
    assert is_locked(path) is False and not path.exists()
    stop = threading.Event()

    def probe():
        while not stop.is_set():
            is_locked(path)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        for _ in range(200):
            with file_lock(path, unprotected=RISK, wait=False):
                pass
    finally:
        stop.set()
        thread.join()


def test_a_lock_file_that_was_deleted_while_held_does_not_let_two_in(tmp_path):
    """clean_all.sh deletes lock files: whoever waits for the deleted one must not believe that it holds the new one."""
    path = tmp_path / "room" / "a.lock"
    first = holder(path)
    try:
        code = f"""
            from pathlib import Path
            from utils.core.locks import file_lock, is_locked
            path = Path({str(path)!r})
            with file_lock(path, unprotected="x", on_wait=lambda: print("waits", flush=True)):
                print(is_locked(path), flush=True)
        """
        words = [sys.executable, "-c", textwrap.dedent(code)]
        waiting = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert waiting.stdout is not None and waiting.stdout.readline() == "waits\n"
        path.unlink()
        with file_lock(path, unprotected=RISK, wait=False):  # a third process, with the new file
            first.kill()
            time.sleep(0.4)
            assert waiting.poll() is None
        assert waiting.communicate(timeout=20)[0] == "True\n"  # it holds the file that others see
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, 524])
def test_without_file_locks_work_continues_with_one_plain_warning(tmp_path, monkeypatch, caplog, number):
    def refuse(handle, operation):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "a.lock"
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with file_lock(path, unprotected=RISK, wait=False) as waited:
                assert not waited
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: this file system has no file locks, so {RISK}."
    ]
    assert is_locked(path) is None


def test_any_other_trouble_is_an_error(tmp_path, monkeypatch):
    def fail(handle, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output"), file_lock(tmp_path / "a.lock", unprotected=RISK):
        pytest.fail("no lock")


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_the_commands_start_on_a_file_system_without_locks(tmp_path, number):
    """What Lustre mounted without `-o flock` answers, in every process of the command."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        f"import fcntl\ndef flock(*_): raise OSError({number}, 'no locks')\nfcntl.flock = flock\n"
    )
    world = World(tmp_path / "world")
    done = world.all("7", "--local", "--stop-stage", "1", PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"stage_0_setup", "stage_1_prepare_data"} <= world.flags()
    assert "no file locks" in done.stderr and "Make room" not in done.stdout + done.stderr
    cleaned = world.run("clean_all.sh", "--seed", "7", "--force", PYTHONPATH=str(tmp_path / "site"))
    assert cleaned.returncode == 0, cleaned.stdout + cleaned.stderr
    assert "local run here is not seen" in cleaned.stderr
