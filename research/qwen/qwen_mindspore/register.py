"""
Registers Qwen with MindFormers as soon as MindFormers is imported, so that a `Trainer` finds what a YAML names.

MindFormers has a seam of its own for models from outside, `auto_register` in a YAML with REGISTER_PATH in the environment,
and `import qwen_model` registers as well. This module is for programs that do neither, as those of the first MindFormers
port: `scripts/setup.sh` has Python import it at start-up, by a .pth file.
"""
import importlib
import importlib.abc
import importlib.util
import sys
import warnings

MODEL = "qwen_mindspore.generate.loop"


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
            import_mindformers(module)
            # Where a module of this package is what imports MindFormers, it can't be imported anew inside itself.
            if not any(map(_is_being_imported, list(sys.modules))):
                try:
                    importlib.import_module(MODEL)
                except ImportError as error:
                    warnings.warn(f"Qwen is not registered with MindFormers: {error}")

        spec.loader.exec_module = exec_module
        return spec


def _is_being_imported(name):
    package = __name__.partition(".")[0]
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return name.startswith(f"{package}.") and name != __name__ and getattr(spec, "_initializing", False)


sys.meta_path.insert(0, _AfterMindFormers())
