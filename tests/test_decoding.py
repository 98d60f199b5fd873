"""Decoding against enumeration and a slow reference, with networks that remember all they read."""

from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl.decoding import beam_search, greedy, sample
from minidl.errors import DtypeError, ShapeError

END = 0


class Network:
    """A random recurrent network in float64: what comes next depends on the whole prefix."""

    def __init__(self, seed=0, vocabulary=3, batch=2, device="cpu", sharpness=2.0):
        random = np.random.default_rng(seed)
        self.vocabulary = vocabulary
        self.inner = random.normal(size=(4, 4))
        self.embeddings = random.normal(size=(vocabulary, 4))
        self.outer = sharpness * random.normal(size=(4, vocabulary))
        self.first = random.normal(size=(batch, 4))
        self.start = md.backend.to_device(random.integers(0, vocabulary, batch), device)
        self.device = device
        self.fed = []  # the tokens of each call

    def state(self):
        return {"h": md.tensor(self.first, device=self.device), "unused": None}

    def step(self, tokens, state):
        self.fed.append(md.backend.to_host(tokens))
        assert set(state) == {"h", "unused"}
        h = state["h"]
        move = [md.tensor(a, device=self.device) for a in (self.inner, self.embeddings)]
        h = md.tanh(h @ move[0] + md.take(move[1], tokens, axis=0))
        return h @ md.tensor(self.outer, device=self.device), {"h": h, "unused": None}

    def log_p(self, source, tokens):
        """log p of each of the tokens, and of all that could come after the last one."""
        h = self.first[source]
        result, last = [], md.backend.to_host(self.start)[source]
        for token in [*tokens, None]:
            h = np.tanh(h @ self.inner + self.embeddings[last])
            logits = h @ self.outer
            scores = logits - np.log(np.exp(logits).sum())
            result.append(scores if token is None else scores[token])
            last = token
        return result

    def only(self, source):
        """The same network with one of its sources."""
        alone = Network.__new__(Network)
        vars(alone).update(vars(self))
        alone.first, alone.start = self.first[[source]], self.start[source : source + 1]
        return alone


def penalty(kind, length):
    return length if kind == "mean" else ((5 + length) / 6) ** kind


def allowed(tokens, max_length, min_length, forbidden):
    """Whether a sequence, `END` included, is one that may come out."""
    ends = [i for i, token in enumerate(tokens) if token == END]
    if set(tokens) & set(forbidden) or ends not in ([], [len(tokens) - 1]):
        return False
    return (len(tokens) - 1 >= min_length) if ends else len(tokens) == max_length


def all_sequences(network, source, max_length, kind=0.0, min_length=0, forbidden=()):
    """(score, tokens) of every sequence, the best first."""
    found = []
    for length in range(1, max_length + 1):
        for tokens in product(range(network.vocabulary), repeat=length):
            if allowed(tokens, max_length, min_length, forbidden):
                total = sum(network.log_p(source, tokens)[:-1])
                found.append((total / penalty(kind, length), list(tokens)))
    return sorted(found, key=lambda pair: -pair[0])


def reference(network, source, width, max_length, kind):
    """Beam search as its docstring says, one hypothesis at a time, and never stopping early."""
    live, finished = [(0.0, [])], []
    for length in range(1, max_length + 1):
        ranked = finished + [
            (total + p, [*tokens, token])
            for total, tokens in live
            for token, p in enumerate(network.log_p(source, tokens)[-1])
        ]
        ranked.sort(key=lambda pair: -pair[0] / penalty(kind, len(pair[1])))
        new = [pair for pair in ranked[:width] if pair not in finished]
        live = [pair for pair in new if pair[1][-1] != END and length < max_length]
        finished += [pair for pair in new if pair not in live]
    scored = [(total / penalty(kind, len(tokens)), tokens) for total, tokens in finished]
    return sorted(scored, key=lambda pair: -pair[0])


def sequences(decoded, source):
    """(score, tokens with the end) of what was decoded for a source."""
    found = []
    for k, score in enumerate(decoded.scores[source]):
        if score > -np.inf:
            n = decoded.lengths[source, k]
            tokens = decoded.tokens[source, k]
            ended = n < len(tokens) and tokens[n] == END
            assert (tokens[n + ended :] == -1).all()  # nothing after the end
            assert decoded.sequence(source, k) == tokens[:n].tolist()
            found.append((score, tokens[: n + ended].tolist()))
    return found


def assert_same(found, expected):
    assert [tokens for _, tokens in found] == [tokens for _, tokens in expected]
    assert np.allclose([score for score, _ in found], [score for score, _ in expected])


seeds = st.integers(0, 10_000)
kinds = st.sampled_from([0.0, 0.6, 1.5, -0.5, "mean"])


class TestBeamSearch:
    @given(seeds, kinds, st.integers(0, 2), st.sampled_from([(), (1,), (END,)]))
    def test_of_full_width_is_exhaustive_search(self, seed, kind, min_length, forbidden):
        network = Network(seed)
        found = beam_search(
            network.step, network.state(), network.start, END, 4, width=81, n_best=81,
            length_penalty=kind, min_length=min_length, forbidden=forbidden, padding=-1,
        )  # fmt: skip
        for source in range(2):
            expected = all_sequences(network, source, 4, kind, min_length, forbidden)
            assert_same(sequences(found, source), expected)

    def test_all_sequences_are_all_there_is(self):
        network = Network()
        found = beam_search(network.step, network.state(), network.start, END, 4, 81, 81)
        assert np.allclose(np.exp(found.scores).sum(axis=1), 1)

    @given(seeds, kinds, st.integers(1, 6), st.data())
    def test_is_what_it_says(self, seed, kind, width, data):
        """Stopping early changes nothing, nor do the other sources."""
        n_best = data.draw(st.integers(1, width))
        network = Network(seed, vocabulary=5, batch=3)
        found = beam_search(
            network.step, network.state(), network.start, END, 6, width, n_best, kind, padding=-1
        )
        for source in range(3):
            assert_same(
                sequences(found, source), reference(network, source, width, 6, kind)[:n_best]
            )

    @given(seeds, kinds, st.integers(0, 3), st.sampled_from([(), (2,)]))
    def test_of_width_one_is_greedy(self, seed, kind, min_length, forbidden):
        network = Network(seed, vocabulary=4, batch=4)
        start, options = network.start, {"min_length": min_length, "forbidden": forbidden}
        one = beam_search(
            network.step, network.state(), start, END, 6, 1, length_penalty=kind, **options
        )
        best = greedy(network.step, network.state(), start, END, 6, **options)
        assert one.tokens.tolist() == best.tokens.tolist()
        assert one.lengths.tolist() == best.lengths.tolist()
        for source in range(4):
            length = best.lengths[source, 0]
            count = length + (length < 6 and best.tokens.shape[2] > length)
            assert one.scores[source, 0] == pytest.approx(
                best.scores[source, 0] / penalty(kind, count)
            )

    @given(seeds)
    def test_n_best_are_the_first_of_more(self, seed):
        network = Network(seed, vocabulary=5)
        search = [network.step, network.state(), network.start, END, 8, 4]
        four, one = (beam_search(*search, n_best=n) for n in (4, 1))
        assert four.scores[:, 0] == pytest.approx(one.scores[:, 0])
        assert (np.diff(four.scores, axis=1) <= 0).all()

    def test_stops_when_nothing_can_improve(self):
        def step(tokens, state):  # p(end) = 0.9
            calls.append(tokens)
            return np.log(np.tile([0.9, 0.06, 0.04], (len(tokens), 1))), state

        for kind, most in ((0.0, 1), (1.0, 4), (-1.0, 1)):
            calls = []
            beam_search(step, None, np.zeros(2, int), END, 50, width=10, length_penalty=kind)
            assert len(calls) <= most

    @pytest.mark.parametrize(
        "kind, first, longest, best",
        [
            ("mean", [0.5, 0.05, 0.15, 0.15, 0.15], 10, [1] * 10),  # it takes many steps to win
            (-1.0, [0.3, 0.65, 0.02, 0.02, 0.01], 20, [1]),  # it must win at once
        ],
    )
    def test_does_not_stop_before(self, kind, first, longest, best):
        after = {"mean": [0, 1, 0, 0, 0], -1.0: [0.9, 0.1, 0, 0, 0]}[kind]

        def step(tokens, state):  # what follows 1 is nearly sure, what follows the others is not
            table = np.array([first, after, [0.2] * 5, [0.2] * 5, [0.2] * 5])
            with np.errstate(divide="ignore"):
                return np.log(table[tokens]), state

        found = beam_search(step, None, np.array([END]), END, longest, 5, length_penalty=kind)
        assert found.sequence(0) == best

    def test_a_finished_one_goes_before_its_equal(self):
        table = [[0.25, 0.5, 0.25], [0, 0.5, 0.5], [0, 0.5, 0.5]]

        def step(tokens, state):  # of the sequences 0, 1 1 and 1 2 each has probability 1/4
            fed.append(tokens.tolist())
            with np.errstate(divide="ignore"):
                return np.log(table)[tokens], state

        fed = []
        beam_search(step, None, np.array([END]), END, 4, width=2, n_best=2)
        assert fed[:3] == [[END], [1], [1]]

    def test_bad_ends_do_not_keep_a_good_one_from_being_found(self):
        """The best sequence is the longest; all that is beside it ends at once, and is unlikely."""

        def step(tokens, state):
            good = np.log([1e-6, 1e-6, 1 - 2e-6]), np.log([1 - 2e-6, 1e-6, 1e-6])
            end = (tokens == 1) | (state == 6)
            return np.where(end[:, None], good[1], good[0]), state + 1

        found = beam_search(step, np.zeros(1), np.array([2]), END, 20, 4, length_penalty="mean")
        assert found.sequence(0) == [2] * 6

    def test_ties_go_to_what_comes_first(self):
        def step(tokens, state):
            return np.zeros((len(tokens), 3)), state

        found = beam_search(step, None, np.array([1]), END, 2, width=9, n_best=4)
        assert found.tokens[0].tolist() == [[0, 0], [1, 0], [1, 1], [1, 2]]

    def test_fewer_sequences_than_asked_for(self):
        network = Network(vocabulary=2)
        found = beam_search(network.step, network.state(), network.start, END, 1, 5, 4, padding=7)
        assert (found.scores[:, 2:] == -np.inf).all() and (found.scores[:, :2] > -np.inf).all()
        assert (found.lengths[:, 2:] == 0).all() and (found.tokens[:, 2:] == 7).all()

    def test_a_hypothesis_that_may_not_go_on_drops_out(self):
        with np.errstate(divide="ignore"):
            table = np.log([[0.1, 0.6, 0.3], [0, 0, 0], [0.5, 0.2, 0.3]])

        def step(tokens, state):
            return table[tokens], state

        found = beam_search(step, None, np.array([0]), END, 2, width=3, n_best=3)
        assert found.tokens[0].tolist() == [[2, 0], [0, 0], [2, 2]]


class TestAll:
    SEARCHES = (
        lambda *a, **k: greedy(*a, **k),
        lambda *a, **k: beam_search(*a, width=3, n_best=2, length_penalty=0.6, **k),
        lambda *a, **k: sample(*a, n=3, generator=md.random.Generator(5), **k),
    )

    @pytest.mark.parametrize("search", SEARCHES)
    def test_on_the_device_and_in_a_batch_as_alone(self, search, device):
        network = Network(3, vocabulary=6, batch=5, device=device)
        options = {"min_length": 1, "forbidden": [2], "padding": -1}
        found = search(network.step, network.state(), network.start, END, 7, **options)
        assert all(type(part) is np.ndarray for part in found)
        # Draws go by the source's number, so only the first one's are the same alone.
        for source in range(1 if search is self.SEARCHES[2] else 5):
            alone = network.only(source)
            one = search(alone.step, alone.state(), alone.start, END, 7, **options)
            assert_same(sequences(found, source), sequences(one, 0))
        assert not (found.tokens == 2).any() and (found.lengths > 0).all()

    @pytest.mark.parametrize("search", SEARCHES)
    def test_scores_are_the_networks_own(self, search):
        network = Network(1, vocabulary=5, batch=3)
        found = search(network.step, network.state(), network.start, END, 6, padding=-1)
        for source in range(3):
            for score, tokens in sequences(found, source):
                total = sum(network.log_p(source, tokens)[:-1])
                alpha = 0.6 if search is self.SEARCHES[1] else 0.0
                assert score == pytest.approx(total / penalty(alpha, len(tokens)))

    @pytest.mark.parametrize("search", SEARCHES)
    def test_what_has_ended_is_never_extended(self, search):
        network = Network(2, vocabulary=4, batch=6)
        network.start = np.ones(6, int)
        search(network.step, network.state(), network.start, END, 9)
        assert not any((tokens == END).any() for tokens in network.fed)
        assert len(network.fed[-1]) < max(map(len, network.fed))  # sources leave when they are done

    @pytest.mark.parametrize("search", SEARCHES)
    def test_nothing_to_decode(self, search):
        def step(tokens, state):
            raise AssertionError("no rows, no step")

        found = search(step, np.zeros((0, 3)), np.zeros(0, np.int64), END, 5)
        assert found.tokens.shape[0] == found.lengths.shape[0] == found.scores.shape[0] == 0

    @pytest.mark.parametrize("search", SEARCHES)
    def test_state_is_any_nest_and_stays_as_it_is(self, search, device):
        class Pair(NamedTuple):
            last: object
            rest: object

        def step(tokens, state):
            position, (pair, name), table = state
            assert name == "name" and len(tokens) == len(pair.last) == len(pair.rest[0])
            assert (md.backend.to_host(pair.last) == md.backend.to_host(tokens)).all()
            assert (pair.rest[0].numpy()[:, 0] == md.backend.to_host(table["row"])).all()
            logits = md.take(scores, table["row"] * 3 % 7, axis=0)
            following.append(pair)
            return logits, (position + 1, [Pair(None, pair.rest), name], table)

        # The step is given its own last tokens back: rows and state stay together.
        scores = md.tensor(np.random.default_rng(0).normal(size=(7, 5)), device=device)
        rows = np.arange(4)
        row = md.backend.to_device(rows, device)
        rest = [md.tensor(rows[:, None] * 1.0, device=device)]
        following = []

        def outer(tokens, state):
            position, parts, table = state
            return step(tokens, (position, [Pair(tokens, parts[0].rest), parts[1]], table))

        state = (0, [Pair(row, rest), "name"], {"row": row})
        found = search(outer, state, md.backend.to_device(np.ones(4, int), device), END, 6)
        assert found.tokens.shape[0] == 4 and following
        assert (md.backend.to_host(row) == rows).all()
        assert (rest[0].numpy()[:, 0] == rows).all()

    def test_nothing_is_recorded(self):
        weight = md.tensor(np.eye(3), requires_grad=True)

        def step(tokens, state):
            logits = md.one_hot(tokens, 3) @ weight
            assert not logits.requires_grad
            return logits, state

        greedy(step, None, np.array([1]), END, 3)

    @pytest.mark.parametrize("search", SEARCHES)
    def test_large_logits(self, search):
        def step(tokens, state):
            return np.tile(np.array([1e4, 0, 1e4 + 5], np.float32), (len(tokens), 1)), state

        found = search(step, None, np.array([1]), END, 3, padding=-1)
        assert found.tokens[0, 0].tolist() == [2, 2, 2] and found.scores[0, 0] > -0.1


class TestSample:
    def draws(self, n=4000, **options):
        p = np.array([0.1, 0.4, 0.05, 0.3, 0.15])

        def step(tokens, state):
            return np.tile(np.log(p), (len(tokens), 1)), state

        found = sample(
            step, None, np.zeros(1, int), END, 1, n=n, generator=md.random.Generator(3), **options
        )
        return np.bincount(found.tokens[0, :, 0], minlength=5) / n

    @pytest.mark.parametrize(
        "options, expected",
        [
            ({}, [0.1, 0.4, 0.05, 0.3, 0.15]),
            ({"temperature": 0.5}, np.array([1, 16, 0.25, 9, 2.25]) / 28.5),
            ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
            ({"top_p": 0.71}, [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85]),
            ({"top_p": 0.69}, [0, 4 / 7, 0, 3 / 7, 0]),
            ({"top_p": 1.0}, [0.1, 0.4, 0.05, 0.3, 0.15]),
            ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 0, 3 / 7, 0]),
            ({"forbidden": [1]}, [1 / 6, 0, 0.5 / 6, 0.5, 0.25]),
            ({"top_k": 1}, [0, 1, 0, 0, 0]),
            ({"temperature": 1e-300}, [0, 1, 0, 0, 0]),
        ],
    )
    def test_frequencies(self, options, expected):
        found = self.draws(**options)
        assert (found[np.array(expected) == 0] == 0).all()
        assert np.allclose(found, expected, atol=0.03)

    def test_a_cold_or_narrow_one_is_greedy(self):
        network = Network(4, vocabulary=6, batch=3)
        best = greedy(network.step, network.state(), network.start, END, 8)
        for options in ({"temperature": 1e-9}, {"top_k": 1}, {"top_p": 1e-9}):
            found = sample(network.step, network.state(), network.start, END, 8, **options)
            assert found.tokens.tolist() == best.tokens.tolist()
            assert np.allclose(found.scores, best.scores)

    def test_a_generator_gives_the_same_again_and_sources_do_not_disturb(self):
        network = Network(5, vocabulary=6, batch=3)

        def draw(network, seed):
            return sample(
                network.step, network.state(), network.start, END, 8, n=4,
                generator=md.random.Generator(seed),
            )  # fmt: skip

        first, again, other = draw(network, 1), draw(network, 1), draw(network, 2)
        assert (first.tokens == again.tokens).all()
        assert first.tokens.tolist() != other.tokens.tolist()
        assert len({tuple(tokens) for tokens in first.tokens[0]}) > 1
        alone = draw(network.only(0), 1)
        assert [alone.sequence(0, k) for k in range(4)] == [first.sequence(0, k) for k in range(4)]


class TestErrors:
    def step(self, tokens, state):
        return np.zeros((len(tokens), 3)), state

    @pytest.mark.parametrize(
        "search, options, message",
        [
            (greedy, {"max_length": 0}, "greedy: max_length: expected 1 or more, got 0"),
            (greedy, {"min_length": 4}, "min_length: expected 0 to 3"),
            (greedy, {"forbidden": [3]}, "forbidden: expected a token from 0 to 2, got 3"),
            (greedy, {"end": 9}, "end: expected a token from 0 to 2, got 9"),
            (greedy, {"forbidden": [0, 1, 2]}, "allows no token"),
            (beam_search, {"width": 0}, "width: expected 1 or more"),
            (beam_search, {"width": 2, "n_best": 3}, "n_best: expected 1 to the width, 2, got 3"),
            (beam_search, {"length_penalty": "wu"}, "a number or 'mean', got 'wu'"),
            (sample, {"temperature": 0}, "temperature: expected more than 0"),
            (sample, {"top_k": 0}, "top_k: expected 1 or more"),
            (sample, {"top_p": 1.1}, "top_p: expected more than 0, at most 1, got 1.1"),
            (sample, {"n": 0}, "n: expected 1 or more"),
        ],
    )
    def test_wrong_numbers(self, search, options, message):
        given = {"end": END, "max_length": 4} | options
        with pytest.raises(ValueError, match=message):
            search(self.step, None, np.array([1]), **given)

    def test_start(self):
        with pytest.raises(ShapeError, match=r"start: expected \(batch,\)"):
            greedy(self.step, None, 1, END, 4)
        with pytest.raises(DtypeError, match="start: expected integers, got float64"):
            greedy(self.step, None, np.ones(2), END, 4)

    def test_logits(self):
        for logits, message in (
            (np.zeros(3), r"expected \(2, vocabulary\), got \(3,\)"),
            (np.zeros((1, 3)), r"expected \(2, vocabulary\), got \(1, 3\)"),
            (np.full((2, 3), np.nan), "got NaN or inf"),
        ):
            with pytest.raises(ValueError, match=message):
                greedy(lambda t, s, x=logits: (x, s), None, np.array([1, 1]), END, 4)

    def test_state(self):
        with pytest.raises(ShapeError, match="state: expected arrays with the 2 rows first"):
            sample(self.step, [np.zeros((3, 2))], np.array([1, 1]), END, 4, n=2)


def test_tokens_that_start_does_not_hold():
    def step(tokens, state):  # writes 300, then, if that arrived, the end
        logits = np.zeros((len(tokens), 400))
        logits[:, 300] = 5.0
        logits[tokens == 300, END] = 9.0
        return logits, state

    found = greedy(step, None, np.zeros(1, np.uint8), END, 5)
    assert found.sequence(0) == [300]


def test_an_endless_temperature_is_refused():
    with pytest.raises(ValueError, match="finite, got inf"):
        sample(lambda t, s: (np.zeros((len(t), 3)), s), None, np.zeros(1, int), END, 2, 1, np.inf)


@pytest.mark.parametrize("generator", [0, 1, np.random.default_rng(0)])
def test_sample_takes_only_its_own_generators(generator):
    with pytest.raises(TypeError, match=r"generator: expected md\.random\.Generator"):
        sample(lambda *_: None, None, np.array([0]), 1, 3, generator=generator)
