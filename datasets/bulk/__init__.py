"""Encoding at any scale: several processes, bounded memory, resumable, into checksummed shards.

The text is parsed once. Each piece of it becomes a *block*: every categorical column as codes into
the block's own sorted list of words (`blocks`). When all blocks are there, the split is decided and
the training rows of each are counted. The words of a column are then merged over the blocks by
ranges of values that fit into memory (`merge`: an external merge of sorted runs), ranked by count,
and each block's codes become ids in the second pass (`fill`). Nothing holds a whole vocabulary.
"""
