"""Every setting of mono-s2s, one constant per line, with its unit and why it has this value.

Edit a line here, or set it for one run by an environment variable: MONO_S2S_LEARNING_RATE=1e-4 ./run_all.sh
Unknown MONO_S2S_ names and values of the wrong type are errors. PROFILE picks a set of smaller values
(configs/profiles.py) on top of these; an environment variable beats the profile.

    python -c "from configs.experiment_config import *; print('Config OK')"
"""

import os as _os
from pathlib import Path as _Path

from configs import choices as _choices
from configs import overrides as _overrides

_user = _os.environ.get("USER") or _os.environ.get("LOGNAME") or ""


def _first_directory(*candidates: str) -> str:
    return next((path for path in candidates if path and _Path(path).is_dir()), "")


# ---- which experiment -----------------------------------------------------------------------------------------
PROFILE = "full"  # full: the experiment; quick: 200 examples, for debugging; demo: minutes on a laptop, own data
EXPERIMENT = ""  # name of a variant: work and results go to directories with _NAME behind theirs, beside the others

# ---- places ---------------------------------------------------------------------------------------------------
# Alpine sets no $SCRATCH; /scratch/alpine/$USER is purged 90 days after a file's creation, /projects is kept.
SCRATCH_DIR = _os.environ.get("SCRATCH", "") or _first_directory(f"/scratch/alpine/{_user}")  # work and results
PROJECT_DIR = _os.environ.get("PROJECT", "") or _first_directory(f"/projects/{_user}")  # permanent storage
DEMO_DIR = ""  # root of a demo run; empty: demo_run/ in the checkout

# ---- the cluster (CURC Alpine, August 2026; another cluster: edit these lines) -----------------------------------
# "a|b" means: the first that this cluster has. Before August 2026 Alpine said amilan and normal.
SLURM_PARTITION = "aa100"  # GPU stages
SLURM_CPU_PARTITION = "acpu|amilan"  # stages without a GPU
SLURM_QOS = "gpu-normal|normal"  # of the GPU partition, 24 h
SLURM_CPU_QOS = "cpu-normal|normal"  # of the CPU partition, 24 h
SLURM_ACCOUNT = "ucb-general"  # every Alpine user has it; others: sacctmgr show assoc user=$USER
SLURM_GRES = "gpu:a100_80gb:1|gpu:a100-40gb:1|gpu:a100:1"  # typed: an untyped gpu:1 gets Alpine's smallest GPU
SLURM_CPUS_PER_TASK = 8  # cores a job; at most 21 per A100 on Alpine
SLURM_MEMORY_SCALE = 1.0  # multiplies every stage's memory of the stage table
SLURM_TIME_SCALE = 1.0  # multiplies every stage's time limit of the stage table
SLURM_EXTRA_OPTIONS = ""  # more sbatch options, as typed in a shell, for every job
SLURM_GPU_OPTIONS = ""  # the same for jobs with a GPU alone, e.g. --constraint=v100
SLURM_KILL_ON_INVALID_DEP = True  # jobs behind a failed one are cancelled instead of pending for ever
SLURM_SIGNAL_SECONDS = 300  # warning before the time limit: time to write a checkpoint
SLURM_MAX_REQUEUES = 5  # how often a job that ran out of time or was preempted goes back to the queue
EVAL_ARRAY_TASKS = 1  # 1: stage 4 is one job; n: a job array shares it
ATTACK_ARRAY_TASKS = 1  # the same for stages 5 and 6
MAX_PARALLEL_SEEDS = 3  # run_multi_seed.sh: seeds that run side by side
JOB_SETUP = ""  # shell line run at the start of each job, e.g. "module purge; module load cuda/12.1.1"

# ---- device and speed (no influence on what is measured) -----------------------------------------------------------
DEVICE = "cuda"  # cuda: a missing GPU is an error; cpu; auto: a GPU where there is one
PRECISION = "auto"  # training and generation: bf16 autocast on a GPU that has it, else fp32; or fp32, bf16
MICRO_BATCH_SIZE = 0  # training examples at once; their gradients add up to those of BATCH_SIZE. 0: as many as fit
TRAINING_GRAPHS = "auto"  # auto: CUDA graphs where a check at the start finds the same gradients sooner; off
GRADIENT_CHECKPOINTING = False  # training computes activations again: less memory, a third slower; for large models
EVAL_BATCH_SIZE = 64  # full-length documents in one generation batch; short ones are batched by tokens
ATTACK_BATCH_SIZE = 128  # full-length inputs in one forward pass of an attack; halves itself when memory is short
NUM_WORKERS = 0  # processes for tokenising and ROUGE; 0: one per core
TRACK_TRAINING_TIME = True  # seconds per epoch in the training history
TRACK_INFERENCE_TIME = True  # seconds of generation in the evaluation results
REPORT_TO = "none"  # live curves of training, for tensorboard, wandb or mlflow; the package is yours to install
COMPUTE_GRADIENT_NORMS = True  # gradient norms in training history and attack records

# ---- model ------------------------------------------------------------------------------------------------------
MODEL_NAME = "google-t5/t5-small"  # hub id, or a directory with a T5 and its tokenizer (offline clusters)
MODEL_REVISION = "df1b051c49625cf57a3d0d8d3863ed4d13564fe4"  # its commit on the hub; of no other model
MONOTONIC_EPSILON = 1e-6  # softplus(V) = |W_pretrained| + this at the start: softplus has no zero
CONTROL_ARMS: tuple[str, ...] = ()  # more models of stage 3 (configs/arms.py): they tell what caused a difference

# ---- data -------------------------------------------------------------------------------------------------------
TRAIN_DATASETS = _choices.TRAIN_SETS
TEST_DATASETS = _choices.TEST_SETS
ATTACK_DATASET = _choices.ATTACKED_SET  # the test set that attacks are measured on; optimised on its validation part
# JSON file that replaces data sets, or adds some under keys of their own: local files, hub copies (docs/own-data.md).
DATASETS_FILE = ""
HF_CACHE_DIR = ""  # cache of downloads; empty: hf_cache in the work directory
TASK_PREFIX = "summarize: "  # T5's own prefix for summarization
MAX_INPUT_LENGTH = 512  # tokens of prefix, document and </s>
MAX_TARGET_LENGTH = 128  # tokens of a summary and </s>
DATA_SEED = 0  # draws samples; the same for every training seed, so that seeds differ in training alone
USE_FULL_TEST_SETS = True  # False: QUICK_TEST_SIZE rows of each; results say so
QUICK_TEST_SIZE = 200  # rows of each test set where USE_FULL_TEST_SETS is off
MAX_TRAIN_EXAMPLES = 0  # rows of the training set; 0: all
DEDUPLICATE_TRAINING = True  # HighlightSum contains DialogSum: without this it counts twice
DATASET_ALLOW_PARTIAL = False  # True: go on without a data set that cannot be had; every output then says so
DATASET_MAX_RETRIES = 5  # tries for a download that fails for a passing reason
DATASET_RETRY_DELAY = 10.0  # seconds before the second try; doubles, with jitter

# ---- training: the same for both models, but for the warm-up ---------------------------------------------------------
NUM_EPOCHS = 7
MONOTONIC_NUM_EPOCHS = 7  # must equal NUM_EPOCHS: anything else is refused as unfair
LEARNING_RATE = 5e-5  # peak of the linear schedule
BATCH_SIZE = 4  # examples per optimizer step, over all GPUs
WEIGHT_DECAY = 0.01  # AdamW, on the effective weights of both models
GRADIENT_CLIP = 1.0  # global norm
WARMUP_RATIO = 0.10  # share of the steps, baseline
MONOTONIC_WARMUP_RATIO = 0.15  # the only difference: softplus starts further from its optimum
CHECKPOINTS_TO_KEEP = 2  # newest checkpoints that keep their optimizer state; weights of every epoch stay

# ---- generation and scores ---------------------------------------------------------------------------------------
NUM_BEAMS = 4
LENGTH_PENALTY = 1.2
MIN_NEW_TOKENS = 10  # tokens
MAX_NEW_TOKENS = 80  # tokens
NO_REPEAT_NGRAM_SIZE = 3
GENERATION = "fast"  # fast: our beam search, with the ids of transformers'; transformers: its own, slower
BOOTSTRAP_SAMPLES = 1000
CONFIDENCE = 0.95
QUALITY_MARGIN = 0.01  # ROUGE-L, 0 to 1: one point; a smaller loss counts as none (docs/statistics.md)

# ---- attacks ------------------------------------------------------------------------------------------------------
TRIGGER_OPTIMIZE_SIZE_FULL = 1000  # CNN/DM validation examples that triggers are optimised and selected on
TRIGGER_EVAL_SIZE_FULL = 1500  # CNN/DM test examples that every attack is measured on
TRIGGER_TYPES = _choices.TRIGGER_TYPES
TRIGGER_LENGTH = 5  # tokens
TRIGGER_ITERATIONS = 100
TRIGGER_RESTARTS = 5
TRIGGER_CANDIDATES = 32  # replacements per restart and iteration that are scored exactly
TRIGGER_GRADIENT_EXAMPLES = 32  # examples behind one gradient
TRIGGER_GRADIENT_FREE_TYPES = TRIGGER_TYPES  # types that are searched without gradients as well, at equal cost
# Random triggers of the same length, the best of these is the control; on 200 held-out texts that is 1/120 of the
# passes of a search (TRIGGER_GRADIENT_FREE_TYPES has the control of equal cost). They are candidates as well.
TRIGGER_RANDOM_CONTROLS = 20
HOTFLIP_NUM_FLIPS = 5  # tokens changed in one example, at most
HOTFLIP_CANDIDATES = 37  # flips scored exactly per step, on average: half of all at the first step
# Gradients at noisy points averaged with the first one: they look as far as a flip goes. 0: plain HotFlip.
HOTFLIP_SMOOTHGRAD_SAMPLES = 2
HOTFLIP_BEAM = 1  # partial attacks kept per step; the cost of a step grows with it
HOTFLIP_RESTARTS = 1  # starts: the first from the clean text, each other from one random flip
# The attacks that choose by generated summaries (by metric, word importance), and with them the worst case:
HOTFLIP_METRIC_EXAMPLES = 500  # examples that the suite and its arms are made on; 0: all (three times the hours)
HOTFLIP_METRIC_POSITIONS = 64  # positions whose importance is measured, one summary each
HOTFLIP_METRIC_REPLACEMENTS = 16  # flips tried at each position, one summary each
HOTFLIP_METRIC_ROUNDS = 12  # positions tried before the best flip is taken and the search goes on from there
HOTFLIP_METRIC_SUMMARIES = 240  # of one example, at most: an attack that succeeds ends earlier
CEILING_EXAMPLES = 20  # texts where the best single flip is looked for among all legal ones; 0: none
CEILING_MOVES = 20_000  # flips of each that are tried by loss: all, or a random sample where there are more
CEILING_SUMMARIES = 500  # flips of each that are tried by generated ROUGE-L, drawn at random
# Attack examples on which every snapshot of each training is attacked, for the comparison at equal quality. 0: off.
QUALITY_CURVE_EXAMPLES = 200
ORDER_CHAINS = 200  # chains of sentences of growing strength in the mechanism panel, 20 to 200 (all); 0: off
ATTACK_TOKEN_SET = "roundtrip"  # roundtrip: text that a user could type; raw: any ids (a stronger attacker)
ATTACK_LOSS = "reference"  # what an attack raises: the loss of the reference, or of the model's own_output
ATTACK_SUCCESS_THRESHOLD = 0.15  # relative ROUGE-L drop that counts as success
ATTACK_MIN_CLEAN_ROUGE = 0.05  # ROUGE-L below this has nothing to lose: not attackable, counted apart
ATTACK_CONTROLS = True  # the suite of attacks, and random and gradient-free controls with as many passes

_overrides.apply(globals())
