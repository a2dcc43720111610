"""Folding tools behind one signature, each in a child process: some crash, some never end.

``Tool(name)(model, feeds, options)`` folds a model and runs the result by onnxruntime without optimisations.
"""

import contextlib
import importlib.util
import multiprocessing
import os
import tempfile
import time
import warnings
from dataclasses import dataclass, field

import numpy as np
import onnx

SECONDS = 60  # for one model; a tool that takes longer has failed


def fastbn(model: onnx.ModelProto, options: dict) -> onnx.ModelProto:
    import export

    return export.fold_onnx(model, **options)[0]


def onnxruntime(model: onnx.ModelProto, options: dict) -> onnx.ModelProto:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        settings.optimized_model_filepath = f"{folder}/optimised.onnx"
        onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        return onnx.load(settings.optimized_model_filepath)


def onnxsim(model: onnx.ModelProto, options: dict) -> onnx.ModelProto:
    import onnxsim

    return onnxsim.simplify(model)[0]


def onnxslim(model: onnx.ModelProto, options: dict) -> onnx.ModelProto:
    import onnxslim

    return onnxslim.slim(model)


def onnxoptimizer(model: onnx.ModelProto, options: dict) -> onnx.ModelProto:
    import onnxoptimizer

    return onnxoptimizer.optimize(model)


def onnxscript(model: onnx.ModelProto, options: dict) -> onnx.ModelProto:
    import onnxscript.optimizer
    import onnxscript.rewriter

    return onnxscript.rewriter.rewrite(onnxscript.optimizer.optimize(model))


def unchanged(model: onnx.ModelProto, options: dict) -> onnx.ModelProto:
    return model


TOOLS = {tool.__name__: tool for tool in (unchanged, fastbn, onnxruntime, onnxsim, onnxslim, onnxoptimizer, onnxscript)}


def installed() -> list[str]:
    return [name for name in TOOLS if name == "unchanged" or importlib.util.find_spec(name)]


@dataclass
class Outcome:
    """What a tool made of a model: operators without Constant, outputs by set of inputs; or why there is nothing."""

    seconds: float = 0.0
    operators: list[str] = field(default_factory=list)
    outputs: list[list[np.ndarray]] = field(default_factory=list)
    failure: str | None = None


class Tool:
    """One tool in its child process, which is started anew when it is gone."""

    def __init__(self, name: str) -> None:
        self.name, self.process = name, None

    def __call__(self, model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], options: dict) -> Outcome:
        if self.process is None:
            self._start()
        self.pipe.send((model.SerializeToString(), feeds, options))
        try:
            if self.pipe.poll(SECONDS):
                return self.pipe.recv()
            failure = f"longer than {SECONDS} s"
        except EOFError:
            failure = "crash"
        self.stop()
        return Outcome(failure=failure)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(self.name, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def _serve(name: str, pipe) -> None:
    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        with contextlib.suppress(Exception):
            TOOLS[name](onnx.parser.parse_model(WARM_UP), {})
        pipe.send("ready")
        while True:
            content, feeds, options = pipe.recv()
            try:
                pipe.send(_outcome(name, onnx.load_from_string(content), feeds, options))
            except Exception as error:
                pipe.send(Outcome(failure=f"{type(error).__name__}: {error}"[:200]))


WARM_UP = '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 2] x) => (float[1, 2] y) { y = Relu(x) }'


def _outcome(name: str, model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], options: dict) -> Outcome:
    import onnxruntime

    begun = time.perf_counter()
    folded = TOOLS[name](model, options)
    seconds = time.perf_counter() - begun
    _drop_idle_inputs(folded, feeds[0])
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(folded.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    outputs = [session.run(None, arrays) for arrays in feeds]
    return Outcome(seconds, [kind for kind in _operators(folded) if kind != "Constant"], outputs)


def _drop_idle_inputs(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    """Before IR 4 a constant is an input too; tools drop those that nothing reads and leave the inputs."""
    used = {name for node in model.graph.node for name in node.input} | feeds.keys()
    used |= {tensor.name for tensor in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name not in used]:
        model.graph.input.remove(value)


def _operators(model: onnx.ModelProto) -> list[str]:
    waiting, found = [model.graph, *model.functions], []
    while waiting:
        for node in waiting.pop().node:
            found.append(node.op_type)
            waiting += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found
