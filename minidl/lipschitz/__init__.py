"""How much a network can stretch distances: bounds from above and below, and what they certify.

A map f has the Lipschitz constant L when |f(x) - f(y)| <= L |x - y| for all x and y. Lengths are
Euclidean (L2) throughout, of all entries of an item taken together. `upper_bound` multiplies the
constants of a network's layers, each of which is proved; `lower_bound` looks for two inputs that
are far apart in the output; the truth lies between. What is computed in float64 is rounded up; what
a network in float32 adds by its own rounding is not in it.
"""

from minidl.lipschitz.certificates import certified_radius
from minidl.lipschitz.report import Bound, Line, Report, output_shape, register, upper_bound
from minidl.lipschitz.rules import activation_constant, register_activation
from minidl.lipschitz.slopes import local_slopes, lower_bound

__all__ = [
    "Bound", "Line", "Report", "activation_constant", "certified_radius", "local_slopes",
    "lower_bound", "output_shape", "register", "register_activation", "upper_bound",
]  # fmt: skip
