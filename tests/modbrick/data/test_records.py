import numpy as np
import pytest

from modbrick.data.records import PART, decode_record, encode_record, id_dtype, parts
from modbrick.errors import InputError


@pytest.mark.parametrize(
    ("vocabulary", "width"), [(257, 2), (65_536, 2), (65_537, 4), (1 << 31, 4)]
)
def test_there_and_back(vocabulary, width):
    dtype = id_dtype(vocabulary)
    assert dtype.itemsize == width
    ids = np.asarray([0, 1, vocabulary - 1])
    record = encode_record(ids, dtype)
    assert len(record) == 8 + 3 * width
    assert decode_record(record, "here").tolist() == ids.tolist()


def test_other_bytes_are_refused():
    record = encode_record(np.arange(5), id_dtype(257))
    for other in (
        b"",
        record[:-1],
        record + b"x",
        b"\7" + record[1:],
        record[:2] + b"\3" + record[3:],
    ):
        with pytest.raises(InputError, match="here: not a record"):
            decode_record(other, "here")


def test_parts():
    assert parts(np.asarray([1, PART, PART + 1, 3 * PART])).tolist() == [1, 1, 2, 3]
