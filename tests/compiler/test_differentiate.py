"""The adjoint of a layer is the vector-Jacobian product, and nothing beside it."""

from __future__ import annotations

import numpy as np
import tvm
from bitfabric.compiler.differentiate import ADJOINT, FORWARD, differentiate, drop_gradient_marks
from tvm import relax

SHAPE = (3, 5)


def layer() -> tvm.IRModule:
    """Return ``layer_forward(x, f) = x f + x``."""
    x, f = (relax.Var(name, relax.TensorType(SHAPE, "float32")) for name in "xf")
    bb = relax.BlockBuilder()
    with bb.function(FORWARD, [x, f]):
        with bb.dataflow():
            scaled = bb.emit(relax.op.multiply(x, f))
            out = bb.emit_output(relax.op.add(scaled, x))
        bb.emit_func_output(out)
    return bb.get()


def test_the_adjoint_of_a_layer() -> None:
    module = drop_gradient_marks(differentiate(layer(), inputs=2))
    machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())
    x, f, dy = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype("float32")
    dx, df = machine[ADJOINT](*map(tvm.runtime.tensor, (x, f, dy)))
    np.testing.assert_allclose(dx.numpy(), dy * f + dy, rtol=1e-6)
    np.testing.assert_allclose(df.numpy(), dy * x, rtol=1e-6)


def test_nothing_as_large_as_the_output_is_kept_for_it() -> None:
    """Ones for every element of the output would be a constant of its size in the module."""
    text = relax.transform.DeadCodeElimination([FORWARD, ADJOINT])(
        differentiate(layer(), 2)
    ).script()
    assert "R.ones" not in text
    assert "broadcast_to" not in text
