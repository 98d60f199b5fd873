"""The segmenter: tags, vocabulary, network, and its identities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidl.errors import ShapeError
from models import segmenter
from models.segmenter import ALLOWED, ENDS, STARTS, TAGS, Vocabulary, tags_of, words_of

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
        assert all(ALLOWED[i, j] for i, j in zip(tags, tags[1:], strict=False))
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


class TestVocabulary:
    def test_rare_characters_are_unknown_and_the_frequent_come_first(self):
        vocabulary = Vocabulary.of(["猫猫猫鱼", "鱼狗"], least=2)
        assert vocabulary.characters == ["猫", "鱼"]
        assert vocabulary.sizes == (4, 2)
        assert vocabulary.encode("鱼狗猫").tolist() == [3, 1, 2]
        assert vocabulary.encode("").shape == (0,)

    def test_pairs_to_the_left_and_right(self):
        vocabulary = Vocabulary.of(["猫鱼", "猫鱼猫"], least=1, least_pair=2)
        edge = segmenter.EDGE
        assert set(vocabulary.pairs) == {edge + "猫", "猫鱼"}
        number = {pair: n for n, pair in enumerate(vocabulary.pairs, start=2)}
        assert vocabulary.encode("猫鱼").tolist() == [
            [2, number[edge + "猫"], number["猫鱼"]],
            [3, number["猫鱼"], segmenter.UNKNOWN],
        ]
        assert vocabulary.encode("").shape == (0, 3)

    def test_half_width_is_read_as_full_width(self):
        vocabulary = Vocabulary.of(["Ａ１％"], least=1)
        assert vocabulary.encode("A1%").tolist() == vocabulary.encode("Ａ１％").tolist()
        assert min(vocabulary.encode("A1%")) > segmenter.UNKNOWN

    def test_the_order_of_the_texts_is_nothing(self):
        texts = ["猫爱鱼", "狗爱肉", "鱼怕猫"]
        forward = Vocabulary.of(texts, 1, 1)
        backward = Vocabulary.of(texts[::-1], 1, 1)
        assert forward.characters == backward.characters and forward.pairs == backward.pairs
