"""How values travel, as a person names it: `lossless`, `bf16`, `step:0.5` or `bits:4`.

    lossless    bit for bit
    bf16        rounded to bfloat16: 8 bits of mantissa
    step:S      in whole steps of S times the root mean square, tensor by tensor. Downwards it is a power of two, of the
                change in a round (`grid.py`); upwards of the update itself
    bits:B      of an update: whole steps, of which 1 to 8 bits can tell the number. Of posteriors: 2 to 8 bits

The shared model has no coding of so many bits, and posteriors have no steps: they travel bit for bit. What an update
loses is kept on its device and added to the next (error feedback), unless a run says otherwise.
"""

import difflib
import math
from dataclasses import dataclass

from edge_runtime.errors import ConfigError

WIRE_VERSION = 8
"""Of everything that is coded. A coordinator and a device of different versions part at the first word."""
_SMALLEST, _LARGEST = 2.0**-6, 2.0**4


@dataclass(frozen=True)
class Coding:
    """How the values of one direction travel."""

    kind: str = "lossless"
    amount: float = 0.0
    """S of a step, or B of bits."""

    @property
    def cost(self) -> float:
        """Guess the bits of a value, to say which coding is cheaper (of a step: as if values were normal)."""
        match self.kind:
            case "lossless":
                return 32.0
            case "bf16":
                return 16.0
            case "step":
                return max(0.0, math.log2(math.sqrt(2 * math.pi * math.e) / self.amount))
            case _:
                return self.amount

    @property
    def finer(self) -> int:
        """Give log2 of the step, rounded: by how much the exponents of a grid differ from those of step 1."""
        return round(math.log2(self.amount))


LOSSLESS = Coding()


def parse(text: str, where: str) -> Coding:
    """Read a coding.

    Raises:
        ConfigError: it is none; `where` names the place in the message.
    """
    kind, colon, number = text.partition(":")
    if kind in ("lossless", "bf16") and not colon:
        return Coding(kind)
    try:
        amount = float(number)
    except ValueError:
        amount = math.nan
    if kind == "step" and _SMALLEST <= amount <= _LARGEST:
        return Coding(kind, amount)
    if kind == "bits" and amount in range(1, 9):
        return Coding(kind, amount)
    near = difflib.get_close_matches(kind, ("lossless", "bf16", "step", "bits"), 1)
    offer = f"; did you mean {near[0] + colon + number!r}?" if near and near[0] != kind else ""
    known = "lossless, bf16, step:0.015625 to step:16, bits:1 to bits:8"
    raise ConfigError(f"{where}: {text!r} is none of {known}{offer}")


def suits(coding: Coding, model: bool) -> bool:
    """Say whether a Down can take this coding: one that tells of the shared model (`model`), or one of posteriors."""
    return coding.kind == "lossless" or (coding.kind != "bits") is model


def cheaper(one: Coding, other: Coding) -> Coding:
    """Give the one that takes fewer bits; the first of equals."""
    return other if other.cost < one.cost else one
