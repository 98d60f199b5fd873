"""The reader: text as numbers, decoding of spans, votes, and what must hold for the network."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl.testing import check_gradients, strict
from models import dgcnn
from models.dgcnn import DGCNN, LONGEST_ANSWER, mark, matches, spans, vote
from models.text import Vocabulary

PAIRS = [
    ("谁发表讲话？", "江泽民昨天发表新年讲话。", "江泽民"),
    ("哪里下雪？", "昨天北京下雪，上海有雨。", "北京"),
    ("谁去上海？", "李鹏在北京。", ""),
    ("什么时候有雨？", "雨", ""),
]
TEXTS = [text for pair in PAIRS for text in pair[:2]]
texts = st.text("一二三四", max_size=20)


class TestMatches:
    def test_by_hand(self):
        found = matches("甲乙丙", "甲乙丁丙甲乙丙")
        assert found.tolist() == [
            [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0],
            [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0],
        ]  # fmt: skip

    @given(texts, texts)
    def test_against_every_string(self, question, passage):
        found = matches(question, passage)
        for i, n in np.ndindex(found.shape):
            inside = [passage[j : j + n + 1] for j in range(max(0, i - n), i + 1)]
            assert found[i, n] == any(len(s) == n + 1 and s in question for s in inside)

    def test_half_width_is_full_width(self):
        vocabulary = Vocabulary.of(TEXTS, 1)
        half, full = (dgcnn.encode(vocabulary, "1年", text)[1] for text in ("在1年", "在１年"))
        assert (half == full).all() and half[1, 1] == 1


class TestMark:
    def test_wherever_it_stands(self):
        assert mark("北京的北京人", "北京").nonzero()[0].tolist() == [0, 1, 3, 4]
        assert mark("一一一", "一一").tolist() == [[1, 0], [1, 1], [0, 1]]

    def test_nowhere(self):
        assert not mark("北京", "").any() and not mark("北京", "上海").any()
        assert mark("", "").shape == (0, 2)


class TestSpans:
    @given(st.integers(0, 30), st.integers(0, 2**32 - 1))
    def test_against_every_span(self, time, seed):
        random = np.random.default_rng(seed)
        passage = "".join(random.choice(list("一二三"), time))
        ends = random.random((time, 2), np.float32)
        every: dict[str, float] = {}
        for i in range(time):
            for j in range(i, min(i + LONGEST_ANSWER, time)):
                text = passage[i : j + 1]
                every[text] = max(every.get(text, 0), float(ends[i, 0] * ends[j, 1]))
        assert spans(passage, ends, most=10_000) == every
        few = spans(passage, ends, most=5)
        assert all(every[text] == value for text, value in few.items())
        assert sorted(few.values())[::-1] == list(few.values())
        if time:
            assert max(every.values()) == next(iter(few.values()))

    def test_no_longer_answer(self):
        ends = np.zeros((20, 2), np.float32)
        ends[0, 0] = ends[LONGEST_ANSWER, 1] = 1
        assert spans("字" * 20, ends) == {}


class TestVote:
    def test_the_formula(self):
        votes = vote([{"甲": 0.5, "乙": 0.9}, {"甲": 0.5}, {}])
        assert votes == {"乙": pytest.approx(0.81 / 1.9), "甲": pytest.approx(0.5 / 2)}
        assert list(votes) == ["乙", "甲"]

    def test_below_the_threshold_nothing_counts(self):
        assert vote([{"甲": 0.5, "乙": 0.2}, {"甲": 0.2}], 0.3) == {"甲": pytest.approx(0.25 / 1.5)}
        assert vote([{"甲": 0.1}], 0.3) == {} and vote([]) == {}

    @given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5), st.floats(0.01, 1))
    def test_one_that_agrees_at_least_as_surely_as_the_mean_adds(self, values, more):
        before = vote([{"甲": v} for v in values])["甲"]
        after = vote([{"甲": v} for v in [*values, max(more, *values)]])["甲"]
        assert after > before


def make(dtype="float64", device="cpu", size=6, rate=0.1, noise=0.3):
    """A small network for the texts above, all its weights random (biases too)."""
    with md.default_dtype(dtype), md.device(device):
        model = DGCNN(Vocabulary.of(TEXTS, 1), size, rate)
        for weight in model.parameters():
            weight.assign_(weight.numpy() + noise * md.random.generator().normal(weight.shape))
    return model


def inputs(model, pairs=PAIRS, extra=0):
    """(question, mask, passage, mask), with `extra` positions of padding behind the longest."""
    codes = [dgcnn.encode(model.vocabulary, *pair[:2]) for pair in pairs]
    arrays = []
    for column in zip(*codes, strict=True):
        arrays += md.data.pad(column, length=max(map(len, column)) + extra)
    return [md.tensor(array, device=model.device) for array in arrays]


def marks(pairs=PAIRS, extra=0):
    found = [mark(passage, answer) for _, passage, answer in pairs]
    return md.data.pad(found, length=max(map(len, found)) + extra)[0]


class TestNetwork:
    @given(st.data())
    def test_gradients_to_second_order(self, data):
        """For drawn sizes and masks, an empty question or passage and single steps among them."""
        model = make(size=data.draw(st.integers(1, 3)), rate=0.0)
        items = data.draw(st.integers(1, 3))
        pairs = [
            tuple(data.draw(st.text("江泽民北京", max_size=4)) for _ in range(2)) + ("北",)
            for _ in range(items)
        ]
        pairs.append(("谁", "京", "京"))
        x, target = inputs(model, pairs), marks(pairs)
        check_gradients(
            lambda: model.loss(target, model(*x), x[3]), parameters=model.parameters(), order=2
        )

    def test_padding_changes_nothing(self, device):
        model = make(device=device).eval()
        x = inputs(model)
        ends, longer = model(*x).numpy(), model(*inputs(model, extra=5)).numpy()
        mask = x[3].numpy()
        assert np.allclose(longer[:, : ends.shape[1]][mask], ends[mask], atol=1e-12)
        poison = (md.where(x[1], x[0], 3), x[1], md.where(x[3][:, :, None], x[2], 1), x[3])
        assert np.allclose(model(*poison).numpy()[mask], ends[mask], atol=1e-12)
        losses = [
            model.loss(md.tensor(marks(extra=n), device=device), model(*a), a[3]).item()
            for n, a in ((0, x), (5, inputs(model, extra=5)))
        ]
        assert losses[0] == pytest.approx(losses[1])

    def test_the_batch_is_its_items(self):
        model = make().eval()
        together = model.probabilities([pair[:2] for pair in PAIRS])
        for pair, ends in zip(PAIRS, together, strict=True):
            assert ends.shape == (len(pair[1]), 2)
            assert np.allclose(model.probabilities([pair[:2]])[0], ends, atol=1e-6)

    def test_each_end_is_a_product_of_two_probabilities(self):
        x, y = md.tensor(np.linspace(-40, 40, 9)), md.tensor(np.linspace(30, -50, 9))
        product = (md.sigmoid(x) * md.sigmoid(y)).numpy()
        assert np.allclose(md.sigmoid(dgcnn.both(x, y)).numpy(), product, rtol=1e-12, atol=0)
        far = dgcnn.both(md.tensor(np.float32([-1e4, 1e4])), md.tensor(np.float32([-1e4, 1e4])))
        assert np.allclose(far.numpy(), [-2e4, 1e4 - np.log(2)])

    def test_overfits_a_handful(self, device):
        md.seed(0)
        model = make("float32", device, size=16, rate=0.0, noise=0)
        optimizer = md.optimizers.Adam(model, 1e-2)
        x = inputs(model)
        batch = md.data.Batch(tuple(a.numpy() for a in x), marks(), x[3].numpy())
        md.fit(model, model.loss, optimizer, [batch], epochs=40, verbose=False, allocator=False)
        model.threshold = 0.3
        assert [model.answer(q, [p])[0] for q, p, _ in PAIRS] == [a for _, _, a in PAIRS]

    def test_several_passages_vote(self):
        model = make()
        question, passages = PAIRS[0][0], [pair[1] for pair in PAIRS]
        found = model.candidates([question, "", question], [passages, ["北京"], []])
        assert [len(own) for own in found] == [4, 1, 0]
        best = next(iter(vote(found[0]).items()))
        assert model.answer(question, passages) == best
        assert found[1] == [{}]  # nothing was asked
        model.threshold = 1.1
        assert model.answer(question, passages) == ("", 0.0) == model.answer(question, [""])

    def test_saved_and_loaded(self, tmp_path):
        model = make("float32")
        model.threshold = 0.01
        model.save(tmp_path / "model.npz")
        again = dgcnn.load(tmp_path / "model.npz")
        assert again.threshold == 0.01
        assert again.answer(*(PAIRS[0][0], [PAIRS[0][1]])) == model.answer(
            PAIRS[0][0], [PAIRS[0][1]]
        )
        md.save(tmp_path / "other.npz", note="something else")
        with pytest.raises(md.errors.SerializationError, match="expected what DGCNN"):
            dgcnn.load(tmp_path / "other.npz")


def batches(model):
    codes = [dgcnn.encode(model.vocabulary, *pair[:2]) for pair in PAIRS]
    return md.data.Batches(
        tuple(map(list, zip(*codes, strict=True))),
        [mark(passage, answer) for _, passage, answer in PAIRS],
        batch_size=2,
    )


def test_the_whole_fit_loop_never_waits_for_the_device():
    model = make("float32", "strict")
    train = batches(model)
    optimizer = md.optimizers.RAdam(model, md.schedules.OneCycle(1e-3, 2 * len(train)))
    history = md.fit(
        model,
        model.loss,
        optimizer,
        train,
        epochs=2,
        callbacks=[strict.ForbidSync()],
        verbose=False,
        allocator=False,
    )
    assert np.isfinite(history["loss"]).all() and optimizer.iterations == 2 * len(train)
