"""The loss an attack raises, and its gradient with respect to the encoder's input embeddings, in batches.

The loss of one example is the mean negative log-likelihood of its target tokens (nats per token). A batch's gradient
is that of the *sum* of these means, so examples do not influence one another. T5 shares one embedding matrix between
encoder, decoder and output layer; going through the encoder's `inputs_embeds` gives the gradient of the input alone.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import T5ForConditionalGeneration

from utils.attacks.legal_tokens import TokenArray, TokenIds
from utils.core.errors import StageError
from utils.modeling.batching import BatchLimit, Indices, budget_batches, longest_first, pad, pad_with_mask, round_up
from utils.modeling.precision import bf16_autocast, product_dtype
from utils.modeling.t5_inference import T5Inference

IGNORED = -100  # label of padding: cross_entropy leaves it out
# A backward pass keeps the activations, which take about three times the memory of a forward pass.
GRADIENT_MEMORY = 3

CUDA_MULTIPLE = 8  # widths of gradient batches on a GPU: its kernels for attention with a mask want aligned rows
REFUSED = 0.01  # share of gradients that may be not finite even in float32; beyond it the attack would be a weak one
ENOUGH_GRADIENTS = 100  # fewer tell no share

# Receives (rows int64 [b], ids int64 [b, T], gradient float32 [b, T, d]) of one batch.
UseGradient = Callable[[Indices, Tensor, Tensor], None]


class Targets:
    """Target ids of a set of examples: `rows` one by one, and on the device `labels` int64 [E, U], padded with -100."""

    def __init__(self, labels: Sequence[TokenIds], device: torch.device) -> None:
        self.rows: list[TokenArray] = [np.asarray(row, dtype=np.int64) for row in labels]
        self.lengths = np.array([len(row) for row in labels], dtype=np.int64)
        self.labels = torch.from_numpy(pad(self.rows, IGNORED, multiple_of=CUDA_MULTIPLE)).to(device)

    def padded(self, owner: Indices, multiple_of: int = 1) -> Tensor:
        """The labels int64 [b, width] of the examples `owner` [b]; width: the longest of these, rounded up."""
        longest = round_up(int(self.lengths[owner].max()), multiple_of)
        return self.labels[torch.from_numpy(owner).to(self.labels.device)][:, :longest]


@dataclass
class Smoothing:
    """Gradients averaged over noisy copies of an input, so that they look about as far as a flip goes.

    A flip moves an embedding by as much as it is long, and the gradient at the spot says little about what is there:
    averaged over Gaussian noise of that size it says more (SmoothGrad, Smilkov et al. 2017). `samples`: one list of
    seeds per copy, a seed for each input, or None for the clean input; `positions`: those [k] of each input that get
    noise of standard deviation `sigma` (per coordinate). Filled in: `norms` float64 [N], of the first sample's
    gradient over the positions.
    """

    sigma: float
    samples: Sequence[Sequence[int] | None]
    positions: Sequence[NDArray[np.int64]]
    norms: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def with_noise(self, embeds: Tensor, rows: Indices, seeds: Sequence[int]) -> Tensor:
        """`embeds` [b, T, d] of the inputs `rows` with their noise.

        Every input draws from a generator of its own, so its noise is the same in whatever batch it stands.
        """
        embeds = embeds.clone()
        for k, i in enumerate(rows):
            generator = torch.Generator(embeds.device).manual_seed(int(seeds[i]))
            positions = torch.from_numpy(self.positions[i]).to(embeds.device)
            noise = torch.randn(len(positions), embeds.shape[2], generator=generator, device=embeds.device)
            embeds[k, positions] += self.sigma * noise.to(embeds.dtype)
        return embeds

    def measure(self, gradient: Tensor, rows: Indices) -> None:
        """Write down the norms of the first sample's `gradient` [b, T, d]."""
        table = gradient.norm(dim=2).double().cpu().numpy()  # [b, T]: one norm per position
        for k, i in enumerate(rows):
            self.norms[i] = np.sqrt((table[k, self.positions[i]] ** 2).sum())


class Objective:
    """Losses and gradients of one frozen model.

    `batch_tokens`: how many padded tokens (input plus target) one forward pass may hold; `limit` halves it where memory
    runs out. `precision`: "fp32" or "bf16" (autocast; losses stay float32).
    """

    def __init__(self, model: T5ForConditionalGeneration, *, batch_tokens: int, precision: str = "fp32") -> None:
        model.eval().requires_grad_(False)
        self.model = model
        self.device = model.device
        self.limit = BatchLimit(max(int(batch_tokens), 1), "tokens")
        self.precision = precision
        self.pad_id = model.config.pad_token_id or 0
        self.embedding: Tensor = model.get_input_embeddings().weight  # [vocabulary, d]
        self.forward_rows = 0  # inputs whose loss was computed, since the start
        self.gradient_rows = 0
        self.retried_losses = 0  # not finite in bfloat16, computed again in float32
        # Input of the last call of `gradients` -> how many of its gradients were not finite and computed again in
        # float32 without fused attention; how many were not finite then either (they count as zero).
        self.retried: Counter[int] = Counter()
        self.bad: Counter[int] = Counter()
        self.bad_rows = 0  # the sum of all `bad`, since the start

    @functools.cached_property
    def engine(self) -> T5Inference:
        """For losses alone, of which many more are asked for than gradients: without padding and overheads."""
        return T5Inference(self.model, product_dtype(self.precision))

    @functools.cached_property
    def exact_engine(self) -> T5Inference:
        """The same in float32."""
        return T5Inference(self.model, torch.float32)

    def losses(self, inputs: Sequence[TokenIds], targets: Targets, owner: ArrayLike) -> NDArray[np.float64]:
        """Mean NLL of each input, float64 [N]. `owner[n]` is the row of `targets` that input n is scored against."""
        owner = np.asarray(owner, dtype=np.int64)
        losses = np.empty(len(inputs), dtype=np.float64)

        def work(rows: Indices) -> None:
            ids = [np.asarray(inputs[i], dtype=np.int64) for i in rows]
            wanted = [targets.rows[k] for k in owner[rows]]
            found = self.engine.mean_nll(ids, wanted).double().cpu().numpy()
            bad = np.flatnonzero(~np.isfinite(found))
            if len(bad) and self.precision != "fp32":
                again = self.exact_engine.mean_nll([ids[k] for k in bad], [wanted[k] for k in bad])
                found[bad] = again.double().cpu().numpy()
                self.retried_losses += len(bad)
            losses[rows] = found

        self._in_batches(inputs, targets, owner, work)
        self.forward_rows += len(inputs)
        return losses

    def gradients(
        self,
        inputs: Sequence[TokenIds],
        targets: Targets,
        owner: ArrayLike,
        use: UseGradient,
        *,
        smoothing: Smoothing | None = None,
    ) -> NDArray[np.float64]:
        """Losses as in `losses`; hands each batch's gradient to `use(rows, ids, gradient)`.

        With `smoothing` the gradient is the mean over its samples, and the losses are those of the first.

        `rows` int64 [b] (which inputs), `ids` int64 [b, T] (padded), `gradient` float32 [b, T, d]. It goes by
        callback because the gradients of all inputs together can be larger than the memory. A gradient that is not
        finite is computed again in float32; StageError where more than REFUSED of all stay so.
        """
        owner = np.asarray(owner, dtype=np.int64)
        losses = np.empty(len(inputs), dtype=np.float64)
        samples = smoothing.samples if smoothing else (None,)
        if smoothing:
            smoothing.norms = np.zeros(len(inputs))
        self.retried.clear()
        self.bad.clear()
        aligned = CUDA_MULTIPLE if self.device.type == "cuda" else 1

        def work(rows: Indices) -> None:
            padded = [inputs[i] for i in rows]
            ids, mask = pad_with_mask(padded, self.pad_id, self.device, multiple_of=aligned)  # [b, T] each
            labels = targets.padded(owner[rows], aligned)  # [b, U]
            clean = F.embedding(ids, self.embedding).detach()  # [b, T, d]
            total = torch.zeros_like(clean, dtype=torch.float32)
            for n, seeds in enumerate(samples):
                embeds = clean.clone()
                if smoothing and seeds is not None:
                    embeds = smoothing.with_noise(clean, rows, seeds)
                nll, gradient = self._finite_gradient(embeds, mask, labels, rows)
                if n == 0:
                    losses[rows] = nll.double().cpu().numpy()
                    if smoothing:
                        smoothing.measure(gradient, rows)
                total += gradient
            use(rows, ids, total / len(samples))

        self._in_batches(inputs, targets, owner, work, memory=GRADIENT_MEMORY)
        self.gradient_rows += len(inputs) * len(samples)
        self.bad_rows += self.bad.total()
        # Of the first few one odd text is more than 1 %: whether a stage ends must not depend on what comes first.
        if self.bad_rows > REFUSED * max(self.gradient_rows, ENOUGH_GRADIENTS):
            raise StageError(
                f"{self.bad_rows} of {self.gradient_rows} gradients of an attack are not finite, in float32 either: the"
                " attack would be weaker than it seems. Look for a damaged model, or another PyTorch version."
            )
        return losses

    def _finite_gradient(self, embeds: Tensor, mask: Tensor, labels: Tensor, rows: Indices) -> tuple[Tensor, Tensor]:
        """Losses float32 [b] and gradient float32 [b, T, d]; rows that are not finite are computed again, exactly."""
        nll, gradient = self._gradient(embeds, mask, labels, self.precision)
        bad = ~(torch.isfinite(gradient).flatten(1).all(1) & torch.isfinite(nll))  # [b]
        if bool(bad.any()):
            self.retried.update(rows[bad.cpu().numpy()].tolist())
            with sdpa_kernel(SDPBackend.MATH):  # attention written out: no fused backward pass to go wrong
                nll[bad], gradient[bad] = self._gradient(embeds[bad], mask[bad], labels[bad], "fp32")
            still = ~torch.isfinite(gradient).flatten(1).all(1)
            self.bad.update(rows[still.cpu().numpy()].tolist())
            gradient[still] = 0.0
        return nll, gradient

    def _gradient(self, embeds: Tensor, mask: Tensor, labels: Tensor, precision: str) -> tuple[Tensor, Tensor]:
        embeds = embeds.detach().clone()
        with torch.enable_grad():
            embeds.requires_grad_(True)
            nll = self._nll(embeds, mask, labels, precision)
            # The sum: an example's gradient is then that of its own loss, whatever shares the batch with it.
            (gradient,) = torch.autograd.grad(nll.sum(), embeds)
        return nll.detach().float(), gradient.float()

    def _nll(self, embeds: Tensor, mask: Tensor, labels: Tensor, precision: str) -> Tensor:
        """Mean NLL per row, float32 [b]; `embeds` [b, T, d], `mask` int64 [b, T], `labels` int64 [b, U]."""
        with bf16_autocast(self.device, precision == "bf16"):
            shifted = self.model._shift_right(labels)
            logits = self.model(
                inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=shifted, use_cache=False
            ).logits  # [b, U, vocabulary]
        counted = labels != IGNORED
        # cross_entropy wants classes second: [b, vocabulary, U] against [b, U], giving [b, U] with 0 where ignored.
        nll = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        return nll.sum(1) / counted.sum(1).clamp(min=1)

    def _in_batches(
        self,
        inputs: Sequence[TokenIds],
        targets: Targets,
        owner: Indices,
        work: Callable[[Indices], None],
        *,
        memory: int = 1,
    ) -> None:
        """`work` on all inputs, the longest first; `memory`: how many times a forward pass's memory it takes."""
        lengths = np.array([len(row) for row in inputs], dtype=np.int64)
        heights = targets.lengths[owner]

        def plan(order: Indices, limit: int) -> list[Indices]:
            return budget_batches(order, lengths, limit // memory, target_lengths=heights)

        def cost(rows: Indices) -> int:
            return memory * len(rows) * int(lengths[rows].max() + heights[rows].max())

        self.limit.run(longest_first(lengths, heights), plan, work, cost=cost)
