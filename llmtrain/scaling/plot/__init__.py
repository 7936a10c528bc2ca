"""Figures, drawn from finished analyses only; the one door to matplotlib."""
