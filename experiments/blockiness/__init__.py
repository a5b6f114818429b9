"""Measures how much patches show in translations."""
