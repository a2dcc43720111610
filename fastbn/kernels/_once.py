"""What a kernel calls becomes machine code once: inside the kernel.

Numba optimises every function that it compiles by itself, then all over again in each of its callers, down to the
kernel, and a loop of threads adds two layers of its own. Here only the kernel's library goes through LLVM's passes;
what it links in is typed and lowered, no more. And of a kernel that is there for one thread and for all, only the
branch of one version is typed at all.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numba import types
from numba.core import ir
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.untyped_passes import IRProcessing

# Of the modules that Numba adds to a library: its entries from Python and from C.
ENTRIES = "wrapper", "cfunc_wrapper"


class _Unloaded:
    """Stands for the engine of what has no address."""

    def set_env(self, name, environment):
        pass


class _Part(JITCodeLibrary):
    """Code that exists to be linked into a kernel."""

    codegen = _Unloaded()

    def add_ir_module(self, module):
        if module.name not in ENTRIES:
            super().add_ir_module(module)

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name):
        self._ensure_finalized()
        return 0


@contextmanager
def _parts(codegen: Any) -> Iterator[None]:
    """Numba compiles parts, while its compiler lock is held, and leaves the search for cycles to later.

    It makes so many that looking for them takes a twentieth of the time.
    """
    library_class, collects = codegen._library_class, gc.isenabled()
    codegen._library_class = _Part
    gc.disable()
    try:
        yield
    finally:
        codegen._library_class = library_class
        if collects:
            gc.enable()


@register_pass(mutates_CFG=False, analysis_only=False)
class _ChooseVersion(FunctionPass):
    """The argument ``parallel`` becomes a constant, False where it is None, so that its branches are pruned."""

    _name = "choose_version"

    def __init__(self):
        super().__init__()

    def run_pass(self, state):
        for block in state.func_ir.blocks.values():
            for statement in block.find_insts(ir.Assign):
                if isinstance(statement.value, ir.Arg) and statement.value.name == "parallel":
                    chosen = state.args[statement.value.index] != types.none
                    statement.value = ir.Const(chosen, statement.loc)
                    state.func_ir._definitions[statement.target.name] = [statement.value]
                    return True
        return False


class KernelCompiler(Compiler):
    """Numba's compiler for a kernel: what is compiled on the way is a part of it."""

    def define_pipelines(self):
        pipelines = super().define_pipelines()
        for pipeline in pipelines:
            pipeline.add_pass_after(_ChooseVersion, IRProcessing)
            pipeline.finalize()
        return pipelines

    def compile_extra(self, function):
        codegen = self.state.targetctx.codegen()
        if not hasattr(codegen, "_library_class"):  # a Numba that names it otherwise: compiled the longer way
            return super().compile_extra(function)
        self.state.library = codegen.create_library(function.__qualname__)
        self.state.library.enable_object_caching()
        with _parts(codegen):
            return super().compile_extra(function)
