"""Transforms: what is mixed with what, and how much; kinds of batches; going on where one was."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl import transforms
from minidl.data import Batch, Batches
from minidl.errors import DtypeError, ShapeError
from minidl.layers import Dense, Dropout, Sequential
from minidl.losses import CategoricalCrossentropy
from minidl.transforms import (
    Compose,
    Cutout,
    LabelSmoothing,
    ManifoldMixup,
    Mix,
    Mixup,
    OneHot,
    Phases,
    SamplePairing,
    Shift,
    Transform,
    mixed,
)

rng = np.random.default_rng(0)
CLASSES = 4
LABELS = np.arange(12) % CLASSES
CODE = np.eye(12, dtype=np.float32)  # an input that tells which item it is of


def shares_of(inputs):
    """What each item of the mixed `CODE` keeps of itself, its partner, and what it has of it."""
    own = np.diag(inputs)
    others = inputs - np.diag(own)
    return own, others.argmax(1), others.max(1)


class TestMixup:
    @given(
        st.floats(0.05, 4), st.sampled_from(["batch", "item"]), st.sampled_from([0.0, 0.5, 1.0]),
        st.integers(0, 2**31),
    )  # fmt: skip
    def test_inputs_and_targets_are_mixed_alike(self, alpha, per, probability, seed):
        md.seed(seed)
        mixup = Mixup(alpha, CLASSES, per, probability)
        inputs, targets, mask = mixup(Batch(CODE, LABELS))
        assert mask is None and inputs.dtype == targets.dtype == np.float32
        # Mixing is linear, and CODE shows its coefficients.
        np.testing.assert_allclose(targets, inputs @ np.eye(CLASSES)[LABELS], atol=1e-6)
        np.testing.assert_allclose(inputs.sum(1), 1, atol=1e-6)
        assert (inputs >= 0).all() and ((inputs > 0).sum(1) <= 2).all()
        if probability == 0:
            np.testing.assert_array_equal(inputs, CODE)
            assert (mixup.draw(5).share == 1).all()

    def test_partners_are_a_permutation_and_one_share_a_batch(self):
        inputs = Mixup(1.0, CLASSES)(Batch(CODE, LABELS)).inputs
        np.testing.assert_allclose(inputs.sum(0), 1, atol=1e-6)
        own, partners, rest = shares_of(inputs)
        moved = rest > 0
        assert len(set(partners[moved])) == moved.sum() > 6
        assert np.ptp(own[moved]) < 1e-6

    def test_a_share_an_item_is_from_beta(self):
        """Mean 1/2, variance 1 / (4 (2 alpha + 1))."""
        share = Mixup(0.5, per="item").draw(20_000).share
        assert abs(share.mean() - 0.5) < 0.01 and abs(share.var() - 1 / 8) < 0.005

    def test_alpha_0_mixes_nothing(self):
        batch = Mixup(0.0, CLASSES)(Batch(CODE, LABELS))
        np.testing.assert_array_equal(batch.inputs, CODE)
        np.testing.assert_array_equal(batch.targets, np.eye(CLASSES)[LABELS])

    def test_alpha_must_be_finite(self):
        with pytest.raises(ValueError, match="alpha: expected a finite number >= 0, got inf"):
            Mixup(np.inf)

    def test_inputs_in_a_dict(self):
        batch = Mixup(1.0, classes=CLASSES)(Batch({"x": CODE}, LABELS))
        np.testing.assert_allclose(batch.inputs["x"] @ np.eye(CLASSES)[LABELS], batch.targets)

    def test_floats_are_mixed_as_they_are(self):
        y = rng.normal(size=12).astype(np.float32)
        inputs, targets, _ = Mixup(1.0)(Batch(CODE, y))
        np.testing.assert_allclose(targets, inputs @ y, rtol=1e-5)
        assert Mixup(1.0)(Batch(CODE)).targets is None

    def test_several_inputs_and_targets(self):
        keep = rng.uniform(size=(12, 5)) < 0.7
        y = {"label": LABELS, "value": np.arange(12.0)}
        batch = Batch((CODE, CODE.astype(np.float64), keep), y, {"label": None, "value": None})
        mixup = Mixup(1.0, {"label": CLASSES}, per="item")
        (one, two, kept), targets, mask = mixup(batch)
        np.testing.assert_allclose(one, two, atol=1e-6)
        assert two.dtype == np.float64 and mask == {"label": None, "value": None}
        _, partners, rest = shares_of(one)
        partners = np.where(rest > 0, partners, np.arange(12))
        np.testing.assert_array_equal(kept, keep & keep[partners])
        np.testing.assert_allclose(targets["label"], one @ np.eye(CLASSES)[LABELS], atol=1e-6)
        np.testing.assert_allclose(targets["value"], two @ np.arange(12.0))

    def test_masked_labels_may_be_anything(self):
        mask = np.array([[True, True], [True, False]])
        labels = np.array([[0, 1], [2, -100]])
        _, targets, kept = Mixup(1.0, 3)(Batch(np.ones((2, 2, 1), np.float32), labels, mask))
        assert targets.shape == (2, 2, 3) and kept.sum() in (2, 3)
        np.testing.assert_allclose(targets[kept].sum(1), 1)

    def test_refusals(self):
        def refuses(error, match, *batch, **options):
            with pytest.raises(error, match=match):
                Mixup(1.0, **options)(Batch(*batch))

        refuses(ValueError, "how many classes; give classes=", CODE, LABELS)
        refuses(ValueError, "expected 0 to 2, got 0 to 3", CODE, LABELS, classes=3)
        refuses(ShapeError, r"or distributions \(..., 3\)", CODE, CODE, classes=3)
        refuses(DtypeError, "integers or floats, got bool", CODE, LABELS > 1)
        refuses(DtypeError, "numbers of words", LABELS, CODE)
        refuses(TypeError, "expected a NumPy array, .* got Tensor", CODE, md.tensor(CODE))
        refuses(ShapeError, r"expected \(12, ...\)", (CODE, CODE[:3]), CODE)
        mix = Mix(np.arange(12), np.ones(12, np.float32))
        refuses(ValueError, "mixed already", (CODE, mix), CODE)
        for options, match in (
            ({"alpha": -1}, "number >= 0"), ({"per": "epoch"}, "'batch' or 'item'"),
            ({"probability": 2}, "from 0 to 1"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=match):
                Mixup(**options)


def test_sample_pairing_keeps_the_label():
    inputs, targets, _ = SamplePairing()(Batch(CODE, LABELS))
    assert targets is LABELS
    own, _, rest = shares_of(inputs)
    paired = rest > 0
    assert paired.sum() > 6
    np.testing.assert_array_equal(own[paired], 0.5)
    np.testing.assert_array_equal(own[~paired], 1)
    inputs = SamplePairing(0.75, probability=0.5)(Batch(CODE, LABELS)).inputs
    own, _, rest = shares_of(inputs)
    assert set(own) == {0.75, 1} and set(rest) == {0.25, 0}


class TestMixed:
    def test_the_gradient_goes_to_both(self, device):
        x = rng.normal(size=(3, 2))
        mix = Mix(np.array([1, 0, 2]), np.array([0.25, 0.5, 1.0]))
        mix = Mix(*(md.backend.to_device(a, device) for a in mix[:2]))
        assert md.testing.check_gradients(lambda x: mixed(x, mix), x, device=device)
        out = mixed(md.tensor(x, device=device), mix).numpy()
        np.testing.assert_allclose(out[0], 0.25 * x[0] + 0.75 * x[1])
        np.testing.assert_array_equal(out[2], x[2])


class TestLabels:
    def test_one_hot(self):
        batch = OneHot(CLASSES)(Batch(CODE, LABELS))
        np.testing.assert_array_equal(batch.targets, np.eye(CLASSES)[LABELS])
        assert batch.targets.dtype == np.float32

    def test_label_smoothing_is_that_of_the_losses(self):
        logits = rng.normal(size=(12, CLASSES))
        targets = LabelSmoothing(0.2, CLASSES)(Batch(CODE, LABELS)).targets
        np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
        smoothed = CategoricalCrossentropy(from_logits=True)(targets, logits)
        loss = md.losses.SparseCategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
        np.testing.assert_allclose(smoothed.item(), loss(LABELS, logits).item(), rtol=1e-6)

    def test_of_several_targets(self):
        y = {"a": LABELS, "b": CODE}
        targets = LabelSmoothing(0.5, {"a": CLASSES})(Batch(CODE, y)).targets
        assert np.unique(targets["a"]).tolist() == [0.125, 0.625]
        assert targets["b"] is CODE  # numbers to be estimated, perhaps
        both = LabelSmoothing(0.5, {"a": CLASSES, "b": CODE.shape[-1]})(Batch(CODE, y)).targets
        np.testing.assert_allclose(both["b"], (CODE + 1 / CODE.shape[-1]) / 2, rtol=1e-6)
        assert LabelSmoothing(0.5, CLASSES)(Batch(CODE)).targets is None
        with pytest.raises(ShapeError, match=r"targets: expected dist.* shape \(12,\)"):
            LabelSmoothing()(Batch(CODE, LABELS.astype(np.float32)))

    def test_a_mask_is_for_targets_of_its_shape(self):
        """The batch's mask is that of the first sequence; targets may have more axes."""
        tags = np.array([[0, 1, 9], [2, 9, 9]])
        mask = tags < 9
        words, whole = OneHot((3, 2))(Batch(CODE, (tags, np.array([0, 1])), mask)).targets
        assert words.shape == (2, 3, 3) and whole.tolist() == [[1, 0], [0, 1]]
        pairs = OneHot(3)(Batch(CODE, np.stack([tags, tags], 2), mask)).targets
        np.testing.assert_array_equal(pairs, np.stack([words, words], 2))


class TestCutout:
    @given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**31))
    def test_a_box_about_a_place_inside(self, height, width, size, seed):
        md.seed(seed)
        x = np.ones((8, height, width, 2), np.float32)
        cut = Cutout(size, fill=-1.0)(Batch(x)).inputs == -1
        assert (cut[..., 0] == cut[..., 1]).all() and (x == 1).all()
        for item in cut[..., 0]:
            rows, columns = item.any(1), item.any(0)
            np.testing.assert_array_equal(item, rows[:, None] & columns)
            for line in (rows, columns):
                (found,) = np.nonzero(line)
                assert 1 <= len(found) <= size and len(found) == np.ptp(found) + 1

    def test_sizes_axes_and_probability(self):
        x = np.ones((400, 9, 9, 1), np.float32)
        cut = Cutout((3, 1), probability=0.5, which=1)(Batch((LABELS, x))).inputs[1] == 0
        some = cut.any((1, 2, 3))
        assert 140 < some.sum() < 260 and cut.sum((1, 2, 3)).max() == 3
        signal = Cutout(4, count=2)(Batch(np.ones((50, 20, 1), np.float32))).inputs
        assert (signal == 0).sum((1, 2)).max() == 8

    def test_refusals(self):
        with pytest.raises(ShapeError, match=r"expected floats \(batch, one axis of space"):
            Cutout(2)(Batch(CODE))
        with pytest.raises(ValueError, match="expected 1 or more"):
            Cutout(0)


@pytest.mark.parametrize("wrong", [[Cutout(2)], "cutout", Cutout])
def test_what_is_no_transform_is_refused_at_once(wrong):
    for make in (Compose, lambda each: md.data.Batches(CODE, transform=each)):
        with pytest.raises(TypeError, match="expected functions from Batch to Batch"):
            make(wrong)


class TestShift:
    @given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 7), st.integers(0, 2**31))
    def test_each_item_is_moved_as_a_whole(self, height, width, most, seed):
        md.seed(seed)
        x = 1 + rng.uniform(size=(6, height, width, 2)).astype(np.float32)
        out = Shift(most)(Batch(x)).inputs
        padded = np.pad(x, ((0, 0), (most, most), (most, most), (0, 0)))
        for item, source in zip(out, padded, strict=True):
            windows = [
                source[i : i + height, j : j + width]
                for i in range(2 * most + 1)
                for j in range(2 * most + 1)
            ]
            assert any(np.array_equal(item, window) for window in windows)

    def test_all_shifts_are_drawn(self):
        x = np.zeros((600, 5, 1), np.float32)
        x[:, 2] = 1
        places = np.bincount(Shift(1)(Batch(x)).inputs[..., 0].argmax(1), minlength=5)
        assert (places[1:4] > 150).all() and places[1:4].sum() == 600
        out = Shift((0, 2), fill=7.0, which=1)(Batch((LABELS, x[:, :, None]))).inputs[1]
        assert set(np.unique(out)) == {0, 1, 7} and (out.max((1, 2, 3)) >= 1).all()
        with pytest.raises(ValueError, match="most: expected 0 or more, got -1"):
            Shift(-1)


class TestTogether:
    def test_compose(self):
        images = np.ones((12, 4, 4, 1), np.float32)
        transform = Compose(Cutout(2), LabelSmoothing(0.1, CLASSES), Mixup(1.0))
        inputs, targets, _ = transform(Batch(images, LABELS))
        np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-5)
        assert targets.min() > 0 and inputs.shape == images.shape

    def test_phases(self):
        class Mark(Transform):
            def __call__(self, batch):
                return batch._replace(targets="on")

        phases = Compose(Phases(Mark(), start=2, stop=10, on=3, off=2))
        batches = Batches(np.ones(4), batch_size=2, transform=phases)
        found = [[batch.targets for batch in batches] for _ in range(12)]
        assert [epoch[0] == "on" for epoch in found] == [
            False, False, True, True, True, False, False, True, True, True, False, False,
        ]  # fmt: skip
        assert all(len(set(epoch)) == 1 for epoch in found)

    def test_phases_of_a_function(self):
        data = Batches(CODE, LABELS, 12, transform=Phases(lambda b: b._replace(targets=None), 1))
        assert [next(iter(data)).targets is None for _ in range(2)] == [False, True]

    def test_in_a_pause_targets_are_of_the_same_kind(self):
        transform = Phases(Compose(SamplePairing(), Mixup(1.0, CLASSES)), start=1)
        transform.set_epoch(0)
        inputs, targets, _ = transform(Batch(CODE, LABELS))
        assert inputs is CODE
        np.testing.assert_array_equal(targets, np.eye(CLASSES)[LABELS])
        transform.set_epoch(1)
        assert transform(Batch(CODE, LABELS)).targets.dtype == targets.dtype

    def test_every_public_name_is_documented(self):
        for name in transforms.__all__:
            assert getattr(transforms, name).__doc__, name

    @pytest.mark.parametrize("stop", [1, 3, 5])
    def test_resumed_bit_for_bit(self, tmp_path, stop):
        """Mixing, pauses and dropout draw from one generator, in the middle of an epoch too."""

        def training(steps=None, resume=None):
            md.seed(3 if resume is None else 99)
            model = Sequential([Dense(8, "tanh", input_size=12), Dropout(0.5), Dense(CLASSES)])
            model(CODE)
            transform = Phases(Mixup(0.4, CLASSES, per="item"), on=1, off=1)
            batches = Batches(CODE, LABELS, batch_size=5, seed=1, transform=transform)
            path = tmp_path / "run.npz"
            end = md.callbacks.LambdaCallback(
                on_train_batch_end=lambda *_: setattr(end.run, "stop", end.run.step == steps)
            )
            md.fit(
                model, CategoricalCrossentropy(from_logits=True), md.optimizers.Adam(model, 0.01),
                batches, epochs=3, verbose=False, allocator=False, resume=resume,
                callbacks=[end, md.callbacks.Checkpoint(path, every_steps=1)],
            )  # fmt: skip
            return model.state_dict(), path

        whole, _ = training()
        stopped, path = training(stop)
        resumed, _ = training(resume=path)
        assert all(np.array_equal(whole[k], resumed[k]) for k in whole)
        assert not np.array_equal(whole["0.kernel"], stopped["0.kernel"])


class TestManifoldMixup:
    def test_hands_on_what_was_drawn(self):
        batch = ManifoldMixup([1, 3], 1.0, CLASSES)(Batch(CODE, LABELS))
        inputs, mix = batch.inputs
        assert inputs is CODE and mix.place in (1, 3)
        expected = mixed(np.eye(CLASSES, dtype=np.float32)[LABELS], mix)
        np.testing.assert_array_equal(batch.targets, expected)

    def test_at_place_0_it_is_mixup(self):
        md.seed(5)
        inputs, mix = ManifoldMixup(1, 1.0, CLASSES)(Batch(CODE, LABELS)).inputs
        md.seed(5)
        md.random.generator().integers(0, 1)  # the place
        plain = Mixup(1.0, CLASSES)(Batch(CODE, LABELS))
        np.testing.assert_array_equal(mixed(inputs, mix), plain.inputs)

    def test_all_places_are_drawn(self):
        transform = ManifoldMixup(3, classes=CLASSES)
        places = {transform(Batch(CODE, LABELS)).inputs[1].place for _ in range(40)}
        assert places == {0, 1, 2}
        with pytest.raises(ValueError, match="one or more, or a list of some, got 0"):
            ManifoldMixup(0)


def test_manifold_mixup_wants_a_model_that_mixes():
    model = Sequential([Dense(3, input_size=CODE.shape[1])])
    batches = md.data.Batches(CODE, np.arange(len(CODE)) % 3, transform=ManifoldMixup([0], 1.0, 3))
    optimizer, loss = md.optimizers.SGD(model, 0.1), CategoricalCrossentropy(from_logits=True)
    with pytest.raises(TypeError, match=r"md.layers.ManifoldMixing\(model, names\)"):
        md.fit(model, loss, optimizer, batches, verbose=False, allocator=False)
    with pytest.raises(ValueError, match="places: expected one or more, or a list"):
        ManifoldMixup(2.0, 10)
