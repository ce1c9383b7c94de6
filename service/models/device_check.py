"""The device check: each row of a ragged batch must come out of a GPU as it does alone, and as it does on the CPU.

Runs made-up rows, before the model is READY. Decides nothing: it finds what differs.

onnxruntime's recurrent kernels for CUDA keep to `sequence_lens` in some cases only. As read in its `cudnn_rnn_base.cc`: the
plain RNN is run over the padding and masked afterwards, which a backward direction cannot repair, and `direction="reverse"`
turns rows around by their padded length. Other versions, other cards and TensorRT have their own ways; so it is tried.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from service.errors import InferenceFailed, InvalidInput
from service.runtime.base import Runtime
from service.runtime.synthetic import MAX_ROWS, USUAL_STEPS, synthetic
from service.runtime.tensors import Array, Signature, Tensors, collate, split

# Kernels add up in another order, and a GPU may round products to 10 bits (TF32); a row read beyond its end is off by far more.
TOLERANCE = 1e-3


def find_difference(runtime: Runtime, reference: Runtime, signature: Signature, num_steps: int | None = None) -> str | None:
    """Where the runtime's answers differ from the reference's, or a row's in a batch from its own alone; None if nowhere.

    `num_steps` is the longest row, None where the model does not say. A difference is one of more than `TOLERANCE` of the
    largest number of that output.
    """
    shortest = signature.min_length
    longest = max(num_steps or USUAL_STEPS, shortest)
    wanted_lengths = {1, 2, 3, 7, shortest, longest // 3, longest // 2, longest - 1, longest}
    lengths = sorted(wanted_lengths & set(range(shortest, longest + 1)))
    # Long beside short, in no order: a kernel that sorts its rows has to put them back.
    mixed = (lengths[1::2] + lengths[::2][::-1]) if signature.is_ragged else [longest] * len(lengths)
    items = [synthetic(signature, [length], seed=seed) for seed, length in enumerate(mixed)]
    try:
        expected = [reference.run(item) for item in items]
        # First the smallest and the largest: TensorRT builds its engine for the shapes between those that it has seen.
        for lengths in ([shortest if signature.is_ragged else longest], [longest] * MAX_ROWS):
            runtime.run(synthetic(signature, lengths))
        together = split(runtime.run(collate(items, signature)), items, signature)
        alone = [runtime.run(item) for item in items]
    except (InferenceFailed, InvalidInput) as exc:
        return f"the rows of the device check are refused: {str(exc.__cause__ or exc.message)[:300]}"
    for in_batch, by_itself, wanted, length in zip(together, alone, expected, mixed, strict=True):
        if found := _compare(in_batch, by_itself):
            return f"{found} between a row of {length} steps in a batch of lengths {mixed} and the same row alone"
        if found := _compare(by_itself, wanted):
            return f"{found} between its answer to a row of {length} steps and the CPU's"
    return None


def _compare(found: Mapping[str, Array], expected: Tensors) -> str | None:
    for name, wanted in expected.items():
        got = found[name]
        if got.shape != wanted.shape:
            return f'output "{name}" has shape {list(got.shape)} and not {list(wanted.shape)}'
        if wanted.dtype.kind not in "iufb":
            continue
        exact = wanted.astype(np.float64)
        largest = float(np.abs(exact[np.isfinite(exact)]).max(initial=0.0))
        if not np.allclose(got, exact, rtol=0, atol=TOLERANCE * max(largest, TOLERANCE), equal_nan=True):
            return f'output "{name}" differs by {np.abs(got - exact).max():.2g}'
    return None
