"""Real processes for tests, in milliseconds: forks of one server that has imported what takes seconds, and no more."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["tests.training_world", "transformers.trainer", "utils.training.launcher", "utils.data.preparation"]
)


class TorchrunByForks:
    """In place of the Popen of a torchrun command: forks that have torchrun's variables; one that fails ends all."""

    def __init__(self, command: list[str], **_: Any) -> None:
        (option,) = (word for word in command if word.startswith("--nproc-per-node="))
        count = int(option.partition("=")[2])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.members = [FORKS.Process(target=_member, args=(i, count, port, command[-1])) for i in range(count)]
        for member in self.members:
            member.start()

    @property
    def returncode(self) -> int | None:
        codes = [member.exitcode for member in self.members]
        return None if None in codes else next(filter(None, codes), 0)

    def poll(self) -> int | None:
        if any(member.exitcode for member in self.members):
            self.terminate()
        return self.returncode

    def terminate(self) -> None:
        for member in self.members:
            member.kill()

    def wait(self) -> None:
        for member in self.members:
            member.join()


def _member(rank: int, count: int, port: int, job_file: str) -> None:
    import torch

    from utils.training import launcher

    torch.set_num_threads(1)  # as torchrun has it
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in own.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}
    sys.exit(launcher.main(Path(job_file)))
