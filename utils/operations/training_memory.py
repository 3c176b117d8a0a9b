"""How much GPU memory a training needs, from the model's config.json alone, before anything is queued. Torch-free."""

from __future__ import annotations

import json
import math
import os
import re
import urllib.request
from typing import Any

from utils.core.paths import Paths
from utils.core.settings import Settings
from utils.data.hub import snapshots
from utils.operations.check import OK, PROBLEM, WARNING, Check
from utils.pipeline.external_inputs import model_directory

HUB_SECONDS = 10
# GB of cards whose GRES does not tell, in every size that they are sold in.
CARD_GB = {
    "v100": (16, 32), "p100": (12, 16), "t4": (16,), "a30": (24,), "rtx6000": (24, 48), "a10": (24,), "l4": (24,),
    "mi100": (32,), "a100": (40, 80), "a40": (48,), "l40": (48,), "l40s": (48,), "a6000": (48,), "rtxpro6000": (96,),
    "gh200": (96, 144), "h100": (80, 94), "h200": (141,), "b200": (180,), "mi300x": (192,),
}  # fmt: skip
# Bytes that autograd keeps for a token in a layer, for each unit of d_model, of heads × d_kv and of d_ff; for a label
# token for each word of the vocabulary. Read off `saved_tensors_hooks` of T5s of several shapes under bf16 autocast.
MODEL_BYTES, HEAD_BYTES, FFN_BYTES, GATED_FFN_BYTES, WORD_BYTES = 21, 14, 5, 15, 12
# Of a parameter: itself, its gradient and two moments of Adam in float32; of a product's matrix a copy in bfloat16, and
# the gradient of that. Position bias with the mask, of a pair of positions: bfloat16, and two layers' gradients.
STATE_BYTES, COPY_BYTES, BIAS_BYTES = 16, 4, 6
LIBRARIES = 1e9  # CUDA context, cuBLAS workspaces


def memory_check(settings: Settings, paths: Paths) -> Check | None:
    """Does a training of MODEL_NAME fit on a GPU of SLURM_GRES? None for no GPU, or an unknown model."""
    config = None if settings.DEVICE == "cpu" else _config(settings, paths)
    if config is None:
        return None
    requests = settings.SLURM_GRES.split("|")
    gpus = min(map(gpu_count, requests))
    share = math.ceil(settings.BATCH_SIZE / gpus)  # of every batch, which the GPUs of a job have between them
    micro = min(settings.MICRO_BATCH_SIZE or share, share)
    needed = training_gb(config, settings, micro, settings.GRADIENT_CHECKPOINTING)
    words = f"{settings.MODEL_NAME} at micro-batch {micro} needs about {needed:.0f} GB"
    words += f" on each of {gpus} GPUs" if gpus > 1 else ""
    sizes = sorted({gb for request in requests for gb in card_gb(request)})
    if not sizes:
        return Check(OK, "GPU memory", words)
    told = " or ".join(map(str, sizes))
    if needed <= sizes[0]:
        return Check(OK, "GPU memory", f"{words} of {told}")
    ways = [(1, settings.GRADIENT_CHECKPOINTING, "MICRO_BATCH_SIZE=1")] if micro > 1 else []
    ways += [(1, True, "MICRO_BATCH_SIZE=1 and GRADIENT_CHECKPOINTING=true")]
    fitting = [name for rows, again, name in ways if training_gb(config, settings, rows, again) <= sizes[0]]
    fix = f"set {fitting[0]}" if fitting else "name a larger GPU in SLURM_GRES"
    if needed > sizes[-1]:
        return Check(PROBLEM, "GPU memory", f"{words}, the GPU has {told}", fix)
    if any(len(card_gb(request)) > 1 for request in requests):
        fix += ", or name the GPU with its size (sinfo -o '%P %G')"
    return Check(WARNING, "GPU memory", f"{words}, the GPU has {told}", fix)


def training_gb(config: dict[str, Any], settings: Settings, rows: int, checkpointing: bool) -> float:
    """Peak of a step of the monotonic arm under bfloat16, in GB on each GPU, `rows` full-length examples at once."""
    d, ff, heads = config["d_model"], config["d_ff"], config["num_heads"]
    encoder, decoder = layers(config)
    inputs, labels = rows * settings.MAX_INPUT_LENGTH, rows * settings.MAX_TARGET_LENGTH
    ffn = GATED_FFN_BYTES if _gated(config) else FFN_BYTES
    token = MODEL_BYTES * d + HEAD_BYTES * heads * config["d_kv"] + ffn * ff
    # With checkpointing each layer keeps its float32 input, and one layer at a time all that is above.
    deep = token + (encoder - 1) * 4 * d if checkpointing else token * encoder
    high = token + (decoder - 1) * 4 * d if checkpointing else token * decoder
    bias = rows * heads * settings.MAX_INPUT_LENGTH**2 * BIAS_BYTES
    logits = labels * config["vocab_size"] * WORD_BYTES
    constrained = 4 * (3 if _gated(config) else 2) * d * ff * (encoder + decoder)  # W = softplus(V), float32
    state = parameters(config) * (STATE_BYTES + COPY_BYTES) + constrained
    return float(state + inputs * deep + labels * high + bias + logits + LIBRARIES) / 1e9


def parameters(config: dict[str, Any]) -> int:
    """Parameters of the T5 that a config.json describes."""
    d, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    encoder, decoder = layers(config)
    attention, ffn = 4 * d * inner + d, (3 if _gated(config) else 2) * d * config["d_ff"] + d  # with their norms
    # v1.1 and flan: a head of its own, which transformers 4 writes as one of these and transformers 5 as the other.
    tied = config.get("tie_word_embeddings", True) and config.get("scale_decoder_outputs", True)
    embeddings = config["vocab_size"] * d * (1 if tied else 2)
    biases = 2 * config.get("relative_attention_num_buckets", 32) * config["num_heads"]
    blocks = encoder * (attention + ffn) + decoder * (2 * attention + ffn)
    return int(embeddings + blocks + 2 * d + biases)


def layers(config: dict[str, Any]) -> tuple[int, int]:
    """Blocks of encoder and decoder."""
    return config["num_layers"], config.get("num_decoder_layers") or config["num_layers"]


def card_gb(gres: str) -> tuple[int, ...]:
    """Memory that the card of a GRES (gpu:a100_80gb:1, gpu:a100:2) may have, smallest first; () if nothing tells."""
    kind = re.sub(r"(:\d+)?$", "", _gpu_part(gres)).rpartition(":")[2]
    # The last number: of a part of a card (a100_3g.20gb, 1g.10gb) the first one counts its processors.
    if sizes := re.findall(r"(\d+)\s*gb\b", re.sub(r"[_.-]", " ", kind)):
        return (int(sizes[-1]),)
    return CARD_GB.get(re.sub(r"[^a-z0-9]|nvidia|geforce|tesla", "", kind), ())


def gpu_count(gres: str) -> int:
    """How many GPUs a GRES asks for (gpu:2, gpu:a100:1,lscratch:10): one where it names no number."""
    count = re.search(r":(\d+)$", _gpu_part(gres))
    return int(count[1]) if count else 1


def _gpu_part(gres: str) -> str:
    return next((part for part in gres.strip().lower().split(",") if part.strip().startswith("gpu")), "").strip()


def _gated(config: dict[str, Any]) -> bool:
    return str(config.get("feed_forward_proj", "relu")).startswith("gated")


def _config(settings: Settings, paths: Paths) -> dict[str, Any] | None:
    """config.json of MODEL_NAME: its directory's, the cache's, or the hub's where that answers."""
    name, revision = settings.MODEL_NAME, settings.MODEL_REVISION or "main"
    if settings.PROFILE == "demo":
        return None
    cache = paths.cache
    folders = [model_directory(settings), *snapshots(name, revision, cache_dir=cache, kind="model")]
    try:
        for folder in folders:
            if folder and (folder / "config.json").is_file():
                return _read((folder / "config.json").read_text(encoding="utf-8"))
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            return None
        url = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        with urllib.request.urlopen(f"{url}/{name}/resolve/{revision}/config.json", timeout=HUB_SECONDS) as answer:
            return _read(answer.read().decode())
    except (OSError, ValueError, KeyError):  # whether it can be had is another check's question
        return None


def _read(text: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(text)
    for name in ("d_model", "d_ff", "d_kv", "num_heads", "num_layers", "vocab_size"):
        config[name] = int(config[name])
    return config
