"""T5 and its tokenizer on disk and on the hub: loaded checked, exported plain."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase, T5ForConditionalGeneration

from configs.arms import ARMS
from utils.core.errors import InputError, StageError, UsageError
from utils.core.files import new_directory
from utils.core.text import one_line
from utils.modeling.download import download_model
from utils.modeling.monotonic import folded_state
from utils.modeling.tokenizer import check_tokenizer, load_tokenizer, quiet_transformers


def choose_device(setting: str) -> str:
    """`cuda` or `cpu` for the setting DEVICE (`cuda`, `cpu`, `auto`). StageError: cuda asked for, none usable."""
    if setting == "cpu":
        return "cpu"
    usable = torch.cuda.is_available()
    if setting == "cuda" and not usable:
        build = "this PyTorch has no CUDA" if torch.version.cuda is None else "PyTorch sees none"
        raise StageError(f"DEVICE is cuda, but {build} on this machine. Ask for a GPU, or set MONO_S2S_DEVICE=cpu.")
    return "cuda" if usable else "cpu"


def load_model(directory: Path, *, device: str = "cpu") -> T5ForConditionalGeneration:
    """The T5 in `directory`: float32, SDPA attention, eval mode, on `device`, every weight finite.

    InputError where the directory is not a T5, a weight is missing, or a weight is NaN or infinite (a damaged file).
    """
    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise InputError(f"no model in {directory}: config.json is missing")
    quiet_transformers()
    try:
        loaded: Any = T5ForConditionalGeneration.from_pretrained(
            directory,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise InputError(f"the model in {directory} cannot be loaded: {one_line(error)}") from error
    model, report = loaded
    if report["missing_keys"]:
        raise InputError(
            f"the model in {directory} lacks weights: {', '.join(sorted(report['missing_keys'])[:3])}, ..."
        )
    check_finite(model, directory)
    return model.to(device).eval()


def check_arms(directory: Path, arms: Iterable[str]) -> None:
    """UsageError where the scope of an arm is beyond the layers of the T5 in `directory`."""
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    layers = {"encoder": config.num_layers, "decoder": config.num_decoder_layers}
    for arm in arms:
        if problem := ARMS[arm].beyond(layers):
            raise UsageError(f"arm {arm}: {problem}. Correct its entry in configs/arms.py.")


def fetch_pretrained(
    source: str,
    revision: str | None = None,
    *,
    cache_dir: Path,
    max_retries: int = 5,
    retry_delay: float = 10.0,
) -> tuple[T5ForConditionalGeneration, PreTrainedTokenizerBase, str | None]:
    """Model, tokenizer and commit (None for a directory) of a directory, or else of a model on the hub, all checked.

    InputError, StageError: see `download.download_model`, `load_model`, `load_tokenizer`.
    """
    directory, commit = Path(source), None
    if not directory.is_dir():
        directory, commit = download_model(
            source, revision, cache_dir=cache_dir, max_retries=max_retries, retry_delay=retry_delay
        )
    model, tokenizer = load_model(directory), load_tokenizer(directory)
    check_tokenizer(tokenizer, source, model.config.vocab_size)
    return model, tokenizer, commit


def check_finite(model: torch.nn.Module, source: Path | str) -> None:
    """InputError unless every weight is finite: a file damaged in transfer loads without complaint, with NaN inside."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"{source}: weight {name} has NaN or infinite values; the file is damaged. Fetch it again."
            )


def plain_copy(model: T5ForConditionalGeneration) -> T5ForConditionalGeneration:
    """The folded model as a new, ordinary T5 on the CPU, float32, without settings for generation or tasks."""
    config = type(model.config).from_dict(model.config.to_dict())
    config.task_specific_params = None
    config.use_cache = True
    with torch.device("meta"):
        copy = T5ForConditionalGeneration(config)
    state = {name: tensor.to("cpu", torch.float32) for name, tensor in folded_state(model).items()}
    copy.load_state_dict(state, assign=True)
    if model.lm_head.weight is model.shared.weight:
        copy.tie_weights()
    else:  # v1.1 and flan: a head of its own; transformers 5 would tie it, whatever the weights are
        copy.set_input_embeddings(copy.shared)
    copy.generation_config = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    return copy.eval()


def export(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write `model`, folded, and its tokenizer as a plain `from_pretrained` directory, whole or not at all."""
    check_tokenizer(tokenizer, directory, model.config.vocab_size)
    with new_directory(Path(directory)) as new:
        save_plain(model, tokenizer, new)


def save_plain(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Write the folded model and its tokenizer into an existing directory (no atomicity of its own)."""
    quiet_transformers()
    copy = plain_copy(model)
    check_finite(copy, "export")
    copy.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for weights in directory.glob("*.safetensors"):  # safetensors writes them for the owner alone; colleagues read, too
        weights.chmod((directory / "config.json").stat().st_mode)


def count_parameters(model: torch.nn.Module) -> int:
    """Number of weights; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
