"""Variables of the calling shell that must not decide what this project does: one list, removed before each use.

Whoever types a command inside a SLURM job, under torchrun or in a git hook hands on variables that describe *that* job,
process group or repository. A job submitted with them takes itself for a task of somebody's array; squeue filters its
answer by them; a training waits for ranks that do not exist. Torch-free, standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

# SLURM describes a job, its tasks and steps by SLURM_ and SLURMD_ variables. Those of how to reach the controller stay.
JOB_PREFIXES = ("SLURM_", "SLURMD_", "SLURMSTEPD_")
KEPT_SLURM = frozenset(
    "SLURM_CONF SLURM_CONF_SERVER SLURM_JWT SLURM_SACK_KEY SLURM_SACK_JWKS SLURM_DEBUG_FLAGS".split()
)
# Defaults and filters of SLURM's own commands. SBATCH_ARRAY_INX would make an array of a plain job.
COMMAND_PREFIXES = ("SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "SCONTROL_", "SPRIO_")
KEPT_SBATCH = frozenset("SBATCH_EXPORT SBATCH_RESERVATION SBATCH_CONSTRAINT SBATCH_WCKEY".split())
# A process group that torchrun, accelerate or an MPI launcher made: torch and accelerate would join it, or would train
# in another precision or split. Sources: torch.distributed.run, accelerate's utils/launch.py and state.py; the manuals
# of Open MPI, MPICH (Hydra), Intel MPI, MVAPICH, HPE PALS and ALPS, PMIx, IBM JSM, Flux and Horovod.
LAUNCH_VARIABLES = frozenset(
    "RANK LOCAL_RANK GROUP_RANK ROLE_RANK ROLE_NAME CROSS_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_WORLD_SIZE "
    "ROLE_WORLD_SIZE CROSS_SIZE LOCAL_SIZE NODE_RANK NNODES NPROC NPROC_PER_NODE MASTER_ADDR MASTER_PORT "
    "MPI_LOCALRANKID MPI_LOCALNRANKS MP_CHILD FORK_LAUNCHED SMDATAPARALLEL_LOCAL_RANK SM_FRAMEWORK_PARAMS "
    "SM_HP_MP_PARAMETERS XLA_USE_BF16 XLA_DOWNCAST_BF16".split()
)
LAUNCH_PREFIXES = (
    *("TORCHELASTIC_", "TORCH_ELASTIC_", "PET_", "ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "MEGATRON_LM_"),
    *("PMI_", "PMI2_", "PMIX_", "OMPI_", "PRTE_", "I_MPI_", "HYDRA_", "MPIRUN_", "MV2_", "MVP_"),
    *("PALS_", "ALPS_APP_", "JSM_", "FLUX_", "HOROVOD_"),
)
# Git of a hook or of another work tree. GIT_CONFIG_ names files and entries that the user chose (safe.directory).
KEPT_GIT = ("GIT_CONFIG_", "GIT_EXEC_PATH")


def is_job_variable(name: str) -> bool:
    """Whether a variable describes a SLURM job, array task, step or restart."""
    return name.startswith(JOB_PREFIXES) and name not in KEPT_SLURM


def is_launch_variable(name: str) -> bool:
    """Whether a variable makes torch or accelerate take this process for one of several."""
    return name in LAUNCH_VARIABLES or name.startswith(LAUNCH_PREFIXES)


def for_sbatch(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a submission, and through it the job, may inherit; the SBATCH_ options that say where or how stay."""
    kept = {
        name: value
        for name, value in _given(environment).items()
        if not is_job_variable(name)
        and not is_launch_variable(name)
        and (not name.startswith(COMMAND_PREFIXES) or name in KEPT_SBATCH)
    }
    return kept | _clusters(environment)


def for_queries(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """For squeue, sinfo, sacct, scontrol, scancel: no filters, no formats, English answers."""
    kept = {
        name: value
        for name, value in _given(environment).items()
        if not is_job_variable(name) and not name.startswith(COMMAND_PREFIXES)
    }
    return kept | _clusters(environment) | {"LC_ALL": "C"}


def for_git(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """For git: the repository is the one named on the command line, messages are English."""
    kept = {
        name: value
        for name, value in _given(environment).items()
        if not name.startswith("GIT_") or name.startswith(KEPT_GIT)
    }
    return kept | {"LC_ALL": "C"}


def forget_launch(environment: MutableMapping[str, str] | None = None) -> list[str]:
    """Remove the launch variables from this process (or `environment`), which runs alone; returns their names."""
    where = os.environ if environment is None else environment
    names = sorted(name for name in where if is_launch_variable(name))
    for name in names:
        del where[name]
    return names


def _clusters(environment: Mapping[str, str] | None) -> dict[str, str]:
    """SLURM_CLUSTERS for submission and queries alike: sbatch alone reads SBATCH_CLUSTERS, which counts first."""
    given = _given(environment)
    names = given.get("SBATCH_CLUSTERS") or given.get("SLURM_CLUSTERS")
    return {"SLURM_CLUSTERS": names} if names else {}


def _given(environment: Mapping[str, str] | None) -> Mapping[str, str]:
    return os.environ if environment is None else environment
