"""What all optimisers share: parameters tied, frozen, moved; rates, decay, clipping; Lookahead."""

import copy

import numpy as np
import pytest

import minidl as md
from minidl.errors import GradientError, SerializationError
from minidl.layers import Dense, Parameter, Sequential
from minidl.optimizers import SGD, Adam, AdamW, Lookahead, Optimizer, RMSProp

rng = np.random.default_rng(0)
SHAPES = [(3, 4), (5,), (), (2, 1, 3), (0, 2)]


def make(shapes=SHAPES, dtype=np.float64):
    return [Parameter(rng.normal(size=shape).astype(dtype)) for shape in shapes]


def give(parameters, gradients):
    """Set gradients as backward does: through the graph."""
    terms = [md.sum(p * g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    total.backward()


def random_gradients(parameters):
    return [md.tensor(rng.normal(size=p.shape).astype(p.dtype)) for p in parameters]


def values(parameters):
    return [p.numpy().copy() for p in parameters]


def same(parameters, expected, **tolerance):
    for p, e in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(p.numpy(), e, **(tolerance or {"rtol": 0, "atol": 0}))


class TestLife:
    def test_backward_writes_into_the_flat_gradient(self):
        p = Parameter(np.ones(3, np.float32))
        SGD([p], 0.1)
        buffer = p._node.buffer
        give([p], [md.tensor([1.0, 2.0, 3.0])])
        assert p.grad._data is buffer
        give([p], [md.tensor([1.0, 2.0, 3.0])])
        assert p.grad._data is buffer and p.grad.numpy().tolist() == [2, 4, 6]

    def test_gradients_from_before_the_optimizer_count(self):
        p = Parameter(np.ones(2, np.float32))
        give([p], [md.tensor([1.0, 2.0])])
        optimizer = SGD([p], 1.0)
        give([p], [md.tensor([1.0, 0.0])])
        optimizer.step()
        assert p.numpy().tolist() == [-1, -1]

    def test_a_gradient_set_by_hand(self):
        p = Parameter(np.ones(2, np.float32))
        optimizer = SGD([p], 1.0)
        p.grad = md.tensor([1.0, 2.0])
        optimizer.step()
        assert p.numpy().tolist() == [0, -1]

    def test_step_after_forward_makes_backward_raise(self):
        p = Parameter(np.ones(2, np.float32))
        optimizer = SGD([p], 1.0)
        give([p], [md.tensor([1.0, 2.0])])
        loss = md.sum(p * p)
        optimizer.step()
        with pytest.raises(GradientError, match="changed in place"):
            loss.backward()

    def test_skipped_parameters_may_still_go_back(self):
        p, q = Parameter(np.ones(2, np.float32)), Parameter(np.ones(2, np.float32))
        optimizer = SGD([p, q], 1.0)
        loss = md.sum(q * q)
        give([p], [md.tensor([1.0, 2.0])])
        optimizer.step()
        loss.backward()
        assert q.grad.numpy().tolist() == [2, 2]

    def test_tied_and_repeated(self):
        p = Parameter(np.ones(2, np.float32))
        optimizer = SGD([p, p], 1.0)
        assert len(optimizer.parameters) == 1
        md.sum(p + p).backward()
        optimizer.step()
        assert p.numpy().tolist() == [-1, -1]

    def test_frozen_and_thawed(self):
        model = Sequential([Dense(2, input_size=2), Dense(1, input_size=2)])
        optimizer = Adam(model, 0.1)
        x = md.tensor(np.ones((3, 2), np.float32))

        def step():
            before = model.state_dict()
            optimizer.zero_grad()
            md.sum(model(x)).backward()
            optimizer.step()
            return [n for n, v in model.state_dict().items() if (v != before[n]).any()]

        assert step() == ["0.kernel", "0.bias", "1.kernel", "1.bias"]
        model[0].trainable = False
        assert step() == ["1.kernel", "1.bias"]
        model[0].trainable = True
        assert step() == ["0.kernel", "0.bias", "1.kernel", "1.bias"]
        assert model[0].kernel.grad._data is optimizer._flats[0].members[0][2]

    def test_moving_there_and_back_changes_nothing(self):
        md.seed(1)
        stay = Sequential([Dense(2, input_size=2), Dense(1, input_size=2)])
        move = Sequential([Dense(2, input_size=2), Dense(1, input_size=2)])
        move.load_state_dict(stay.state_dict())
        x = np.ones((3, 2), np.float32)
        pairs = [(stay, Adam(stay, 0.1)), (move, Adam(move, 0.1))]
        for device in ("cpu", "strict", "strict", "cpu"):
            move.to(device)
            for model, optimizer in pairs:
                optimizer.zero_grad()
                md.sum(md.square(model(md.tensor(x, device=model.device)))).backward()
                optimizer.step()
        for name, value in move.state_dict().items():
            np.testing.assert_allclose(value, stay.state_dict()[name], rtol=1e-5, atol=1e-6)

    def test_casting_keeps_the_state(self):
        p = Parameter(np.zeros(2, np.float32))
        layer = Dense(1, input_size=1)
        layer.kernel, layer.bias = p, None
        optimizer = SGD([p], 1.0, momentum=1.0)
        give([p], [md.tensor([1.0, 2.0])])
        optimizer.step()
        layer.astype("float64")
        give([p], [md.tensor(np.zeros(2))])
        optimizer.step()
        assert p.dtype == np.float64 and p.numpy().tolist() == [-2, -4]

    def test_two_optimizers_over_one_model(self):
        alone, shared = make(), None
        shared = [Parameter(p.numpy().copy()) for p in alone]
        gradients = [random_gradients(alone) for _ in range(4)]
        first, second = Adam(shared, 0.1), SGD(shared, 0.01, momentum=0.9)
        # The same, with copies of the values handed from one to the other by hand
        copies = [[Parameter(p.numpy().copy()) for p in alone] for _ in range(2)]
        apart = [Adam(copies[0], 0.1), SGD(copies[1], 0.01, momentum=0.9)]
        for i, g in enumerate(gradients):
            own, other = copies[i % 2], copies[1 - i % 2]
            for parameters, optimizer in ((shared, (first, second)[i % 2]), (own, apart[i % 2])):
                optimizer.zero_grad()
                give(parameters, g)
                optimizer.step()
            for p, q in zip(other, own, strict=True):
                p.assign_(q)
            same(shared, values(own))

    def test_two_optimizers_over_halves(self):
        generator, critic = Dense(1, input_size=2), Dense(1, input_size=1)
        first, second = SGD(generator, 0.1), SGD(critic, 0.1)
        before = critic.state_dict()
        md.sum(critic(generator(md.tensor(np.ones((1, 2), np.float32))))).backward()
        first.step()
        np.testing.assert_array_equal(critic.kernel.numpy(), before["kernel"])
        second.step()
        assert (critic.kernel.numpy() != before["kernel"]).all()

    def test_a_deep_copy_of_the_model_is_its_own(self):
        model = Dense(1, input_size=2)
        optimizer = SGD(model, 1.0)
        twin = copy.deepcopy(model)
        kernel = twin.kernel.numpy().copy()
        md.sum(model(np.ones((1, 2), np.float32))).backward()
        optimizer.step()
        np.testing.assert_array_equal(twin.kernel.numpy(), kernel)

    def test_a_nan_gradient_does_not_outlast_a_reload(self):
        """Nothing stays in the padding of the flat buffers, where no one would see it."""
        model = Dense(3, input_size=3)
        optimizer = Adam(model, global_clipnorm=1.0)
        x = np.ones((2, 3), np.float32)
        before = model.state_dict(), optimizer.state_dict()
        md.sum(model(x * np.nan)).backward()
        optimizer.step()
        model.load_state_dict(before[0])
        optimizer.load_state_dict(before[1])
        optimizer.zero_grad()
        md.sum(model(x)).backward()
        optimizer.step()
        assert np.isfinite(model.kernel.numpy()).all()
        assert not np.array_equal(model.kernel.numpy(), before[0]["kernel"])

    def test_no_gradients_no_change(self):
        parameters = make()
        before = values(parameters)
        Adam(parameters, 0.1, global_clipnorm=1.0).step()
        same(parameters, before)

    def test_clip_by_value(self):
        p = Parameter(np.zeros(3, np.float32))
        optimizer = SGD([p], 1.0, clipvalue=0.5)
        give([p], [md.tensor([0.2, -3.0, 3.0])])
        optimizer.step()
        np.testing.assert_allclose(p.numpy(), [-0.2, 0.5, -0.5])


class TestRate:
    def test_schedules_see_the_steps_made(self):
        p = Parameter(np.zeros(1, np.float32))
        optimizer = SGD([p], lambda step: 10.0**step)
        seen = []
        for _ in range(3):
            optimizer.zero_grad()
            give([p], [md.tensor([1.0])])
            seen.append(optimizer.rate)
            optimizer.step()
        assert seen == [1, 10, 100] and p.numpy()[0] == -111
        assert optimizer.state_dict()["learning_rate"] is None

    def test_may_be_set(self):
        p = Parameter(np.zeros(1, np.float32))
        optimizer = SGD([p], 1.0)
        optimizer.learning_rate = 0.5
        give([p], [md.tensor([1.0])])
        optimizer.step()
        assert p.numpy()[0] == -0.5


class TestLookahead:
    def test_by_hand(self):
        """theta <- k steps of the inner one; phi += alpha (theta - phi); theta = phi."""
        parameters = make()
        slow = values(parameters)
        fast = [v.copy() for v in slow]
        optimizer = Lookahead(SGD(parameters, 0.1), k=3, alpha=0.25)
        for step in range(1, 8):
            gradients = random_gradients(parameters)
            optimizer.zero_grad()
            give(parameters, gradients)
            optimizer.step()
            fast = [f - 0.1 * g.numpy() for f, g in zip(fast, gradients, strict=True)]
            if step % 3 == 0:
                slow = [s + 0.25 * (f - s) for s, f in zip(slow, fast, strict=True)]
                fast = [s.copy() for s in slow]
            same(parameters, fast, rtol=1e-12)

    def test_it_begins_where_the_first_step_does(self):
        p = Parameter(np.zeros(2))
        optimizer = Lookahead(SGD([p], 1.0), k=1)
        p.assign_(np.full(2, 10.0))  # weights loaded after the optimiser was made
        give([p], [md.tensor(np.ones(2))])
        optimizer.step()
        assert p.numpy().tolist() == [9.5, 9.5]

    def test_around_an_optimizer_that_has_made_steps(self, tmp_path):
        """Also where it is saved before its own first step."""
        p = Parameter(np.full(2, 10.0))
        inner = SGD([p], 1.0)
        give([p], [md.tensor(np.ones(2))])
        inner.step()
        state = Lookahead(inner, k=2).state_dict()
        optimizer = Lookahead(inner, k=2)
        optimizer.load_state_dict(state)
        optimizer.step()
        assert p.numpy().tolist() == [8.5, 8.5]

    def test_moving_keeps_the_slow_weights(self):
        results = []
        for devices in (["cpu"] * 8, ["strict", "strict", "cpu", "strict"] * 2):
            layer = Dense(1, input_size=2, kernel_initializer="ones")
            optimizer = Lookahead(Adam(layer, 0.1), k=3)
            for device in devices:
                layer.to(device)
                optimizer.zero_grad()
                md.sum(layer.kernel * layer.kernel).backward()
                optimizer.step()
            results.append(layer.kernel.numpy().copy())
        np.testing.assert_allclose(*results, rtol=1e-5)

    def test_it_is_the_inner_optimizer_to_others(self):
        p = Parameter(np.zeros(2))
        inner = Adam([p], 0.1)
        optimizer = Lookahead(inner)
        optimizer.learning_rate = 0.5
        assert inner.learning_rate == optimizer.rate == 0.5 and optimizer.iterations == 0
        assert optimizer.parameters == [p] and "Adam" in repr(optimizer)
        with pytest.raises(SerializationError, match="state of 'Adam'"):
            optimizer.load_state_dict(inner.state_dict())

    def test_refusals(self):
        inner = Adam([Parameter(np.zeros(1))])
        with pytest.raises(TypeError, match="expected an optimiser"):
            Lookahead([Parameter(np.zeros(1))])
        with pytest.raises(TypeError, match="that is no Lookahead"):
            Lookahead(Lookahead(inner))
        with pytest.raises(ValueError, match="k: expected 1"):
            Lookahead(inner, k=0)
        with pytest.raises(ValueError, match="alpha"):
            Lookahead(inner, alpha=0)


class TestWeightDecay:
    def test_of_some_parameters(self):
        decaying, others = Parameter(np.ones((2, 2))), [Parameter(np.ones(2)) for _ in range(2)]
        both = [others[0], decaying, others[1]]
        for excluded in (others, lambda p: p.ndim < 2):
            for p in both:
                p.assign_(np.ones(p.shape))
            optimizer = SGD(both, 0.5, weight_decay=0.2, exclude_from_weight_decay=excluded)
            give(both, [md.tensor(np.zeros(p.shape)) for p in both])
            optimizer.step()
            assert (decaying.numpy() == 0.9).all()
            assert all((p.numpy() == 1).all() for p in others)

    def test_the_decaying_ones_are_one_stretch(self):
        model = Sequential([Dense(3, input_size=3) for _ in range(4)])
        optimizer = AdamW(model, exclude_from_weight_decay=lambda p: p.ndim < 2)
        md.sum(model(np.ones((1, 3), np.float32))).backward()
        (buffer,) = optimizer._flats
        assert [task.decays for task in optimizer._tasks(buffer)] == [True, False]

    def test_any_optimizer_has_it(self):
        plain, decaying = Parameter(np.ones(2)), Parameter(np.ones(2))
        for p, decay in ((plain, 0.0), (decaying, 0.1)):
            give([p], [md.tensor(np.ones(2))])
            RMSProp([p], 0.1, weight_decay=decay).step()
        np.testing.assert_allclose(plain.numpy() - decaying.numpy(), 0.01)

    def test_refusals(self):
        p, q = Parameter(np.ones(1)), Parameter(np.ones(1))
        with pytest.raises(ValueError, match="weight_decay: expected 0 or more"):
            SGD([p], weight_decay=-1)
        with pytest.raises(ValueError, match="1 of them are not among"):
            SGD([p], weight_decay=0.1, exclude_from_weight_decay=[q])


def test_a_scaled_step():
    """Before clipping, by a number or by an array on the device."""
    for scale in (0.5, np.array(0.5), md.backend.to_device(np.array(0.5), "strict")):
        device = "cpu" if isinstance(scale, (float, np.ndarray)) else "strict"
        for options, moved in (
            ({}, 2.0),
            ({"clipvalue": 1.0}, 1.0),
            ({"global_clipnorm": 4.0}, 2.0),
        ):
            p = Parameter(np.zeros(1, np.float32), device=device)
            optimizer = SGD([p], 1.0, **options)
            give([p], [md.tensor([4.0], device=device)])
            optimizer.step(scale)
            assert p.numpy()[0] == -moved
    p = Parameter(np.zeros(1, np.float32))
    optimizer = SGD([p], 1.0, global_clipnorm=1.0)
    give([p], [md.tensor([4.0])])
    optimizer.step(0.5)
    assert p.numpy()[0] == -1


class TestRefusals:
    def test_arguments(self):
        p = Parameter(np.zeros(1, np.float32))
        with pytest.raises(ValueError, match="at least one Parameter"):
            SGD([], 0.1)
        with pytest.raises(TypeError, match="expected Parameters, got Tensor"):
            SGD([md.tensor([1.0])], 0.1)
        with pytest.raises(ValueError, match="0 or more"):
            SGD([p], -1)
        with pytest.raises(ValueError, match="not both"):
            SGD([p], 0.1, clipvalue=1.0, global_clipnorm=1.0)
        for clipping in ({"clipvalue": -1.0}, {"global_clipnorm": 0}, {"global_clipnorm": np.nan}):
            with pytest.raises(ValueError, match=f"{next(iter(clipping))}: expected more than 0"):
                SGD([p], 0.1, **clipping)
        with pytest.raises(ValueError, match="needs momentum"):
            SGD([p], 0.1, nesterov=True)
        with pytest.raises(ValueError, match="beta_2"):
            Adam([p], beta_2=1.0)

    def test_foreign_state(self):
        state = Adam(make(), 0.1).state_dict()
        with pytest.raises(SerializationError, match="state of 'Adam'"):
            SGD(make(), 0.1).load_state_dict(state)
        with pytest.raises(SerializationError, match="other shapes"):
            Adam(make([(2,)]), 0.1).load_state_dict(state)
        with pytest.raises(SerializationError, match="other shapes"):
            Adam(make(), 0.1).load_state_dict(state | {"counts": [1]})
        averaging = Adam(make(), 0.1)
        averaging.add_slot("average")
        with pytest.raises(SerializationError, match=r"holds momentum, velocity for .* average;"):
            averaging.load_state_dict(state)


def test_an_optimizer_of_ones_own():
    class Sign(Optimizer):
        """Step by the sign of the gradient's sum so far."""

        slots = ("total",)

        def update(self, xp, p, g, state, work, rate, count):
            state[0] += g
            xp.sign(state[0], out=work[0])
            work[0] *= rate
            p -= work[0]

    parameters = make()
    start = values(parameters)
    gradients = random_gradients(parameters)
    optimizer = Sign(parameters, 0.5)
    give(parameters, gradients)
    optimizer.step()
    same(parameters, [p - 0.5 * np.sign(g.numpy()) for p, g in zip(start, gradients, strict=True)])


def test_a_kept_gradient_that_was_overwritten_is_not_used():
    p = md.Parameter([1.0, 2.0])
    optimizer = md.optimizers.SGD([p], 0.1)
    (p * p).sum().backward()
    kept = p.grad
    y = (kept * p).sum()
    optimizer.zero_grad()
    (p * 3).sum().backward()
    with pytest.raises(GradientError, match="changed in place"):
        md.grad(y, [p])


def test_pytorchs_names_get_the_mend():
    with pytest.raises(TypeError, match="Adam: unexpected argument 'lr'; use learning_rate"):
        md.optimizers.Adam([md.Parameter([1.0])], lr=0.1)
