"""Rows that FBGEMM looks up and steps, on one machine: ``kernel="fbgemm"``.

FBGEMM is imported when a table is given to it, and not before.
"""
