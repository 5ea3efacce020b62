"""
Files of torch.save: today's zip archive, and the format before torch 1.6; read with `weights_only`, which runs no code.

What such a file holds is anything that was saved. A dict of tensors by name is taken, also where a trainer has put it
into another dict, as {"state_dict": ..., "epoch": 3}.

Source: torch/serialization.py
"""
import re
import warnings
import weakref

from qwen_mindspore.checkpoint.stored import Stored, damaged, to_array
from qwen_mindspore.common.progress import say
from qwen_mindspore.common.text import shown

__all__ = ["TorchFile"]

ZIP = b"PK\x03\x04"
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
DEEPEST = 3  # dicts around the one that is meant
CODE = re.compile(r"GLOBAL ([\w.]*\w)")


class TorchFile:
    """
    A .bin file of torch.save. See the module.

    The tensors of a zip archive are mapped. Those of the older format must be read as a whole: they are kept until the
    next file of that kind is read, so that one of them is in memory.

    Raises:
        ValueError: It is damaged, holds what only code could make, or no dict of tensors by name.
    """

    _holder = staticmethod(lambda: None)  # the one whose tensors are kept

    def __init__(self, path):
        self.path, self._kept = path, None
        with open(path, "rb") as file:
            self._is_zip = file.read(len(ZIP)) == ZIP
        content = self._load()
        self._way = self._find(content, ())
        if self._way:
            self._say_what_is_left(content)
        self.tensors = {name: Stored(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
                        for name, tensor in self._dict().items() if self._is_tensor(name, tensor)}

    def read(self, name, first, last):
        return self._dict()[name][first:last]

    def array(self, name, first, last):
        return to_array(self.read(name, first, last))

    def _dict(self):
        content = self._load()
        for key in self._way:
            content = content[key]
        return content

    def _load(self):
        if self._is_zip:
            return self._read_file()
        if self._kept is None:
            holder = TorchFile._holder()
            if holder is not None:
                holder._kept = None
            self._kept = self._read_file()
            TorchFile._holder = weakref.ref(self)
        return self._kept

    def _read_file(self):
        import torch

        try:
            with warnings.catch_warnings():  # about bytes that are damaged anyway
                warnings.simplefilter("ignore")
                return torch.load(self.path, map_location="cpu", weights_only=True, mmap=self._is_zip)
        except MemoryError:
            raise
        except Exception as error:  # of any type: damaged bytes reach every part of torch's unpickler
            reason = " ".join(re.sub(r"\x1b\[[\d;]*m", "", str(error)).split())
            if code := CODE.search(reason):
                raise ValueError(f"{self.path}: more than tensors: it asks to run {code[1]}, which is not done: fetch "
                                 "the model's safetensors, or save its state_dict() alone where you trust this "
                                 "file") from None
            reason = reason.rpartition("WeightsUnpickler error: ")[2].partition(" Please ")[0] or type(error).__name__
            raise ValueError(damaged(self.path, shown(reason, 100)[1:-1])) from error

    def _find(self, content, way):
        """The keys that lead to the dict of tensors; ValueError where there is none, or more than one."""
        import torch

        place = "".join(f"[{key!r}]" for key in way)
        if not isinstance(content, dict):
            raise ValueError(f"{self.path}{place}: expected a dict of tensors by name, found "
                             f"{'one tensor' if isinstance(content, torch.Tensor) else type(content).__name__}: save "
                             "the state_dict() of the model")
        if any(isinstance(value, torch.Tensor) for value in content.values()):
            return way
        inner = [key for key in WRAPPERS if isinstance(content.get(key), dict) and content[key]]
        if len(inner) > 1:
            raise ValueError(f"{self.path}{place}: {' and '.join(inner)} may both be the model: save the state_dict() "
                             "of the model alone")
        if not inner or len(way) == DEEPEST:
            keys = ", ".join(shown(key) for key in list(content)[:6])
            raise ValueError(f"{self.path}{place}: expected a dict of tensors by name, found one of "
                             f"{keys or 'nothing'}: save the state_dict() of the model")
        return self._find(content[inner[0]], (*way, inner[0]))

    def _say_what_is_left(self, content):
        place = "".join(f"[{key!r}]" for key in self._way)
        others = [shown(key) for key in content if key != self._way[0]]
        left = f"; left out: {', '.join(others[:6])}" if others else ""
        say("checkpoint", f"{self.path}: the weights are those in {place}{left}")

    def _is_tensor(self, name, tensor):
        """Whether an entry is a tensor, which must be an ordinary one with a name; steps and the like are none."""
        import torch

        if not isinstance(tensor, torch.Tensor):
            return False
        if not isinstance(name, str):
            raise ValueError(f"{self.path}: expected tensors by name, found one of the key {shown(name)}: save the "
                             "state_dict() of the model")
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(f"{self.path}: {shown(name)} is no ordinary tensor (sparse, quantized or without "
                             "content): save the state_dict() of the ordinary model")
        return True
