"""The tokens of a file of private examples, made by a process that ends before training begins.

Tokenizers cost memory that training has a use for. So ``python -m edge_sdk.text.token_file`` reads
the text, and what it says on its standard output is all that comes back: safetensors bytes, or
one JSON object with an error. The text and its tokens are written to no file and no log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from edge_sdk.errors import DeviceError, EdgeError, OutOfMemory, by_code
from edge_sdk.text.example import Example
from edge_sdk.wire.task import BaseModel
from edge_sdk.wire.typed_json import decode_json

_START_S = 300.0  # a slow board imports transformers for a minute
_SLOWEST_BYTES_PER_S = 10_000
_REFUSED = 3  # exit status: the output is an error, not tokens
_NO_LABEL = -1
_DTYPES = {"ids": np.int32, "lengths": np.int32, "is_learned": np.uint8, "labels": np.int32}

_TOKENIZERS = "transformers"  # imports them, and much else


def tokenized_examples(data: Path, folder: Path, base: BaseModel, max_length: int) -> list[Example]:
    """Read every example of a JSONL file as tokens, without importing what tokenizes them.

    The work is done in this process after all where that costs nothing, because the tokenizers
    are here already, and where no other process can be started: in a frozen application, or in
    one that does not say where its interpreter is.

    Args:
        data: JSONL file with the private examples, see :mod:`edge_sdk.text.data`.
        folder: Base model; its tokenizer is used.
        base: Its task type and labels decide what is learned.
        max_length: Tokens per example, at most.

    Raises:
        DataError: Says the file, the line and what is wrong there.
        ModelError: The tokenizer cannot be loaded.
        OutOfMemory: Memory ran out in the other process.
        DeviceError: It cannot be started, took too long, was killed or failed.
    """
    if _TOKENIZERS in sys.modules or getattr(sys, "frozen", False) or not sys.executable:
        return _read(data, folder, base, max_length)
    said = _run(
        [str(data), str(folder), msgspec.json.encode(base).decode(), str(max_length)],
        timeout_s=_START_S + _size_bytes(data) / _SLOWEST_BYTES_PER_S,
    )
    return _decode(said, max_length)


def main() -> int:
    """Tokenize as the four arguments say, and hand the tokens or the error over."""
    data, folder, base, max_length = sys.argv[1:]
    sys.modules["torch"] = None  # type: ignore[assignment]  # transformers would import it
    # What a library prints must not end up among the tokens.
    with os.fdopen(os.dup(1), "wb") as reply:
        os.dup2(2, 1)
        try:
            spec = decode_json(base, BaseModel)
            said = _encode(_read(Path(data), Path(folder), spec, int(max_length)))
        except Exception as error:
            reply.write(_error_reply(error))
            return _REFUSED
        reply.write(said)
    return 0


def _read(data: Path, folder: Path, base: BaseModel, max_length: int) -> list[Example]:
    from edge_sdk.text.data import load_examples
    from edge_sdk.text.tokenizer import load_tokenizer

    return load_examples(data, load_tokenizer(folder), base, max_length)


def _run(arguments: Sequence[str], timeout_s: float) -> bytes:
    """Return what the other process says, or raise the error it met."""
    command = [sys.executable, "-m", "edge_sdk.text.token_file", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a library that breaks may quote private text
            env=environment,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"tokenizing the examples took more than {timeout_s:.0f} s: give this device a "
            "smaller file"
        ) from None
    except OSError as error:
        raise DeviceError(
            f"the process that tokenizes the examples cannot be started ({error}): "
            f"{sys.executable} must be this Python"
        ) from error
    if done.returncode == 0:
        return done.stdout
    raise _error_of(done.stdout) if done.returncode == _REFUSED else _ended(done.returncode)


def _ended(status: int) -> DeviceError:
    """Describe an end that nothing was said about."""
    if status >= 0:
        how = f"failed with exit status {status}: check that edge-sdk[train] is installed for "
        return DeviceError(f"the process that tokenizes the examples {how}{sys.executable}")
    number = -status
    names = {each.value: each.name for each in signal.Signals}
    return DeviceError(
        f"the process that tokenizes the examples was killed ({names.get(number, number)}): if "
        "memory ran out, free some or give this device a smaller file"
    )


def _error_reply(error: Exception) -> bytes:
    if isinstance(error, MemoryError):
        error = OutOfMemory("memory ran out while the examples were tokenized")
    elif isinstance(error, ImportError):
        error = DeviceError(
            f"the examples cannot be tokenized here ({error}): install edge-sdk[train]"
        )
    elif not isinstance(error, EdgeError):
        # Its text may quote an example; where it comes from does not.
        place = traceback.extract_tb(error.__traceback__)[-1]
        error = DeviceError(
            f"tokenizing the examples failed with {type(error).__name__} in "
            f"{Path(place.filename).name}, line {place.lineno}"
        )
    # json, because a path may hold bytes that are no UTF-8 and msgspec refuses those
    return json.dumps({"code": error.code, "message": str(error)}).encode()


def _error_of(said: bytes) -> EdgeError:
    try:
        refusal = json.loads(said)
        return by_code()[refusal["code"]](refusal["message"])
    except (ValueError, KeyError, TypeError):
        return _ended(_REFUSED)


def _encode(examples: Sequence[Example]) -> bytes:
    """Encode examples; :func:`_decode` reverses it."""
    labels = [_NO_LABEL if example.label is None else example.label for example in examples]
    arrays = {
        "ids": np.concatenate([example.tokens for example in examples]),
        "lengths": np.array([len(example.tokens) for example in examples]),
        "is_learned": np.packbits(np.concatenate([example.is_learned for example in examples])),
        "labels": np.array(labels),
    }
    return safetensors.numpy.save(
        {name: arrays[name].astype(dtype, copy=False) for name, dtype in _DTYPES.items()}
    )


def _decode(said: bytes, max_length: int) -> list[Example]:
    """Return examples whose tokens are slices of one array.

    Raises:
        DeviceError: The bytes are not what :func:`_encode` makes of examples of this length.
    """
    try:
        arrays = safetensors.numpy.load(said)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise DeviceError(f"the tokens of the examples arrived damaged: {error}") from error
    _check(arrays, max_length)
    lengths = arrays["lengths"]
    ends = lengths.cumsum(dtype=np.int64)
    is_learned = np.unpackbits(arrays["is_learned"], count=int(ends[-1])).view(np.bool_)
    return [
        Example(
            arrays["ids"][end - length : end],
            is_learned[end - length : end],
            None if label == _NO_LABEL else label,
        )
        for end, length, label in zip(
            ends.tolist(), lengths.tolist(), arrays["labels"].tolist(), strict=True
        )
    ]


def _check(arrays: dict[str, NDArray[np.generic]], max_length: int) -> None:
    found = {name: (array.dtype, array.ndim) for name, array in arrays.items()}
    if found != {name: (np.dtype(dtype), 1) for name, dtype in _DTYPES.items()}:
        raise DeviceError(f"the tokens of the examples arrived as {found}")
    ids, lengths, packed, labels = (arrays[name] for name in _DTYPES)
    total = int(lengths.sum(dtype=np.int64))
    sizes = (len(ids), len(packed), len(labels))
    is_sized = sizes == (total, -(-total // 8), len(lengths))
    if not is_sized or not len(lengths) or lengths.min() < 1 or lengths.max() > max_length:
        raise DeviceError(
            f"the tokens of the examples arrived incomplete: {len(ids)} tokens, {len(packed)} "
            f"bytes of marks and {len(labels)} labels for {len(lengths)} examples of 1 to "
            f"{max_length} tokens, {total} in all"
        )


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # the other process says what is wrong with it
        return 0


if __name__ == "__main__":
    sys.exit(main())
