"""W7k: convolutions of images alone, forward and backward, as in the networks of W6 and W7."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from benchmarks.registry import REFERENCE, SAME_ALLOCATOR, Run, as_in_fit, implements, repeated


class Case(NamedTuple):
    """Shapes of x and kernel in minidl's layouts; padding on all sides."""

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    transposed: bool = False

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, kernel, and a gradient of the output."""
        rng = np.random.default_rng(0)
        shapes = self.x, self.kernel, self.output()
        return tuple(rng.standard_normal(shape, np.float32) for shape in shapes)

    def output(self) -> tuple[int, ...]:
        size, sides = self.kernel[0], self.x[1:3]
        if self.transposed:
            grown = ((n - 1) * self.stride + size - 2 * self.padding for n in sides)
            return (self.x[0], *grown, self.kernel[2])
        steps = ((n + 2 * self.padding - size) // self.stride + 1 for n in sides)
        return (self.x[0], *steps, self.kernel[3])


CASES = {
    "3x3": Case((128, 26, 26, 32), (3, 3, 32, 64)),
    "5x5 stride 2": Case((64, 14, 14, 32), (5, 5, 32, 64), 2, 2),
    "4x4 transposed": Case((64, 14, 14, 64), (4, 4, 32, 64), 2, 1, True),
    "one channel": Case((128, 28, 28, 1), (3, 3, 1, 32)),
}


def _minidl(case: Case) -> Run:
    import minidl as md

    x, kernel, g = (md.tensor(a) for a in case.arrays())
    x.requires_grad = kernel.requires_grad = True
    op = md.conv2d_transpose if case.transposed else md.conv2d

    def step() -> float:
        x.grad = kernel.grad = None
        out = op(x, kernel, stride=case.stride, padding=case.padding)
        out.backward(g)
        return float(kernel.grad.data[0, 0, 0, 0])

    return as_in_fit(repeated(step))


def _pytorch(case: Case) -> Run:
    import torch

    x, kernel, g = (torch.from_numpy(a) for a in case.arrays())
    x, g = (a.permute(0, 3, 1, 2).contiguous().requires_grad_(a is x) for a in (x, g))
    kernel = kernel.permute(3, 2, 0, 1).contiguous().requires_grad_()
    op = torch.nn.functional.conv_transpose2d if case.transposed else torch.nn.functional.conv2d

    def step() -> float:
        x.grad = kernel.grad = None
        op(x, kernel, stride=case.stride, padding=case.padding).backward(g)
        return float(kernel.grad[0, 0, 0, 0])

    return repeated(step)


for _name, _case in CASES.items():
    implements(f"W7k {_name}", "minidl")(lambda case=_case: _minidl(case))
    implements(f"W7k {_name}", REFERENCE, SAME_ALLOCATOR)(lambda case=_case: _pytorch(case))
