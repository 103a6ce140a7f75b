"""Both products of a low-rank addition in one launch, on a card with Triton. add.py is its reference.

    out[row, token] += alpha * up_v (scales_v * (down_v x[row, token]))        v: the row's variant

A program takes some tokens of one row: it projects them down, and adds what comes up to its share of the output's
columns. Rows of different variants need no copies of factors, and rows of the base cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """What a program takes: tokens, columns of x and of out at a time.

    shares: in how many out's columns are dealt to programs; None: as many as the card needs to be busy.
    """

    tokens: int = 64
    width: int = 128
    columns: int = 64
    shares: int | None = None
    warps: int = 4
    stages: int = 4

    def dealt(self, blocks: int) -> int:
        """The shares for so many blocks of tokens: each share reads x again, and too few leave the card idle."""
        return self.shares or min(max(PROGRAMS // triton.next_power_of_2(blocks), 2), 8)


PROGRAMS = 128  # of an H200's 132 multiprocessors
TILES = Tiles()


@triton.jit
def _add(
    x, down, up, out, scales, places, tokens, width, height, columns, place, alpha,
    RANK: tl.constexpr, PADDED: tl.constexpr, MIXED: tl.constexpr, SCALED: tl.constexpr,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(tokens, TOKENS)
    row = tl.program_id(0) // blocks
    token = (tl.program_id(0) % blocks) * TOKENS + tl.arange(0, TOKENS)
    if MIXED:
        place = tl.load(places + row)
    if place >= 0:
        present = token < tokens
        at = (row * tokens + token).to(tl.int64)
        rank = tl.arange(0, PADDED)
        hidden = tl.zeros((TOKENS, PADDED), dtype=tl.float32)
        for first in range(0, width, WIDTH):
            column = first + tl.arange(0, WIDTH)
            inside = column < width
            mask = present[:, None] & inside[None, :]
            part = tl.load(x + at[:, None] * width + column[None, :], mask=mask, other=0.0)
            factor = tl.load(
                down + (place * RANK + rank)[None, :] * width + column[:, None],
                mask=(rank < RANK)[None, :] & inside[:, None],
                other=0.0,
            )
            hidden = tl.dot(part, factor, hidden)
        narrow = hidden.to(x.dtype.element_ty)
        if SCALED:
            scale = tl.load(scales + place * RANK + rank, mask=rank < RANK, other=0.0)
            narrow = narrow * scale[None, :]
        share = tl.cdiv(tl.cdiv(height, SHARES), COLUMNS) * COLUMNS
        start = tl.program_id(1) * share
        for first in range(start, min(start + share, height), COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            inside = column < height
            factor = tl.load(
                up + column[None, :] * columns + (place * RANK + rank)[:, None],
                mask=(rank < RANK)[:, None] & inside[None, :],
                other=0.0,
            )
            where = at[:, None] * height + column[None, :]
            mask = present[:, None] & inside[None, :]
            added = tl.dot(narrow, factor) * alpha
            before = tl.load(out + where, mask=mask, other=0.0)
            tl.store(out + where, (before.to(tl.float32) + added).to(out.dtype.element_ty), mask=mask)


def add(
    out: Tensor,
    x: Tensor,
    down: Tensor,
    up: Tensor,
    rank: int,
    scales: Tensor | None,
    alpha: float,
    place: int,
    places: Tensor | None = None,
    tiles: Tiles = TILES,
) -> Tensor:
    """`out` (rows, ..., height), written in place, with every row's addition for x (rows, ..., width).

    down: (variants * rank, width), up: (height, variants * rank); contiguous, as x and out.  scales: (variants * rank,)
    or None for 1.  place: of the variant that all rows have; places (rows,): of each row's own, -1 for none.
    """
    rows = 1 if places is None else len(places)
    width, height = x.shape[-1], out.shape[-1]
    tokens = x.numel() // (rows * width)
    blocks = rows * triton.cdiv(tokens, tiles.tokens)
    shares = tiles.dealt(blocks)
    _add[blocks, shares](
        x, down, up, out, scales, places, tokens, width, height, up.shape[1], place, alpha,
        RANK=rank, PADDED=max(16, triton.next_power_of_2(rank)), MIXED=places is not None, SCALED=scales is not None,
        TOKENS=tiles.tokens, WIDTH=tiles.width, COLUMNS=tiles.columns, SHARES=shares,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out
