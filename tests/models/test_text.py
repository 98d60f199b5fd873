"""Characters and pairs as numbers, and texts of like length together."""

from models.text import EDGE, UNKNOWN, Vocabulary, length_groups


class TestVocabulary:
    def test_rare_characters_are_unknown_and_the_frequent_come_first(self):
        vocabulary = Vocabulary.of(["猫猫猫鱼", "鱼狗"], least=2)
        assert vocabulary.characters == ["猫", "鱼"]
        assert vocabulary.sizes == (4, 2)
        assert vocabulary.encode("鱼狗猫").tolist() == [3, 1, 2]
        assert vocabulary.encode("").shape == (0,)

    def test_pairs_to_the_left_and_right(self):
        vocabulary = Vocabulary.of(["猫鱼", "猫鱼猫"], least=1, least_pair=2)
        assert set(vocabulary.pairs) == {EDGE + "猫", "猫鱼"}
        number = {pair: n for n, pair in enumerate(vocabulary.pairs, start=2)}
        assert vocabulary.encode("猫鱼").tolist() == [
            [2, number[EDGE + "猫"], number["猫鱼"]],
            [3, number["猫鱼"], UNKNOWN],
        ]
        assert vocabulary.encode("").shape == (0, 3)

    def test_half_width_is_read_as_full_width(self):
        vocabulary = Vocabulary.of(["Ａ１％"], least=1)
        assert vocabulary.encode("A1%").tolist() == vocabulary.encode("Ａ１％").tolist()
        assert min(vocabulary.encode("A1%")) > UNKNOWN

    def test_the_order_of_the_texts_is_nothing(self):
        texts = ["猫爱鱼", "狗爱肉", "鱼怕猫"]
        forward = Vocabulary.of(texts, 1, 1)
        backward = Vocabulary.of(texts[::-1], 1, 1)
        assert forward.characters == backward.characters and forward.pairs == backward.pairs

    def test_it_is_made_again_from_its_state(self):
        vocabulary = Vocabulary.of(["猫爱鱼"], 1, 1)
        again = Vocabulary(**vocabulary.state_dict())
        assert again.encode("猫爱鱼").tolist() == vocabulary.encode("猫爱鱼").tolist()


class TestLengthGroups:
    def test_each_text_once_the_empty_ones_nowhere(self):
        lengths = [3, 0, 9, 1, 3, 20]
        groups = list(length_groups(lengths, 10))
        assert groups == [[3, 0, 4], [2], [5]]
        assert all(len(g) * max(lengths[i] for i in g) <= 10 for g in groups if len(g) > 1)
