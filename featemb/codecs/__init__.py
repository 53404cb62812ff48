"""Codecs: storage formats of frozen rows, one file a family."""
