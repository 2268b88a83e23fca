"""Durations as people read them."""

from __future__ import annotations


def text(seconds: float) -> str:
    """Return a duration in one or two units: "6 s", "12 min", "2 h 5 min", "3 days 4 h"."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours + (minutes >= 30), 24)
    return f"{days} days {hours} h" if hours else f"{days} days"
