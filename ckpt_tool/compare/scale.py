"""Relative distances on a logarithmic scale without steps, for a renderer to colour."""

from __future__ import annotations

import math

#: The distance that stands for tensors that differ, but not in a way that a norm measures.
IMMEASURABLE = math.ulp(0.0)

#: The decades of which each end has a colour of its own; between them colours run into each other.
DECADES = range(-7, 1)

#: How what a norm does not measure is written.
EQUAL, UNMEASURED, INFINITE = "\N{MIDDLE DOT}", "~", "!"


def find_position(distance: float) -> float | None:
    """Where on the scale a relative distance is: 0 at 1e-7 or less, 1 more for each decade.

    7 is 1 or more; so are infinity and NaN. None: equal.
    """
    if distance == 0:
        return None
    if not math.isfinite(distance):
        return float(len(DECADES) - 1)
    return min(max(math.log10(distance) - DECADES.start, 0.0), len(DECADES) - 1.0)


def say_briefly(distance: float) -> str:
    """A distance in four characters or less: ``3e-4``, ``0.12``, ``1.5``; one digit if small."""
    if distance == 0:
        return EQUAL
    if distance == IMMEASURABLE:
        return UNMEASURED
    if not math.isfinite(distance):
        return INFINITE
    if distance < 0.0995:  # what would be rounded to 0.10 is
        text = f"{distance:.0e}".replace("e-0", "e-")
        return text if len(text) <= 4 else "~0"
    if distance < 0.995:
        return f"{distance:.2f}"
    return f"{distance:.1f}" if distance < 9.95 else f"{min(distance, 9999):.0f}"


def say_decade(distance: float) -> str:
    """One character: 4 for what is from 1e-4 to below 1e-3; 0 for 1 or more."""
    if distance in (0, IMMEASURABLE) or not math.isfinite(distance):
        return say_briefly(distance)
    return str(min(max(-math.floor(math.log10(distance)), 0), 9))
