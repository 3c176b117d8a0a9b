"""T5's forward pass for generation and for losses: plain functions over a transformers model's weights, no overheads.

What makes it fast beside the module's own forward pass:
- keys and values of the document are projected once per example and read by all its beams; transformers keeps a copy
  of them for each beam and copies all of it again at every step;
- the cache of generated tokens is never reordered: every beam writes its keys to a slot of its own, and a mask says
  which slots are the ancestors of which beam ("Reading, not copying, the past": 4 × the dot products of a tiny matrix
  instead of moving the whole cache at each of 80 steps);
- the encoder sees packed tokens, no padding, and so does the decoder where targets are scored; matrices that share an
  input are one product; residuals are added by it.

Arithmetic is that of T5ForConditionalGeneration in eval mode: float32, or bfloat16 products with a float32 residual
stream, as autocast computes it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from utils.modeling.batching import round_up

MASKED = float("-inf")
# Target tokens whose logits exist at a time: on a CPU they then stay in its cache (256 × 32,128 numbers are 33 MB).
LOGIT_ROWS = {"cpu": 256, "cuda": 8192}
BIAS_ALIGNMENT = 8  # CUDA's fused attention wants rows of the position bias aligned to 8 numbers
# By device, 1 elsewhere: documents are as wide as a multiple of this, and beams look at the slots of a multiple of so
# many steps. A GPU's attention chooses a kernel, and the allocator a block, for every new shape; kernels are for 8.
DOCUMENT_WIDTHS, STEP_WIDTHS = {"cuda": 8}, {"cuda": 16}


@dataclasses.dataclass
class FeedForward:
    """One FFN: `gate` is wi_1 of the gated variant (Shazeer 2020, arXiv:2002.05202), None in the ReLU one."""

    norm: Tensor  # [d_model], float32
    wi: Tensor  # [d_model, d_ff]
    gate: Tensor | None  # [d_model, d_ff]
    wo: Tensor  # [d_ff, d_model]
    act: Callable[[Tensor], Tensor]


@dataclasses.dataclass
class EncoderLayer:
    """Weights of one encoder block; matrices are [in, out], norms [d_model]. inner = heads × d_kv.

    qkv: [d_model, 3 × inner], query, key and value side by side; out: [inner, d_model].
    """

    norm: Tensor
    qkv: Tensor
    out: Tensor
    ffn: FeedForward


@dataclasses.dataclass
class DecoderLayer(EncoderLayer):
    """The same of a decoder block, with its attention to the document: cross_key_value is [d_model, 2 × inner]."""

    cross_norm: Tensor
    cross_query: Tensor
    cross_key_value: Tensor
    cross_out: Tensor


@dataclasses.dataclass
class DecoderState:
    """Caches of a batch while it is generated. rows = examples × beams.

    keys, values: per layer [examples, heads, steps × beams, d_kv], slot = step × beams + beam.
    cross_keys, cross_values: per layer [examples, heads, longest document, d_kv].
    cross_mask: [examples, 1, 1, longest document], 0 or −inf; None where no document is padded.
    bias: relative position bias [heads, steps + more] towards the tokens steps − 1, …, 1, 0 steps back, then zeros.
    ancestors: int64 [examples, beams, steps], the beam whose slot holds a beam's token of each step; −1: none yet.
    """

    keys: list[Tensor]
    values: list[Tensor]
    cross_keys: list[Tensor]
    cross_values: list[Tensor]
    cross_mask: Tensor | None
    bias: Tensor
    ancestors: Tensor

    def reorder(self, parents: Tensor) -> None:
        """Beam j of each example now extends beam parents[example, j] (int64 [examples, beams]).

        Only its line of ancestors is copied: keys and values stay where they are.
        """
        self.ancestors = self.ancestors.gather(1, parents[:, :, None].expand_as(self.ancestors))

    def select(self, examples: Tensor, steps: int) -> None:
        """Keep only these examples (int64 indices); `steps` have been generated so far."""
        used = steps * self.ancestors.shape[1]  # slots written so far; those behind hold nothing yet, so no copy
        for cache in (self.keys, self.values):
            for i, old in enumerate(cache):  # layer by layer, so that only one old cache exists beside the new one
                new = old.new_zeros((len(examples), *old.shape[1:]))
                new[:, :, :used] = old[:, :, :used].index_select(0, examples)
                cache[i] = new
        self.cross_keys = [old.index_select(0, examples) for old in self.cross_keys]
        self.cross_values = [old.index_select(0, examples) for old in self.cross_values]
        self.ancestors = self.ancestors.index_select(0, examples)
        if self.cross_mask is not None:
            self.cross_mask = self.cross_mask.index_select(0, examples)


class T5Inference:
    """A read-only copy of a T5's weights, laid out for inference.

    model: a T5ForConditionalGeneration, float32, folded or constrained, on any device. dtype: of the matrix products;
    norms, the residual stream and the embeddings stay float32. T5: Raffel et al. 2020, arXiv:1910.10683.
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        config = model.config
        self.dtype = dtype
        self.heads, self.d_kv, self.epsilon = config.num_heads, config.d_kv, config.layer_norm_epsilon
        self.vocabulary = model.lm_head.weight.shape[0]
        self.embedding: Tensor = model.shared.weight.detach()
        self.device = self.embedding.device
        self.document_width = DOCUMENT_WIDTHS.get(self.device.type, 1)
        self.step_width = STEP_WIDTHS.get(self.device.type, 1)
        # T5 with tied embeddings shrinks the decoder's output before the product with them; T5 1.1 does not.
        self.logit_scale = config.d_model**-0.5 if config.scale_decoder_outputs else None
        self.head = self._transposed([model.lm_head.weight])
        self.encoder = [self._encoder_layer(block) for block in model.encoder.block]
        self.decoder = [self._decoder_layer(block) for block in model.decoder.block]
        self.encoder_norm = model.encoder.final_layer_norm.weight.detach()
        self.decoder_norm = model.decoder.final_layer_norm.weight.detach()
        # Only the first block has the table of relative position biases; all blocks of its stack use it.
        self._encoder_bias = model.encoder.block[0].layer[0].SelfAttention
        self._decoder_bias = model.decoder.block[0].layer[0].SelfAttention

    # ---- weights -------------------------------------------------------------------------------------------------

    def _transposed(self, weights: Iterable[Tensor]) -> Tensor:
        """Weights [out, in] of layers that read the same input as one matrix [in, out]."""
        return torch.cat([weight.detach().to(self.dtype) for weight in weights]).t().contiguous()

    def _encoder_layer(self, block: Any) -> EncoderLayer:
        """Weights of a T5Block; in every block the first sublayer is self-attention and the last one the FFN."""
        attention, dense = block.layer[0], block.layer[-1]
        projections, ffn = attention.SelfAttention, dense.DenseReluDense
        gated = hasattr(ffn, "wi_1")
        return EncoderLayer(
            norm=attention.layer_norm.weight.detach(),
            qkv=self._transposed([projections.q.weight, projections.k.weight, projections.v.weight]),
            out=self._transposed([projections.o.weight]),
            ffn=FeedForward(
                norm=dense.layer_norm.weight.detach(),
                wi=self._transposed([ffn.wi_0.weight if gated else ffn.wi.weight]),
                gate=self._transposed([ffn.wi_1.weight]) if gated else None,
                wo=self._transposed([ffn.wo.weight]),
                act=ffn.act,
            ),
        )

    def _decoder_layer(self, block: Any) -> DecoderLayer:
        shared, cross = self._encoder_layer(block), block.layer[1].EncDecAttention
        return DecoderLayer(
            **vars(shared),
            cross_norm=block.layer[1].layer_norm.weight.detach(),
            cross_query=self._transposed([cross.q.weight]),
            cross_key_value=self._transposed([cross.k.weight, cross.v.weight]),
            cross_out=self._transposed([cross.o.weight]),
        )

    # ---- pieces --------------------------------------------------------------------------------------------------

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """T5's layer norm (no mean, no bias) of float32 `hidden` [tokens, d_model], in the dtype of the products."""
        return functional.rms_norm(hidden, hidden.shape[-1:], weight, self.epsilon).to(self.dtype)

    def _add_product(self, hidden: Tensor, inner: Tensor, weight: Tensor) -> Tensor:
        """hidden + inner @ weight: the residual is added by the product where both have one dtype."""
        if self.dtype == hidden.dtype:
            return torch.addmm(hidden, inner, weight)
        return hidden + torch.mm(inner, weight)  # bfloat16 product, float32 residual

    def _feed_forward(self, hidden: Tensor, ffn: FeedForward) -> Tensor:
        """`hidden` [tokens, d_model] with the FFN's output added; dropout is left out, as in eval mode."""
        normed = self._norm(hidden, ffn.norm)
        inner = ffn.act(torch.mm(normed, ffn.wi))
        if ffn.gate is not None:
            inner = inner * torch.mm(normed, ffn.gate)
        return self._add_product(hidden, inner, ffn.wo)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """[rows, heads, queries, d_kv]; keys and values [rows, heads, n, d_kv]; mask: added to the dot products."""
        # T5 does not scale the dot products: its initialisation does.
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=1.0)

    def _attend_to_self(self, qkv: Tensor, runs: Iterable[tuple[int, int, Tensor]]) -> Tensor:
        """Self-attention of packed tokens, [tokens, heads × d_kv].

        qkv: [tokens, 3 × heads × d_kv]. runs: (width, rows, bias) of each run of neighbouring rows that have one width;
        a run is a rectangle, so it is one attention call. bias: [1 or rows, heads, width, width].
        """
        mixed = torch.empty_like(qkv[:, : self.heads * self.d_kv])
        start = 0
        for width, rows, bias in runs:
            stop = start + width * rows
            # [rows × width, 3 × heads × d_kv] -> 3 views [rows, heads, width, d_kv]
            query, keys, values = (
                qkv[start:stop].view(rows, width, 3, self.heads, self.d_kv).permute(2, 0, 3, 1, 4).unbind(0)
            )
            mixed[start:stop] = self._attend(query, keys, values, bias).transpose(1, 2).reshape(rows * width, -1)
            start = stop
        return mixed

    def _decoder_output(self, hidden: Tensor) -> Tensor:
        """What the product with `head` makes logits of, [tokens, d_model]."""
        hidden = self._norm(hidden, self.decoder_norm)
        return hidden if self.logit_scale is None else hidden * self.logit_scale

    # ---- encoder -------------------------------------------------------------------------------------------------

    def encode(self, ids: Tensor, lengths: list[int]) -> Tensor:
        """Encoder states [tokens, d_model] of packed `ids` int64 [tokens]: rows of `lengths` one after the other."""
        widths = [round_up(length, self.document_width) for length in lengths]
        places = None if widths == lengths else self._places(lengths, widths)
        if places is not None:
            ids = ids.new_zeros(sum(widths)).index_copy_(0, places, ids)
        hidden = self.embedding[ids]  # [tokens, d_model], float32: the residual stream
        longest = round_up(max(lengths), BIAS_ALIGNMENT)
        # The bias depends on the distance alone, so that of a shorter row is a corner of the longest one's.
        bias = self._encoder_bias.compute_bias(longest, longest, device=self.device).to(self.dtype)
        # A batch is sorted by length, so rows of equal width are neighbours: each such run is one attention call.
        runs = []
        for width, group in itertools.groupby(zip(widths, lengths, strict=True), key=lambda pair: pair[0]):
            inside = [length for _, length in group]
            corner, mask = bias[:, :, :width, :width], self._mask(inside, width)
            runs.append((width, len(inside), corner if mask is None else corner + mask))
        for layer in self.encoder:
            qkv = torch.mm(self._norm(hidden, layer.norm), layer.qkv)
            hidden = self._add_product(hidden, self._attend_to_self(qkv, runs), layer.out)
            hidden = self._feed_forward(hidden, layer.ffn)
        return self._norm(hidden if places is None else hidden[places], self.encoder_norm)

    def _places(self, lengths: Sequence[int], widths: Sequence[int]) -> Tensor:
        """Where the packed tokens of rows of `lengths` are once each row is as wide as its `widths`, int64 [tokens]."""
        starts = np.cumsum([0, *widths[:-1]])
        places = np.concatenate([start + np.arange(length) for start, length in zip(starts, lengths, strict=True)])
        return torch.from_numpy(places).to(self.device)

    def _mask(self, lengths: Sequence[int], width: int) -> Tensor | None:
        """0 for the tokens of rows of `lengths`, −inf up to `width`, [rows, 1, 1, width]; None if nothing is padded."""
        if min(lengths) == width:
            return None
        ends = torch.tensor(lengths, device=self.device)[:, None]
        mask = torch.zeros((len(lengths), width), dtype=self.dtype, device=self.device)
        return mask.masked_fill_(torch.arange(width, device=self.device) >= ends, MASKED)[:, None, None]

    # ---- decoder -------------------------------------------------------------------------------------------------

    def start(self, encoded: Tensor, lengths: list[int], beams: int, steps: int) -> DecoderState:
        """Caches for generating up to `steps` tokens with `beams` beams from packed encoder states.

        encoded: [tokens, d_model] from `encode`, whose rows have these `lengths`. Documents are padded here: while
        generating, every example has `beams` queries a step, and one call for all of them beats one for each length.
        """
        examples, longest = len(lengths), round_up(max(lengths), self.document_width)
        mask = self._mask(lengths, longest)
        places = self._places(lengths, [longest] * examples)
        cross_keys, cross_values = [], []
        for layer in self.decoder:
            projected = torch.mm(encoded, layer.cross_key_value)  # [tokens, 2 × heads × d_kv]
            if mask is not None:
                full = projected.new_zeros((examples * longest, projected.shape[1]))
                full[places] = projected
                projected = full
            both = projected.view(examples, longest, 2, self.heads, self.d_kv).permute(2, 0, 3, 1, 4).contiguous()
            cross_keys.append(both[0])
            cross_values.append(both[1])
        # The row of the newest of `steps` tokens: its last n numbers are the row of the nth token.
        bias = self._decoder_bias.compute_bias(1, steps, device=self.device, past_seen_tokens=steps - 1)[0, :, 0]
        shape = (examples, self.heads, steps * beams, self.d_kv)
        return DecoderState(
            # Zeros, because attention multiplies what it masks by 0: of memory as it was that may be NaN.
            keys=[torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in self.decoder],
            values=[torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in self.decoder],
            cross_keys=cross_keys,
            cross_values=cross_values,
            cross_mask=mask,
            bias=functional.pad(bias.to(self.dtype), (0, self.step_width - 1)),
            ancestors=torch.full((examples, beams, steps), -1, device=self.device),
        )

    @torch.inference_mode()
    def mean_nll(self, inputs: Sequence[np.ndarray], labels: Sequence[np.ndarray], start: int = 0) -> Tensor:
        """Mean negative log-likelihood of each row of `labels` given its row of `inputs`, float32 [rows].

        Rows of ids, any lengths, none empty; `start`: the decoder's start token. Rows with equal lengths of both should
        stand side by side. Nothing is padded, and logits are there for a few target tokens at a time.
        """
        lengths, targets = [len(row) for row in inputs], [len(row) for row in labels]
        encoded = self.encode(self._packed(inputs), lengths)
        wanted = self._packed(labels)
        # The decoder reads the target shifted by one: start token first, last token never.
        hidden = self.embedding[self._packed([np.concatenate([[start], row[:-1]]) for row in labels])]
        longest = round_up(max(targets), BIAS_ALIGNMENT)
        bias = self._decoder_bias.compute_bias(longest, longest, device=self.device).to(self.dtype)
        future = torch.ones(longest, longest, dtype=torch.bool, device=self.device).triu(1)
        bias = bias.masked_fill(future, MASKED)
        # Runs of neighbours that agree in both lengths: (input length, target length, rows).
        runs = [(*pair, len(list(group))) for pair, group in itertools.groupby(zip(lengths, targets, strict=True))]
        target_runs = [(target, rows, bias[:, :, :target, :target]) for _, target, rows in runs]
        for layer in self.decoder:
            qkv = torch.mm(self._norm(hidden, layer.norm), layer.qkv)
            hidden = self._add_product(hidden, self._attend_to_self(qkv, target_runs), layer.out)
            query = torch.mm(self._norm(hidden, layer.cross_norm), layer.cross_query)
            both = torch.mm(encoded, layer.cross_key_value)
            hidden = self._add_product(hidden, self._across(query, both, runs), layer.cross_out)
            hidden = self._feed_forward(hidden, layer.ffn)
        hidden = self._decoder_output(hidden)
        rows = LOGIT_ROWS[self.device.type]
        nll = torch.cat(
            [
                functional.cross_entropy(torch.mm(part, self.head).float(), ids, reduction="none")
                for part, ids in zip(hidden.split(rows), wanted.split(rows), strict=True)
            ]
        )
        # Back from packed [target tokens] to [rows, longest], row by row, so that one sum gives all the means.
        counts = torch.tensor(targets, device=self.device)
        inside = torch.arange(longest, device=self.device) < counts[:, None]
        return torch.zeros(inside.shape, device=self.device).masked_scatter_(inside, nll).sum(1) / counts

    def _packed(self, rows: Sequence[np.ndarray]) -> Tensor:
        """The ids of all rows one after the other, int64 [tokens]."""
        return torch.from_numpy(np.concatenate(rows).astype(np.int64)).to(self.device)

    def _across(self, query: Tensor, both: Tensor, runs: list[tuple[int, int, int]]) -> Tensor:
        """Attention of packed target tokens to their own documents, [target tokens, heads × d_kv].

        query: [target tokens, heads × d_kv]; both: keys and values of the packed documents, [tokens, 2 × heads × d_kv];
        runs: (input length, target length, rows).
        """
        mixed = torch.empty_like(query)
        start = document = 0
        for length, target, rows in runs:
            stop, end = start + target * rows, document + length * rows
            asked = query[start:stop].view(rows, target, self.heads, self.d_kv).transpose(1, 2)
            keys, values = both[document:end].view(rows, length, 2, self.heads, self.d_kv).permute(2, 0, 3, 1, 4)
            output = self._attend(asked, keys, values, None)
            mixed[start:stop] = output.transpose(1, 2).reshape(rows * target, -1)
            start, document = stop, end
        return mixed

    def step(self, tokens: Tensor, state: DecoderState, step: int) -> Tensor:
        """Logits float32 [examples × beams, vocabulary] after the newest `tokens` int64 [examples, beams].

        step: number of tokens generated before these, from 0. `state` is updated in place.
        """
        examples, beams = tokens.shape
        slots = torch.arange(beams, device=self.device)
        state.ancestors[:, :, step] = slots
        start, stop = step * beams, (step + 1) * beams  # the slots of this step in the caches
        steps = state.ancestors.shape[2]
        width = min(round_up(step + 1, self.step_width), steps)  # of which none are ancestors after this step
        seen = width * beams
        # Query = beam; key = slot (step s, beam b). A beam may see slot b of step s only where b is its ancestor there;
        # what it sees gets T5's bias for being step - s tokens back. All other slots belong to other beams.
        is_ancestor = state.ancestors[:, :, :width, None] == slots  # [examples, beams, width, beams]
        bias = state.bias[:, steps - step - 1 :][:, :width][None, :, None, :, None]  # [1, heads, 1, width, 1]
        mask = torch.where(is_ancestor[:, None], bias, MASKED).reshape(examples, self.heads, beams, seen)
        hidden = self.embedding[tokens.view(-1)]
        for i, layer in enumerate(self.decoder):
            qkv = torch.mm(self._norm(hidden, layer.norm), layer.qkv)
            query, keys, values = qkv.view(examples, beams, 3, self.heads, self.d_kv).permute(2, 0, 3, 1, 4).unbind(0)
            state.keys[i][:, :, start:stop] = keys
            state.values[i][:, :, start:stop] = values
            mixed = self._attend(query, state.keys[i][:, :, :seen], state.values[i][:, :, :seen], mask)
            hidden = self._add_product(hidden, mixed.transpose(1, 2).reshape(examples * beams, -1), layer.out)
            # The beams of an example are query positions over one shared copy of its document: [examples, heads, beams,
            # d_kv] against [examples, heads, longest, d_kv].
            query = torch.mm(self._norm(hidden, layer.cross_norm), layer.cross_query)
            query = query.view(examples, beams, self.heads, self.d_kv).transpose(1, 2)
            mixed = self._attend(query, state.cross_keys[i], state.cross_values[i], state.cross_mask)
            hidden = self._add_product(hidden, mixed.transpose(1, 2).reshape(examples * beams, -1), layer.cross_out)
            hidden = self._feed_forward(hidden, layer.ffn)
        return torch.mm(self._decoder_output(hidden), self.head).float()
