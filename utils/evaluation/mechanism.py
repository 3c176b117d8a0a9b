"""The mechanism panel of a model: what its feed-forward (FFN) matrices are, and what the model does without them.

Examples go through the model one at a time: no padding, so that every token counts, and little memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, svds
from torch import nn
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

from utils.analysis.bootstrap import Resampling, resampling
from utils.analysis.mechanism import BlockFigures, Gain, MatrixFigures, Mechanism, Premise
from utils.analysis.order import FILE, OrderTest, drawn_chains, order_test
from utils.core.codec import from_json, to_json
from utils.core.files import write_json
from utils.core.fingerprint import fingerprint
from utils.core.names import ARMS, STANDARD
from utils.core.paths import Paths
from utils.core.settings import Settings
from utils.data.store import load_prepared, read_manifest
from utils.modeling.models import load_model
from utils.modeling.monotonic import constrain, ffn_blocks, ffn_layers
from utils.modeling.tokenizer import load_tokenizer

VERSION = 2  # of the panel: another one is not taken from the cache
UNMOVED = 0.01  # a weight that training changed by less than this share of itself did not move
SENTENCES_AT_ONCE = 64
GAIN_TOLERANCE = 1e-5  # relative, of the largest singular value


Example = tuple[Sequence[int], Sequence[int]]  # input ids, label ids


@dataclass(frozen=True)
class PanelSize:
    """How many examples each part looks at; the gain is the dearest, some 30 passes forward and back an example."""

    examples: int = 24
    changes: int = 12
    gains: int = 2


def panel(
    model: T5ForConditionalGeneration,
    pretrained: T5ForConditionalGeneration,
    arm: str | None,
    inputs: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    *,
    seed: int = 0,
    epsilon: float = 1e-6,
    size: PanelSize | None = None,
    order: OrderTest | None = None,
) -> Mechanism:
    """The panel of `model`, an export of `arm` (None: the pretrained model itself) trained from `pretrained`.

    inputs, labels: token ids, ending in eos, of which `size` says how many are drawn. `pretrained` is changed: its FFN
    becomes that of the arm's start. Both models float32, in eval mode, on one device.
    """
    size = size or PanelSize()
    examples = drawn_examples(inputs, labels, seed, size)
    gains = [gain(model, ids, target) for ids, target in examples[: size.gains]]
    return Mechanism(
        num_examples=len(examples),
        **weight_figures(model, pretrained, arm, epsilon),
        **text_figures(model, examples, seed, size),
        gain=Gain(median=float(np.median(gains)), most=max(gains), num_examples=len(gains)),
        order=order,
    )


def drawn_examples(
    inputs: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], seed: int, size: PanelSize
) -> list[Example]:
    """The examples that the panel reads."""
    order = np.random.default_rng(seed).permutation(len(inputs))[: size.examples]
    return [(list(inputs[i]), list(labels[i])) for i in order.tolist()]


def text_figures(model: nn.Module, examples: Sequence[Example], seed: int, size: PanelSize) -> dict[str, Any]:
    """The fields of `Mechanism` that passes over `examples` decide, but for the gain, which takes most of the time."""
    parts = _parts(model)
    blocks = firing(model, examples)
    losses = {"loss": mean_loss(model, examples)}
    others: dict[str, Replacement] = {
        "zeroed": lambda _, weight: torch.zeros_like(weight),
        "rank_one": lambda name, weight: parts[name].rank_one().to(weight),
        "without": lambda name, weight: weight - parts[name].rank_one().to(weight),
    }
    for kind, other in others.items():
        with replaced(model, other):
            losses[kind] = mean_loss(model, examples)
    return {
        "loss": losses["loss"],
        "loss_zeroed": losses["zeroed"],
        "loss_rank_one": losses["rank_one"],
        "loss_without_rank_one": losses["without"],
        "dead_units": fmean(one.dead_units for one in blocks.values()),
        "always_on_units": fmean(one.always_on_units for one in blocks.values()),
        "premise": premise(model, examples[: size.changes], seed),
        "blocks": blocks,
    }


def weight_figures(
    model: T5ForConditionalGeneration, pretrained: T5ForConditionalGeneration, arm: str | None, epsilon: float
) -> dict[str, Any]:
    """The fields of `Mechanism` that the weights alone decide; `pretrained` is changed, as by `panel`."""
    matrices = {name: part.figures for name, part in _parts(model).items()}
    return {
        "spectral_norm": max(one.spectral_norm for one in matrices.values()),
        "stable_rank": fmean(one.stable_rank for one in matrices.values()),
        "first_direction": fmean(one.first_direction for one in matrices.values()),
        "matrices": matrices,
        **_changes(model, pretrained, arm, epsilon),
    }


@dataclass(frozen=True)
class _Decomposed:
    figures: MatrixFigures
    left: torch.Tensor  # float64 [rows], right: [columns]; of the two, one has length 1, the other s_1
    right: torch.Tensor

    def rank_one(self) -> torch.Tensor:
        """float64, shape of the matrix: s_1 u_1 v_1^T (Eckart and Young 1936); not kept, all together are large."""
        return torch.outer(self.left, self.right)


def _parts(model: nn.Module) -> dict[str, _Decomposed]:
    return {name: _decomposed(linear.weight.detach()) for name, linear in ffn_layers(model)}


def _decomposed(weight: torch.Tensor) -> _Decomposed:
    """From the Gram matrix of the shorter side, in float64: twenty times as fast as a decomposition of W itself."""
    w = weight.double() if weight.shape[0] <= weight.shape[1] else weight.double().T  # [short, long]
    values, vectors = torch.linalg.eigh(w @ w.T)  # rising; the squared singular values
    first, u = float(values[-1].clamp(min=0)), vectors[:, -1]
    energy = max(float((w**2).sum()), first)
    figures = MatrixFigures(
        spectral_norm=first**0.5,
        stable_rank=energy / first if first else 0.0,
        first_direction=first / energy if energy else 0.0,
    )
    scaled = u @ w  # u_1^T W = s_1 v_1^T
    return _Decomposed(figures, *((u, scaled) if weight.shape[0] <= weight.shape[1] else (scaled, u)))


Replacement = Callable[[str, torch.Tensor], torch.Tensor]  # name and weight of a matrix -> the weight it gets


@contextmanager
def replaced(model: nn.Module, other: Replacement) -> Iterator[None]:
    """`model` with other FFN weights, by matrix; they are as they were afterwards, bit by bit."""
    layers = dict(ffn_layers(model))
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    try:
        with torch.no_grad():
            for name, weight in before.items():
                layers[name].weight.copy_(other(name, weight))
        yield
    finally:
        with torch.no_grad():
            for name, weight in before.items():
                layers[name].weight.copy_(weight)


@torch.no_grad()
def sentence_states(model: T5ForConditionalGeneration, sentences: Sequence[Sequence[int]]) -> np.ndarray:
    """Mean encoder state of each sentence's tokens but the eos, float64 [sentences, d_model].

    sentences: token ids that end in eos. Those of one length go through together: no padding.
    """
    states = np.zeros((len(sentences), model.config.d_model))
    lengths = np.array([len(ids) for ids in sentences])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        for part in np.array_split(rows, -(-len(rows) // SENTENCES_AT_ONCE)):
            ids = torch.tensor([list(sentences[i]) for i in part], device=model.device)
            hidden = model.encoder(input_ids=ids).last_hidden_state[:, :-1]  # [rows, length - 1, d_model]
            states[part] = hidden.double().mean(1).cpu().numpy()
    return states


def order_of(
    model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, number: int, ci: Resampling
) -> OrderTest | None:
    """The order test on so many chains; None for 0."""
    if not number:
        return None
    chains = drawn_chains(number, ci["seed"])
    ids = tokenizer([sentence for chain in chains for sentence in chain.sentences])["input_ids"]
    return order_test(sentence_states(model, ids), [len(one) for one in ids], chains, ci)


def _tensors(model: nn.Module, example: Example) -> dict[str, torch.Tensor]:
    device = next(model.parameters()).device
    ids, target = example
    return {"input_ids": torch.tensor([ids], device=device), "labels": torch.tensor([target], device=device)}


@torch.no_grad()
def mean_loss(model: nn.Module, examples: Sequence[Example]) -> float:
    """Mean negative log-likelihood per label token, nats."""
    total, tokens = 0.0, 0
    for example in examples:
        given = _tensors(model, example)
        logits = model(**given, use_cache=False).logits[0].float()
        total += float(F.cross_entropy(logits, given["labels"][0], reduction="sum"))
        tokens += len(example[1])
    return total / tokens


@torch.no_grad()
def firing(model: nn.Module, examples: Sequence[Example]) -> dict[str, BlockFigures]:
    """Dead and always-on hidden units of every block: act(wi x), or of gated blocks act(wi_0 x), above 0."""
    fired: dict[str, torch.Tensor] = {}  # [d_ff]: tokens at which the unit was on
    tokens = dict.fromkeys((name for name, _ in ffn_blocks(model)), 0)

    def count(name: str, hidden: torch.Tensor) -> None:
        on = (hidden > 0).reshape(-1, hidden.shape[-1]).sum(0)
        fired[name] = fired[name] + on if name in fired else on
        tokens[name] += hidden.numel() // hidden.shape[-1]

    with _watched({name: block.get_submodule("act") for name, block in ffn_blocks(model)}, count, output=True):
        for example in examples:
            model(**_tensors(model, example), use_cache=False)
    return {
        name: BlockFigures(
            dead_units=float((on == 0).double().mean()), always_on_units=float((on == tokens[name]).double().mean())
        )
        for name, on in fired.items()
    }


@torch.no_grad()
def premise(model: nn.Module, examples: Sequence[Example], seed: int) -> Premise:
    """One random token of each input becomes another one of the examples'; which FFN inputs does that move, and how?"""
    rng = np.random.default_rng(seed)
    known = sorted({token for ids, _ in examples for token in ids[:-1]})
    moved = comparable = 0
    seen: list[torch.Tensor] = []
    with _watched(dict(ffn_blocks(model)), lambda _, states: seen.append(states[0]), output=False):
        for ids, target in examples:
            place = int(rng.integers(max(len(ids) - 1, 1)))  # not the eos
            other = list(ids)
            other[place] = int(rng.choice([token for token in known if token != ids[place]] or [ids[place]]))
            seen.clear()
            for given in (ids, other):
                model(**_tensors(model, (given, target)), use_cache=False)
            half = len(seen) // 2
            for before, after in zip(seen[:half], seen[half:], strict=True):
                step = (after - before)[(after != before).any(-1)]  # [tokens moved, d_model]
                moved += len(step)
                comparable += int(((step >= 0).all(-1) | (step <= 0).all(-1)).sum())
    return Premise(moved=moved, comparable=comparable, rate=comparable / moved if moved else 0.0)


@contextmanager
def _watched(
    modules: Mapping[str, nn.Module], tell: Callable[[str, torch.Tensor], None], *, output: bool
) -> Iterator[None]:
    """Call `tell` with the name and the output (or the input) of each module whenever it runs."""

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, inputs, result: tell(name, result if output else inputs[0])

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def gain(model: T5ForConditionalGeneration, ids: Sequence[int], target: Sequence[int]) -> float:
    """Largest singular value of the Jacobian J of all logits by all input embeddings, at one example.

    J is never made: Lanczos (scipy's svds) asks for J x, a Jacobian-vector product forward, and J^T y, one backward.
    """
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")  # fused attention has no derivative forward
    try:
        given = _tensors(model, (ids, target))
        embedded = model.get_input_embeddings()(given["input_ids"]).detach()  # [1, T, d_model]
        # Detached: nothing is kept for gradients by the weights, which nobody asks for.
        weights = {name: weight.detach() for name, weight in model.named_parameters()}

        def logits(x: torch.Tensor) -> torch.Tensor:
            known = {"inputs_embeds": x, "labels": given["labels"], "use_cache": False}
            out: torch.Tensor = torch.func.functional_call(model, weights, kwargs=known).logits
            return out

        shape = logits(embedded).shape  # [1, U, vocabulary]
        pull = torch.func.vjp(logits, embedded)[1]

        def forward(x: np.ndarray) -> np.ndarray:
            step = torch.as_tensor(x.reshape(embedded.shape)).to(embedded)
            product = torch.func.jvp(logits, (embedded,), (step,))[1]
            return product.detach().double().cpu().numpy().ravel()

        def backward(y: np.ndarray) -> np.ndarray:
            (product,) = pull(torch.as_tensor(y.reshape(shape)).to(embedded))
            return product.detach().double().cpu().numpy().ravel()

        operator = LinearOperator((shape.numel(), embedded.numel()), matvec=forward, rmatvec=backward, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(min(operator.shape))
        return float(svds(operator, k=1, tol=GAIN_TOLERANCE, v0=start, return_singular_vectors=False)[0])
    finally:
        model.set_attn_implementation(attention)


@torch.no_grad()
def _changes(model: nn.Module, pretrained: nn.Module, arm: str | None, epsilon: float) -> dict[str, float]:
    """How far the weights are from the pretrained ones and from where the arm started: fields of `Mechanism`."""
    names = {f"{name}.weight" for name, _ in ffn_layers(model)}
    ffn = {name: p for name, p in model.named_parameters() if name in names}
    others = {name: p for name, p in model.named_parameters() if name not in names}
    before = dict(pretrained.named_parameters())
    changes = {
        "ffn_change_from_pretrained": _distance(ffn, before),
        "other_change": _distance(others, before),
    }
    if arm is not None:
        constrain(pretrained, eps=epsilon, arm=arm)
    start = {f"{name}.weight": linear.weight for name, linear in ffn_layers(pretrained)}
    still = 0
    for name, weight in ffn.items():
        old = start[name].double()
        still += int(((weight.double() - old).abs() <= UNMOVED * old.abs()).sum())
    return changes | {
        "ffn_change": _distance(ffn, start),
        "unmoved_share": still / sum(weight.numel() for weight in ffn.values()),
    }


def _distance(new: Mapping[str, torch.Tensor], old: Mapping[str, torch.Tensor]) -> float:
    """Frobenius norm of all changes together, over that of all old weights; 0 where these are all 0.

    In float64, one matrix at a time: copies of all of them took a gigabyte for T5-small.
    """
    moved = norm = 0.0
    for name, weight in new.items():
        was = old[name].double()
        moved += float(((weight.double() - was) ** 2).sum())
        norm += float((was**2).sum())
    return (moved / norm) ** 0.5 if norm else 0.0


def mechanism_of(
    name: str, settings: Settings, paths: Paths, seed: int, *, weights: Mapping[str, str], device: str, cache: Path
) -> Mechanism:
    """The panel of the model `name` on the validation set; finished ones stay in `cache`, by weights and data."""
    file = cache / f"mechanism_{name}.json"
    data = read_manifest(paths.prepared)["key"]
    ci = resampling(settings)
    chains = FILE.read_text(encoding="utf-8"), settings.ORDER_CHAINS, ci
    made_from = fingerprint(
        VERSION, weights[name], weights[STANDARD], data, PanelSize(), chains, settings.MONOTONIC_EPSILON
    )
    if file.exists() and (kept := json.loads(file.read_text(encoding="utf-8")))["made_from"] == made_from:
        return from_json(Mechanism, kept["panel"], str(file))
    rows = load_prepared(paths.prepared, "validation")
    model, pretrained = (load_model(paths.model(seed, key), device=device) for key in (name, STANDARD))
    found = panel(
        model,
        pretrained,
        name if name in ARMS else None,
        rows["input_ids"],
        rows["labels"],
        seed=settings.DATA_SEED,
        epsilon=settings.MONOTONIC_EPSILON,
        order=order_of(model, load_tokenizer(paths.pretrained), settings.ORDER_CHAINS, ci),
    )
    write_json(file, {"made_from": made_from, "panel": to_json(found)})
    return found
