"""``python -m bench.inference``: folded networks beside onnxruntime, 3 x 224 x 224, answers checked.

"as trained": the same model in eval mode, batch norms and all. onnxruntime runs what ``export.export`` wrote, with its
own optimisations and as many threads.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

import export
import fastbn
from bench.networks import OURS

BATCHES = (1, 8)
ROUNDS = 9


def median(call, *operands) -> float:
    """Milliseconds, after two calls outside the clock."""
    call(*operands)
    call(*operands)
    spent = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        call(*operands)
        spent.append(1e3 * (time.perf_counter() - begun))
    return float(np.median(spent))


def session_of(model, folder: Path) -> onnxruntime.InferenceSession:
    path = folder / "model.onnx"
    export.export(model, path, input_shape=(3, 224, 224))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = fastbn.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("networks", nargs="*", default=list(OURS), help=f"of {', '.join(OURS)}")
    options = parser.parse_args()
    print(f"3 x 224 x 224, {fastbn.get_num_threads()} threads, median milliseconds")
    print("network      batch   folded   as trained   onnxruntime   onnxruntime / folded")
    for network in options.networks:
        fastbn.manual_seed(0)
        model = OURS[network]().eval()
        folded = fastbn.fold(model)
        with tempfile.TemporaryDirectory() as folder:
            session = session_of(model, Path(folder))
        name = session.get_inputs()[0].name
        for batch in BATCHES:
            x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), np.float32)
            theirs = session.run(None, {name: x})[0]
            np.testing.assert_allclose(folded(x), theirs, atol=1e-3 * np.abs(theirs).max())
            ours, trained = median(folded, x), median(model, x)
            other = median(session.run, None, {name: x})
            print(f"{network:12} {batch:5} {ours:8.1f} {trained:12.1f} {other:13.1f} {other / ours:22.2f}", flush=True)


if __name__ == "__main__":
    main()
