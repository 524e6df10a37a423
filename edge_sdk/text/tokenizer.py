"""Load the tokenizer of a base model; transformers can do that without torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import transformers

from edge_sdk.errors import ModelError

LOAD_ERRORS = (
    ImportError,
    KeyError,
    AttributeError,
    TypeError,
    OSError,
    ValueError,
    RuntimeError,
    MemoryError,
    safetensors.SafetensorError,
)
"""What transformers raises for files that are missing or damaged."""


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a base model; it pads on the right, with the end token if need be.

    Raises:
        ModelError: Missing, damaged, or without any token to pad with.
    """
    with quiet_libraries():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except LOAD_ERRORS as error:
            raise ModelError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"the tokenizer in {folder} has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep progress bars and load reports off the terminal; what matters becomes an error."""
    bnb, hf = logging.getLogger("bitsandbytes"), transformers.utils.logging
    before = (hf.get_verbosity(), hf.is_progress_bar_enabled(), bnb.level)
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    bnb.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hf.set_verbosity(before[0])
        if before[1]:
            hf.enable_progress_bar()
        bnb.setLevel(before[2])
