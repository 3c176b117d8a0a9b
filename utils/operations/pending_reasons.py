"""Why SLURM keeps a job waiting: what each reason means and the command that helps. Data, searched from the top.

Reasons are worded as squeue prints them (%r, names of slurm.schedmd.com/job_reason_codes.html, and of older versions).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

RESUBMIT = "{cancel} && {again}"
EDIT = "edit {settings} in configs/experiment_config.py, then "


@dataclass(frozen=True)
class PendingReason:
    """A reason by pattern (of the whole word), its meaning, and what to do.

    {job} is filled in, and commands: {cancel}, and {again} that queues what was cancelled.

    `stuck`: the job does not start unless somebody does something. Otherwise it may, but hours or days later.
    """

    pattern: str
    meaning: str
    remedy: str
    stuck: bool = True

    def remedy_for(self, job_id: str, cancel: str, again: str) -> str:
        return self.remedy.format(job=job_id, cancel=cancel, again=again)


def _edit(settings: str) -> str:
    return EDIT.format(settings=settings) + RESUBMIT


NORMAL = "None|NoReason|Priority|Resources|Dependency|Prolog|Cleaning|Configuring|JobArrayTaskLimit|BeginTime|Licenses"

REASONS = (
    PendingReason("DependencyNeverSatisfied", "a job that it waits for failed, so it can never start", RESUBMIT),
    PendingReason("JobHeldUser", "you (or a script of yours) hold it", "scontrol release {job}"),
    PendingReason(
        "JobHeldAdmin", "an administrator holds it", "ask the cluster's support; they type: scontrol release {job}"
    ),
    PendingReason(
        r"launch failed requeued held|.*requeued held|JobHoldMaxRequeue|MaxRequeue|JobLaunchFailure",
        "it could not be launched (a node's prolog failed, or it was requeued too often), and SLURM holds it",
        "scontrol release {job}; if it comes back: scontrol show job {job}, and tell the cluster's support",
    ),
    PendingReason("JobHeld.*|Held.*|SpecialExit|SPECIAL_EXIT", "it is held", "scontrol release {job}"),
    PendingReason(
        "PartitionTimeLimit",
        "it asks for more time than its partition allows",
        "scontrol update jobid={job} timelimit=HH:MM:SS, or " + _edit("SLURM_TIME_SCALE or SLURM_PARTITION"),
    ),
    PendingReason(
        "PartitionNodeLimit|PartitionConfig",
        "it asks for more than its partition has or allows",
        _edit("SLURM_PARTITION, SLURM_CPU_PARTITION or SLURM_GRES"),
    ),
    PendingReason(
        "PartitionDown|PartitionInactive",
        "its partition takes no jobs to run now (sinfo -p shows it)",
        "wait until the cluster's support opens it, or " + _edit("SLURM_PARTITION or SLURM_CPU_PARTITION"),
    ),
    PendingReason(
        "InvalidQOS|QOSNotAllowed|QosNotAllowed",
        "its QoS does not exist, or is not allowed for the account or partition",
        "sacctmgr show assoc user=$USER format=account,qos shows yours; " + _edit("SLURM_QOS or SLURM_CPU_QOS"),
    ),
    PendingReason(
        "InvalidAccount|AccountNotAllowed",
        "its account does not exist, or may not use the partition",
        "sacctmgr show assoc user=$USER format=account,partition shows yours; " + _edit("SLURM_ACCOUNT"),
    ),
    PendingReason(
        r"(QOS|Assoc|Association).*(PerJob|PerNode|MaxWall|TimeLimit|MinCpu|MinGRES|MinMemory).*|MaxMemPerLimit|"
        r"MaxCpuPer.*|QOSUsageThreshold",
        "this one job asks for more than its QoS or account ever allows",
        _edit("SLURM_TIME_SCALE, SLURM_MEMORY_SCALE, SLURM_CPUS_PER_TASK or SLURM_QOS"),
    ),
    PendingReason(
        r"(QOS|Assoc|Association)Grp.*(?<!Run)Minutes.*",
        "the account or QoS has used up its share of computing time",
        "sshare -l and sreport show it; wait for the next period, ask for more, or " + _edit("SLURM_ACCOUNT"),
    ),
    PendingReason(
        r"(QOS|Assoc|Association|Account).*(Limit|Grp|Max).*",
        "other jobs of yours, of your account or of the QoS fill its limit: it starts when enough of them have ended",
        "squeue --me shows yours; cancel what you do not need, or wait",
        stuck=False,
    ),
    PendingReason(
        "BadConstraints|FedJobLock|InvalidConstraint.*",
        "no node has what it asks for (constraint, GRES, memory or cores)",
        "sinfo -o '%P %G %m %c %f' shows what there is; "
        + _edit("SLURM_GRES, SLURM_EXTRA_OPTIONS, SLURM_MEMORY_SCALE or SLURM_PARTITION"),
    ),
    PendingReason(
        r"ReqNodeNotAvail.*|Reserved for maintenance|Reservation|.*[Mm]aintenance.*",
        "its nodes are down, drained or reserved, often for a maintenance that its time limit would reach into",
        "scontrol show reservation says until when; wait, or "
        "ask for less time: scontrol update jobid={job} timelimit=HH:MM:SS",
        stuck=False,
    ),
    PendingReason(
        r"NodeDown|Nodes required for job are DOWN.*|FrontEndDown|SystemFailure|BootFail|NodeFail",
        "nodes that it needs are down, drained or kept for jobs of higher priority",
        "sinfo -R says why; wait, or " + _edit("SLURM_PARTITION or SLURM_GRES"),
        stuck=False,
    ),
    PendingReason(
        "ReservationDeleted|InvalidReservation",
        "the reservation that it was submitted for is gone",
        "scontrol update jobid={job} reservation=, or unset SBATCH_RESERVATION and " + RESUBMIT,
    ),
    PendingReason(
        "DeadLine|InactiveLimit|TimeLimit",
        "it can no longer start in time",
        RESUBMIT,
    ),
    PendingReason("BurstBuffer.*", "its burst buffer failed or is full", "scontrol show burst; ask the support"),
)


OTHER = PendingReason(".*", "SLURM's own word for why it waits", "scontrol show job {job} tells more", stuck=False)


def explain(reason: str) -> PendingReason | None:
    """What a reason means; None where it is the ordinary waiting for a turn."""
    words = reason.strip("() ")
    if re.fullmatch(NORMAL, words):
        return None
    return next((entry for entry in REASONS if re.fullmatch(entry.pattern, words)), OTHER)
