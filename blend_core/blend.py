"""The affine algebra of a blend: preference -> coefficients -> blended prediction.

Our words and the papers' (arXiv 2505.18547, Diffusion Blend; arXiv 2604.14379, MSDDA):

    preference       w, the user's weights over rewards; their sizes sum to 1, below 0 moves away from a reward
    alignment        lambda of DB-KLA: 0 is the base, 1 as trained, above 1 beyond, below 0 the other way
    kl_weight        alpha, the KL weight a basis was trained with
    coefficients     what multiplies the predictions, base first; any sign, sum 1

    DB-MPA           c_i = w_i
    DB-KLA           c = lambda,  c_base = 1 - lambda
    both             c_i = lambda * w_i
    different alphas c_i = lambda * w_i * alpha_i / alpha_target   (the control is linear in 1 / alpha)

A blend is exact when the log-moment of each reward has the gradient of its mean (the Jensen gap is flat: a linear
reward on Gaussian data, one-hot preferences, alignment 0). Elsewhere it is the Jensen-gap approximation, whose error
falls with the noise level and grows as the KL weight shrinks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from .errors import BlendError

_LARGEST = 1e9  # a weight; sums of larger ones leave the range of numbers, and mean nothing long before
_ROUNDING = 1e-9  # sums of typed decimals such as 0.7 + 0.2 + 0.1 miss 1 by less than this


@dataclass(frozen=True)
class Blend:
    """How much of each basis, and how far from the base.

    names: the bases, in order.  preference: one weight per basis, of any sign, whose sizes |w_i| sum to 1.
    alignment: of any sign.  kl_weights: the KL weight each basis was trained with, None where its file does not say.
    target_kl_weight: the KL weight to blend for; None takes sum_i |w_i| alpha_i, so that where no weight is below 0 the
    coefficients of the bases sum to `alignment`, and a one-hot preference is that basis whatever its KL weight.
    """

    names: tuple[str, ...]
    preference: tuple[float, ...]
    alignment: float = 1.0
    kl_weights: tuple[float | None, ...] = ()
    target_kl_weight: float | None = None

    def __post_init__(self):
        for field in ("names", "preference", "kl_weights"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not self.kl_weights:
            object.__setattr__(self, "kl_weights", (None,) * len(self.names))
        _check_names(self.names)
        _check_preference(self.preference, self.names)
        _check_kl_weights(self.kl_weights, self.names)
        _check_positive(
            "target_kl_weight", self.target_kl_weight, "leave it unset (0 in the node) to take the bases' own average"
        )
        if not math.isfinite(self.alignment):
            raise BlendError(
                f"alignment is {self.alignment}, expected a finite number: 0 is the base model, 1 as trained, 2 twice "
                "as far. Set it back to 1 if unsure."
            )

    @property
    def uses_kl_weights(self) -> bool:
        """Whether alpha_i / alpha_target enters: only when every basis states its KL weight."""
        return None not in self.kl_weights

    @property
    def coefficients(self) -> tuple[float, ...]:
        """(1 + m,) coefficients, base first: c_i = lambda w_i alpha_i / alpha_target, c_base = 1 - sum_i c_i."""
        ratios = self._kl_ratios()
        # Typed thirds sum to 0.9999999: without normalising, the rest would be a base of 1e-7 that costs a full pass.
        preference = shares(self.preference)
        bases = [self.alignment * w * ratio for w, ratio in zip(preference, ratios, strict=True)]
        base = 1.0 - math.fsum(bases)
        return (0.0 if abs(base) < _ROUNDING else base, *bases)

    def _kl_ratios(self) -> tuple[float, ...]:
        known = [alpha for alpha in self.kl_weights if alpha is not None]
        if len(known) < len(self.kl_weights):
            if self.target_kl_weight is not None:
                unknown = [n for n, alpha in zip(self.names, self.kl_weights, strict=True) if alpha is None]
                raise BlendError(
                    f"target_kl_weight is {self.target_kl_weight}, but the KL weight of {', '.join(unknown)} is not "
                    "known. Type it where the LoRA is loaded, or leave target_kl_weight unset (0 in the node)."
                )
            return (1.0,) * len(self.names)
        if len(set(known)) == 1 and self.target_kl_weight is None:
            return (1.0,) * len(self.names)
        target = self.target_kl_weight
        if target is None:
            preference = shares(self.preference)
            target = math.fsum(abs(w) * alpha for w, alpha in zip(preference, known, strict=True))
        return tuple(alpha / target for alpha in known)

    def aligned(self, alignment: float) -> Blend:
        """The same preference at `alignment` times the present distance from the base (DB-KLA of this blend)."""
        return replace(self, alignment=self.alignment * alignment)

    def formula(self) -> str:
        """The blend as a person reads it, such as `0.30 base + 0.42 calm + 0.28 vivid`."""
        terms = [(c, name) for c, name in zip(self.coefficients, ("base", *self.names), strict=True) if c != 0]
        first, *rest = (f"{abs(c):.3g} {name}" for c, name in terms)
        signs = ["-" if c < 0 else "+" for c, _ in terms]
        lead = "-" if signs[0] == "-" else ""
        return lead + first + "".join(f" {sign} {term}" for sign, term in zip(signs[1:], rest, strict=True))

    def describe(self) -> str:
        """The formula, then one line per coefficient, and whether the bases' KL weights entered."""
        lines = [self.formula()]
        lines += [f"{name}: {c:.4g}" for name, c in zip(("base", *self.names), self.coefficients, strict=True)]
        known = [alpha for alpha in self.kl_weights if alpha is not None]
        if known and not self.uses_kl_weights:
            lines.append("KL weights not used: not every LoRA states its own")
        elif self.uses_kl_weights and len(set(known)) > 1:
            lines.append("weighed by KL weight: " + ", ".join(f"{alpha:g}" for alpha in known))
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.formula()


def parse_weights(
    text: str, count: int, what: str = "reward LoRA", slots: Sequence[int] | None = None, names: Sequence[str] = ()
) -> tuple[float, ...]:
    """`count` numbers from text such as `0.6, 0.4`, `60% 40%` or `2; 1`; empty text means all equal.

    what: the noun for the things that are weighed, for messages.  slots: the number of each one's slot from 0, where
    slots between them may be empty; the numbers of empty slots are then left out.  names: what they are called.

    Raises BlendError for text that is no number, for another count, and for a count of 0.
    """
    if count == 0:
        raise BlendError(f"there is no {what} to give a weight to. Connect at least one {what}.")
    numbers = parse_numbers(text, "weights", what, "0.6, 0.4")
    if not numbers:
        return (1.0 / count,) * count
    if slots is not None and count < len(numbers) == slots[-1] + 1:
        return tuple(numbers[slot] for slot in slots)
    if len(numbers) != count:
        listed = f" ({', '.join(names)})" if names else ""
        raise BlendError(
            f"{len(numbers)} weights ({_listed(numbers)}) for {count} {what}s{listed}. Give one weight per {what}, in "
            f"their order, or none at all for equal weights.{_comma_hint(text)}"
        )
    return numbers


_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)")


def parse_numbers(text: str, name: str, unit: str, example: str) -> tuple[float, ...]:
    """The numbers in text such as `0.6, 0.4`, `60% 40%`, `2; 1` or `0,6 0,4`. Raises BlendError for other words.

    A comma between two digits is a decimal comma where spaces or semicolons separate the numbers and no number has a
    point.  name, unit, example: what the numbers are, what each one is for, and how they look, for the message.
    """
    words = re.split(r"[;\s]+", text.strip())
    if len(words) > 1 and "." not in text:
        ambiguous = any(len(_DECIMAL_COMMA.findall(word)) > 1 for word in words)
        words = [_DECIMAL_COMMA.sub(".", word) for word in words]
    else:
        ambiguous = _looks_decimal(text)
    if ambiguous:
        raise BlendError(f"the {name} {text!r} can be read in two ways.{_comma_hint(text)}")
    words = [part for word in words for part in word.split(",") if part]
    try:
        return tuple(float(word.removesuffix("%")) / (100 if word.endswith("%") else 1) for word in words)
    except ValueError as error:
        raise BlendError(
            f"the {name} {text!r} are not numbers: {error}. Write one number per {unit}, such as {example}, with a "
            "point before decimals."
        ) from error


def _looks_decimal(text: str) -> bool:
    """Whether text such as `0,6,0,4` makes shares of 1 with decimal commas, and without them does not."""
    digits = text.strip().split(",")
    if len(digits) % 2 or not all(digit.isdecimal() for digit in digits):
        return False
    shares = [float(f"{whole}.{part}") for whole, part in zip(digits[::2], digits[1::2], strict=True)]
    return abs(math.fsum(shares) - 1) < _ROUNDING and sum(map(int, digits)) != 1


def _comma_hint(text: str) -> str:
    """What to say of text whose commas may stand before decimals."""
    if not _DECIMAL_COMMA.search(text):
        return ""
    return " Write decimals with a point (0.6, 0.4), or decimal commas with spaces or semicolons between (0,6; 0,4)."


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """`weights / sum(weights)`. Raises BlendError for a negative weight, one that is no number, or a sum of 0."""
    for weight in weights:
        if not weight >= 0:
            raise BlendError(
                f"a weight is {weight:g}, expected numbers from 0 upwards (got {_listed(weights)}), because they are "
                "shares of their sum. Raise it to 0; to move away from a reward, take the weights as they are "
                "(normalise off in Blend Weights)."
            )
    return shares(weights)


def shares(weights: Sequence[float]) -> tuple[float, ...]:
    """`weights / sum(|weights|)`, of any sign. Raises BlendError where one is no finite number, or all are 0."""
    for weight in weights:
        if not abs(weight) <= _LARGEST:
            raise BlendError(
                f"a weight is {weight:g}, expected numbers of at most {_LARGEST:g} in size (got {_listed(weights)}). "
                "Write one such as 0.5."
            )
    total = math.fsum(map(abs, weights))
    if total == 0:
        raise BlendError(
            f"the weights {_listed(weights)} sum to 0, expected at least one above 0. "
            "Give some reward a weight; for the base model alone set alignment to 0."
        )
    return tuple(weight / total for weight in weights)


def blend(coefficients: Tensor, denoised: Tensor) -> Tensor:
    """The affine blend sum_i c_i D_i(x, sigma), shape (batch, ...).

    denoised: (k, batch, ...), any affine parameterisation (eps, v, velocity, denoised), the same for all.
    coefficients: broadcastable to it, any sign, summing to 1 over the first axis.
    """
    return (coefficients * denoised).sum(dim=0)


def _listed(weights: Sequence[float]) -> str:
    return ", ".join(f"{weight:g}" for weight in weights)


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise BlendError("a blend needs at least one basis, got none. Connect a Reward LoRA.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BlendError(
            f"two bases are named {', '.join(twice)}; names must differ. Give one of the LoRAs another label."
        )
    if "base" in names:
        raise BlendError("a basis is named base, which stands for the pretrained model. Give it another label.")


def _check_preference(preference: Sequence[float], names: Sequence[str]) -> None:
    if len(preference) != len(names):
        raise BlendError(
            f"{len(preference)} weights ({_listed(preference)}) for {len(names)} bases ({', '.join(names)}). "
            "Give one weight per basis, in their order."
        )
    shares(preference)  # raises for what is no number, and where all are 0
    total = math.fsum(map(abs, preference))
    if abs(total - 1) > 1e-6:
        sizes = " without their signs" if min(preference) < 0 else ""
        raise BlendError(
            f"the weights {_listed(preference)}{sizes} sum to {total:g}, expected 1. Switch normalise on, or change "
            "them; how far to go is the alignment."
        )


def _check_kl_weights(kl_weights: Sequence[float | None], names: Sequence[str]) -> None:
    if len(kl_weights) != len(names):
        raise BlendError(f"{len(kl_weights)} KL weights for {len(names)} bases: give one per basis, or none at all.")
    for name, alpha in zip(names, kl_weights, strict=True):
        _check_positive(f"the KL weight of {name}", alpha, "it is the factor of the KL term in training")


def _check_positive(what: str, number: float | None, hint: str) -> None:
    if number is not None and not (math.isfinite(number) and number > 0):
        raise BlendError(f"{what} is {number}, expected a number above 0; {hint}.")
