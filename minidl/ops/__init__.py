"""The ops: mathematics. Each op stands with its derivative, its samples and its domain."""

import sys

from minidl import graph
from minidl.ops import (
    activations,
    comparison,
    convolution,
    elementwise,
    gated_convolution,
    global_pooling,
    indexing,
    joining,
    linalg,
    pooling,
    products,
    reduction,
    resampling,
    shape,
)
from minidl.ops.activations import *  # noqa: F403
from minidl.ops.comparison import *  # noqa: F403
from minidl.ops.convolution import *  # noqa: F403
from minidl.ops.elementwise import *  # noqa: F403
from minidl.ops.gated_convolution import *  # noqa: F403
from minidl.ops.global_pooling import *  # noqa: F403
from minidl.ops.indexing import *  # noqa: F403
from minidl.ops.joining import *  # noqa: F403
from minidl.ops.linalg import *  # noqa: F403
from minidl.ops.pooling import *  # noqa: F403
from minidl.ops.products import *  # noqa: F403
from minidl.ops.reduction import *  # noqa: F403
from minidl.ops.resampling import *  # noqa: F403
from minidl.ops.shape import *  # noqa: F403

_MODULES = (
    elementwise, comparison, activations, reduction, shape, joining, indexing, products, linalg,
    convolution, gated_convolution, pooling, global_pooling, resampling,
)  # fmt: skip
__all__ = [name for module in _MODULES for name in module.__all__]
graph.bind(sys.modules[__name__])
