"""
Registers Qwen with MindFormers as soon as MindFormers is imported, so that a `Trainer` finds what a YAML names.

MindFormers has a seam of its own for models from outside, `auto_register` in a YAML with REGISTER_PATH in the
environment, and `import qwen_model`, or any other of the flat modules, registers as well. This module is for programs
that do neither, as those of the first MindFormers port: `scripts/setup.sh` has Python import it at start-up, by a .pth
file.

Where a module inside this package is what imports MindFormers, nothing is registered but that module and what it
imports: it can't be imported anew inside itself. The flat modules import everything for that reason.
"""
import importlib
import importlib.abc
import importlib.util
import sys

MODEL = "qwen_mindspore.generate.loop"
DEFERRED = "qwen_mindspore.common.deferred_imports"  # what nobody waits for
FOLDERS = "qwen_mindspore.common.folders"  # where MindFormers logs, which it would not start without


class _AfterMindFormers(importlib.abc.MetaPathFinder):
    """Lets MindFormers be imported as ever, then imports the model."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "mindformers":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None:
            return None
        import_mindformers = spec.loader.exec_module

        def exec_module(module):
            importlib.import_module(FOLDERS).provide_folders()
            deferred = importlib.import_module(DEFERRED)
            with deferred.deferred_imports(deferred.UNTOUCHED):
                import_mindformers(module)
            _import_model()

        spec.loader.exec_module = exec_module
        return spec


def _import_model():
    """Import the model, which registers it, unless a module of this package is being imported."""
    package = __name__.partition(".")[0]
    ours = [name for name in list(sys.modules) if name.startswith(f"{package}.") and name != __name__]
    if not any(map(_is_being_imported, ours)):
        try:
            importlib.import_module(MODEL)
        except ImportError as error:
            # A warning would pass through filters that the imports have set.
            print(f"Qwen is not registered with MindFormers: {error}", file=sys.stderr)


def _is_being_imported(name):
    return getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False)


if "mindformers" not in sys.modules:
    sys.meta_path.insert(0, _AfterMindFormers())
elif not _is_being_imported("mindformers"):
    _import_model()
