"""Load and check a T5 tokenizer, without torch: stage 1 needs no model, and torch takes 300 MB of each process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, T5Tokenizer
from transformers.utils import logging as transformers_logging

from utils.core.errors import InputError
from utils.core.text import one_line

SENTINELS = 100
PADDING = 128  # T5's embeddings are padded to a multiple of this: 32,100 tokens, 32,128 embeddings


def quiet_transformers() -> None:
    """No progress bars and no warnings from transformers: what matters is checked and reported here."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The T5 tokenizer in `directory`, checked: pad 0, eos 1, unk 2 and 100 sentinels. InputError otherwise."""
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"no tokenizer: {directory} is not a directory")
    quiet_transformers()  # it would warn of long documents, which are cut here
    try:
        tokenizer = _class_of(directory).from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"the tokenizer in {directory} cannot be loaded: {one_line(error)}") from error
    check_tokenizer(tokenizer, directory)
    return tokenizer


def _class_of(directory: Path) -> Any:
    """T5Tokenizer where the directory names it, as AutoTokenizer would choose: to import that one takes torch."""
    try:
        name = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))["tokenizer_class"]
    except (OSError, ValueError, KeyError, TypeError):
        name = ""
    if name in ("T5Tokenizer", "T5TokenizerFast"):
        return T5Tokenizer
    from transformers import AutoTokenizer

    return AutoTokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, source: Path | str, vocabulary: int | None = None) -> None:
    """InputError unless this is a T5 tokenizer that fits a model of `vocabulary` embeddings (if given)."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    if ids != (0, 1, 2):
        raise InputError(f"{source}: pad, eos, unk have ids {ids}; a T5 tokenizer has (0, 1, 2)")
    words = tokenizer.get_vocab()
    sentinels = sum(f"<extra_id_{number}>" in words for number in range(SENTINELS))
    if sentinels != SENTINELS or len(tokenizer) <= SENTINELS + 10:
        raise InputError(
            f"{source}: {len(tokenizer)} tokens, {sentinels} of them sentinels; the vocabulary file was not read"
        )
    if vocabulary is not None and not vocabulary - PADDING < len(tokenizer) <= vocabulary:
        raise InputError(
            f"{source}: tokenizer of {len(tokenizer)} tokens, model of {vocabulary} embeddings: they are not a pair"
        )
