"""
Importing MindFormers without waiting for what this project never touches.

MindFormers imports all of its parts at once, and these import tensorboardX (which imports torch), datasets (pandas,
torch), nltk and others: two thirds of the time until a command's first token. While MindFormers is imported, a stand-in
takes the place of each. A stand-in is whole: whoever calls it, looks into it, derives from it or asks isinstance of it
imports the library then, and gets what it would have got at once. Afterwards `import datasets` anywhere else is what it
always is. Should another MindFormers use one of them while it is imported, that one is imported then; slower, nothing
else.
"""
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
import types

__all__ = ["UNTOUCHED", "deferred_imports", "import_mindformers"]

# What MindSpore and MindFormers import at their top for metrics, tensorboards and data sets, and takes 50 ms or more.
UNTOUCHED = ("datasets", "jieba", "nltk", "rouge_chinese", "scipy", "tensorboardX")


def import_mindformers():
    """
    Import MindFormers, and MindSpore with it, with stand-ins for UNTOUCHED. Nothing is done where it is imported.

    Raises:
        ImportError: It is not installed, or not whole.
    """
    if "mindformers" not in sys.modules:
        with deferred_imports(UNTOUCHED):
            importlib.import_module("mindformers")


@contextlib.contextmanager
def deferred_imports(packages):
    """
    While this lasts, importing one of these packages, or anything in it, gives a stand-in at once.

    Args:
        packages (sequence[str]): Names of top-level packages. One that is imported already, or is not installed, is
            imported, or not found, as ever.
    """
    finder = _StandIns(packages)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        finder.packages.clear()
        for package in packages:
            _forget_stand_ins(package)


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a stand-in for the packages, and for whatever is asked of them."""

    def __init__(self, packages):
        self.packages = [package for package in packages if package not in sys.modules]

    def find_spec(self, fullname, path=None, target=None):
        package, _, inner = fullname.partition(".")
        if package not in self.packages or not (inner or importlib.machinery.PathFinder.find_spec(package)):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        # Not before it is filled in: the import system looks at a new module's attributes itself.
        module.__class__ = _StandInModule


class _StandInModule(types.ModuleType):
    """
    A module whose public names are stand-ins, too, while imports are deferred: `from module import name` asks for them
    at once. Others, as __version__ and the __all__ of an import of everything, and all of them afterwards, are those of
    the module itself.
    """

    def __getattr__(self, name):
        if name.startswith("__") or _package(self) not in self.__loader__.packages:
            return getattr(_imported(self), name)
        return _StandIn(self, name)


class _StandIn:
    """Something of a module that was not imported: a function, a class, a module in it. Becomes it where it is used."""

    def __init__(self, module, name):
        self.__module, self.__name = module, name

    def __real(self):
        module = _imported(self.__module)
        try:
            return getattr(module, self.__name)
        except AttributeError:
            return importlib.import_module(f"{module.__name__}.{self.__name}")

    def __getattr__(self, name):
        return getattr(self.__real(), name)

    def __call__(self, *args, **kwargs):
        return self.__real()(*args, **kwargs)

    def __getitem__(self, key):
        return self.__real()[key]

    def __iter__(self):
        return iter(self.__real())

    def __contains__(self, value):
        return value in self.__real()

    def __or__(self, other):
        return self.__real() | other

    def __ror__(self, other):
        return other | self.__real()

    def __mro_entries__(self, bases):
        return (self.__real(),)

    def __instancecheck__(self, instance):
        return isinstance(instance, self.__real())

    def __subclasscheck__(self, subclass):
        return issubclass(subclass, self.__real())


def _imported(stand_in):
    """The module that a stand-in stands for."""
    package = _package(stand_in)
    if package in stand_in.__loader__.packages:
        stand_in.__loader__.packages.remove(package)
    _forget_stand_ins(package)
    return importlib.import_module(stand_in.__name__)


def _package(module):
    return module.__name__.partition(".")[0]


def _forget_stand_ins(package):
    """Take a package's stand-ins out of sys.modules."""
    for name, module in list(sys.modules.items()):
        if isinstance(module, _StandInModule) and _package(module) == package:
            del sys.modules[name]
