"""The pickle reader returns what was written, and refuses everything else by name."""

import io
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from tests.source_tree import ROOT
from tokendetr.io.plain_pickle import PlainPickleError, load_arrays


def read(content):
    return load_arrays(io.BytesIO(content), "some/weights.pkl")


ARRAYS = {
    "matrix": np.arange(6, dtype="f4").reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "transposed": np.arange(24, dtype="i2").reshape(2, 3, 4).transpose(1, 0, 2),
    "strided": np.arange(10, dtype="u1")[::3],
    "bools": np.array([True, False]),
    "nothing": np.zeros((0, 3), "f2"),
    "number": np.array(5),
    "big_endian": np.arange(4, dtype=">i4"),
    "complex": np.array([1 + 2j], "c8"),
}
PLAIN = {
    "text": "é\n'\"\\ \U0001f600",
    "bytes": [b"", b"\x00\xff", bytearray(b"ab")],
    "numbers": (0, 1, -1, 255, 256, 65536, -(2**31), 2**40, -(2**70), 0.5, -1e300, float("inf")),
    "constants": [None, True, False],
    "containers": [[], (), {}, {"a": [({"b": 1},)]}, set(), {1, 2}, frozenset({"x"})],
    "scalars": [np.float32(0.5), np.int64(-3), np.bool_(True)],
    "ordered": OrderedDict(b=1, a=2),
    3: "a number as key",
}


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_round_trip(protocol):
    shared = {**ARRAYS, "again": ARRAYS["matrix"]}
    found = read(pickle.dumps(shared, protocol=protocol))
    assert list(found) == list(shared)
    for name, array in shared.items():
        assert found[name].dtype == array.dtype.newbyteorder("="), name
        assert np.array_equal(found[name], array), name
        assert found[name].flags.writeable, name
    assert found["again"] is found["matrix"]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_round_trip(protocol):
    plain = dict(PLAIN)
    if protocol < 4:
        plain["containers"] = plain["containers"][:-1]  # frozenset is a call before protocol 4
    assert read(pickle.dumps(plain, protocol=protocol)) == plain


def test_strings_of_python_2_are_latin_1():
    """The bytes are Python 2's pickle of {'w': numpy.array([1.5], 'f4'), 'n': 'café'}."""
    content = (
        b"\x80\x02}q\x01(U\x01wq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
        b"q\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x01\x85cnumpy\ndtype\nq\x06U\x02f4K\x00K\x01\x87R"
        b"q\x07(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x04\x00\x00\xc0?tb"
        b"U\x01nU\x04caf\xe9u."
    )
    found = read(content)
    assert found["n"] == "café" and found["w"].dtype == np.float32
    assert found["w"].tolist() == [1.5]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.array(["a"]), "numpy.dtype"),
        (np.array([None]), "numpy.dtype"),
        (np.zeros(1, [("a", "f4")]), "numpy.dtype"),
        (np.array(["2020-01-01"], "M8[D]"), "numpy.dtype"),
        (np.ma.zeros(2), "numpy.ma"),
        (np.zeros(2).view(np.matrix), "numpy.matrix"),
        (Path("a"), "pathlib"),
        (complex(1, 2), "builtins.complex"),
        (np.dtype("f4"), "a value"),
        (np.ndarray, "a value"),
    ],
)
def test_anything_else_is_refused_by_name(value, named):
    with pytest.raises(PlainPickleError, match="some/weights.pkl.*Nothing was executed") as caught:
        read(pickle.dumps({"w": value}))
    assert named in str(caught.value) and caught.value.is_unsafe


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}r\x51\x4e\x4f\x4f.",  # a memo index of 1.3 billion
        b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b".",  # bytes that are not there
        b"]" * 200_000 + b"a" * 199_999 + b".",
        pickle.dumps({"w": np.zeros(9, "f4")}).replace(b"\x85\x94\x68", b"\x85\x94\x67"),
        b"\x80\x02]q\x00h\x00a.",  # a list within itself
        b"N",
        b"",
        b".",
        b"(.",
        b"garbage",
    ],
)
def test_damage_is_named_and_costs_nothing(content):
    with pytest.raises(PlainPickleError, match="some/weights.pkl.*damaged") as caught:
        read(content)
    assert not caught.value.is_unsafe


def test_shared_bytes_do_not_multiply():
    blob = b"a" * 100_000
    many = b"\x80\x02]B" + len(blob).to_bytes(4, "little") + blob + b"q\x010"
    many += b"cbuiltins\nbytearray\nq\x020" + b"h\x02h\x01\x85Ra" * 5000 + b"."
    with pytest.raises(PlainPickleError, match="larger than the file"):
        read(many)


def test_the_stand_in_reads_by_the_same_code():
    copy = ROOT / "standalone" / "detectron2" / "checkpoint" / "safe_pickle"
    own = ROOT / "tokendetr" / "io" / "plain_pickle"
    names = sorted(path.name for path in own.glob("*.py"))
    assert names and names == sorted(path.name for path in copy.glob("*.py"))
    for name in names:
        assert (copy / name).read_bytes() == (own / name).read_bytes()
