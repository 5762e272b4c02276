"""The list of tests that detectron2 and detrex do not pass names tests that there are."""

from tests.conftest import CHECKOUT, differing


def test_every_line_names_a_test():
    for name in differing():
        path, test = name.split("::")
        text = (CHECKOUT / path).read_text()
        assert f"def {test.partition('[')[0]}(" in text, name
