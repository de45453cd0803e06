"""Numbers that an argument may have. A wrong one is one line that names the argument as the user wrote it."""

import math

from distcap.types import UserError


def number(name: str, value: object) -> None:
    """Raises UserError unless the value is a number, neither NaN nor infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{name} is {value!r}; it takes a finite number")


def at_least(name: str, value: float, low: float) -> None:
    """Raises UserError unless value >= low."""
    number(name, value)
    if value < low:
        raise UserError(f"{name} is {value}; it takes {low:g} or more")


def above(name: str, value: float, low: float) -> None:
    """Raises UserError unless value > low."""
    number(name, value)
    if value <= low:
        raise UserError(f"{name} is {value}; it takes more than {low:g}")


def share(name: str, value: float, *, zero: bool = True, one: bool = True) -> None:
    """Raises UserError unless 0 <= value <= 1, or without those ends that are left out."""
    number(name, value)
    if not 0 <= value <= 1 or (value == 0 and not zero) or (value == 1 and not one):
        ends = f"from 0{'' if zero else ' (not included)'} to 1{'' if one else ' (not included)'}"
        raise UserError(f"{name} is {value}; it takes a number {ends}")
