"""The titler: its gradients, and the identities between training and writing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl.errors import SerializationError
from minidl.testing import check_gradients, strict
from models import titler
from models.text import Vocabulary
from models.titler import LONGEST_ARTICLE, LONGEST_TITLE, Titler, only_real

TITLES = ["港口吞吐量创新高", "两国建交", "春天"]
ARTICLES = [
    "截至昨日，港口全年吞吐量超计划，创历史新高。",
    "两国今天正式建交。",
    "春天来了，花开了。",
]
VOCABULARY = Vocabulary.of(TITLES + ARTICLES, 1)


def make(copy=True, dtype="float64", device="cpu", size=8, dropout=0.0, vocabulary=VOCABULARY):
    """A small network, all its weights random, those that begin as zeros too."""
    with md.default_dtype(dtype), md.device(device):
        model = Titler(vocabulary, copy, dropout, size, heads=2)
        for weight in model.parameters():
            noise = 0.4 * md.random.generator().normal(weight.shape)
            weight.assign_(weight.numpy() + noise)
    return model


def arrays(model, titles=TITLES, articles=ARTICLES, extra=0, fill=0):
    """((source, mask, inputs), targets, real) with `extra` positions of padding behind."""
    pairs = [model.encoded(title) for title in titles]
    columns = [
        [model.article(text) for text in articles],
        [inputs for inputs, _ in pairs],
        [targets for _, targets in pairs],
    ]
    padded = [
        md.data.pad(column, fill, max(map(len, column), default=0) + extra) for column in columns
    ]
    (source, mask), (inputs, real), (targets, _) = padded
    placed = [md.tensor(x.astype("int32"), device=model.device) for x in (source, inputs, targets)]
    mask, real = (md.tensor(x, device=model.device) for x in (mask, real))
    return (placed[0], mask, placed[1]), placed[2], real


@pytest.mark.parametrize("copy", [True, False])
class TestNetwork:
    def test_padding_changes_nothing(self, copy, device):
        model = make(copy, device=device).eval()
        inputs, targets, real = arrays(model)
        logits = model(*inputs).numpy()
        loss = model.loss(targets, model(*inputs), real).item()
        for fill in (0, 5):  # whatever stands there
            more, targets, long = arrays(model, extra=4, fill=fill)
            found = model(*more)
            assert np.allclose(
                found.numpy()[:, : logits.shape[1]][real.numpy()], logits[real.numpy()], atol=1e-12
            )
            assert model.loss(targets, found, long).item() == pytest.approx(loss)

    def test_the_batch_is_its_articles(self, copy):
        model = make(copy).eval()
        inputs, _, _ = arrays(model)
        together = model(*inputs).numpy()
        sums, counts = model.title_losses(TITLES, ARTICLES)
        for i, (title, article) in enumerate(zip(TITLES, ARTICLES, strict=True)):
            one, targets, real = arrays(model, [title], [article])
            alone = model(*one)
            assert np.allclose(alone.numpy()[0], together[i, : len(title) + 1], atol=1e-12)
            assert counts[i] == len(title) + 1
            assert model.loss(targets, alone, real).item() == pytest.approx(sums[i] / counts[i])

    def test_an_empty_article_is_not_read(self, copy):
        sums, counts = make(copy).eval().title_losses(TITLES[:2], [ARTICLES[0], ""])
        assert sums[1] == counts[1] == 0 and counts[0] == len(TITLES[0]) + 1

    def test_a_token_does_not_see_those_after_it(self, copy):
        model = make(copy).eval()
        (source, mask, inputs), _, _ = arrays(model)
        before = model(source, mask, inputs).numpy()
        changed = md.where(np.arange(inputs.shape[1]) < 2, inputs, 4)
        after = model(source, mask, changed).numpy()
        assert (before[:, :2] == after[:, :2]).all() and (before[0, 2:] != after[0, 2:]).all()

    def test_only_real_targets_are_the_same_loss_and_gradients(self, copy):
        model = make(copy).eval()
        inputs, targets, real = arrays(model)
        full = model.loss(targets, model(*inputs), real)
        parameters = model.parameters()
        gradients = md.grad(full, parameters)
        batch = only_real(
            md.data.Batch((*(x.numpy() for x in inputs), real.numpy()), targets.numpy())
        )
        logits = model(*batch.inputs)
        assert logits.shape == (real.numpy().sum(), model.tokens)
        loss = model.loss(batch.targets, logits, batch.mask)
        assert loss.item() == pytest.approx(full.item())
        for one, other in zip(gradients, md.grad(loss, parameters), strict=True):
            assert np.allclose(one.numpy(), other.numpy(), atol=1e-12)

    def test_steps_are_what_teacher_forcing_computes(self, copy, device):
        model = make(copy, "float32", device).eval()
        (source, mask, inputs), _, _ = arrays(model)
        with md.no_grad():
            together = model(source, mask, inputs).numpy()
            state = (model.encode(source, mask), [None] * 2)
            for t in range(inputs.shape[1]):
                logits, state = model.step(inputs[:, t], state)
                assert np.allclose(logits.numpy(), together[:, t], atol=1e-6)

    def test_scores_of_what_is_written_are_its_losses(self, copy):
        model = make(copy)
        found = model.titles(ARTICLES, 3, length_penalty=0.0, max_length=20)
        with md.evaluating(model):
            decoded = model._search(ARTICLES, 3, {"length_penalty": 0.0, "max_length": 20})
        ended = decoded.lengths[:, 0] < 20
        sums, _ = model.title_losses(found, ARTICLES)
        assert found == [model.text(decoded.sequence(i)) for i in range(3)]
        assert np.allclose(decoded.scores[ended, 0], -sums[ended])

    @given(data=st.data())
    def test_gradients(self, copy, data):
        """Of the whole loss, to second order, in float64; rows without an article, single steps."""
        batch, source, time = (data.draw(st.integers(1, n)) for n in (2, 3, 2))
        draw = np.random.default_rng(data.draw(st.integers(0, 1000)))
        vocabulary = Vocabulary(list("一二三"))
        model = make(copy, size=4, vocabulary=vocabulary).eval()
        lengths = draw.integers(0, source + 1, batch)
        if data.draw(st.booleans()):
            lengths[0] = 0
        mask = np.arange(source) < lengths[:, None]
        real = np.arange(time) < draw.integers(0, time + 1, batch)[:, None]
        ids = [draw.integers(0, model.tokens, (batch, n)) for n in (source, time, time)]
        check_gradients(
            lambda: model.loss(ids[2], model(ids[0], mask, ids[1]), real),
            parameters=model.parameters(),
            order=2,
        )

    def test_saved_and_loaded(self, copy, tmp_path):
        model = make(copy, "float32", dropout=0.3)
        model.save(tmp_path / "model.npz")
        again = titler.load(tmp_path / "model.npz")
        assert again.copy == copy and again.rate == 0.3 and again.longest == 40
        assert again.titles(ARTICLES) == model.titles(ARTICLES)

    def test_overfits_three_articles(self, copy, device):
        md.seed(1)
        with md.device(device):
            model = Titler(VOCABULARY, copy, 0.0, 32, heads=4)
        batches = model.batches(TITLES, ARTICLES, batch_size=3)
        md.fit(
            model, model.loss, md.optimizers.Adam(model, 2e-2), batches, epochs=60, verbose=False,
            allocator=False,
        )  # fmt: skip
        assert model.titles(ARTICLES, width=1) == TITLES
        assert model.titles(ARTICLES, width=4) == TITLES


class TestPrior:
    def test_of_the_articles_known_characters(self, device):
        model = make(device=device)
        (source, mask, _), _, _ = arrays(model, articles=["春春春天𠀀", "国", ""])
        bag = model._bag(source, mask).numpy()
        for row, text in zip(bag, ["春天", "国", ""], strict=True):
            assert sorted(np.flatnonzero(row)) == [*sorted(VOCABULARY.encode(text)), model.edge]
        assert set(np.unique(bag)) == {0, 1}

    def test_is_averaged_with_the_logits(self):
        both = [Titler(VOCABULARY, copy, 0.0, 8, 2).eval() for copy in (True, False)]
        state = both[0].state_dict()
        both[1].load_state_dict({name: a for name, a in state.items() if "prior" not in name})
        inputs, _, _ = arrays(both[0])
        bag = both[0]._bag(*inputs[:2]).numpy()[:, None]
        copied, plain = (model(*inputs).numpy() for model in both)
        assert np.allclose(copied, (plain + Titler.FIRST_SCALE * bag) / 2, atol=1e-5)


class TestBatches:
    def test_practice_is_asked_for_by_another_token(self):
        model = make()
        batches = model.batches(TITLES[:1], ARTICLES[:1], 2, [("春天", ARTICLES[2])], shuffle=False)
        (batch,) = batches
        source, mask, inputs, positions = batch.inputs
        assert inputs[:, 0].tolist() == [model.edge, 0] and len(source) == len(mask) == 2
        assert len(positions) == len(batch.targets) == len(TITLES[0]) + 1 + 3
        assert (batch.targets == model.edge).sum() == 2 and batch.mask.all()


class TestWriting:
    def test_any_text(self, device):
        model = make(dtype="float32", device=device)
        texts = ["", "春", "从未见过的字𠀀😀", "A1 b", "春天" * 500]
        titles = model.titles(texts, width=2)
        assert titles[0] == "" and all(titles[1:])
        assert all(len(title) <= LONGEST_TITLE + 1 and "〓" not in title for title in titles)
        assert model.titles([]) == []

    def test_together_or_alone(self, monkeypatch):
        model = make()
        texts = [text * n for n in (1, 3, 2) for text in ARTICLES]
        alone = [model.titles([text], 3)[0] for text in texts]
        assert model.titles(texts, 3) == alone
        monkeypatch.setattr(Titler, "POSITIONS", 40)  # now several articles do not fit together
        assert model.titles(texts, 3) == alone

    def test_the_rest_of_a_long_article_is_not_read(self):
        model = make()
        long = "春天" * LONGEST_ARTICLE
        assert model.titles([long]) == model.titles([long[:LONGEST_ARTICLE] + "国"])

    def test_no_longer_than_said(self):
        model = Titler(VOCABULARY, size=8, heads=2, longest=3)
        assert all(len(title) <= 4 for title in model.titles(ARTICLES, 2))
        assert len(model.encoded(TITLES[0])[0]) == 4

    def test_explain(self):
        model = make()
        title, weights = model.explain(ARTICLES[0], max_length=12)
        assert title == model.titles(ARTICLES[:1], max_length=12)[0]
        assert weights.shape == (len(title), len(ARTICLES[0]))
        assert np.allclose(weights.sum(axis=1), 1)

    def test_the_mode_comes_back(self):
        model = make(dropout=0.5)
        model.titles(ARTICLES)
        assert model.training and model.dropout.training

    def test_not_a_titler(self, tmp_path):
        md.save(tmp_path / "other.npz", weights=np.zeros(3))
        with pytest.raises(SerializationError, match=r"expected what Titler\.save wrote"):
            titler.load(tmp_path / "other.npz")


@pytest.mark.parametrize("copy", [True, False])
def test_the_whole_fit_loop_never_waits_for_the_device(copy):
    model = make(copy, "float32", "strict", dropout=0.2)
    batches = model.batches(TITLES, ARTICLES, batch_size=2)
    schedule = md.schedules.OneCycle(1e-3, 2 * len(batches))
    optimizer = md.optimizers.Adam(model, schedule, global_clipnorm=1.0)
    with strict.counting() as counts:
        history = md.fit(
            model,
            model.loss,
            optimizer,
            batches,
            epochs=2,
            callbacks=[strict.ForbidSync()],
            verbose=False,
            allocator=False,
        )
    assert np.isfinite(history["loss"]).all() and optimizer.iterations == 2 * len(batches)
    assert counts.synchronisations <= 2 * 2


def test_equals_pytorch():
    """Logits and gradients, with the twin that the benchmark runs."""
    torch = pytest.importorskip("torch")
    from benchmarks import titles

    ours, theirs, batch = titles.titler(), titles._torch_titler(), titles.pairs(0)
    source, inputs, targets = (a[:4] for a in batch)
    logits = ours(source, np.ones(source.shape, bool), inputs)
    expected = theirs(torch.from_numpy(source), torch.from_numpy(inputs))
    assert np.allclose(logits.numpy(), expected.detach().numpy(), atol=1e-5)
    ours.loss(targets, logits).backward()
    loss = torch.nn.functional.cross_entropy(
        expected.flatten(0, 1), torch.tensor(targets).flatten()
    )
    loss.backward()
    for mine, other in (
        (ours.embedding.embeddings.grad, theirs.embedding.weight.grad),
        (ours.prior.log_scale.grad, theirs.log_scale.grad),
        (ours.decoder_norms[0].gamma.kernel.grad, theirs.decoder_norms[0].gamma.weight.grad.T),
        (ours.decoder[1].recurrent_kernel.grad, theirs.decoder[1].weight_hh_l0.grad.T),
    ):
        assert np.allclose(mine.numpy(), other.numpy(), atol=1e-5 * other.abs().max().item())
