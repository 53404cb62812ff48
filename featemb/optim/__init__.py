"""Optimizers whose step costs O(rows touched), and their dense equivalents.

`RowAdam`, `RowAdagrad` and `RowSGD` are *lazy*: a row that no sample of the batch reads keeps its
weights and its state. This differs from the dense optimizers in two ways: Adam's moments of an
untouched row do not decay and do not move it, while the bias correction goes on counting the
table's steps; and weight decay reaches a row only when it is read. `RowRMSprop` makes up for the
steps between two reads of a row, with two numbers of state a row. `DenseAdam` is the dense
equivalent (Adam with coupled or decoupled L2 over the whole table, every step): some methods'
published behaviour depends on it, and its step costs O(table).

Parameters that are not row tables get the ordinary dense update in all of them, so that
``RowAdam(model.parameters())`` serves a whole model.
"""

from featemb.optim.dense import DenseAdam
from featemb.optim.factory import OPTIMIZERS, build, follow
from featemb.optim.lazy import RowAdagrad, RowAdam, RowSGD
from featemb.optim.rmsprop import RowRMSprop

__all__ = [
    "OPTIMIZERS",
    "DenseAdam",
    "RowAdagrad",
    "RowAdam",
    "RowRMSprop",
    "RowSGD",
    "build",
    "follow",
]
