"""The segmenter: tags, vocabulary, networks, and the identities that must hold for them."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl.errors import ShapeError
from minidl.testing import check_gradients, strict
from models import segmenter
from models.segmenter import (
    ALLOWED,
    ENDS,
    STARTS,
    TAGS,
    LargeSegmenter,
    Segmenter,
    tags_of,
    words_of,
)
from models.text import Vocabulary

words = st.lists(st.text("一二三四", min_size=1, max_size=6), max_size=8)


class TestTags:
    def test_by_hand(self):
        assert "".join(TAGS[t] for t in tags_of(["一", "二三", "四五六七"])) == "sbebmme"

    @given(words)
    def test_words_come_back(self, words):
        assert words_of("".join(words), tags_of(words)) == words

    @given(words)
    def test_only_allowed_paths(self, words):
        tags = tags_of(words)
        assert all(ALLOWED[i, j] for i, j in pairwise(tags))
        assert not tags or (STARTS[tags[0]] and ENDS[tags[-1]])

    def test_every_allowed_path_is_a_segmentation(self):
        # Of n characters there are 2**(n - 1) segmentations; count the paths in the table.
        paths = STARTS.astype(int)
        for n in range(1, 9):
            assert paths @ ENDS == 2 ** (n - 1)
            paths = paths @ ALLOWED

    @given(st.lists(st.integers(0, 3), max_size=12))
    def test_any_tags_give_words_that_join_to_the_text(self, tags):
        text = "".join(chr(0x4E00 + k) for k in range(len(tags)))
        result = words_of(text, tags)
        assert "".join(result) == text and all(result)

    def test_one_tag_a_character(self):
        with pytest.raises(ShapeError, match="each of 2 characters, got 3"):
            words_of("一二", [0, 0, 0])


SENTENCES = [["猫", "爱", "吃鱼", "。"], ["小狗", "吃"], ["鱼"], ["大熊猫馆", "开", "了", "！"]]
TEXTS = ["".join(words) for words in SENTENCES]
NETWORKS = [(Segmenter, "crf"), (Segmenter, "softmax"), (LargeSegmenter, "crf")]


def make(network=Segmenter, decoder="crf", dtype="float64", device="cpu", size=40):
    """A small network for the sentences above, all its weights random.

    Biases too: where one is 0, padding stands exactly at the kink of relu.
    """
    vocabulary = Vocabulary.of(TEXTS, 1, 1 if network is LargeSegmenter else None)
    with md.default_dtype(dtype), md.device(device):
        model = network(vocabulary, decoder, size)
        for weight in model.parameters():
            if weight.requires_grad:
                noise = 0.3 * md.random.generator().normal(weight.shape)
                weight.assign_(weight.numpy() + noise)
    return model


def batch(model, texts=TEXTS, extra=0):
    """(ids, mask) of the texts, with `extra` positions of padding behind the longest."""
    length = max(map(len, texts)) + extra
    ids, mask = md.data.pad([model.vocabulary.encode(text) for text in texts], length=length)
    return md.tensor(ids, device=model.device), md.tensor(mask, device=model.device)


def gold(sentences=SENTENCES):
    return md.data.pad([tags_of(words) for words in sentences])[0]


@pytest.mark.parametrize("network, decoder", NETWORKS)
class TestNetworks:
    def test_padding_changes_nothing(self, network, decoder, device):
        model = make(network, decoder, device=device).eval()
        ids, mask = batch(model)
        emissions = model(ids, mask).numpy()
        longer = model(*batch(model, extra=7))
        assert np.allclose(longer.numpy()[:, : ids.shape[1]], emissions, atol=1e-12)
        poison = md.where(mask if ids.ndim == 2 else mask[:, :, None], ids, 3)
        assert np.allclose(model(poison, mask).numpy()[mask.numpy()], emissions[mask.numpy()])
        paths = model.tags(longer, batch(model, extra=7)[1]).numpy()
        assert (paths[:, ids.shape[1] :] == -1).all()

    def test_the_batch_is_its_sentences(self, network, decoder):
        model = make(network, decoder).eval()
        ids, mask = batch(model)
        together = model(ids, mask)
        loss = model.loss(gold(), together, mask).item()
        losses = []
        for i, (words, text) in enumerate(zip(SENTENCES, TEXTS, strict=True)):
            ids, mask = batch(model, [text])
            alone = model(ids, mask)
            assert np.allclose(alone.numpy()[0], together.numpy()[i, : len(text)], atol=1e-12)
            losses.append(model.loss(gold([words]), alone, mask).item())
        assert loss == pytest.approx(np.mean(losses))

    def test_gradients(self, network, decoder):
        # Few units: along a random direction many of them would cross relu's kink.
        model = make(network, decoder, size=40 if network is LargeSegmenter else 6).eval()
        ids, mask = batch(model)
        check_gradients(
            lambda: model.loss(gold(), model(ids, mask), mask),
            parameters=[p for p in model.parameters() if p.requires_grad],
            order=1,
        )

    def test_overfits_four_sentences(self, network, decoder, device):
        model = make(network, decoder, "float32", device)
        optimizer = md.optimizers.Adam(model, 1e-2)
        before = model.crf.transitions.numpy().copy()
        data = [md.data.Batch(tuple(x.numpy() for x in batch(model)), gold(), batch(model)[1])]
        md.fit(model, model.loss, optimizer, data, epochs=40, verbose=False, allocator=False)
        assert model.segment(TEXTS) == SENTENCES
        assert (model.crf.transitions.numpy() == before).all() == (decoder == "softmax")

    def test_saved_and_loaded(self, network, decoder, tmp_path):
        model = make(network, decoder, "float32")
        model.save(tmp_path / "model.npz")
        again = segmenter.load(tmp_path / "model.npz")
        assert type(again) is network and again.decoder == decoder
        assert again.segment(TEXTS) == model.segment(TEXTS)


class TestLoss:
    def test_probabilities_of_all_segmentations_sum_to_one(self):
        model = make().eval()
        ids, mask = batch(model, ["猫爱吃鱼"])
        emissions = model(ids, mask)
        total = 0.0
        for tags in product(range(4), repeat=4):
            legal = STARTS[tags[0]] and ENDS[tags[-1]] and all(ALLOWED[i] for i in pairwise(tags))
            loss = model.loss(np.array([tags]), emissions, mask).item()
            assert np.isfinite(loss) == legal
            total += np.exp(-loss)
        assert total == pytest.approx(1)

    def test_softmax_is_a_product_over_characters(self):
        model = make(decoder="softmax").eval()
        ids, mask = batch(model)
        emissions = model(ids, mask)
        log_p = emissions.numpy() - np.log(np.exp(emissions.numpy()).sum(-1, keepdims=True))
        picked = np.take_along_axis(log_p, gold()[:, :, None], -1)[:, :, 0]
        expected = -(picked * mask.numpy()).sum() / len(TEXTS)
        assert model.loss(gold(), emissions, mask).item() == pytest.approx(expected)


class TestSegment:
    @pytest.mark.parametrize("network, decoder", NETWORKS)
    def test_any_text(self, network, decoder, device):
        model = make(network, decoder, "float32", device)
        texts = ["", "猫", "从未见过的字𠀀😀", "A1 b", "鱼" * 5000, "。。！？；；"]
        for words, text in zip(model.segment(texts), texts, strict=True):
            assert "".join(words) == text and all(words)
        assert model.segment([]) == [] and model.segment([""]) == [[]]

    def test_together_or_alone(self, monkeypatch):
        model = make()
        texts = [text * n for n in (1, 3, 2) for text in ["", *TEXTS]]
        alone = [model.segment([text])[0] for text in texts]
        assert model.segment(texts) == alone
        monkeypatch.setattr(Segmenter, "POSITIONS", 20)  # now several texts do not fit together
        assert model.segment(texts) == alone

    def test_best_tags_may_be_illegal_the_best_legal_path_is_not(self):
        model = make(decoder="softmax").eval()
        emissions, mask = md.tensor(np.eye(4)[[[2, 1, 1, 0, 2]]]), md.tensor([[True] * 5])
        assert model.tags(emissions, mask, legal=False).numpy().tolist() == [[2, 1, 1, 0, 2]]
        path = model.tags(emissions, mask).numpy()[0]
        assert STARTS[path[0]] and ENDS[path[-1]] and all(ALLOWED[i] for i in pairwise(path))
        best = max(
            (words for words in segmentations("一二三四五")),
            key=lambda words: emissions.numpy()[0][np.arange(5), tags_of(words)].sum(),
        )
        score = emissions.numpy()[0][np.arange(5), path].sum()
        assert score == emissions.numpy()[0][np.arange(5), tags_of(best)].sum()

    def test_the_mode_comes_back(self):
        model = make()
        model.segment(TEXTS)
        assert model.training and model.dropout.training
        model.eval().segment(TEXTS)
        assert not model.training

    def test_explain(self):
        seen = make().explain("猫爱吃鱼")
        assert seen["emissions"].shape == seen["marginals"].shape == (4, 4)
        assert np.allclose(seen["marginals"].sum(1), 1)
        assert (seen["marginals"][0][~STARTS] == 0).all()
        assert seen["path"].shape == (4,)


def segmentations(text):
    """All ways to cut a text into words."""
    if not text:
        yield []
    for end in range(1, len(text) + 1):
        for rest in segmentations(text[end:]):
            yield [text[:end], *rest]


@pytest.mark.parametrize("network, decoder", NETWORKS)
def test_a_training_step_never_waits_for_the_device(network, decoder):
    model = make(network, decoder, "float32", "strict")
    ids, mask = batch(model)
    tags = md.tensor(gold(), device="strict")
    optimizer = md.optimizers.Adam(model, md.schedules.OneCycle(1e-2, 10))

    def step():
        optimizer.zero_grad()
        model.loss(tags, model(ids, mask), mask).backward()
        optimizer.step()

    step()
    with strict.forbid_sync():
        step()


@pytest.mark.parametrize("network, decoder", NETWORKS)
def test_the_whole_fit_loop_never_waits_for_the_device(network, decoder):
    """Batching, placing, forward, backward, clipping, step and schedule; only the losses of an
    epoch are read, once, at its end."""
    model = make(network, decoder, "float32", "strict")
    vocabulary = model.vocabulary
    texts = [text for text in TEXTS if text]
    tags = [np.array(tags_of([text]), np.int32) for text in texts]
    batches = md.data.Batches([vocabulary.encode(text) for text in texts], tags, batch_size=2)
    schedule = md.schedules.OneCycle(1e-3, 3 * len(batches))
    optimizer = md.optimizers.Adam(model, schedule, global_clipnorm=1.0)
    with strict.counting() as counts:
        history = md.fit(
            model,
            model.loss,
            optimizer,
            batches,
            epochs=3,
            callbacks=[strict.ForbidSync()],
            verbose=False,
            allocator=False,
        )
    assert np.isfinite(history["loss"]).all() and optimizer.iterations == 3 * len(batches)
    assert counts.synchronisations <= 3 * 2


def test_wrong_arguments():
    with pytest.raises(ValueError, match="decoder: expected 'crf' or 'softmax', got 'hmm'"):
        make(decoder="hmm")
    with pytest.raises(ValueError, match="expected pairs"):
        LargeSegmenter(Vocabulary.of(TEXTS))
