"""Diagnosis names what ended a job: real log snippets of each cause, among what the software reports and survives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.core.settings import load_settings
from utils.core.text import printable
from utils.operations.causes import CAUSES
from utils.operations.diagnosis import repeating_helps
from utils.operations.evidence import cause_of, evidence_of
from utils.operations.status import StageStatus

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
HEAD = [
    "2026-11-25 10:00:00 job 12: host g1, Python 3.11.7, /projects/me/env/bin/python",
    "2026-11-25 10:00:01 INFO stage 2_train_baseline seed 42: starts: not done yet",
]
# What a healthy job writes as well: each of these lines was once taken for the cause.
NOISE = [
    "2026-11-25 10:01:00 WARNING stage 4_evaluate seed 42: out of memory with 128 inputs: going on with batches of 64",
    "2026-11-25 10:01:01 WARNING stage 1_prepare_data: huggingface.co: Read timed out; trying again in 10 s",
    "2026-11-25 10:01:02 INFO stage 2_train_baseline seed 42: the loss was NaN in 0 of 100 steps",
    "/env/lib/python3.11/site-packages/torch/cuda/__init__.py:283: UserWarning: No CUDA GPUs are available",
    "[W1125 10:01:03.000000000 socket.cpp:464] [c10d] The server socket: Permission denied",
    "Exception ignored in: <function ReadTimeout.__del__ at 0x7f>",
]
ERROR = "2026-11-25 10:02:00 ERROR stage 2_train_baseline seed 42: failed: "
END = "2026-11-25 10:02:01 job 12: stage 2: exit status {} after 121 s"
STEPD = "slurmstepd: error: "

# name of the cause, lines of .out, lines of .err, exit status
SNIPPETS = [
    # SLURM
    ("time limit", [], [STEPD + "*** JOB 12 ON g1 CANCELLED AT 2026-11-25T10:02:00 DUE TO TIME LIMIT ***"], None),
    ("preempted", [], [STEPD + "*** JOB 12 ON g1 CANCELLED AT 2026-11-25T10:02:00 DUE TO PREEMPTION ***"], None),
    ("node failure", [], [STEPD + "*** JOB 12 ON g1 CANCELLED AT 2026-11-25T10:02:00 DUE TO NODE FAILURE ***"], None),
    ("cancelled", [], [STEPD + "*** JOB 12 ON g1 CANCELLED AT 2026-11-25T10:02:00 ***"], None),
    ("cancelled", ["2026-11-25 10:02:00 job 12: not requeued here: SLURM is ending this job (COMPLETING)"], [], 1),
    ("cancelled", ["2026-11-25 10:02:00 WARNING stage 2: Interrupted by SIGTERM. Progress saved; run the same command "
                   "to resume."], [], 143),
    ("requeue refused by SLURM", ["2026-11-25 10:02:00 job 12: requeue 1 of 5: the time limit is near.",
                                  "2026-11-25 10:02:00 job 12: SLURM refused to requeue."],
     ["scontrol_requeue: Access/permission denied"], 1),
    ("requeue limit", ["2026-11-25 10:02:00 job 12: not requeued: the time limit is near, but it was 5 times already "
                       "(SLURM_MAX_REQUEUES). ./run_all.sh goes on from here."], [], 1),
    ("out of memory on the host", [], [STEPD + "Detected 1 oom_kill event in StepId=12.batch. Some of the step tasks "
                                       "have been OOM Killed."], 137),
    ("out of memory on the host", [], [STEPD + "Detected 1 oom-kill event(s) in step 12.batch cgroup. Some of your "
                                       "processes may have been killed by the cgroup out-of-memory handler."], 1),
    ("out of memory on the host", [], [STEPD + "Job 12 exceeded memory limit (70000 > 65536), being killed"], 1),
    ("killed, most likely out of memory", [], ["/x/jobs/common.sh: line 71: 4242 Killed   \"${command[@]}\""], 137),
    ("job setup failed", ["2026-11-25 10:02:00 job 12: JOB_SETUP failed: module load cuda"], [], 1),
    ("no module command", ["2026-11-25 10:02:00 job 12: JOB_SETUP failed: module load cuda"],
     ["/x/jobs/common.sh: line 98: module: command not found"], 1),
    ("no module command", [], ["/x/jobs/common.sh: line 98: module: command not found"], 127),
    ("no module command", [], ["Lmod has detected the following error: These module(s) are unknown: cuda/99"], 1),
    # GPU
    ("out of GPU memory", [ERROR + "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has "
                           "39.39 GiB of which 1.2 GiB is free."], [], 1),
    ("out of GPU memory", [], ["RuntimeError: CUDA error: out of memory"], 1),
    ("out of GPU memory", [], ["RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling "
                               "`cublasCreate(handle)`"], 1),
    ("no CUDA device", [ERROR + "DEVICE is cuda, but PyTorch sees none here."], [], 1),
    ("no CUDA device", [], ["RuntimeError: No CUDA GPUs are available"], 1),
    ("no CUDA device", [], ["RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA "
                            "GPU"], 1),
    ("driver and library do not match", [], ["RuntimeError: Failed to initialize NVML: Driver/library version "
                                             "mismatch"], 1),
    ("GPU driver too old", [], ["RuntimeError: The NVIDIA driver on your system is too old (found version 11040)."], 1),
    ("GPU too old or too new for this torch", [], ["torch.AcceleratorError: CUDA error: no kernel image is available "
                                                   "for execution on the device"], 1),
    ("defective GPU memory (ECC)", [], ["RuntimeError: CUDA error: uncorrectable ECC error encountered"], 1),
    ("GPU lost", [], ["RuntimeError: CUDA error: unspecified launch failure"], 1),
    ("invalid GPU memory access", [], ["RuntimeError: CUDA error: device-side assert triggered"], 1),
    ("GPUs could not talk to each other (NCCL)", [], ["[rank1]:[E1125 10:02:00 ProcessGroupNCCL.cpp:616] [Rank 1] "
        "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7) ran for 600000 milliseconds before timing "
        "out. NCCL error"], 134),
    ("GPUs could not talk to each other (NCCL)", [], ["torch.distributed.DistBackendError: NCCL error in: "
        "ProcessGroupNCCL.cpp:2251, unhandled system error"], 1),
    ("CUDA library missing", [], ["ImportError: libcudnn.so.9: cannot open shared object file: No such file or "
                                  "directory"], 1),
    # crashes: an error that was survived stands before them
    ("segmentation fault", [ERROR + "Read timed out"], ["/x/common.sh: line 71: 42 Segmentation fault      "
                                                        "\"${command[@]}\""], 139),
    ("illegal instruction", [], ["/x/common.sh: line 71: 42 Illegal instruction     (core dumped) python"], 132),
    ("bus error", [], ["/x/common.sh: line 71: 42 Bus error               (core dumped) python"], 135),
    ("floating point exception", [], [], 136),
    ("aborted", [], ["terminate called after throwing an instance of 'std::runtime_error'"], 134),
    # environment
    ("package missing", [], ["ModuleNotFoundError: No module named 'transformers'"], 1),
    ("package missing", [], ["2026-11-25 10:02:00 the chosen Python, /env/bin/python, lacks packages: torch"], 2),
    ("packages do not fit together", [], ["ImportError: cannot import name 'Cache' from 'transformers'"], 1),
    ("interpreter gone", [], ["job_2_baseline.sh: the interpreter /env/bin/python does not exist: was its environment "
                              "deleted? (see --help)"], 2),
    ("interpreter gone", [], ["job_2_baseline.sh: the interpreter /my env/bin/python does not exist: was its "
                              "environment deleted? (see --help)"], 2),
    ("interpreter gone", [], ["/x/scripts/environment.sh: line 40: /projects/me/env/bin/python: No such file or "
                              "directory"], 127),
    ("system library too old (GLIBC)", [], ["ImportError: /lib64/libc.so.6: version `GLIBC_2.28' not found (required "
                                            "by /env/lib/libtorch.so)"], 1),
    ("system library too old (GLIBC)", [], ["ImportError: /lib64/libstdc++.so.6: `GLIBCXX_3.4.29' not found"], 1),
    ("shared library missing", [], ["python: error while loading shared libraries: libpython3.11.so.1.0: cannot open "
                                    "shared object file"], 127),
    # network
    ("access to the hub denied", [ERROR + "401 Client Error: Unauthorized for url: https://hf.co/api/x"], [], 1),
    ("access to the hub denied", [ERROR + "GatedRepoError: Access to model x is restricted."], [], 1),
    ("not on the hub", [ERROR + "404 Client Error: Not Found for url: https://huggingface.co/t5-smal"], [], 1),
    ("too many requests to the hub", [ERROR + "429 Client Error: Too Many Requests for url: https://hf.co"], [], 1),
    ("certificate not accepted (SSL)", [ERROR + "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to "
                                        "get local issuer certificate"], [], 1),
    ("name not resolved (DNS)", [ERROR + "[Errno -3] Temporary failure in name resolution"], [], 1),
    ("network unreachable", [ERROR + "[Errno 101] Network is unreachable"], [], 1),
    ("hub did not answer in time", [ERROR + "DialogSum cannot be had: no success in 5 tries, last: The read operation "
                                    "timed out"], [], 1),
    ("hub did not answer in time", [ERROR + "[Errno 110] Connection timed out"], [], 1),
    ("hub in trouble", [ERROR + "503 Server Error: Service Unavailable for url: https://huggingface.co"], [], 1),
    ("hub out of reach", [ERROR + "DialogSum cannot be had. knkarthick/dialogsum@main: no success in 5 tries"], [], 1),
    # files
    ("disk full", [ERROR + "[Errno 28] No space left on device"], [], 1),
    ("disk full", [ERROR + "[Errno 27] File too large"], [], 1),
    ("hub out of reach", [], ["huggingface_hub.errors.LocalEntryNotFoundError: An error happened"], 1),
    ("not on the hub", [], ["huggingface_hub.errors.RemoteEntryNotFoundError: config.json"], 1),
    ("GPU lost", [], ["RuntimeError: CUDA driver error: device not ready"], 1),
    ("quota full", [ERROR + "[Errno 122] Disk quota exceeded: '/scratch/me/x'"], [], 1),
    ("stale file handle", [ERROR + "[Errno 116] Stale file handle: '/scratch/me/x'"], [], 1),
    ("input/output error of the file system", [ERROR + "[Errno 5] Input/output error: '/scratch/me/x'"], [], 1),
    ("no permission", [ERROR + "[Errno 13] Permission denied: '/scratch/you/x'"], [], 1),
    ("no permission", [ERROR + "[Errno 1] Operation not permitted: '/scratch/you/x'"], [], 1),
    ("read-only file system", [ERROR + "[Errno 30] Read-only file system: '/scratch'"], [], 1),
    ("too many open files", [ERROR + "[Errno 24] Too many open files: '/scratch/me/x'"], [], 1),
    ("too many processes or threads", [], ["RuntimeError: can't start new thread"], 1),
    ("out of memory on the host", [ERROR + "RuntimeError: [enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: "
                                   "can't allocate memory: you tried to allocate 8 bytes. Error code 12"], [], 1),
    ("damaged file", [ERROR + "SafetensorError: Error while deserializing header: HeaderTooLarge"], [], 1),
    # the experiment
    ("loss is not a number", [ERROR + "the training loss is not finite any more by step 12."], [], 1),
    ("inputs missing or stale", ["2026-11-25 10:02:00 ERROR stage 4_evaluate seed 42: inputs missing or stale: stage "
                                 "2_train_baseline: not done yet."], [], 3),
    ("record of the run deleted", [], ["job_2_baseline.sh: --settings /my scratch/runs/x_seed42/settings.json: no such "
                                       "file (see --help)"], 2),
    ("wrong setting or option", [], ["stage 2_train_baseline: MONO_S2S_EPOCHS: no such setting."], 2),
    ("wrong setting or option", [], ["stage_2_train_baseline.py: error: unrecognized arguments: --epochs"], 2),
    ("bug or unexpected data", [ERROR + "TypeError: expected a string. This looks like a bug; the traceback is above."],
     ["TypeError: expected a string"], 1),
    ("bug or unexpected data", [NOISE[1], ERROR + "KeyError: 'rouge1'. This looks like a bug; the traceback is above."],
     [], 1),
    ("unknown", [ERROR + "the monkeys ate it"], [], 1),
]  # fmt: skip


def diagnosed(tmp_path: Path, out: list[str], err: list[str], status: int | None, state: str = "failed"):
    log = tmp_path / "job_2_baseline_12.out"
    ending = [END.format(status)] if status is not None else []
    log.write_text("\n".join([*HEAD, *NOISE[:3], *out, *ending]) + "\n")
    log.with_suffix(".err").write_text("\n".join([*NOISE[3:], *err]) + "\n")
    evidence = evidence_of(StageStatus("2_train_baseline", state, "", "12", str(log)))
    return cause_of(evidence.judged, state, evidence.exit_status), evidence


@pytest.mark.parametrize(("name", "out", "err", "status"), SNIPPETS)
def test_the_cause_of_a_real_log(tmp_path, name, out, err, status):
    cause, evidence = diagnosed(tmp_path, out, err, status)
    assert cause.name == name, evidence
    if out or err:
        assert evidence.line in {*out, *err}


def test_the_table_is_tested_whole_and_has_thirty_causes():
    names = {cause.name for cause in CAUSES}
    untested = {"SLURM could not open the job's log", "file not found"}  # below
    assert len(names) >= 30 and names - {name for name, *_ in SNIPPETS} == untested


def test_warnings_alone_name_no_cause(tmp_path):
    cause, _ = diagnosed(tmp_path, NOISE, [], None)
    assert cause.name == "unknown"


def test_an_earlier_attempt_does_not_count(tmp_path):
    cause, _ = diagnosed(tmp_path, [ERROR + "[Errno 28] No space left on device", *HEAD, ERROR + "NaN loss"], [], 1)
    assert cause.name == "loss is not a number"
    log = tmp_path / "job_2_baseline_12.out"
    log.with_suffix(".err").write_text("RuntimeError: No CUDA GPUs are available\n" + HEAD[0] + "\n")
    log.write_text("\n".join([*HEAD, END.format(1)]))
    evidence = evidence_of(StageStatus("2_train_baseline", "failed", "", "12", str(log)))
    assert cause_of(evidence.judged, "failed", evidence.exit_status).name == "unknown"


@pytest.mark.parametrize(
    ("state", "name"),
    [
        ("timed out", "time limit"),
        ("out of memory", "out of memory on the host"),
        ("preempted", "preempted"),
        ("node failed", "node failure"),
    ],
)
def test_what_slurm_says_of_the_end_counts_more_than_a_log(tmp_path, state, name):
    cause, _ = diagnosed(tmp_path, [ERROR + "Read timed out", ERROR + "NaN loss"], [], 1, state)
    assert cause.name == name


def test_a_job_whose_log_could_not_be_opened(tmp_path):
    # Without accounting squeue tells neither: that the log was never made does.
    for reason, code in (("RaisedSignal:53(Real-time_signal_19)", ""), ("", "0:53"), ("None", "")):
        row = StageStatus("4_evaluate", "failed", "no log", "12", str(tmp_path / "gone.out"), reason, code)
        evidence = evidence_of(row)
        assert cause_of(evidence.judged, "failed", evidence.exit_status).name == "SLURM could not open the job's log"


def test_a_file_that_was_purged():
    assert (
        cause_of(ERROR + "FileNotFoundError: [Errno 2] No such file or directory: '/scratch/x'").name
        == "file not found"
    )


def test_repeating_is_for_what_can_go_better():
    settings = load_settings()
    training, setup = StageStatus("2_train_baseline", "failed"), StageStatus("0_setup", "failed")

    def helps(name, row=training, **changed):
        cause = next(cause for cause in CAUSES if cause.name == name)
        return repeating_helps(cause, row, settings, settings.replaced(**changed))

    assert helps("preempted") and helps("stale file handle") and helps("hub did not answer in time")
    for name in ("out of GPU memory", "loss is not a number", "no CUDA device", "wrong setting or option", "disk full",
                 "package missing", "segmentation fault", "job setup failed", "access to the hub denied"):  # fmt: skip
        assert not helps(name), name
    assert helps("time limit") and not helps("time limit", setup)
    assert helps("time limit", setup, SLURM_TIME_SCALE=2.0)
    assert helps("out of memory on the host", SLURM_MEMORY_SCALE=2.0) and helps("out of GPU memory", EVAL_BATCH_SIZE=1)


def test_what_reaches_a_terminal_has_no_control_characters():
    shown = printable("a\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J b\rc\u202egnp.exe\ttab\nline \udcff")
    assert all(character in "\t\n" or character.isprintable() for character in shown)
    assert "red" in shown and "\ttab\nline" in shown


@pytest.mark.parametrize("words", [["test_improvements.py", "--demo"], ["check_training_status.sh", "1", "2", "3"]])
def test_a_reader_that_is_gone_is_no_traceback(tmp_path, words):
    environment = os.environ | {"SCRATCH": str(tmp_path), "PROJECT": str(tmp_path), "MONO_S2S_PYTHON": sys.executable}
    command = [*([sys.executable] if words[0].endswith(".py") else []), str(ROOT / words[0]), *words[1:]]
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writer)
    assert result.returncode in (0, 1) and "Traceback" not in result.stderr and "BrokenPipe" not in result.stderr
