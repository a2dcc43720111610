"""The child process of ``native``: the model on stdin or its path in the arguments, the answer on stdout.

It is run by its path and loads onnx's extension module by its own, in a tenth of the time that ``import onnx`` takes.
"""

import sys
from importlib.util import module_from_spec, spec_from_file_location

if __name__ == "__main__":
    extension, *paths = sys.argv[1:]
    spec = spec_from_file_location("onnx_cpp2py_export", extension)
    assert spec is not None
    assert spec.loader is not None
    native = module_from_spec(spec)
    spec.loader.exec_module(native)
    try:
        if paths:
            native.checker.check_model_path(paths[0], True)
        else:
            sys.stdout.buffer.write(native.shape_inference.infer_shapes(sys.stdin.buffer.read(), False, False, True))
    except Exception as error:
        print(error, file=sys.stderr)
        sys.exit(1)
