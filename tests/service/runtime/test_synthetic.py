from __future__ import annotations

import numpy as np
import pytest

from service.runtime.synthetic import synthetic
from service.runtime.tensors import Signature, TensorSpec, check
from tests.fakes import SUM_SIGNATURE, lstm_signature

KINDS = Signature(
    inputs=(
        TensorSpec("tokens", "INT64", ("batch", "time")),
        TensorSpec("lengths", "INT64", ("batch",)),
        TensorSpec("is_open", "BOOL", ("batch",)),
        TensorSpec("exact", "FP64", ("batch", 3)),
        TensorSpec("word", "BYTES", ("batch", "place")),
    ),
    outputs=(),
)


@pytest.mark.parametrize("signature", [SUM_SIGNATURE, lstm_signature(), KINDS], ids=["sum", "lstm", "kinds"])
@pytest.mark.parametrize("lengths", [[1], [5, 5], [3, 9, 1]])
def test_made_up_rows_pass_the_check_that_requests_pass(signature: Signature, lengths: list[int]) -> None:
    assert check(synthetic(signature, lengths), signature) == len(lengths)


def test_whole_numbers_are_ids_that_every_vocabulary_has() -> None:
    assert set(np.unique(synthetic(KINDS, [50])["tokens"])) == {0, 1}


def test_beyond_the_end_of_a_row_stand_zeros() -> None:
    history = synthetic(SUM_SIGNATURE, [2, 4])["history"][:, :, 0]
    assert (history[0] > 0).tolist() == [True, True, False, False]
    assert (history[1] > 0).all()
