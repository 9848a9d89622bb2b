"""A small decoder and its adapters in compiled code: a whole pass is one call.

On a small base a step in torch is mostly the cost of calling operations. Here decoder.c runs all
layers of a part of the batch at once, forward and back, in memory that stays in the caches. It is
`fused` once more, to rounding: the same families, float32 on the CPU, A and B the only weights with
gradients. `fused` decides when a pass may run by hand and comes here first.

The C is compiled on the machine that runs it (`build`); without a compiler nothing is lost but
time. Copies of the frozen weights are kept, so bases above MOST_BYTES stay with torch, whose
products are as quick there.
"""

from lorewright.models.backends.compiled.build import load
from lorewright.models.backends.compiled.decoder import Network, Run
from lorewright.models.backends.compiled.head import Head
from lorewright.models.backends.compiled.moving import Matrices, Mover

__all__ = ["Head", "Matrices", "Mover", "Network", "Run", "load"]
