"""transformers' Trainer, fitted to this experiment: our batches, our decay, our checkpoints, no waiting for the GPU.

Trainer's loop, schedule, resume logic and torchrun support are used as they are; what is overridden says why.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedTokenizerBase,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from utils.analysis.final import StepPath
from utils.core.codec import to_json
from utils.modeling.batching import BatchLimit, out_of_memory
from utils.modeling.models import save_plain
from utils.modeling.monotonic import effective_weight_decay, free_parameters, parameter_groups
from utils.modeling.precision import bf16_autocast
from utils.training import ranks
from utils.training.batches import Batch, RandomBatches, TokenRows, sorted_batches
from utils.training.checkpoints import (
    FREE_PARAMETERS,
    MICRO_BATCH,
    STATE,
    STEP_PATH,
    TRAINER_STATE,
    keep_newest,
    new_checkpoint,
)
from utils.training.forward import summed_nll
from utils.training.graphs import CHECKED, Gradients, GraphedGradients, choose, failure
from utils.training.proof import difference
from utils.training.record import TrainingRecord
from utils.training.snapshots import DIRECTORY as SNAPSHOTS
from utils.training.snapshots import snapshot_steps
from utils.training.step import gradients, module_nll

log = logging.getLogger("mono_s2s.training")


class ArmTrainer(Trainer):
    """Trains one arm on `rows`; `record` is told about every batch, and asks for checkpoints as a callback.

    model: constrained as the arm wants it (`monotonic.constrain`), float32. autocast: the forward pass in bfloat16.
    identity: what a checkpoint must agree with to be resumed from. limit: rows that go through the model at once.
    without_graphs: why CUDA graphs are not tried, None where the first step has to find out.
    """

    model: T5ForConditionalGeneration

    def __init__(
        self,
        *,
        model: T5ForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        args: TrainingArguments,
        rows: TokenRows,
        record: TrainingRecord,
        autocast: bool,
        identity: dict[str, Any],
        gradient_norms: bool,
        checkpoints_to_keep: int,
        limit: BatchLimit,
        gradient_clip: float,
        without_graphs: str | None,
    ) -> None:
        super().__init__(model=model, args=args, train_dataset=rows, callbacks=[record])
        self.remove_callback(PrinterCallback)
        # The step adds up gradients itself (ranks.add_up). Wrapped in DistributedDataParallel, the model would hold a
        # second copy of them all, in buckets that nothing reads: 11 GB for 3 billion parameters.
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.tokenizer, self.rows, self.record, self.autocast = tokenizer, rows, record, autocast
        self.identity, self.checkpoints_to_keep = identity, checkpoints_to_keep
        self.gradient_norms, self.gradient_clip, self.limit = gradient_norms, gradient_clip, limit
        if without_graphs is None and limit.value < args.per_device_train_batch_size:  # an earlier session's finding
            without_graphs = "a batch goes through the model in pieces"
        self.nll: Callable[..., torch.Tensor] | None = None
        self.fast: Gradients | None = None
        self.path = StepPath(path="eager", reason=without_graphs) if without_graphs else None
        self.add_callback(_SnapshotKeeper(self))

    # ---- batches and loss ------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Random batches as Trainer's, but the same for every arm and, after a resume, at the same place.

        The loader has a generator of its own: it must not draw from the one that dropout uses.
        """
        batches = RandomBatches(self.rows, self.args.per_device_train_batch_size, seed=self.args.seed)
        share = functools.partial(self.rows.share, rank=ranks.rank(), processes=ranks.world_size())
        return _EpochLoader(
            self.rows,
            batch_sampler=batches,
            collate_fn=share,
            generator=torch.Generator(),
            pin_memory=self.args.device.type == "cuda",
        )

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Loss, gradients and clip of a batch (`step.gradients`); what does not fit into memory goes in smaller pieces.

        The record gets loss and norm without reading them from the device. Trainer's own step has neither pieces nor
        the clip, and its copies to the device wait for all work before them; these run while the host goes on.
        """
        model.train()
        numbers = {name: inputs.pop(name) for name in ("num_tokens", "num_batch_tokens", "num_examples")}
        batch = to_device(inputs, self.args.device)
        generators = torch.cuda if self.args.device.type == "cuda" else torch.random
        different = self._choose_loss(batch) if self.nll is None else ""
        if self.path is None:
            self._choose_path()
        if different and self.path:
            self.path = dataclasses.replace(self.path, module_reason=different)
        before = generators.get_rng_state()  # on the host, of either

        def work(micro_batch: int) -> tuple[torch.Tensor, torch.Tensor]:
            generators.set_rng_state(before)  # a try that ran out of memory leaves nothing behind
            model.zero_grad()
            if self.fast and micro_batch >= len(batch["labels"]):
                try:
                    return self.fast(batch)
                except RuntimeError as error:  # shapes are captured when they first come: this one cannot be
                    reason = "out of memory with a whole batch" if out_of_memory(error) else failure(error)
                self._leave_graphs(reason)  # outside of the handler, whose traceback holds their memory
                generators.set_rng_state(before)
                model.zero_grad()
            return self._gradients(batch, micro_batch)

        loss, norm = self.limit.halving(work, len(inputs["labels"]))
        self.record.after_batch(loss, numbers["num_tokens"], numbers["num_batch_tokens"], numbers["num_examples"])
        if self.gradient_norms:
            self.record.after_norm(norm)
        return loss

    def _gradients(self, batch: Batch, micro_batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        return gradients(
            self.model,
            batch,
            autocast=self.autocast,
            clip=self.gradient_clip,
            micro_batch=micro_batch,
            nll=self.nll or summed_nll,
        )

    def _choose_loss(self, batch: Batch) -> str:
        """`summed_nll` if it is proved on the first row in every process; else transformers' module, and why."""
        apart = difference(self.model, batch, autocast=self.autocast)
        (somewhere,) = ranks.any_of(bool(apart))
        self.nll = module_nll if somewhere else summed_nll
        if somewhere:
            apart = apart or "another process finds a difference"
            log.warning("Training by transformers' own loss, which is slower: ours is not the same here, %s.", apart)
        return apart

    def _choose_path(self) -> None:
        """CUDA graphs or not, by the first batches of the run; weights and random state are as before."""
        order = RandomBatches(self.rows, self.args.per_device_train_batch_size, seed=self.args.seed)
        batches = [to_device(self.rows.share(b, 0, 1), self.args.device) for b in itertools.islice(order, CHECKED)]

        def eager(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
            return self._gradients(batch, len(batch["labels"]))

        chosen, self.path = choose(
            self.model,
            eager,
            lambda: GraphedGradients(self.model, eager),
            batches,
            precision="bf16" if self.autocast else "fp32",
            generators=torch.cuda,
            wait=torch.cuda.synchronize,
        )
        self.fast = chosen if self.path.path == "graphs" else None

    def _leave_graphs(self, reason: str) -> None:
        """From the batch on that could not be captured or did not fit beside the graphs, which hold memory."""
        self.fast = None
        if self.path:
            self.path = dataclasses.replace(self.path, path="eager", reason=reason)
        log.warning("Training continues without CUDA graphs: %s.", reason)
        torch.cuda.empty_cache()  # does nothing without a GPU

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nothing: Trainer's walks over all parameters at every step, for a number that nobody reads."""
        return 0

    # ---- optimizer -------------------------------------------------------------------------------------------

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with our groups: Trainer's would decay V instead of W = softplus(V)."""
        if self.optimizer is None:
            groups = parameter_groups(self.model, self.args.weight_decay)
            self.optimizer = torch.optim.AdamW(groups, lr=self.args.learning_rate, fused=True)
            effective_weight_decay(self.optimizer)
        return self.optimizer

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: torch.Tensor | None = None) -> None:
        """Private, because Trainer computes a norm at every step even if nothing is clipped; the step has it."""

    # ---- checkpoints -----------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Write `epoch_N/` at the end of an epoch, else `step_N/`: a plain model, and what resuming needs.

        Private, because Trainer's writes the unfolded model into `checkpoint-N/`, file by file: incomplete if killed.
        """
        step, steps = self.state.global_step, math.ceil(len(self.rows) / self.args.per_device_train_batch_size)
        name = f"epoch_{step // steps}" if step % steps == 0 else f"step_{step}"
        directory = self.record.output_dir / name
        history, random_states = self.record.state(), self._random_states()  # of all processes
        history[MICRO_BATCH] = self.limit.value
        history[STEP_PATH] = to_json(self.path)
        if ranks.rank() == 0:
            self._write_checkpoint(directory, step, history, random_states)
        ranks.barrier()

    def _random_states(self) -> dict[str, bytes]:
        """The files of every process's random state, on process 0; of a single process: none, it writes its own."""
        if ranks.world_size() == 1:
            return {}
        with tempfile.TemporaryDirectory() as folder:
            self._save_rng_state(folder)
            mine = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        return {name: content for files in ranks.gathered(mine) for name, content in files.items()}

    def _write_checkpoint(
        self, directory: Path, step: int, history: dict[str, Any], random_states: dict[str, bytes]
    ) -> None:
        with new_checkpoint(directory, step=step, identity=self.identity) as new:
            save_plain(self.model, self.tokenizer, new)
            free = {key: value.detach().cpu() for key, value in free_parameters(self.model).items()}
            if free:
                torch.save(free, new / FREE_PARAMETERS)
            self._save_optimizer_and_scheduler(str(new))
            if not random_states:
                self._save_rng_state(str(new))
            for file, content in random_states.items():
                (new / file).write_bytes(content)
            self.state.save_to_json(str(new / TRAINER_STATE))
            (new / STATE).write_text(json.dumps(history, allow_nan=False), encoding="utf-8")
        keep_newest(directory.parent, self.checkpoints_to_keep)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Weights as they were: the free ones from the plain model, the constrained ones from their V, bit by bit.

        Private, because Trainer's would read the model file alone, which has W: V = softplus_inverse(W) rounds.
        """
        directory = Path(resume_from_checkpoint)
        weights = load_file(directory / "model.safetensors")
        free = free_parameters(self.model)
        saved = torch.load(directory / FREE_PARAMETERS, weights_only=True) if free else {}
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if ".parametrizations." not in name:
                    parameter.copy_(weights[name])
            for name, parameter in free.items():
                parameter.copy_(saved[name])


class _SnapshotKeeper(TrainerCallback):
    """Writes the plain model at the steps of `snapshot_steps`, on process 0."""

    def __init__(self, trainer: ArmTrainer) -> None:
        self.trainer = trainer
        self.steps = snapshot_steps(trainer.record.steps_per_epoch)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        trainer, step = self.trainer, state.global_step
        if step in self.steps and ranks.rank() == 0:
            directory = trainer.record.output_dir / SNAPSHOTS / f"step_{step}"
            with new_checkpoint(directory, step=step, identity=trainer.identity) as new:
                save_plain(trainer.model, trainer.tokenizer, new)


class _EpochLoader(DataLoader[int]):
    """Tells the batch sampler which epoch it is: Trainer calls `set_epoch` of a loader or its sampler, not of that."""

    batch_sampler: RandomBatches

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


def to_device(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The tensors among `inputs` on `device`; from pinned memory the copy does not stop the host."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }


@torch.no_grad()
def validation_loss(
    model: T5ForConditionalGeneration, rows: TokenRows, *, autocast: bool, max_tokens: int = 16384
) -> float:
    """Mean negative log-likelihood per label token over all of `rows`, in eval mode, however the rows are batched.

    `max_tokens`: padded input tokens in one batch. Several processes share the batches and get the same mean.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=device)
    tokens = 0
    with parametrize.cached():
        for batch in sorted_batches(rows, max_tokens=max_tokens)[ranks.rank() :: ranks.world_size()]:
            inputs = rows.collate(batch)
            count: int = inputs.pop("num_tokens")
            inputs = to_device(inputs, device)
            with bf16_autocast(device, autocast):
                loss = model(**inputs, use_cache=False).loss
            total += loss.double() * count  # stays on the device: one wait at the end instead of one for each batch
            tokens += count
    model.train(was_training)
    nll, tokens_of_all = ranks.total([float(total), tokens])
    return nll / tokens_of_all
