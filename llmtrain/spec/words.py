"""Counts in sentences."""


def plural(number: int, noun: str) -> str:
    """Return so many of a thing: 1 cell, 2 cells."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
