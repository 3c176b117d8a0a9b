"""The loss an attack raises, and its gradient with respect to the encoder's input embeddings, in batches.

The loss of one example is the mean negative log-likelihood of its target tokens (nats per token). A batch's gradient
is that of the *sum* of these means, so examples do not influence one another. T5 shares one embedding matrix between
encoder, decoder and output layer; going through the encoder's `inputs_embeds` gives the gradient of the input alone.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import T5ForConditionalGeneration

from utils.core.errors import StageError
from utils.modeling.t5_inference import T5Inference

log = logging.getLogger(__name__)
Result = TypeVar("Result")
IGNORED = -100


class Targets:
    """Target ids of a set of examples: `rows` one by one, and on the device `labels` int64 [E, U], padded with -100."""

    def __init__(self, labels: Sequence[Sequence[int]], device: torch.device) -> None:
        self.rows = [np.asarray(row, dtype=np.int64) for row in labels]
        self.lengths = np.array([len(row) for row in labels], dtype=np.int64)
        padded = np.full((len(labels), max(int(self.lengths.max(initial=1)), 1)), IGNORED, dtype=np.int64)
        for row, values in zip(padded, labels, strict=True):
            row[: len(values)] = values
        self.labels = torch.from_numpy(padded).to(device)


@dataclass
class Smoothing:
    """Gradients averaged over noisy copies of an input, so that they look about as far as a flip goes.

    A flip moves an embedding by as much as it is long, and the gradient at the spot says little about what is there:
    averaged over Gaussian noise of that size it says more (SmoothGrad, Smilkov et al. 2017). `samples`: one list of
    seeds per copy, a seed for each input, or None for the clean input; `places`: positions [k] of each input that get
    noise of standard deviation `sigma` (per coordinate). Filled in: `norms` float64 [N], of the first sample's
    gradient over the places.
    """

    sigma: float
    samples: Sequence[Sequence[int] | None]
    places: Sequence[np.ndarray]
    norms: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def moved(self, embeds: Tensor, rows: np.ndarray, seeds: Sequence[int]) -> Tensor:
        """`embeds` [b, T, d] of the inputs `rows` with their noise: the same in whatever batch they are."""
        embeds = embeds.clone()
        for k, i in enumerate(rows):
            dice = torch.Generator(embeds.device).manual_seed(int(seeds[i]))
            places = torch.from_numpy(self.places[i]).to(embeds.device)
            noise = torch.randn(len(places), embeds.shape[2], generator=dice, device=embeds.device)
            embeds[k, places] += self.sigma * noise.to(embeds.dtype)
        return embeds

    def measure(self, gradient: Tensor, rows: np.ndarray) -> None:
        """Write down the norms of the first sample's `gradient` [b, T, d]."""
        table = gradient.norm(dim=2).double().cpu().numpy()
        for k, i in enumerate(rows):
            self.norms[i] = np.sqrt((table[k, self.places[i]] ** 2).sum())


class Objective:
    """Losses and gradients of one frozen model.

    `batch_tokens`: how many padded tokens (input plus target) one forward pass may hold; when memory runs out the
    limit halves itself, says so, and the work goes on. `precision`: "fp32" or "bf16" (autocast; losses stay float32).
    """

    def __init__(self, model: T5ForConditionalGeneration, *, batch_tokens: int, precision: str = "fp32") -> None:
        model.eval().requires_grad_(False)
        self.model = model
        self.device = model.device
        self.batch_tokens = max(int(batch_tokens), 1)
        self.precision = precision
        self.pad = model.config.pad_token_id
        self.embedding: Tensor = model.get_input_embeddings().weight
        self.forward_rows = 0  # inputs whose loss was computed, since the start
        self.gradient_rows = 0

    @functools.cached_property
    def engine(self) -> T5Inference:
        """For losses alone, of which many more are asked for than gradients: without padding and overheads."""
        return T5Inference(self.model, torch.bfloat16 if self.precision == "bf16" else torch.float32)

    def losses(
        self, inputs: Sequence[Sequence[int]], targets: Targets, owner: Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """Mean NLL of each input, float64 [N]. `owner[n]` is the row of `targets` that input n is scored against."""
        lengths = np.array([len(row) for row in inputs], dtype=np.int64)
        owner = np.asarray(owner, dtype=np.int64)
        out = np.empty(len(inputs), dtype=np.float64)

        def work(rows: np.ndarray) -> None:
            losses = self.engine.mean_nll([inputs[i] for i in rows], [targets.rows[k] for k in owner[rows]])
            out[rows] = losses.double().cpu().numpy()

        self._in_batches(lengths, targets.lengths[owner] if len(owner) else lengths, work)
        self.forward_rows += len(inputs)
        return out

    def gradients(
        self,
        inputs: Sequence[Sequence[int]],
        targets: Targets,
        owner: Sequence[int] | np.ndarray,
        use: Callable[[np.ndarray, Tensor, Tensor], None],
        *,
        smoothing: Smoothing | None = None,
    ) -> np.ndarray:
        """Losses as in `losses`; hands each micro-batch's gradient to `use(rows, ids, gradient)`.

        With `smoothing` the gradient is the mean over its samples, and the losses are those of the first.

        `rows` int64 [b] (which inputs), `ids` int64 [b, T] (padded), `gradient` float32 [b, T, d]. It goes by
        callback because the gradients of all inputs together can be larger than the memory.
        """
        lengths = np.array([len(row) for row in inputs], dtype=np.int64)
        owner = np.asarray(owner, dtype=np.int64)
        out = np.empty(len(inputs), dtype=np.float64)

        samples = smoothing.samples if smoothing else (None,)
        if smoothing:
            smoothing.norms = np.zeros(len(inputs))

        def work(rows: np.ndarray) -> None:
            ids, mask = self._pad([inputs[i] for i in rows])
            labels = self._labels(targets, owner[rows])
            total: Tensor | None = None
            for seeds in samples:
                embeds = F.embedding(ids, self.embedding).detach()
                if smoothing and seeds is not None:
                    embeds = smoothing.moved(embeds, rows, seeds)
                with torch.enable_grad():
                    embeds.requires_grad_(True)
                    losses = self._nll(embeds, mask, labels)
                    (gradient,) = torch.autograd.grad(losses.sum(), embeds)
                if total is None:
                    out[rows] = losses.detach().double().cpu().numpy()
                    if smoothing:
                        smoothing.measure(gradient.float(), rows)
                total = gradient.float() if total is None else total + gradient.float()
            use(rows, ids, total / len(samples))

        # A backward pass keeps the activations, which take about three times the memory of a forward pass.
        self._in_batches(lengths, targets.lengths[owner] if len(owner) else lengths, work, share=3)
        self.gradient_rows += len(inputs) * len(samples)
        return out

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _nll(self, embeds: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Mean NLL per row, float32 [b]; `embeds` [b, T, d], `mask` int64 [b, T], `labels` int64 [b, U]."""
        with self._autocast():
            shifted = self.model._shift_right(labels)
            logits = self.model(
                inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=shifted, use_cache=False
            ).logits
        counted = labels != IGNORED
        nll = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        return nll.sum(1) / counted.sum(1).clamp(min=1)

    def _pad(self, inputs: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        width = max(len(row) for row in inputs)
        ids = np.full((len(inputs), width), self.pad, dtype=np.int64)
        mask = np.zeros((len(inputs), width), dtype=np.int64)
        for i, row in enumerate(inputs):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)

    def _labels(self, targets: Targets, owner: np.ndarray) -> Tensor:
        width = int(targets.lengths[owner].max())
        return targets.labels[torch.from_numpy(owner).to(self.device)][:, :width]

    def _in_batches(
        self, lengths: np.ndarray, target_lengths: np.ndarray, work: Callable[[np.ndarray], None], share: int = 1
    ) -> None:
        order = np.lexsort((np.arange(len(lengths)), target_lengths, lengths))[::-1]
        done = 0
        while done < len(order):
            for rows in self._groups(order[done:], lengths, target_lengths, self.batch_tokens // share):
                try:
                    work(rows)
                except RuntimeError as error:
                    if not _out_of_memory(error):
                        raise
                    self._halve(len(rows), error)
                    break
                done += len(rows)

    @staticmethod
    def _groups(order: np.ndarray, lengths: np.ndarray, target_lengths: np.ndarray, limit: int) -> Iterator[np.ndarray]:
        begin = 0
        while begin < len(order):
            width = int(lengths[order[begin]])  # the longest first: the padded width of this group
            tall, finish = 0, begin
            while finish < len(order):
                taller = max(tall, int(target_lengths[order[finish]]))
                if finish > begin and (width + taller) * (finish - begin + 1) > limit:
                    break
                tall, finish = taller, finish + 1
            yield order[begin:finish]
            begin = finish

    def _halve(self, rows: int, error: RuntimeError) -> None:
        if rows == 1:
            raise StageError(
                f"out of memory with a single input in a batch on {self.device}: a device with more memory is needed"
            ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.batch_tokens = max(self.batch_tokens // 2, 1)
        log.warning("out of memory with %d inputs: going on with batches of %d tokens", rows, self.batch_tokens)


def _out_of_memory(error: RuntimeError) -> bool:
    # On the CPU torch raises a plain RuntimeError with these words instead of OutOfMemoryError.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
