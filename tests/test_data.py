"""Batches: padding and masks, order, buckets, checks, and going on where one left off."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl.data import Batch, Batches, balanced_class_weights, pad
from minidl.errors import SerializationError, ShapeError

SENTENCES = [[1, 2, 3], [4], [], [5, 6], [7, 8, 9, 10], [11, 12]]
TAGS = [[0, 1, 0], [1], [], [1, 1], [0, 0, 1, 1], [1, 0]]


def lists(batches):
    return [[list(np.atleast_1d(part).ravel()) for part in batch.inputs] for batch in batches]


class TestBalancedClassWeights:
    def test_all_classes_weigh_the_same(self):
        labels = np.array([0] * 6 + [1] * 3 + [3])
        weights = balanced_class_weights(labels, 4)
        assert weights.dtype == np.float32 and weights[2] == 0
        np.testing.assert_allclose(weights, [10 / 24, 10 / 12, 0, 10 / 4], rtol=1e-6)
        weighted = np.bincount(labels, weights[labels])
        np.testing.assert_allclose(weighted[[0, 1, 3]], weighted[0])

    def test_as_scikit_learn(self):
        utils = pytest.importorskip("sklearn.utils.class_weight")
        labels = np.array([0, 1, 1, 2, 2, 2, 2])
        expected = utils.compute_class_weight("balanced", classes=np.arange(3), y=labels)
        np.testing.assert_allclose(balanced_class_weights(labels), expected, rtol=1e-6)

    def test_a_label_too_large_is_refused(self):
        with pytest.raises(ValueError, match="expected 0 to 1, got 2"):
            balanced_class_weights([0, 2], 2)

    @pytest.mark.parametrize("labels", [[], [0.0, 1.0], [0, -1]])
    def test_what_are_no_labels_is_refused(self, labels):
        with pytest.raises(ValueError, match="expected integers from 0 on"):
            balanced_class_weights(labels)


class TestPad:
    @given(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=5))
    def test_the_mask_gives_the_sequences_back(self, sequences):
        out, mask = pad([np.array(s, np.int64) for s in sequences], value=-1)
        assert [list(row[m]) for row, m in zip(out, mask, strict=True)] == sequences
        assert (out[~mask] == -1).all() and mask.dtype == bool
        assert out.shape[1] == max(map(len, sequences), default=0)

    def test_vectors_and_dtypes(self):
        out, mask = pad([np.ones((2, 3), np.int32), np.ones((1, 3), np.int32)])
        assert out.shape == (2, 2, 3) and out.dtype == np.int32
        assert out[1, 1].tolist() == [0, 0, 0] and mask.tolist() == [[True, True], [True, False]]
        assert pad([[1, 2], []])[0].dtype == np.int64  # an empty list says nothing of its kind

    def test_length(self):
        assert pad([[1], [2, 3]], length=4)[0].shape == (2, 4)
        with pytest.raises(ShapeError, match="at least 2, got 1"):
            pad([[1], [2, 3]], length=1)
        with pytest.raises(ShapeError, match="of one kind"):
            pad([np.ones((1, 2)), np.ones((1, 3))])


class TestForms:
    def test_arrays(self):
        x, y = np.arange(10.0).reshape(5, 2), np.arange(5)
        batches = list(Batches(x, y, batch_size=2, shuffle=False))
        assert [b.inputs.shape for b in batches] == [(2, 2), (2, 2), (1, 2)]
        assert all(isinstance(b, Batch) and b.mask is None for b in batches)
        np.testing.assert_array_equal(np.concatenate([b.targets for b in batches]), y)

    def test_sentences_and_labels(self):
        (batch,) = Batches(SENTENCES, np.arange(6), batch_size=6, shuffle=False)
        ids, mask = batch.inputs
        assert ids.shape == mask.shape == (6, 4) and batch.mask is None
        assert batch.targets.tolist() == [0, 1, 2, 3, 4, 5]

    def test_sentences_and_tags(self):
        (batch,) = Batches(SENTENCES, TAGS, batch_size=6, shuffle=False)
        np.testing.assert_array_equal(batch.mask, batch.inputs[1])
        assert batch.targets[batch.mask].tolist() == [t for tags in TAGS for t in tags]

    def test_a_list_of_single_values_is_an_array(self):
        for values in ([np.array(1.0), np.array(2.0)], ["a", "b"]):
            batch = next(iter(Batches(np.ones((2, 3)), values, shuffle=False)))
            assert batch.targets.tolist() == np.array(values).tolist() and batch.mask is None

    def test_several_columns(self):
        (batch,) = Batches((SENTENCES, np.ones((6, 2))), (np.zeros(6), TAGS), batch_size=6)
        assert [a.shape for a in batch.inputs] == [(6, 4), (6, 4), (6, 2)]
        assert [a.shape for a in batch.targets] == [(6,), (6, 4)] and batch.mask.shape == (6, 4)

    def test_targets_by_name(self):
        targets = {"tags": TAGS, "label": np.arange(6)}
        (batch,) = Batches(SENTENCES, targets, batch_size=6, target_limits={"label": 6})
        assert [a.shape for a in batch.targets.values()] == [(6, 4), (6,)]
        assert batch.mask["tags"].shape == (6, 4) and batch.mask["label"] is None
        with pytest.raises(ValueError, match="targets: expected integers in"):
            list(Batches(SENTENCES, targets, target_limits={"label": 5}))
        with pytest.raises(ValueError, match="no target named lable"):
            Batches(SENTENCES, targets, target_limits={"lable": 5})
        (batch,) = Batches(np.ones(2), {"a": np.zeros(2)})
        assert batch.mask is None and list(batch.targets) == ["a"]

    def test_no_targets(self):
        (batch,) = Batches(np.ones((3, 2)))
        assert batch.targets is None

    def test_transform(self):
        batches = Batches(np.ones(4), batch_size=2, transform=lambda b: b._replace(targets=7))
        assert [b.targets for b in batches] == [7, 7]

    def test_sizes(self):
        assert len(Batches(np.ones(5), batch_size=2)) == 3
        dropping = Batches(np.ones(5), batch_size=2, drop_last=True)
        assert len(dropping) == len(list(dropping)) == 2
        assert list(Batches(np.ones((0, 2)))) == []
        with pytest.raises(ShapeError, match=r"one length, got \[2, 3\]"):
            Batches(np.ones(2), np.ones(3))
        with pytest.raises(ValueError, match="1 or more"):
            Batches(np.ones(2), batch_size=0)


class TestOrder:
    def test_every_item_once_in_a_new_order_each_epoch(self):
        batches = Batches(np.arange(50), batch_size=7, seed=1)
        epochs = [np.concatenate([b.inputs for b in batches]) for _ in range(3)]
        assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
        assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()
        again = Batches(np.arange(50), batch_size=7, seed=1)
        np.testing.assert_array_equal(np.concatenate([b.inputs for b in again]), epochs[0])

    def test_the_seed_comes_from_minidls_generator(self):
        orders = []
        for seed in (1, 1, 2):
            md.seed(seed)
            orders.append(np.concatenate([b.inputs for b in Batches(np.arange(50))]).tolist())
        assert orders[0] == orders[1] != orders[2]

    def test_buckets_hold_items_of_like_length(self):
        rng = np.random.default_rng(0)
        sentences = [np.full(n, i) for i, n in enumerate(rng.integers(1, 50, 400))]

        def padding(bucket):
            batches = list(Batches(sentences, batch_size=16, bucket=bucket, seed=3))
            rows = np.concatenate([ids[:, 0] for ids, _ in (b.inputs for b in batches)])
            assert sorted(rows) == list(range(400))
            return sum((~mask).sum() for _, mask in (b.inputs for b in batches)), batches

        spread, _ = padding(0)
        little, batches = padding(25)
        assert little < spread / 10
        widths = [b.inputs[0].shape[1] for b in batches]
        assert widths != sorted(widths)  # the batches themselves come in random order
        some, _ = padding(5)
        assert little < some < spread

    def test_what_is_dropped_from_buckets_is_not_always_the_longest(self):
        sentences = [np.full(n, n) for n in range(1, 24)]
        batches = Batches(sentences, batch_size=4, bucket=100, drop_last=True, seed=1)
        seen = {int(ids.max()) for _ in range(20) for (ids, _), *_ in batches}
        assert 23 in seen and len(batches) == 5

    @pytest.mark.parametrize("option", [{"batch_size": 0}, {"bucket": -1}])
    def test_wrong_counts(self, option):
        with pytest.raises(ValueError, match=f"{min(option)}: expected"):
            Batches(np.ones(3), **option)

    def test_buckets_in_the_same_order_again(self):
        orders = []
        for seed in (1, 1, 2):
            batches = Batches(SENTENCES * 5, batch_size=4, bucket=3, seed=seed)
            orders.append(
                [ids.tolist() for _ in range(2) for ids, _ in (b.inputs for b in batches)]
            )
        assert orders[0] == orders[1] != orders[2]
        assert orders[0][:8] != orders[0][8:]

    def test_several_iterations_at_once(self):
        """Each has its place, and its own order."""

        def rows(iterator):
            return [int(batch.inputs[0]) for batch in iterator]

        alone = Batches(np.arange(9), batch_size=1, seed=0)
        expected = [rows(alone) for _ in range(3)]
        batches = Batches(np.arange(9), batch_size=1, seed=0)
        first = iter(batches)
        begun = [int(next(first).inputs[0]) for _ in range(4)]
        second = iter(batches)
        next(second)
        between = batches.state_dict()
        begun.append(int(next(first).inputs[0]))
        assert batches.state_dict()["position"] == 5
        assert begun + rows(first) == expected[0]
        assert between["epoch"] == 1 and between["position"] == 1
        assert rows(batches) == expected[2] and rows(second) == expected[1][1:]

    def test_unshuffled_buckets_are_sorted_within(self):
        batches = Batches(SENTENCES, batch_size=3, shuffle=False, bucket=2)
        assert [b.inputs[1].sum(1).tolist() for b in batches] == [[0, 1, 2], [2, 3, 4]]

    def test_an_epoch_left_early_is_over(self):
        batches = Batches(np.arange(9), batch_size=1, seed=0)
        first = next(iter(batches)).inputs
        assert sorted(int(b.inputs[0]) for b in batches) == list(range(9))
        assert batches.epoch == 2 and first.shape == (1,)


class TestState:
    @pytest.mark.parametrize("done", [0, 1, 4, 7, 8, 11])
    def test_goes_on_with_the_same_batches(self, done):
        def stream(batches):
            while True:
                yield from batches

        make = dict(batch_size=3, bucket=2)
        one = Batches(SENTENCES * 4, seed=5, **make)
        flow = stream(one)
        for _ in range(done):
            next(flow)
        other = Batches(SENTENCES * 4, seed=99, **make)
        other.load_state_dict(one.state_dict())
        rest = stream(other)
        for _ in range(20):
            for a, b in zip(next(flow).inputs, next(rest).inputs, strict=True):
                np.testing.assert_array_equal(a, b)

    def test_begun_but_not_moved(self):
        one = Batches(np.arange(9), batch_size=2, seed=0)
        iterator = iter(one)
        other = Batches(np.arange(9), batch_size=2)
        other.load_state_dict(one.state_dict())
        for batches in (iterator, other, one, other):
            flow = [batch.inputs.tolist() for batch in batches]
            if batches is not other:
                expected = flow
            assert flow == expected

    def test_an_iterator_knows_its_place(self):
        """Whatever another has done since; and after its end that the next one comes."""
        one = Batches(np.arange(9), batch_size=2, seed=0)
        first = iter(one)
        next(first)
        list(one)
        other = Batches(np.arange(9), batch_size=2)
        other.load_state_dict(first.state_dict())
        rest = [batch.inputs.tolist() for batch in first]
        assert [batch.inputs.tolist() for batch in other] == rest
        assert first.state_dict()["epoch"] == 2
        assert [b.inputs.tolist() for b in one] == [b.inputs.tolist() for b in other]

    def test_other_data_is_refused(self):
        state = Batches(np.arange(9), batch_size=2).state_dict()
        with pytest.raises(SerializationError, match="size: the state is of 9, these have 8"):
            Batches(np.arange(8), batch_size=2).load_state_dict(state)

    @pytest.mark.parametrize("option", [{"bucket": 3}, {"shuffle": False}, {"drop_last": True}])
    def test_other_options_are_refused(self, option):
        state = Batches(np.arange(9), batch_size=2).state_dict()
        with pytest.raises(SerializationError, match=f"{min(option)}: the state is of"):
            Batches(np.arange(9), batch_size=2, **option).load_state_dict(state)


class TestLimits:
    def test_ids_are_checked_when_batched(self):
        batches = Batches(SENTENCES, TAGS, shuffle=False, input_limits=12, target_limits=2)
        with pytest.raises(
            ValueError, match=r"inputs: .*\[0, 12\), got int64 from 0 to 12, in item 5"
        ):
            list(batches)
        list(Batches(SENTENCES, TAGS, input_limits=13, target_limits=2))
        with pytest.raises(ValueError, match="targets: "):
            list(Batches(SENTENCES, TAGS, target_limits=1))

    def test_negative_and_floating_ids(self):
        for bad in (np.array([-1, 2]), np.array([0.5, 1.0])):
            with pytest.raises(ValueError, match="expected integers in"):
                list(Batches(bad, input_limits=5))

    def test_one_limit_a_column(self):
        columns = (np.arange(3), np.arange(3) + 10)
        list(Batches(columns, input_limits=(3, None)))
        with pytest.raises(ValueError, match="expected 2 limits, got 1"):
            Batches(columns, input_limits=(3,))
