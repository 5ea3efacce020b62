"""
Registers Qwen with MindFormers as soon as MindFormers is imported, so that a `Trainer` finds what a YAML names.

`scripts/setup.sh` has Python import this at start-up (by a .pth file). Where that was not done, and where another module
of this project was imported before MindFormers, `import qwen_model` does the same.
"""
import importlib.abc
import importlib.util
import sys
import warnings


class _AfterMindFormers(importlib.abc.MetaPathFinder):
    """Lets MindFormers be imported as ever, then imports `model.graph`."""

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
            if any(name.startswith("qwen_") for name in sys.modules if name != __name__):
                return  # a module of this project is what imports MindFormers: qwen_model can't be imported inside it
            try:
                importlib.import_module("qwen_model")
            except ImportError as error:
                warnings.warn(f"Qwen is not registered with MindFormers: {error}")

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _AfterMindFormers())
