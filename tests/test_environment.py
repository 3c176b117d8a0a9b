"""Variables of the calling shell that must not reach sbatch, SLURM's queries, git or a process that runs alone."""

import subprocess

import pytest

from utils.core import environment
from utils.core.errors import UsageError
from utils.core.seeds import parse_seed

ARRAY_TASK = """SLURM_JOB_ID SLURM_JOBID SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID SLURM_ARRAY_TASK_COUNT
SLURM_ARRAY_TASK_MIN SLURM_ARRAY_TASK_MAX SLURM_RESTART_COUNT SLURM_STEP_ID SLURM_NTASKS SLURM_MEM_PER_CPU
SLURM_MEM_PER_NODE SLURM_PROCID SLURM_CPUS_PER_TASK SLURM_TIME_FORMAT SLURMD_NODENAME""".split()
FILTERS = """SQUEUE_PARTITION SQUEUE_QOS SQUEUE_NAMES SQUEUE_USERS SQUEUE_ACCOUNT SQUEUE_STATES SQUEUE_FORMAT
SINFO_PARTITION SACCT_FORMAT SCANCEL_NAME SCANCEL_STATE SCONTROL_ALL SBATCH_PARTITION
SBATCH_ARRAY_INX SBATCH_TIMELIMIT""".split()
LAUNCH = """WORLD_SIZE RANK LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID ACCELERATE_USE_CPU
ACCELERATE_MIXED_PRECISION PARALLELISM_CONFIG_TP_SIZE XLA_USE_BF16 PET_NNODES NODE_RANK NNODES NPROC_PER_NODE
PMI_SIZE PMI_RANK PMIX_RANK OMPI_COMM_WORLD_SIZE OMPI_UNIVERSE_SIZE MV2_COMM_WORLD_RANK I_MPI_INFO_NUMA_NODE_NUM
HYDRA_LOCAL_PROC MPI_LOCALRANKID PALS_RANKID PALS_APID ALPS_APP_PE JSM_NAMESPACE_RANK FLUX_TASK_RANK
HOROVOD_RANK""".split()
GIT = "GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_CEILING_DIRECTORIES GIT_NAMESPACE".split()
NEEDED = """PATH HOME SLURM_CONF SLURM_CLUSTERS SLURM_JWT SCRATCH CUDA_VISIBLE_DEVICES LD_LIBRARY_PATH
GIT_CONFIG_GLOBAL""".split()


def names(environ: dict[str, str]) -> set[str]:
    return set(environ)


def test_each_use_loses_what_is_foreign_to_it_and_nothing_else():
    shell = dict.fromkeys((*ARRAY_TASK, *FILTERS, *LAUNCH, *GIT, *NEEDED, "SBATCH_RESERVATION"), "1")
    assert names(environment.for_sbatch(shell)) == {*NEEDED, *GIT, "SBATCH_RESERVATION"}
    assert names(environment.for_queries(shell)) == {*NEEDED, *GIT, *LAUNCH, "LC_ALL"}
    assert names(environment.for_git(shell)) == names(shell) - {*GIT} | {"LC_ALL"}
    alone = dict(shell)
    assert environment.forget_launch(alone) == sorted(LAUNCH)
    assert names(alone) == names(shell) - {*LAUNCH}


@pytest.mark.parametrize(
    ("shell", "clusters"),
    [
        ({}, None),
        ({"SLURM_CLUSTERS": "blanca"}, "blanca"),
        ({"SBATCH_CLUSTERS": "blanca"}, "blanca"),  # sbatch alone reads it: squeue would look at another cluster
        ({"SBATCH_CLUSTERS": "blanca", "SLURM_CLUSTERS": "alpine"}, "blanca"),
        ({"SBATCH_CLUSTERS": "", "SLURM_CLUSTERS": "alpine"}, "alpine"),
        ({"SLURM_CLUSTER_NAME": "alpine", "SLURM_WORKING_CLUSTER": "alpine:host:6817:9472"}, None),
    ],
)
def test_submission_and_queries_mean_the_same_clusters(shell, clusters):
    for left in (environment.for_sbatch(shell), environment.for_queries(shell)):
        assert left.get("SLURM_CLUSTERS") == clusters and "SBATCH_CLUSTERS" not in left


def test_git_is_asked_about_the_directory_that_is_named(tmp_path):
    for name in ("here", "hook"):
        subprocess.run(["git", "init", "--quiet", tmp_path / name], check=True)
    inherited = {"GIT_DIR": str(tmp_path / "hook" / ".git"), "GIT_WORK_TREE": str(tmp_path / "hook")}
    words = ["git", "-C", str(tmp_path / "here"), "rev-parse", "--show-toplevel"]
    said = subprocess.run(words, env=environment.for_git(inherited), capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(tmp_path / "here")


@pytest.mark.parametrize(("text", "seed"), [("0", 0), ("42", 42), ("007", 7), ("00", 0), ("2147483647", 2147483647)])
def test_seeds(text, seed):
    assert parse_seed(text) == seed


@pytest.mark.parametrize(
    "text",
    ["", " 42", "-1", "+1", "1.5", "1e3", "0x10", "4_2", "x", "٤٢", "２", "²", "2147483648", "99999999999999999999",
     "9" * 5000, "1\n", "NaN"],
    ids=lambda text: ascii(text)[:24],
)  # fmt: skip
def test_what_is_no_seed_is_refused_by_name(text):
    with pytest.raises(UsageError, match="expected a whole number from 0 to 2147483647"):
        parse_seed(text)
