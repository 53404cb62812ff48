"""Trained models taken apart: their tables found, chosen, coded, and put back in place."""
