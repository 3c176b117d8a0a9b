"""Why stages break: the cause, how a log or SLURM tells it, what to do, and whether repeating can help. Data.

A cause is found from ONE line (the last error since the last start; see evidence.py) and from how the process ended,
never from warnings: what the software reports and survives is no cause.
"""

from __future__ import annotations

from dataclasses import dataclass

SETTINGS = "configs/experiment_config.py"
FETCH_HERE = (
    "run stages 0 and 1 where there is internet: ./run_all.sh --local --stop-stage 1; or name local copies in "
    "DATASETS_FILE and MODEL_NAME"
)
REINSTALL = "in the environment that the log names: python -m pip install -r requirements.txt (./validate_setup.sh)"
ROOM = "make room (./clean_checkpoints.sh, df -h), or choose another SCRATCH_DIR"
OTHER_NODE = "exclude the node (SLURM_EXTRA_OPTIONS='--exclude=NODE'), tell the cluster's support, and run again"


@dataclass(frozen=True)
class Cause:
    """A cause by name, and what to do about it.

    pattern: searched in the judged line. states: of check_training_status.sh, which decide alone. exits: statuses that
    decide together with the pattern, or alone where it is empty. repeat: whether the same command can go better as
    things are. settings: those whose change makes repeating worth while.
    """

    name: str
    pattern: str
    remedy: str
    repeat: bool = False
    states: tuple[str, ...] = ()
    exits: tuple[int, ...] = ()
    settings: tuple[str, ...] = ()


# The first that matches counts: what is more specific comes first.
CAUSES = (
    # ---- what SLURM did -----------------------------------------------------------------------------------------
    Cause(
        "preempted",
        r"DUE TO PREEMPTION",
        "progress is saved: the same command resumes; a QoS or partition that is not preempted avoids it",
        repeat=True,
        states=("preempted",),
    ),
    Cause(
        "node failure",
        r"DUE TO NODE FAILURE|NODE_FAIL",
        "the same command resumes on another node",
        repeat=True,
        states=("node failed",),
    ),
    Cause(
        "requeue limit",
        r"it was \d+ times already",
        "progress is saved: the same command resumes; raise SLURM_TIME_SCALE or SLURM_MAX_REQUEUES if it happens often",
        repeat=True,
    ),
    Cause(
        "requeue refused by SLURM",
        r"SLURM refused to requeue",
        "progress is saved: the same command resumes; ask the cluster's support whether jobs may requeue themselves",
        repeat=True,
    ),
    Cause(
        "time limit",
        r"DUE TO TIME LIMIT",
        "progress is saved: the same command resumes; raise SLURM_TIME_SCALE if it happens again",
        repeat=True,  # but see repeating_helps: a stage that saves no progress needs more time
        states=("timed out",),
        settings=("SLURM_TIME_SCALE",),
    ),
    Cause(
        "out of memory on the host",
        r"oom[-_ ]kill|OOM Killed|Out Of Memory|exceeded memory limit",
        "raise SLURM_MEMORY_SCALE (2.0 doubles every stage's memory)",
        states=("out of memory",),
        settings=("SLURM_MEMORY_SCALE",),
    ),
    Cause(
        "SLURM could not open the job's log",
        r"RaisedSignal:53|\b0:53\b|[Cc]ould not open (stdout|stderr|output) file|the log was never made",
        "mkdir -p logs in the checkout (and check that it can be written: quota); if the checkout was moved, type the "
        "command there: what waits in the queue is then submitted again",
    ),
    Cause(
        "job setup failed",
        r"JOB_SETUP failed",
        f"correct JOB_SETUP in {SETTINGS}: type its lines on a compute node to see which one fails",
        settings=("JOB_SETUP",),
    ),
    Cause(
        "no module command",
        r"\bmodule: (command )?not found|Lmod has detected the following error|Unable to locate a modulefile",
        "jobs there have no such module: initialise modules in JOB_SETUP (source /etc/profile.d/modules.sh), or name "
        "one that `module avail` shows on a compute node",
        settings=("JOB_SETUP",),
    ),
    # ---- GPUs ---------------------------------------------------------------------------------------------------
    Cause(
        "out of GPU memory",
        r"CUDA out of memory|CUDA error: out of memory|torch\S*OutOfMemoryError|cudaErrorMemoryAllocation"
        r"|CU(BLAS|DNN|FFT|SOLVER)_STATUS_ALLOC_FAILED|HIP out of memory",
        "halve EVAL_BATCH_SIZE or ATTACK_BATCH_SIZE, in training set MICRO_BATCH_SIZE=1 or GRADIENT_CHECKPOINTING=true "
        "(none has influence on results), or ask for a larger GPU in SLURM_GRES",
        settings=(
            "EVAL_BATCH_SIZE",
            "ATTACK_BATCH_SIZE",
            "MICRO_BATCH_SIZE",
            "GRADIENT_CHECKPOINTING",
            "SLURM_GRES",
            "SLURM_PARTITION",
            "PRECISION",
        ),
    ),
    Cause(
        "driver and library do not match",
        r"[Dd]river/library version mismatch",
        "the node's driver was updated under it, only a reboot helps: " + OTHER_NODE,
        settings=("SLURM_EXTRA_OPTIONS",),
    ),
    Cause(
        "GPU driver too old",
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient|"
        r"forward compatibility was attempted",
        "install a torch built for the node's CUDA (nvidia-smi shows which), or choose a partition with a newer driver",
        settings=("SLURM_PARTITION", "SLURM_GRES"),
    ),
    Cause(
        "GPU too old or too new for this torch",
        r"no kernel image is available|is not compatible with the current PyTorch installation",
        "choose another GPU type in SLURM_GRES, or install a torch built for this one",
        settings=("SLURM_PARTITION", "SLURM_GRES"),
    ),
    Cause(
        "defective GPU memory (ECC)",
        r"uncorrectable ECC|ECC error",
        OTHER_NODE,
        settings=("SLURM_EXTRA_OPTIONS",),
    ),
    Cause(
        "GPU lost",
        r"GPU is lost|device not ready|fallen off the bus|unspecified launch failure"
        r"|CUDA-capable device\(s\) is/are busy|\bXid\b",
        OTHER_NODE,
        settings=("SLURM_EXTRA_OPTIONS",),
    ),
    Cause(
        "no CUDA device",
        r"PyTorch sees none|No CUDA GPUs are available|no CUDA-capable device|Found no NVIDIA driver"
        r"|CUDA error: invalid device ordinal|Torch not compiled with CUDA",
        "the job got no GPU that torch can use: check SLURM_GRES, and that torch has CUDA (./validate_setup.sh)",
        settings=("SLURM_GRES", "SLURM_PARTITION", "DEVICE", "JOB_SETUP"),
    ),
    Cause(
        "GPUs could not talk to each other (NCCL)",
        r"\bNCCL\b|nccl\w*(Error|Failure)|ProcessGroupNCCL",
        "ask for one GPU (SLURM_GRES), or set NCCL_P2P_DISABLE=1 (or NCCL_SOCKET_IFNAME) in JOB_SETUP; then run again",
        exits=(134,),
        settings=("SLURM_GRES", "JOB_SETUP"),
    ),
    Cause(
        "invalid GPU memory access",
        r"device-side assert|illegal memory access|misaligned address",
        "a bug or damaged input: run the stage with CUDA_LAUNCH_BLOCKING=1 in JOB_SETUP and report the traceback",
    ),
    # ---- crashes ------------------------------------------------------------------------------------------------
    Cause(
        "bus error",
        r"Bus error|SIGBUS",
        "a mapped file was cut or /dev/shm is full (df -h /dev/shm): make room there, or on SCRATCH_DIR, and run again",
        exits=(135,),
    ),
    Cause(
        "illegal instruction",
        r"Illegal instruction|SIGILL",
        "the processor lacks what a package was built for: choose another partition (or --constraint in "
        "SLURM_EXTRA_OPTIONS), or reinstall the packages on a node of this kind",
        exits=(132,),
        settings=("SLURM_PARTITION", "SLURM_CPU_PARTITION", "SLURM_EXTRA_OPTIONS"),
    ),
    Cause(
        "segmentation fault",
        r"Segmentation fault|SIGSEGV",
        "compiled code crashed. " + REINSTALL + "; if it stays: another node, then report it",
        exits=(139,),
    ),
    Cause(
        "floating point exception",
        r"Floating point exception|SIGFPE",
        "compiled code crashed. " + REINSTALL,
        exits=(136,),
    ),
    # ---- the Python environment ---------------------------------------------------------------------------------
    Cause(
        "CUDA library missing",
        r"lib(cudnn|cublas|cudart|nccl|cusparse|nvrtc|nvJitLink|cuda)\S*(: cannot open shared|.*undefined symbol)"
        r"|(Could not load|Unable to load).*lib(cudnn|cublas|cudart)",
        "torch and its CUDA libraries do not belong together: " + REINSTALL + "; remove cuda modules from JOB_SETUP",
        settings=("JOB_SETUP",),
    ),
    Cause(
        "system library too old (GLIBC)",
        r"GLIBC(XX)?_[\d.]+'? not found|CXXABI_[\d.]+'? not found",
        "the environment was made on a newer system than this node: make it again on a node of this kind, or load a "
        "newer gcc module in JOB_SETUP",
        settings=("JOB_SETUP",),
    ),
    Cause(
        "shared library missing",
        r"error while loading shared libraries|cannot open shared object file",
        "load the module that has it in JOB_SETUP, or " + REINSTALL,
        settings=("JOB_SETUP",),
    ),
    Cause(
        "interpreter gone",
        r"bin/python[\d.]*: (No such file|cannot execute|Permission denied)|bad interpreter|No Python at"
        r"|no Python 3\.10 or newer|the interpreter .+ does not exist|no environment is active",
        "the environment was moved, deleted or is not visible on the node: activate one that is, then run again",
        exits=(126, 127),
    ),
    Cause(
        "package missing",
        r"ModuleNotFoundError|No module named|lacks packages|PackageNotFoundError",
        REINSTALL,
    ),
    Cause("packages do not fit together", r"ImportError|undefined symbol", REINSTALL),
    # ---- network ------------------------------------------------------------------------------------------------
    Cause(
        "access to the hub denied",
        r"\b40[13]\b.*(Client Error|Unauthorized|Forbidden)|GatedRepoError|gated repo|Invalid (user|username).*token"
        r"|Invalid credentials",
        "accept the conditions on the repository's page, or renew HF_TOKEN (unset it for public data); then run again",
    ),
    Cause(
        "not on the hub",
        r"\b404\b.*(Client Error|Not Found)|\b(Repository|Revision|(Remote)?Entry)NotFoundError",
        "correct MODEL_NAME, its revision, or the entry in DATASETS_FILE",
        settings=("MODEL_NAME", "MODEL_REVISION", "DATASETS_FILE"),
    ),
    Cause(
        "too many requests to the hub",
        r"\b429\b.*(Client Error|Too Many)|Too Many Requests",
        "wait an hour, or set HF_TOKEN; then run again",
        repeat=True,
    ),
    Cause(
        "certificate not accepted (SSL)",
        r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError|certificate verify failed",
        "a proxy or an old certificate store: export SSL_CERT_FILE and REQUESTS_CA_BUNDLE in JOB_SETUP, or "
        + FETCH_HERE,
        settings=("JOB_SETUP",),
    ),
    Cause(
        "name not resolved (DNS)",
        r"name resolution|Name or service not known|nodename nor servname|NameResolutionError|gaierror|getaddrinfo",
        "nodes without internet: " + FETCH_HERE,
        settings=("DATASETS_FILE", "MODEL_NAME", "JOB_SETUP"),
    ),
    Cause(
        "network unreachable",
        r"Network is unreachable|No route to host|Connection refused|ProxyError|\b407\b.*Proxy",
        "nodes without internet: " + FETCH_HERE,
        settings=("DATASETS_FILE", "MODEL_NAME", "JOB_SETUP"),
    ),
    Cause(
        "hub did not answer in time",
        r"[Rr]ead timed out|[Rr]ead operation timed out|ReadTimeout|ConnectTimeout|Connection timed out|timed out"
        r"|did not answer",
        "the same command tries again; if it stays: " + FETCH_HERE,
        repeat=True,
    ),
    Cause(
        "hub in trouble",
        r"\b50[0234]\b.*(Server Error|Bad Gateway|Unavailable|Time-?out)|Connection reset by peer|RemoteDisconnected"
        r"|IncompleteRead|ChunkedEncodingError|RemoteProtocolError",
        "the same command tries again",
        repeat=True,
    ),
    Cause(
        "hub out of reach",
        r"no success in \d+ tries|cannot be had|OfflineModeIsEnabled|LocalEntryNotFoundError|Connect(ion)?Error",
        FETCH_HERE,
        settings=("DATASETS_FILE", "MODEL_NAME"),
    ),
    # ---- files and limits ---------------------------------------------------------------------------------------
    Cause(
        "quota full",
        r"Disk quota exceeded|EDQUOT|Errno 122",
        "quota -s shows which: " + ROOM,
        settings=("SCRATCH_DIR",),
    ),
    Cause("disk full", r"[Nn]o space left|ENOSPC|Errno 2[78]\b", ROOM, settings=("SCRATCH_DIR", "PROJECT_DIR")),
    Cause(
        "stale file handle",
        r"[Ss]tale (NFS )?file handle|ESTALE|Errno 116",
        "the network file system lost a file for a moment: the same command resumes",
        repeat=True,
    ),
    Cause(
        "input/output error of the file system",
        r"Input/output error|EIO\b|Errno 5\b|Remote I/O error|Transport endpoint",
        "the disk or network file system fails: tell the cluster's support; once it works the same command resumes",
    ),
    Cause(
        "no permission",
        r"Permission denied|Operation not permitted|PermissionError|EACCES|EPERM|may not write there",
        "check the owner of the path that the line names (ls -ld), or choose other directories",
        settings=("SCRATCH_DIR", "PROJECT_DIR", "HF_CACHE_DIR"),
    ),
    Cause(
        "read-only file system", r"Read-only file system|EROFS", "choose another directory", settings=("SCRATCH_DIR",)
    ),
    Cause(
        "too many open files",
        r"Too many open files|EMFILE|ENFILE|Errno 24\b",
        "raise the limit in JOB_SETUP: ulimit -n 8192; or lower NUM_WORKERS",
        settings=("JOB_SETUP", "NUM_WORKERS"),
    ),
    Cause(
        "too many processes or threads",
        r"can't start new thread|Resource temporarily unavailable|pthread_create failed|fork: retry",
        "raise the limit in JOB_SETUP (ulimit -u), or lower NUM_WORKERS and SLURM_CPUS_PER_TASK",
        settings=("JOB_SETUP", "NUM_WORKERS", "SLURM_CPUS_PER_TASK"),
    ),
    Cause(
        "out of memory on the host",
        r"Cannot allocate memory|can't allocate memory|MemoryError|bad_alloc|Errno 12\b|DataLoader worker .* killed",
        "raise SLURM_MEMORY_SCALE (2.0 doubles every stage's memory)",
        settings=("SLURM_MEMORY_SCALE", "NUM_WORKERS"),
    ),
    Cause(
        "damaged file",
        r"SafetensorError|HeaderTooLarge|InvalidHeader|PytorchStreamReader|ArrowInvalid|Not a gzip|BadZipFile"
        r"|invalid load key|EOFError",
        "delete the file that the line names (caches are fetched again, outputs are made again), then run again",
    ),
    # ---- the experiment -----------------------------------------------------------------------------------------
    Cause(
        "loss is not a number",
        r"loss is (not finite|NaN|nan)|NaN loss|not (a )?finite|[Ll]oss.*\b(nan|NaN|inf)\b",
        "lower LEARNING_RATE for both models, or set PRECISION=fp32; then run again",
        settings=("LEARNING_RATE", "PRECISION", "GRADIENT_CLIP"),
    ),
    Cause(
        "inputs missing or stale",
        r"inputs missing or stale|settings changed|was changed|is gone|has other outputs now|must run again",
        "the same command runs again what is needed",
        repeat=True,
        states=("stale",),
        exits=(3,),
    ),
    Cause(
        "bug or unexpected data",
        r"This looks like a bug|\b(Key|Type|Index|Attribute|Assertion|ZeroDivision|Recursion|NotImplemented)Error\b",
        "report it with the traceback in the log; repeating it as it is will not help",
    ),
    Cause(
        "record of the run deleted",
        r"--settings .+: no such file",
        "the run's directory below runs/ was removed while its jobs waited: the same command submits them again",
        repeat=True,
    ),
    Cause(
        "wrong setting or option",
        r"no such setting|MONO_S2S_\w+[:=]|is not set|must be greater|must not be|is not one of"
        r"|unrecognized arguments|usage:|expected (a|true|one|N)\b.*|cannot write to",
        "correct what the line names, then run again",
        exits=(2,),
    ),
    Cause(
        "file not found",
        r"FileNotFoundError|No such file or directory",
        "was it deleted (scratch is purged)? Put back the file that the line names, or run the stage that makes it",
    ),
    # ---- endings without a word ---------------------------------------------------------------------------------
    Cause(
        "killed, most likely out of memory",
        r"^Killed$|\bKilled\s+\S*python",
        "raise SLURM_MEMORY_SCALE (2.0 doubles every stage's memory); on a machine of your own free some memory",
        exits=(137,),
        settings=("SLURM_MEMORY_SCALE",),
    ),
    Cause(
        "aborted", r"\bAborted\b|SIGABRT|terminate called|Fatal Python error", "report it with the log", exits=(134,)
    ),
    Cause(
        "cancelled",
        r"got SIG(TERM|INT|HUP)|Interrupted by SIG|CANCELLED|SLURM is ending this job|KeyboardInterrupt",
        "progress is saved: the same command resumes",
        repeat=True,
        states=("cancelled",),
        exits=(130, 143),
    ),
)
UNKNOWN = Cause("unknown", "", "read the log; the same command tries again", repeat=True)
