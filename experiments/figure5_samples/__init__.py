"""Translations side by side, as in Figures 4 and 5."""
