"""Backward and the differential operators: what the engine promises whatever the op."""

import gc
import threading
import tracemalloc

import numpy as np
import pytest

import minidl as md
from minidl import autodiff, random
from minidl.errors import DeviceError, GradientError, ShapeError


def leaf(*values):
    return md.tensor(np.array(values, np.float64), requires_grad=True)


# --- backward -------------------------------------------------------------------------------------


def test_a_leaf_accumulates_over_passes_and_uses():
    x = leaf(1.0, 2.0)
    (x * x + x).sum().backward()
    (x * 3).sum().backward()
    assert x.grad.tolist() == [6, 8]
    x.grad = None
    x.sum().backward()
    assert x.grad.tolist() == [1, 1]


def test_gradients_own_their_memory():
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    seed = np.ones(2)
    (a + b).backward(seed)
    (a + b).backward(seed)
    assert a.grad.tolist() == b.grad.tolist() == [2, 2] and seed.tolist() == [1, 1]
    assert not np.shares_memory(a.grad._data, b.grad._data)
    assert not np.shares_memory(a.grad._data, seed)
    first, second = md.grad((a + b).sum(), [a, b])
    assert not np.shares_memory(first._data, second._data)


def test_gradients_are_arrays_also_of_no_dimension():
    x = md.tensor(2.0, requires_grad=True)
    y = x * x
    assert type(md.grad(y, [x], retain_graph=True)[0]._data) is np.ndarray
    y.backward(retain_graph=True)
    y.backward()
    assert type(x.grad._data) is np.ndarray and x.grad.shape == () and x.grad.item() == 8


def test_backward_wants_one_element_or_a_gradient():
    x = leaf(1.0, 2.0)
    with pytest.raises(GradientError, match="one element"):
        (x * 2).backward()
    with pytest.raises(ShapeError, match="shape"):
        (x * 2).backward(np.ones(3))
    with pytest.raises(GradientError, match="requires_grad"):
        md.tensor(1.0).backward()


def test_second_backward_says_how_to_keep_the_graph():
    x = leaf(1.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [4]
    with pytest.raises(GradientError, match="retain_graph=True"):
        y.backward()


def test_a_chain_of_50_000_mixed_ops():
    x = leaf(0.5, 0.25)
    ops = (lambda y: y + 0.5, lambda y: y * 0.5, md.sin, lambda y: y[::-1], lambda y: -y)
    y = x
    for i in range(50_000):
        y = ops[i % len(ops)](y)
    y.sum().backward()
    assert np.isfinite(x.grad.numpy()).all()


def test_a_chain_of_50_000_ops_with_create_graph():
    x = leaf(0.5)
    y = x
    for i in range(50_000):
        y = y * 1.00001 if i % 2 else y.sin()
    (first,) = md.grad(y.sum(), [x], create_graph=True)
    (second,) = md.grad(first.sum(), [x])
    assert np.isfinite(second.numpy()).all() and second.item() != 0
    del y, first, second


def test_a_thousand_steps_leave_memory_flat_without_the_collector():
    x = leaf(*np.linspace(0.1, 1, 50))

    def step():
        x.grad = None
        loss = (md.exp(x) * x).sum()
        (g,) = md.grad(loss, [x], create_graph=True)
        (g * g).sum().backward()

    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(20):
            step()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(1000):
            step()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
        gc.enable()
    assert grown < 20_000


def test_buffers_are_dropped_as_backward_goes():
    x = md.tensor(np.ones(100_000), requires_grad=True)
    y = x
    for _ in range(50):
        y = y.sin()
    loss = y.sum()
    del y
    tracemalloc.start()
    loss.backward()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * x._data.nbytes  # 50 would be a gradient an op


# --- hooks ----------------------------------------------------------------------------------------


def test_hooks_see_the_full_gradient_once_and_may_replace_it():
    x = leaf(1.0, 2.0)
    y = x * 2
    seen = []
    y.register_hook(lambda g: seen.append(g.tolist()))
    remove = x.register_hook(lambda g: g * 10)
    (y + y * y).sum().backward()
    assert seen == [[5, 9]] and x.grad.tolist() == [100, 180]
    remove()
    x.grad = None
    (x * 2).sum().backward()
    assert x.grad.tolist() == [2, 2]


def test_hook_of_another_dtype_is_cast():
    x = md.tensor([1.0, 2.0], requires_grad=True)
    x.register_hook(lambda g: np.array([3.0, 4.0]))
    x.sum().backward()
    assert x.grad.dtype == np.float32 and x.grad.tolist() == [3, 4]


def test_hook_of_a_wrong_shape():
    x = leaf(1.0, 2.0)
    x.register_hook(lambda g: g.sum())
    with pytest.raises(ShapeError, match="hook"):
        x.sum().backward()


# --- grad -----------------------------------------------------------------------------------------


def test_grad_leaves_grad_alone_and_reaches_inner_tensors():
    x = leaf(1.0, 2.0)
    y = x * x
    loss = (y * 3).sum()
    gy, gx = md.grad(loss, [y, x])
    assert gy.tolist() == [3, 3] and gx.tolist() == [6, 12] and x.grad is None


def test_grad_of_several_outputs_with_weights():
    x = leaf(1.0, 2.0)
    (g,) = md.grad([x * 2, x.sum()], [x], [np.array([1.0, 10.0]), None])
    assert g.tolist() == [3, 21]


def test_unused_inputs():
    x, y = leaf(1.0), leaf(2.0)
    assert md.grad(x.sum(), [x, y], allow_unused=True)[1] is None
    with pytest.raises(GradientError, match=r"inputs\[1\]"):
        md.grad(x.sum(), [x, y])
    with pytest.raises(GradientError, match="requires_grad=True"):
        md.grad(x.sum(), [md.tensor(1.0)])


def test_only_wanted_gradients_are_computed():
    asked = []

    @md.primitive
    def product(x, y):
        return x * y

    product.defvjp(
        x=lambda g, y: (asked.append("x"), g * y)[1], y=lambda g, x: (asked.append("y"), g * x)[1]
    )
    x, y = leaf(2.0), leaf(3.0)
    md.grad(product(x, y).sum(), [y])
    product(x, 3.0).sum().backward()
    assert asked == ["y", "x"]


def test_gradients_of_gradients_to_fourth_order():
    x = leaf(1.5)
    y = (x**4).sum()
    for expected in (4 * 1.5**3, 12 * 1.5**2, 24 * 1.5, 24):
        (y,) = md.grad(y.sum(), [x], create_graph=True)
        assert y.item() == pytest.approx(expected)


def test_create_graph_works_inside_no_grad_for_a_recorded_graph():
    x = leaf(2.0)
    y = (x * x * x).sum()
    with md.no_grad():
        (g,) = md.grad(y, [x], create_graph=True)
    assert md.grad(g.sum(), [x])[0].item() == 12


def test_no_grad_and_enable_grad():
    x = leaf(1.0)
    with md.no_grad():
        assert not (x * 2).requires_grad
        with md.enable_grad():
            assert (x * 2).requires_grad

    @md.no_grad()
    def f():
        return x * 2

    assert not f().requires_grad and (x * 2).requires_grad


def test_stop_gradient_and_detach():
    x = leaf(3.0)
    (md.stop_gradient(x) * x + x.detach()).sum().backward()
    assert x.grad.tolist() == [3]


# --- the engine's checks on rules -----------------------------------------------------------------


def test_a_rule_of_an_impossible_shape_is_refused_by_name():
    @md.primitive
    def wrong(x):
        return x * 2

    wrong.defvjp(x=lambda g: g[:1])
    with pytest.raises(GradientError, match=r"wrong: the rule of x .*\(1,\).*\(2,\)"):
        wrong(leaf(1.0, 2.0)).sum().backward()


def test_a_gradient_takes_its_inputs_dtype_and_shape():
    x = md.tensor(np.ones((3, 1), np.float32), requires_grad=True)
    y = md.tensor(np.ones(4), requires_grad=True)
    (x * y).sum().backward()
    assert x.grad.dtype == np.float32 and x.grad.shape == (3, 1) and y.grad.shape == (4,)


def test_integers_beside_floats_do_not_widen_them():
    x = md.tensor([1.0, 2.0], requires_grad=True)
    for other in (md.tensor([1, 2]), np.array([1, 2]), 2, 2.0, np.float64(2.0)):
        assert (x * other).dtype == (other + x).dtype == np.float32
    assert (md.tensor([1, 2]) * 2.5).dtype == md.exp(md.tensor([1, 2])).dtype == np.float32
    assert (md.tensor([1, 2]) + md.tensor([1, 2])).dtype == np.int64


def test_ops_of_floats_take_bare_integers_too():
    x = np.array([1, 2])
    assert md.mean(x) == 1.5 and md.mean(x).dtype == md.sigmoid(x).dtype == np.float32
    steps = x.reshape(1, 2, 1)
    assert md.mean_over_time(steps).item() == 1.5 and md.max_pool1d(steps).item() == 2


def test_mixed_devices_are_refused_by_name():
    x = md.tensor([1.0, 2.0])
    with pytest.raises(DeviceError, match=r"multiply: .*x on cpu, y on strict"):
        x * x.to("strict")
    with pytest.raises(DeviceError, match="cpu"):
        x.to("strict") * np.ones(2, np.float32)
    with pytest.raises(DeviceError, match="cpu"):
        md.concatenate([x, x.to("strict")])


def test_wrong_arguments():
    x = leaf(1.0)
    with pytest.raises(TypeError, match="missing argument 'y'"):
        md.multiply(x)
    with pytest.raises(TypeError, match="unexpected"):
        md.multiply(x, x, z=1)
    with pytest.raises(TypeError, match="a rule asks for 'w'"):
        md.primitive(lambda x: x).defvjp(x=lambda g, w: g)
    with pytest.raises(TypeError, match="first parameter"):
        md.primitive(lambda x: x).defvjp(x=lambda x: x)
    with pytest.raises(TypeError, match="cannot be called 'out'"):
        md.primitive(lambda x, out: x)
    with pytest.raises(TypeError, match="expected rules for"):
        md.primitive(lambda x: x).defvjp(z=lambda g: g)


def test_lists_count_as_arrays_beside_tensors():
    x = leaf(1.0, 2.0)
    assert (x + [1, 2]).tolist() == [2, 4] and md.multiply([1, 2], x).tolist() == [1, 4]


def test_errors_of_shapes_name_op_and_arguments():
    x = leaf(1.0, 2.0)
    with pytest.raises(ShapeError, match=r"add: .*x of shape \(2,\), y of shape \(3,\)"):
        x + np.ones(3)


def test_a_gradient_lost_in_an_option_is_refused():
    x, slope = leaf(1.0), leaf(0.1)
    with pytest.raises(GradientError, match=r"leaky_relu: .*detach"):
        md.leaky_relu(x, slope)


@pytest.mark.parametrize("variadic", [False, True])
def test_a_gradient_lost_in_an_op_without_rules_is_refused(variadic):
    def body(x):
        return x * 2

    def bodies(*x):
        return x[0] * 2

    forgotten = md.primitive(bodies if variadic else body)
    x = leaf(1.0, 2.0)
    with pytest.raises(GradientError, match=r"x requires a gradient, .* no rule .*defvjp\(x=rule"):
        forgotten(x)
    with md.no_grad():
        assert forgotten(x).tolist() == [2, 4]
    assert not forgotten(x.detach()).requires_grad
    declared = md.primitive(forgotten.function, differentiable=False)
    assert not declared(x).requires_grad


def test_integers_and_booleans_are_constants_without_saying_so():
    @md.primitive
    def above(x, level=0.0):
        return x > level, (x > level).sum()

    some, count = above(leaf(-1.0, 2.0))
    assert some.tolist() == [False, True] and count.item() == 1


@pytest.mark.parametrize("answer", [1.0, [1.0], "text"])
def test_a_rule_that_returns_no_array(answer):
    @md.primitive
    def odd(x):
        return x * 2

    odd.defvjp(x=lambda g: answer)
    with pytest.raises(GradientError, match="odd: the rule of x returned"):
        odd(leaf(1.0)).sum().backward()


def test_a_joint_rule_of_too_few_gradients():
    @md.primitive
    def pair(x, y):
        return x + y

    pair.defvjp(joint=lambda g: (g,), of=("x", "y"))
    with pytest.raises(GradientError, match="pair: its joint rule gave 1 gradients; expected 2"):
        pair(leaf(1.0), leaf(1.0)).sum().backward()


# --- primitives of one's own ----------------------------------------------------------------------


def test_several_outputs_and_a_joint_rule():
    @md.primitive
    def both(x, y):
        return x * y, x + y

    needed = []

    def rule(g, x, y, needs):
        needed.append(needs)
        return g[0] * y + g[1], g[0] * x + g[1]

    both.defvjp(joint=rule, of=("x", "y"))
    x, y = leaf(2.0), leaf(3.0)
    product, total = both(x, y)
    (product * 10 + total).sum().backward()
    assert x.grad.item() == 31 and y.grad.item() == 21
    product, _ = both(x, 5.0)
    assert md.grad(product.sum(), [x])[0].item() == 5
    assert needed == [(True, True), (True, False)]
    product, _ = both(x, y)
    (g,) = md.grad(product.sum(), [x], create_graph=True)
    assert md.grad(g.sum(), [y])[0].item() == 1


def test_several_outputs_named_in_a_rule_to_second_order():
    @md.primitive
    def pair(x):
        return x * x, x * x * x

    pair.defvjp(x=lambda g, x, out: g[0] * 2 * x + g[1] * 3 * out[0])
    x = leaf(2.0)
    (g,) = md.grad(pair(x)[1].sum(), [x], create_graph=True)
    assert g.item() == 12 and md.grad(g.sum(), [x])[0].item() == 12


def test_keyword_only_options():
    @md.primitive
    def scaled(x, *, by=2.0):
        return x * by

    scaled.defvjp(x=lambda g, by: g * by)
    x = leaf(1.0)
    assert scaled(x).item() == 2 and scaled(x, by=3.0).item() == 3
    assert md.grad(scaled(x, by=5.0).sum(), [x])[0].item() == 5
    assert scaled(np.ones(1), by=4.0).item() == 4


def test_residuals_and_definition():
    calls = []

    @md.primitive(residuals=True)
    def cube(x):
        square = x * x
        return square * x, square

    cube.defvjp(x=lambda g, kept: (calls.append("fused"), 3 * kept * g)[1])
    x = leaf(2.0)
    assert isinstance(cube(np.ones(1)), np.ndarray)
    cube(x).sum().backward()
    assert x.grad.item() == 12 and calls == ["fused"]
    with pytest.raises(GradientError, match=r"op\.define"):
        md.grad(cube(x).sum(), [x], create_graph=True)
    cube.define(lambda x: x * x * x)
    (g,) = md.grad(cube(x).sum(), [x], create_graph=True)
    assert g.item() == 12 and md.grad(g.sum(), [x])[0].item() == 12 and calls == ["fused"]


def test_definition_with_one_tensor_in_two_places():
    @md.primitive(residuals=True)
    def product(x, y, scale):
        return x * y * scale, None

    product.defvjp(x=lambda g, y, scale: g * y * scale, y=lambda g, x, scale: g * x * scale)
    product.define(lambda x, y, scale: x * y * scale)
    x = leaf(3.0)
    y = x * 2  # one argument depends on the other
    (g,) = md.grad(product(x, y, 2.0).sum(), [x], create_graph=True)  # d(4 x^2) = 8 x
    assert g.item() == 24 and md.grad(g.sum(), [x])[0].item() == 8
    (g,) = md.grad(product(x, x, 2.0).sum(), [x], create_graph=True)
    assert g.item() == 12 and md.grad(g.sum(), [x])[0].item() == 4


@pytest.mark.parametrize(
    ("name", "kept"), [("add", 0), ("multiply", 2), ("exp", 1), ("sum", 0), ("tanh", 1)]
)
def test_bytes_that_an_op_keeps(name, kept):
    x = md.tensor(np.ones(1000), requires_grad=True)
    y = md.tensor(np.ones(1000), requires_grad=True)
    op = getattr(md, name)
    node = (op(x, y) if len(op.differentiable) == 2 else op(x))._node
    arrays = [v for v in node.saved if isinstance(v, (np.ndarray, md.Tensor))]
    assert sum(v.size for v in arrays) == kept * 1000


# --- recompute ------------------------------------------------------------------------------------


def test_recompute_gives_the_same_gradients_and_keeps_nothing():
    x, w = leaf(1.0, 2.0), leaf(0.5, 0.25)

    def block(x):
        keep = md.tensor(random.generator().bernoulli(0.5, (2,)))  # draws are repeated
        return (md.exp(x * w) * keep).tanh() + x

    state = random.generator().state()
    plain = md.grad(block(x).sum(), [x, w])
    random.generator().set_state(state)
    y = md.recompute(block, x)
    assert y._node.saved == () and set(y._node.parents) == {x._node, w._node}
    after = random.generator().state()
    for got, expected in zip(md.grad(y.sum(), [x, w]), plain, strict=True):
        np.testing.assert_array_equal(got.numpy(), expected.numpy())
    assert random.generator().state() == after


def test_recompute_in_the_middle_of_a_graph_and_to_second_order():
    x, w = leaf(1.0, 2.0), leaf(0.5, 0.25)

    def loss(wrapped):
        h = x * w
        block = lambda a, b: (a * b * w, a.exp())  # noqa: E731
        u, v = md.recompute(block, h, x) if wrapped else block(h, x)
        return (u * v + h).sum()

    first = [md.grad(loss(flag), [x, w], create_graph=True) for flag in (False, True)]
    for got, expected in zip(*first, strict=True):
        np.testing.assert_allclose(got.numpy(), expected.numpy())
    second = [md.grad((g[0] * g[1]).sum(), [x, w]) for g in first]
    for got, expected in zip(*second, strict=True):
        np.testing.assert_allclose(got.numpy(), expected.numpy())
    loss(True).backward()
    np.testing.assert_allclose(w.grad.numpy(), first[0][1].numpy())


def test_recompute_sees_a_changed_parameter():
    x, w = leaf(1.0), leaf(2.0)
    y = md.recompute(lambda x: x * w, x)
    w.assign_([5.0])
    with pytest.raises(GradientError, match="changed in place"):
        y.sum().backward()


def test_replaying_is_true_in_extra_evaluations_only():
    seen = []
    x = leaf(1.0)
    md.recompute(lambda x: (seen.append(autodiff.replaying()), x * x)[1], x).sum().backward()
    assert seen == [False, True]


# --- differential operators -----------------------------------------------------------------------


def f(x):
    return md.stack([x[0] * x[1], md.sin(x[0]), x[1] ** 3])


POINT = np.array([0.7, -1.2])
JACOBIAN = np.array([[-1.2, 0.7], [np.cos(0.7), 0], [0, 3 * 1.44]])


def test_vjp_jvp_jacobian():
    y, pullback = md.vjp(f, POINT)
    assert y.shape == (3,)
    v, u = np.array([1.0, 2.0, 3.0]), np.array([0.3, 0.4])
    for _ in range(2):
        (g,) = pullback(v)
        np.testing.assert_allclose(g.numpy(), v @ JACOBIAN)
    y, dy = md.jvp(f, (POINT,), (u,))
    np.testing.assert_allclose(dy.numpy(), JACOBIAN @ u)
    np.testing.assert_allclose(md.jacobian(f, POINT).numpy(), JACOBIAN)


def test_hvp_and_hessian():
    def h(x):
        return (x[0] ** 2 * x[1] + md.exp(x[1])).sum()

    expected = np.array([[2 * -1.2, 2 * 0.7], [2 * 0.7, np.exp(-1.2)]])
    v = np.array([1.0, -2.0])
    np.testing.assert_allclose(md.hessian(h, POINT).numpy(), expected)
    np.testing.assert_allclose(md.hvp(h, POINT, v).numpy(), expected @ v)
    a, b = md.hvp(lambda x, y: (x * y).sum(), [POINT, POINT], [v, 2 * v])
    assert a.tolist() == (2 * v).tolist() and b.tolist() == v.tolist()


def test_operators_of_functions_that_do_not_depend_on_their_argument():
    constant = md.tensor([1.0, 2.0])
    assert md.jacobian(lambda x: constant, POINT).numpy().tolist() == [[0, 0], [0, 0]]
    assert md.hessian(lambda x: x.sum(), POINT).numpy().tolist() == [[0, 0], [0, 0]]
    assert md.jvp(lambda x: constant, (POINT,), (POINT,))[1].tolist() == [0, 0]


def test_the_operators_are_differentiable_themselves():
    x = md.tensor(POINT, requires_grad=True)
    _, dy = md.jvp(lambda t: (t**3).sum(), (x,), (np.array([1.0, 0.0]),))
    np.testing.assert_allclose(md.grad(dy.sum(), [x])[0].numpy(), [6 * 0.7, 0])
    _, pullback = md.vjp(lambda t: (t**3).sum(), x)
    (g,) = pullback(1.0)
    np.testing.assert_allclose(md.grad(g.sum(), [x])[0].numpy(), 6 * POINT)


# --- anomalies and threads ------------------------------------------------------------------------


def test_anomaly_mode_names_the_op_and_its_place():
    x = leaf(0.0)
    with md.anomaly_mode():
        y = md.sqrt(x)
    with np.errstate(all="ignore"), pytest.raises(GradientError, match=r"(?s)sqrt.*test_autodiff"):
        y.sum().backward()


def test_two_threads_differentiate_at_once():
    x = leaf(*np.linspace(0.1, 1, 20))
    results, barrier = {}, threading.Barrier(2)

    def work(name, power):
        barrier.wait()
        for _ in range(200):
            with md.no_grad():
                assert not (x * 2).requires_grad
            y = (x**power).sum()
            results[name] = md.grad(y, [x], retain_graph=True)[0].numpy()
            y.backward()

    workers = [threading.Thread(target=work, args=(p, p)) for p in (2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    a = x.numpy()
    np.testing.assert_allclose(results[2], 2 * a)
    np.testing.assert_allclose(results[3], 3 * a**2)
    np.testing.assert_allclose(x.grad.numpy(), 200 * (2 * a + 3 * a**2))
