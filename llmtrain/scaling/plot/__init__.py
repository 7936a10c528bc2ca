"""Figures of finished analyses and of plans; the one door to matplotlib."""
