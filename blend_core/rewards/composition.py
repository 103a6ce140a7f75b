"""What a prompt asks for, object by object, and how much of it a list of boxes shows: GenEval's questions.

GenEval (arXiv 2310.11513) asks for one object, two objects, a number of objects, an object's colour, and where one
object lies to another one. The partial credit is that of Flow-GRPO's reward for it (arXiv 2505.05470).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import BlendError

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
NUMBERS = {"a": 1, "an": 1, "the": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""The direction from the other object's middle, (across, down)."""
GAP, STRAIGHT = 0.1, 0.5
"""Of both objects' sizes, the distance that does not count; the least share of a direction's length (GenEval's)."""
_SINGULARS = {"people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse"}
_SINGULARS |= {"geese": "goose", "knives": "knife", "buses": "bus", "ties": "tie", "cookies": "cookie"}
_SINGULARS |= {"scissors": "scissors", "skis": "skis"}
_START = re.compile(r"^(an? )?(photo|picture|image) of ")
_RELATED = re.compile(rf" (?:to the )?({'|'.join(RELATIONS)}) ")
_PART = re.compile(
    rf"(?:(?P<number>{'|'.join(NUMBERS)}|[1-9]\d?) )?"
    rf"(?:(?P<colour>{'|'.join(COLOURS)}) )?"
    r"(?P<noun>[a-z-]+(?: [a-z-]+){0,2})"
)
_PREPOSITIONS = ("in", "on", "with", "at", "under", "near", "behind", "from", "over", "by", "of")
_NOT_IN_NOUNS = re.compile(rf"\b({'|'.join((*_PREPOSITIONS, *NUMBERS, 'is', 'are', 'and', 'or', 'no'))})\b")


class Box(NamedTuple):
    """Where an object lies, and its colour where one was asked for.

    corners: left, top, right and bottom, in pixels from the upper left.
    """

    corners: tuple[float, float, float, float]
    colour: str = ""


@dataclass(frozen=True)
class Wanted:
    """An object that a prompt asks for. colour: empty for any.  relation: to the object that is asked for second."""

    noun: str
    count: int = 1
    colour: str = ""
    relation: str = ""


def wanted_objects(prompt: str) -> list[Wanted]:
    """The objects of a prompt of GenEval's form. Raises BlendError for any other prompt.

    Such as: a photo of two red apples and a dog; a photo of a cat left of a bench.
    """
    wanted = _read(prompt)
    if len({(want.noun, want.colour) for want in wanted}) < len(wanted) or _partly_coloured(wanted):
        raise BlendError(
            f"geneval cannot tell the objects of the prompt {prompt!r} apart: one comes twice. Write their number, as "
            "in: two dogs; or give each of them a colour of its own."
        )
    return wanted


def repeated(wanted: Sequence[Wanted]) -> set[str]:
    """The nouns that are asked for more than once, in different colours."""
    nouns = [want.noun for want in wanted]
    return {noun for noun in nouns if nouns.count(noun) > 1}


def _partly_coloured(wanted: Sequence[Wanted]) -> bool:
    return any(want.noun in repeated(wanted) and not want.colour for want in wanted)


def _read(prompt: str) -> list[Wanted]:
    text = _START.sub("", " ".join(prompt.lower().split()).rstrip("."))
    first, *related = _RELATED.split(text, maxsplit=1)
    if related:
        relation, second = related
        return [replace(_wanted(first, prompt), relation=relation), _wanted(second, prompt)]
    return [_wanted(part, prompt) for part in re.split(r",? and |, ", first)]


def _wanted(part: str, prompt: str) -> Wanted:
    match = _PART.fullmatch(part.strip())
    if match is None or _NOT_IN_NOUNS.search(match["noun"]):
        raise BlendError(
            f"geneval asks for objects, their number, colour and place, and cannot read {part.strip()!r} of the "
            f"prompt {prompt!r}. Write it as in: a photo of two red apples and a dog, or: a photo of a cat left of a "
            "bench. Or choose a reward that compares the whole prompt, such as clipscore."
        )
    number = match["number"] or "one"
    count = NUMBERS.get(number) or int(number)
    return Wanted(singular(match["noun"]) if count > 1 else match["noun"], count, match["colour"] or "")


def singular(noun: str) -> str:
    """One of what a plural names, by English rules and a few exceptions."""
    start, _, last = noun.rpartition(" ")
    if last not in _SINGULARS:
        for ending, single in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss"), ("xes", "x"), ("s", "")):
            if last.endswith(ending) and not last.endswith("ss"):
                last = last.removesuffix(ending) + single
                break
    return f"{start} {_SINGULARS.get(last, last)}".strip()


def shown_share(wanted: Sequence[Wanted], boxes: Sequence[Sequence[Box]]) -> float:
    """The mean over all questions, in [0, 1]. boxes: those of each wanted object, in its order.

    A count n where c was wanted has 1 - |n - c| / c, 0 at least. Colour and place have 0 where the count is wrong.
    """
    shares = []
    for want, its_boxes in zip(wanted, boxes, strict=True):
        shares.append(_near(len(its_boxes), want.count))
        right = len(its_boxes) == want.count
        if want.colour:
            coloured = sum(box.colour == want.colour for box in its_boxes)
            shares.append(_near(coloured, want.count) if right else 0.0)
        if want.relation:
            pairs = [(box, other) for box in its_boxes for other in boxes[1]]
            shares.append(float(right and bool(pairs) and all(lies(box, want.relation, other) for box, other in pairs)))
    return sum(shares) / len(shares)


def lies(box: Box, relation: str, other: Box) -> bool:
    """Whether `box` lies left of, right of, above or below `other`, as GenEval decides it.

    A tenth of both sizes does not count as distance; what is left must point that way by more than half its length.
    """
    offset = [_middle(box, axis) - _middle(other, axis) for axis in (0, 1)]
    spare = [GAP * (_size(box, axis) + _size(other, axis)) for axis in (0, 1)]
    left_over = [math.copysign(max(abs(d) - s, 0.0), d) for d, s in zip(offset, spare, strict=True)]
    length = math.hypot(*offset)
    return length > 0 and any(
        direction * distance / length > STRAIGHT
        for direction, distance in zip(RELATIONS[relation], left_over, strict=True)
        if direction
    )


def _near(count: int, wanted: int) -> float:
    return max(0.0, 1 - abs(count - wanted) / wanted)


def _middle(box: Box, axis: int) -> float:
    return (box.corners[axis] + box.corners[axis + 2]) / 2


def _size(box: Box, axis: int) -> float:
    return box.corners[axis + 2] - box.corners[axis]
