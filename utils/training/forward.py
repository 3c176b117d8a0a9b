"""T5's loss for a training step: the numbers of transformers' module from less than half as many kernels.

What is saved, in the order of what it saves: casts (all matrices to bfloat16 at once, their gradients back at once;
a norm's output is cast once, not by each product that reads it), norms (one kernel on a GPU, half of the passes over
memory on a CPU), attention masks (position bias and mask are added once a stack, not once a layer), products (matrices
that read the same input are one), dropout (one kernel on CPUs as well), embedding (encoder and decoder look up at
once). softplus stays one kernel a matrix: it moves megabytes, so that joining matrices first would cost more than it
saves.

Random numbers are drawn in the order of transformers' module and for the same shapes. T5: Raffel et al. 2020,
arXiv:1910.10683. Shapes: n rows, s input tokens, t label tokens, h heads, d_kv numbers a head, N tokens of all rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from utils.modeling.batching import round_up
from utils.modeling.precision import bf16_autocast
from utils.training.batches import IGNORED_LABEL, Batch

FUSED = ("cuda",)  # devices where PyTorch's attention and norm are one kernel each
TABLE_STEP = 512  # positions: the table of distances grows by so many


def summed_nll(t5: Any, batch: Batch, *, autocast: bool) -> Tensor:
    """Negative log-likelihood in nats summed over the label tokens of the batch, a float32 scalar.

    t5: a T5ForConditionalGeneration, constrained or not; its W are computed once, here. batch: `TokenRows.collate`'s.
    autocast: products in bfloat16, the rest as torch.autocast has it. Activations are computed again for the gradients
    where `gradient_checkpointing_enable` asks for it.
    """
    labels, ids = batch["labels"], batch["input_ids"]
    dtype = torch.bfloat16 if autocast else torch.float32
    run = _Pass(t5, dtype)
    with bf16_autocast(labels.device, autocast, cache=False):
        matrices = iter(_effective(list(_groups(t5)), dtype))
        decoder_ids = t5.prepare_decoder_input_ids_from_labels(labels)
        # One lookup: the gradient of an embedding is as large as the embedding, and there is one of it then.
        found = F.embedding(torch.cat([ids.flatten(), decoder_ids.flatten()]), t5.shared.weight)
        hidden, decoded = found.split([ids.numel(), decoder_ids.numel()])
        encoded = run.encoder(hidden, ids.shape, batch["attention_mask"], matrices)
        decoded = run.decoder(decoded, decoder_ids.shape, encoded, ids.shape[1], batch["attention_mask"], matrices)
        logits = torch.mm(decoded, next(matrices).t())
        return F.cross_entropy(logits.float(), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum")


class _Pass:
    """The pieces of one forward pass of `t5` with products in `dtype`; the residual stream is float32."""

    def __init__(self, t5: Any, dtype: torch.dtype) -> None:
        self.t5, self.dtype = t5, dtype
        self.fused = t5.shared.weight.device.type in FUSED
        config = t5.config
        self.heads, self.d_kv, self.epsilon = config.num_heads, config.d_kv, config.layer_norm_epsilon
        self.dropout = config.dropout_rate if t5.training else 0.0
        self.again = t5.training and any(getattr(m, "gradient_checkpointing", False) for m in t5.modules())

    def encoder(self, hidden: Tensor, shape: torch.Size, mask: Tensor | None, matrices: Iterator[Tensor]) -> Tensor:
        """Encoder states float32 [N, d_model] from embeddings; mask: bool [n, 1, 1, s] or None (no padding)."""
        stack = self.t5.encoder
        bias = self._bias(stack, shape[1])
        if mask is not None:
            bias = torch.where(mask, bias, torch.finfo(bias.dtype).min)  # [n, h, s, s]
        hidden = self._dropped(hidden)
        for block in stack.block:
            hidden = self._layer(self._encoder_block, block, [next(matrices) for _ in range(4)], hidden, shape, bias)
        return self._ended(stack, hidden)

    def decoder(
        self,
        hidden: Tensor,
        shape: torch.Size,
        encoded: Tensor,
        longest: int,
        mask: Tensor | None,
        matrices: Iterator[Tensor],
    ) -> Tensor:
        """What the head makes logits of, [n × t, d_model]; encoded: [n × longest, d_model]."""
        stack = self.t5.decoder
        bias = self._bias(stack, shape[1])
        past = torch.ones(shape[1], shape[1], dtype=torch.bool, device=hidden.device).tril()
        bias = torch.where(past, bias, torch.finfo(bias.dtype).min)
        cross_bias = None
        if mask is not None:
            cross_bias = torch.zeros(mask.shape, dtype=bias.dtype, device=mask.device)
            cross_bias = cross_bias.masked_fill_(~mask, torch.finfo(bias.dtype).min)
        hidden = self._dropped(hidden)
        for block in stack.block:
            weights = [next(matrices) for _ in range(7)]
            more = (hidden, shape, bias, encoded, longest, cross_bias)
            hidden = self._layer(self._decoder_block, block, weights, *more)
        hidden = self._ended(stack, hidden)
        if self.t5.config.scale_decoder_outputs:
            hidden = hidden * self.t5.config.d_model**-0.5
        return hidden.to(self.dtype)

    def _layer(self, function: Any, *arguments: Any) -> Any:
        return checkpoint(function, *arguments, use_reentrant=False) if self.again else function(*arguments)

    def _encoder_block(
        self, block: Any, weights: list[Tensor], hidden: Tensor, shape: torch.Size, bias: Tensor
    ) -> Tensor:
        qkv, out, wi, wo = weights
        hidden = self._self_attention(block.layer[0], qkv, out, hidden, shape, bias)
        return self._feed_forward(block.layer[1], wi, wo, hidden)

    def _decoder_block(
        self,
        block: Any,
        weights: list[Tensor],
        hidden: Tensor,
        shape: torch.Size,
        bias: Tensor,
        encoded: Tensor,
        longest: int,
        cross_bias: Tensor | None,
    ) -> Tensor:
        qkv, out, query, key_value, cross_out, wi, wo = weights
        hidden = self._self_attention(block.layer[0], qkv, out, hidden, shape, bias)
        normed = self._norm(hidden, block.layer[1].layer_norm.weight, self.dtype)
        (asked,) = self._by_head(torch.mm(normed, query.t()), shape[0], 1)
        # Cast in each layer: the layers' gradients then add up in float32.
        keys, values = self._by_head(torch.mm(encoded.to(self.dtype), key_value.t()), shape[0], 2)
        mixed = self._attend(asked, keys, values, cross_bias)
        hidden = hidden + self._dropped(torch.mm(mixed, cross_out.t()))
        return self._feed_forward(block.layer[2], wi, wo, hidden)

    def _self_attention(
        self, layer: Any, qkv: Tensor, out: Tensor, hidden: Tensor, shape: torch.Size, bias: Tensor
    ) -> Tensor:
        normed = self._norm(hidden, layer.layer_norm.weight, self.dtype)
        query, keys, values = self._by_head(torch.mm(normed, qkv.t()), shape[0], 3)
        mixed = self._attend(query, keys, values, bias)
        return hidden + self._dropped(torch.mm(mixed, out.t()))

    def _feed_forward(self, layer: Any, wi: Tensor, wo: Tensor, hidden: Tensor) -> Tensor:
        ffn = layer.DenseReluDense
        inner = torch.mm(self._norm(hidden, layer.layer_norm.weight, self.dtype), wi.t())
        if hasattr(ffn, "wi_1"):  # gated (Shazeer 2020, arXiv:2002.05202): wi_0 and wi_1 one above the other
            gate, linear = inner.chunk(2, dim=1)
            inner = ffn.act(gate) * linear
        else:
            inner = ffn.act(inner)
        return hidden + self._dropped(torch.mm(self._dropped(inner).to(self.dtype), wo.t()))

    def _by_head(self, projected: Tensor, rows: int, count: int) -> tuple[Tensor, ...]:
        """[N, count × h × d_kv] as `count` tensors [n, h, tokens, d_kv]."""
        parts = projected.view(rows, -1, count, self.heads, self.d_kv).permute(2, 0, 3, 1, 4)
        if not self.fused:  # attention in float32, each head's numbers side by side
            parts = _packed(parts, torch.float32)
        return parts.unbind(0)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Attention, not scaled, as T5 has it, [N, h × d_kv]; bias: broadcasts to [n, h, queries, keys]."""
        if self.fused:
            mixed = F.scaled_dot_product_attention(
                query, keys, values, attn_mask=bias, dropout_p=self.dropout, scale=1.0
            )
        else:
            scores = torch.matmul(query, keys.transpose(2, 3))
            scores = scores if bias is None else scores.add_(bias)
            mixed = torch.matmul(self._dropped(scores.softmax(-1)), values)
        return _packed(mixed.transpose(1, 2), self.dtype).view(-1, self.heads * self.d_kv)

    def _ended(self, stack: Any, hidden: Tensor) -> Tensor:
        return self._dropped(self._norm(hidden, stack.final_layer_norm.weight, torch.float32))

    def _norm(self, hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """T5's layer norm (no mean, no bias) of float32 [N, d_model], computed in float32, rounded to `dtype`."""
        if self.fused:
            return F.rms_norm(hidden, weight.shape, weight, self.epsilon).to(dtype)
        normed: Tensor = _RmsNorm.apply(hidden, weight, self.epsilon, dtype)
        return normed

    def _dropped(self, hidden: Tensor) -> Tensor:
        """Dropout. nn.Dropout is four kernels on a CPU, and in bfloat16 it rounds 1 / (1 - p)."""
        return torch.native_dropout(hidden, self.dropout, True)[0] if self.dropout else hidden

    def _bias(self, stack: Any, length: int) -> Tensor:
        """Relative position bias [1, h, length, length] in the dtype that attention adds up in."""
        attention = stack.block[0].layer[0].SelfAttention  # the only layer of a stack that has a table
        weight = attention.relative_attention_bias.weight
        table = _distances(
            round_up(length, TABLE_STEP),
            not stack.is_decoder,
            attention.relative_attention_num_buckets,
            attention.relative_attention_max_distance,
            attention._relative_position_bucket,
            weight.device,
        )
        bias = F.embedding(table[:length, :length], weight).permute(2, 0, 1)[None]  # [length, length, h] ->
        return _packed(bias, self.dtype if self.fused else torch.float32)


@functools.cache
def _distances(
    size: int, both_ways: bool, buckets: int, max_distance: int, bucket_of: Callable[..., Tensor], device: torch.device
) -> Tensor:
    """T5's bucket of the distance between two positions, int64 [size, size]; kept, because CUDA graphs read it."""
    places = torch.arange(size, device=device)
    steps = places - places[:, None]
    return bucket_of(steps, bidirectional=both_ways, num_buckets=buckets, max_distance=max_distance)


def _groups(t5: Any) -> Iterator[list[nn.Linear]]:
    """The linear layers in the order in which a pass needs them; those of a group read the same input."""
    for block in (*t5.encoder.block, *t5.decoder.block):
        mine = block.layer[0].SelfAttention
        yield [mine.q, mine.k, mine.v]
        yield [mine.o]
        if len(block.layer) == 3:
            cross = block.layer[1].EncDecAttention
            yield [cross.q]
            yield [cross.k, cross.v]
            yield [cross.o]
        ffn = block.layer[-1].DenseReluDense
        yield [ffn.wi_0, ffn.wi_1] if hasattr(ffn, "wi_1") else [ffn.wi]
        yield [ffn.wo]
    yield [t5.lm_head]


def _effective(groups: list[list[nn.Linear]], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """One matrix [sum of out, in] for each group, in `dtype`; gradients reach the parameters behind them in float32."""
    weights = [[linear.weight for linear in group] for group in groups]
    if dtype == torch.float32:
        return tuple(group[0] if len(group) == 1 else torch.cat(group) for group in weights)
    sizes = [len(group) for group in weights]
    cast: tuple[Tensor, ...] = _Cast.apply(dtype, sizes, *(w for group in weights for w in group))
    return cast


class _Cast(torch.autograd.Function):
    """Matrices as groups in another dtype, one memory and one kernel for all; the same for their gradients."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, sizes: list[int], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.shapes = [weight.shape for weight in weights]
        flat = weights[0].new_empty(sum(weight.numel() for weight in weights), dtype=dtype)
        parts = _views(flat, ctx.shapes)
        torch._foreach_copy_(parts, list(weights))
        rows = iter(ctx.shapes)
        shapes = []
        for size in sizes:  # neighbours in memory: a group is one matrix
            members = [next(rows) for _ in range(size)]
            shapes.append(torch.Size([sum(member[0] for member in members), members[0][1]]))
        return tuple(_views(flat, shapes))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        shapes = iter(ctx.shapes)
        parts: list[Tensor] = []
        for gradient in gradients:
            rows = 0
            while rows < len(gradient):
                shape = next(shapes)
                parts.append(gradient[rows : rows + shape[0]])
                rows += shape[0]
        flat = parts[0].new_empty(sum(part.numel() for part in parts), dtype=torch.float32)
        found = _views(flat, ctx.shapes)
        torch._foreach_copy_(found, parts)
        return None, None, *found


def _packed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype` and contiguous, by one copy at most."""
    return tensor.contiguous() if tensor.dtype == dtype else tensor.to(dtype, memory_format=torch.contiguous_format)


def _views(flat: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    parts = flat.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


class _RmsNorm(torch.autograd.Function):
    """T5's layer norm of float32 [N, d] for CPUs, where PyTorch's is a dozen passes over memory: here seven."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        size = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)  # [N, 1]
        inverse = size.square_().div_(hidden.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(hidden, weight, inverse)
        normed = hidden * inverse
        return torch.mul(normed, weight, out=normed if dtype == normed.dtype else normed.new_empty(0, dtype=dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, inverse = ctx.saved_tensors  # y = w x r, r = (mean of x² + epsilon) ^ -1/2
        gradient = gradient.float()
        product = gradient * hidden
        of_weight = torch.mv(product.t(), inverse[:, 0])
        # dr/dx = -r³ x / d, so dx = r w g - r³ x (sum of w g x) / d.
        along = torch.mv(product, weight)[:, None] * inverse.pow(3)
        of_hidden = torch.mul(gradient, weight, out=product).mul_(inverse)
        return of_hidden.addcmul_(hidden, along, value=-1 / hidden.shape[-1]), of_weight, None, None
