"""Does the demo's adapter give the same held-out loss in plain PEFT? Run after ``make demo``.

Baseline: ``transformers`` + ``peft`` as their manuals use them, with none of this project's
code between the files on disk and the loss: the base in 4 bits (as the fleet held it), and
unquantized.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from rich.console import Console

from bench.report import Claim, json_path, publish

SUMMARY = Path(".demo/summary.json")
HELDOUT = Path(".demo/data/heldout.jsonl")
MOST_DEVIATION = 0.02


def main() -> int:
    """Measure, print the claims."""
    path = json_path(__doc__)
    if not SUMMARY.is_file():
        raise SystemExit(f"{SUMMARY} is missing: run make demo first")
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    summary = json.loads(SUMMARY.read_text(encoding="utf-8"))
    ours = summary["heldout"]["loss_after"]
    rows = [
        {"base": name, "loss": _loss(summary, settings)}
        for name, settings in (("4-bit NF4", _nf4()), ("unquantized fp32", None))
    ]
    console = Console()
    console.print(f"loss_after of the demo: {ours:.4f}; in plain PEFT:")
    for row in rows:
        console.print(f"  {row['base']}: {row['loss']:.4f} ({row['loss'] / ours - 1:+.2%})")
    deviation = abs(rows[0]["loss"] / ours - 1)
    claim = Claim(
        claim="plain PEFT on the same 4-bit base reproduces loss_after: relative difference",
        target=f"<= {MOST_DEVIATION}",
        measured=deviation,
        holds=deviation <= MOST_DEVIATION,
    )
    return publish(console, [claim], rows, path)


def _nf4() -> Any:
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )


def _loss(summary: dict[str, Any], quantization: Any) -> float:
    """Mean loss of the answer words, one question at a time: no padding, no batching."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(summary["model"])
    base = transformers.AutoModelForCausalLM.from_pretrained(
        summary["model"], dtype=torch.float32, quantization_config=quantization
    )
    model = peft.PeftModel.from_pretrained(base, summary["adapter_dir"]).eval()
    total, count = 0.0, 0
    for line in HELDOUT.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        prompt = tokenizer(record["prompt"])["input_ids"]
        answer = tokenizer(record["completion"])["input_ids"]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].float()
        scores = logits.log_softmax(dim=-1)[len(prompt) - 1 : -1]
        total -= float(scores.gather(1, torch.tensor(answer).unsqueeze(1)).sum())
        count += len(answer)
    return total / count


if __name__ == "__main__":
    sys.exit(main())
