"""Cross-entropy over a frozen output head, block by block, without ever holding the logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from edge_sdk.errors import DataError
from edge_sdk.lean.frozen import FrozenMatrix, PlainMatrix
from edge_sdk.lean.integer_products import IntegerWeight, multiplies_integers
from edge_sdk.lean.products import IntegerProducts, Operand
from edge_sdk.lean.row_operations import exponentials
from edge_sdk.lean.workspace import Workspace

CHUNK = 1024
"""Positions that are worked on at once: it bounds the buffers, however many there are."""
INTEGER_BLOCK = 1024
"""Rows of the head that are one block in integer products."""


def vocabulary_loss(
    hidden: Tensor,
    head: FrozenMatrix,
    targets: Tensor,
    workspace: Workspace,
    *,
    gradient: Tensor | None,
    share: float = 1.0,
    block: int = 4096,
    products: IntegerProducts | None = None,
) -> float:
    """Return ``share`` times the summed cross-entropy, and its gradient at the hidden states.

    Args:
        hidden: ``(n, d)``, only positions that predict something, fp32, bf16 or fp64.
        head: ``(vocabulary, d)``.
        targets: ``(n,)`` int64 token ids.
        workspace: Lends what takes memory: no more than ``CHUNK`` rows are ever held.
        gradient: ``(n, d)`` in the format of ``hidden``, overwritten; None computes no gradient.
        share: Weight of this sum, such as one over the tokens of an optimizer step.
        block: Rows of the head that are widened at once.
        products: Computes in 8-bit integers where it can; None computes in the format of
            ``hidden``.

    Raises:
        DataError: A target is no row of the head.
    """
    _check_targets(targets, head.shape[0])
    loss = 0.0
    for start in range(0, len(hidden), CHUNK):
        rows = slice(start, start + CHUNK)
        out = None if gradient is None else gradient[rows]
        softmax = _RunningSoftmax(hidden[rows], targets[rows], out, workspace)
        for part in _blocks(hidden[rows], head, block, workspace, products):
            softmax.add(part)
        loss += softmax.finish(share)
    return share * loss


def _check_targets(targets: Tensor, vocabulary: int) -> None:
    outside = targets[(targets < 0) | (targets >= vocabulary)]
    if len(outside):
        raise DataError(
            f"token id {int(outside[0])} is outside 0..{vocabulary - 1}, the model's vocabulary: "
            "read the text with the tokenizer of this very model"
        )


class _Block(Protocol):
    """Some rows of the head, and the products with them."""

    first: int
    count: int

    def logits(self, out: Tensor) -> None:
        """Write ``(n, count)``: the hidden states times these rows."""

    def add_rows(self, factors: Tensor, out: Tensor) -> None:
        """Add these rows, times ``(n, count)`` factors, to ``(n, d)``."""

    def copy_rows(self, places: Tensor, out: Tensor) -> None:
        """Write chosen ones of these rows ``(m, d)``."""


def _blocks(
    hidden: Tensor,
    head: FrozenMatrix,
    block: int,
    workspace: Workspace,
    products: IntegerProducts | None,
) -> Iterator[_Block]:
    """Yield the rows of the head, block by block."""
    vocabulary, d = head.shape
    integers = None if products is None else products.integer_weight(head)
    if products is not None and integers is not None and multiplies_integers(integers):
        operand = Operand(hidden, workspace, "hidden")
        for first in range(0, vocabulary, INTEGER_BLOCK):
            part = integers.part(first, min(first + INTEGER_BLOCK, vocabulary))
            yield _IntegerBlock(first, operand, part, head, products)
        return
    for first in range(0, vocabulary, block):
        rows = min(block, vocabulary - first)
        if isinstance(head, PlainMatrix) and head.values.dtype == hidden.dtype:
            weights = head.values[first : first + rows]
        else:
            buffer = workspace.take("vocabulary_loss.head", (rows, d), hidden.dtype)
            weights = head.widen(buffer, first)
        yield _WideBlock(first, hidden, weights, workspace)


class _WideBlock:
    """Rows of the head in the format of the hidden states."""

    def __init__(self, first: int, hidden: Tensor, weights: Tensor, workspace: Workspace) -> None:
        self.first, self.count = first, len(weights)
        self._hidden, self._weights, self._workspace = hidden, weights, workspace

    def logits(self, out: Tensor) -> None:
        if out.dtype == self._hidden.dtype:
            torch.mm(self._hidden, self._weights.T, out=out)
        else:
            out.copy_(torch.mm(self._hidden, self._weights.T, out=self._narrow(out.shape)))

    def add_rows(self, factors: Tensor, out: Tensor) -> None:
        if out.dtype == self._weights.dtype:
            out.addmm_(factors, self._weights)
            return
        narrow = self._narrow(factors.shape).copy_(factors)
        name = "vocabulary_loss.product"
        product = self._workspace.take(name, out.shape, self._weights.dtype)
        torch.mm(narrow, self._weights, out=product)
        # only a copy converts without a temporary: mixed formats in arithmetic allocate one
        wide = self._workspace.take("vocabulary_loss.scratch", out.shape, out.dtype)
        out.add_(wide.copy_(product))

    def copy_rows(self, places: Tensor, out: Tensor) -> None:
        torch.index_select(self._weights, 0, places, out=out)

    def _narrow(self, shape: Sequence[int]) -> Tensor:
        return self._workspace.take("vocabulary_loss.narrow", shape, self._hidden.dtype)


class _IntegerBlock:
    """Rows of the head as 8-bit integers.

    The factors of a block are rounded on the scale of the block's largest one, so blocks are
    small: where the most probable token is, the others of its block are rounded coarsely.
    """

    def __init__(
        self,
        first: int,
        operand: Operand,
        weights: IntegerWeight,
        head: FrozenMatrix,
        products: IntegerProducts,
    ) -> None:
        self.first, self.count = first, weights.d_out
        self._operand, self._weights, self._head = operand, weights, head
        self._products = products

    def logits(self, out: Tensor) -> None:
        self._products.forward_integers(self._operand, self._weights, out)

    def add_rows(self, factors: Tensor, out: Tensor) -> None:
        self._products.backward_integers(factors, self._weights, out, is_added=True)

    def copy_rows(self, places: Tensor, out: Tensor) -> None:
        out.copy_(self._head.rows(places + self.first, out.dtype))


class _RunningSoftmax:
    """Softmax of ``(n, vocabulary)`` logits of which one block is seen at a time.

    Of each row it keeps the largest logit, the sum of exponentials relative to that, the target's
    logit and, for the gradient, the rows of the head summed with the same exponentials.
    Until the end the gradient holds the head's row of each target, as the blocks bring it.
    """

    def __init__(
        self, hidden: Tensor, targets: Tensor, gradient: Tensor | None, workspace: Workspace
    ) -> None:
        self._targets, self._gradient = targets, gradient
        self._workspace = workspace
        self._wide = torch.promote_types(hidden.dtype, torch.float32)
        self._largest = torch.full((len(hidden),), -torch.inf, dtype=self._wide)
        self._shrinkage, self._sums = (
            torch.empty_like(self._largest),
            torch.empty_like(self._largest),
        )
        self._total = torch.zeros(len(hidden), dtype=torch.float64)
        self._target_logit = torch.zeros(len(hidden), dtype=torch.float64)
        if gradient is not None:
            name = "vocabulary_loss.summed"
            self._summed = workspace.take(name, hidden.shape, self._wide).zero_()

    def add(self, block: _Block) -> None:
        """Take in some rows of the head."""
        logits = self._scratch((len(self._targets), block.count))
        block.logits(logits)
        rows, places = self._targets_within(block)
        self._target_logit[rows] = logits[rows, places].double()
        exponentials(logits, self._largest, self._shrinkage, self._sums)
        self._total.mul_(self._shrinkage).add_(self._sums)
        if self._gradient is not None:
            if float(self._shrinkage.min()) != 1.0:
                self._summed.mul_(self._shrinkage[:, None])
            block.add_rows(logits, self._summed)
            self._keep_target_rows(self._gradient, block, rows, places)

    def finish(self, share: float) -> float:
        """Return the summed loss, and write the gradient of ``share`` times it."""
        if self._gradient is not None:
            self._summed.mul_((share / self._total).to(self._wide)[:, None])
            rows = self._gradient
            if rows.dtype != self._wide:
                rows = self._scratch(rows.shape).copy_(rows)
            self._gradient.copy_(self._summed.sub_(rows, alpha=share))
        return float((self._largest + self._total.log() - self._target_logit).sum())

    def _targets_within(self, block: _Block) -> tuple[Tensor, Tensor]:
        """Return which rows have their target in a block, and where in it."""
        places = self._targets - block.first
        rows = ((places >= 0) & (places < block.count)).nonzero().squeeze(1)
        return rows, places[rows]

    def _keep_target_rows(
        self, gradient: Tensor, block: _Block, rows: Tensor, places: Tensor
    ) -> None:
        if len(rows):
            shape = (len(rows), gradient.shape[1])
            kept = self._workspace.take("vocabulary_loss.targets", shape, gradient.dtype)
            block.copy_rows(places, kept)
            gradient.index_copy_(0, rows, kept)

    def _scratch(self, shape: Sequence[int]) -> Tensor:
        """Lend wide memory; it serves one tensor at a time, the last one asked for."""
        return self._workspace.take("vocabulary_loss.scratch", shape, self._wide)
