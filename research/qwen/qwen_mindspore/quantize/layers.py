"""What quantize.py does: the layers of a model, one after the other, each kept in a file once it is quantized."""
import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from qwen_mindspore.checkpoint.files import ANY, Checkpoint, check_tensors, checkpoint_files, read_config
from qwen_mindspore.checkpoint.names import Piece, hf_to_ms, linear_name, linears, ms_to_hf
from qwen_mindspore.checkpoint.packing import EMBEDDING, HEAD, pack
from qwen_mindspore.checkpoint.replace import repair
from qwen_mindspore.common.progress import progress_bar
from qwen_mindspore.families import family_of
from qwen_mindspore.model.torch_qwen import TorchQwen
from qwen_mindspore.quantize.quantizers import Levels, dequantize, gptq, round_to_nearest

BATCH_TOKENS = 8192  # that go through a layer at once
STEPS = 4  # groups of linears of a layer that have the same inputs
VERSION = 1  # of what a part file holds; layers of another version are not reused


class Source:
    """
    A checkpoint that is not quantized, under MindSpore's names whatever its format.

    Args:
        path (str): A MindSpore folder, .ckpt or .safetensors, beside which config.json lies, or a Hugging Face folder.

    Attributes:
        config (dict): Its config.json.
        tensors (dict): Name -> Stored.
        files, place, folder: Where it lies.

    Raises:
        ValueError: It is quantized already, no Qwen, or see check_tensors.
        OSError: A file is missing.
    """

    def __init__(self, path):
        path = Path(path)
        repair(path)
        if not path.exists():
            raise FileNotFoundError(f"--load_checkpoint {path}: no such file or folder")
        self.folder = path if path.is_dir() else path.parent
        files = checkpoint_files(path, ANY)
        self.config = read_config(self.folder / "config.json")
        self.family = family_of(self.config)
        if self.config.get("quantization") or self.config.get("quantization_config"):
            raise ValueError(f"{path}: quantized already: name the checkpoint it was made of")
        self._checkpoint = Checkpoint(files)
        self.files, self.place = files, self._checkpoint.place
        self._by_hf_name, table = ms_to_hf(self.config), hf_to_ms(self.config)
        if f"{self.family.name('embedding', 'hf')}.weight" in self._checkpoint.tensors:
            check_tensors(self._checkpoint, self._by_hf_name)
            self._pieces = {name: tensor.pieces[0] for name, tensor in table.items()}
        else:
            check_tensors(self._checkpoint, table)
            self._pieces = {name: Piece(name, 0, tensor.shape[0]) for name, tensor in table.items()}
        self.tensors = {name: self._checkpoint.tensors[piece.name]._replace(shape=table[name].shape)
                        for name, piece in self._pieces.items()}

    def read(self, name, first, last):
        """Rows `first` to `last` of a tensor, as a torch tensor."""
        piece = self._pieces[name]
        return self._checkpoint.read(piece.name, piece.first + first, piece.first + last)

    def read_hf(self, name):
        """A whole tensor by its Hugging Face name, float32."""
        return torch.cat([self.read(*piece) for piece in self._by_hf_name[name].pieces]).float()

    def read_layer(self, layer):
        """{Hugging Face name: float32 tensor} of a layer."""
        prefix = self.family.prefix("hf", layer)
        return {name: self.read_hf(name) for name in self._by_hf_name if name.startswith(prefix)}


class WithParts:
    """A Source in which the tensors of part files stand for its own."""

    def __init__(self, source, parts):
        self.files, self.place = source.files, source.place
        self._source, self._parts = source, Checkpoint(parts)
        self.tensors = source.tensors | self._parts.tensors

    def read(self, name, first, last):
        """Rows `first` to `last` of a tensor, as a torch tensor."""
        return (self._parts if name in self._parts.tensors else self._source).read(name, first, last)


class Activations:
    """float32 [samples, length, width] in a file, of which a few samples are in memory. `read` and `write` take slices
    of samples."""

    def __init__(self, path, length, width):
        self.path, self.shape = path, (length, width)
        self.sample = length * width * 4
        path.touch()

    def read(self, samples):
        """[B, length, width]"""
        with open(self.path, "rb") as file:
            file.seek(samples.start * self.sample)
            data = bytearray(file.read((samples.stop - samples.start) * self.sample))
        return torch.frombuffer(data, dtype=torch.float32).view(-1, *self.shape)

    def write(self, samples, values):
        """Write `values` [B, length, width], and return them."""
        with open(self.path, "r+b") as file:
            file.seek(samples.start * self.sample)
            file.write(values.contiguous().numpy().data)
        return values


class Run:
    """
    One quantization, with its folder of finished parts.

    Args:
        source (Source): What is quantized.
        settings (Quantization): To what.
        folder (Path): OUT.part.
        samples (np.ndarray): Calibration ids [samples, length] int32; None for rtn.
        damp (float): See `gptq`.
    """

    def __init__(self, source, settings, folder, samples=None, damp=0.01):
        self.source, self.settings, self.folder, self.samples, self.damp = source, settings, folder, samples, damp
        self.config, self.linears = source.config, linears(source.config)
        self.model = TorchQwen(self.config, {})
        self.layers = self.model.layers
        if samples is not None:
            size = max(1, BATCH_TOKENS // samples.shape[1])
            self.batches = [slice(first, min(first + size, len(samples))) for first in range(0, len(samples), size)]
            self.rotation = self.model.rotation(0, samples.shape[1])

    def fingerprint(self):
        """What the content of the parts depends on."""
        files = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in self.source.files]
        data = None if self.samples is None else hashlib.sha256(self.samples.tobytes()).hexdigest()
        return {"version": VERSION, **self.settings.to_dict(), "damp": self.damp, "calibration": data,
                "model": self.config, "files": files}

    def parts(self):
        """The files of the parts in the order in which they are made."""
        names = [f"layer-{layer:03}" for layer in range(self.layers)]
        if self.settings.covers(EMBEDDING):
            names.insert(0, "embedding")
        if self.settings.covers(HEAD):
            names.append("head")
        return [self.folder / f"{name}.safetensors" for name in names]

    def make_parts(self):
        """Quantize what is not there yet."""
        if self.settings.covers(EMBEDDING) and not self._part("embedding").exists():
            name = self.model.name("embedding")
            self._save_part("embedding", {name: self._round(self.source.read_hf(f"{name}.weight"))})
        with torch.inference_mode(), self._progress() as bar:
            if self.samples is None:
                self._round_layers(bar)
            else:
                self._calibrate_layers(bar)

    # Round to nearest

    def _round(self, weight):
        return round_to_nearest(weight, self.settings)

    def _round_layers(self, bar):
        names = {f"layer-{layer:03}": [name for name in self.linears
                                      if name.startswith(self.source.family.prefix("hf", layer))]
                 for layer in range(self.layers)}
        names["head"] = [self.model.name("head")] if self.settings.covers(HEAD) else []
        for part, linears_of_part in names.items():
            if linears_of_part and not self._part(part).exists():
                self._save_part(part, {name: self._round(self.source.read_hf(f"{name}.weight"))
                                       for name in linears_of_part})
            bar.update(bool(linears_of_part))

    # GPTQ

    def _calibrate_layers(self, bar):
        first = self._first_layer()
        bar.update(first * STEPS)
        for layer in range(first, self.layers):
            self.model.weights = self.source.read_layer(layer)
            hidden, result = self._hidden(layer), self._hidden(layer + 1, unfinished=True)
            self._save_part(f"layer-{layer:03}", dict(self._quantize_layer(layer, hidden, result, bar)))
            os.replace(result.path, self._hidden_path(layer + 1))
            hidden.path.unlink()
        if self.settings.covers(HEAD) and not self._part("head").exists():
            norm, head = self.model.name("norm"), self.model.name("head")
            self.model.weights = {name: self.source.read_hf(name) for name in (f"{norm}.weight", f"{head}.weight")}
            hidden = self._hidden(self.layers)
            self._save_part("head", dict(self._calibrate(
                [head], lambda batch: self.model.norm(norm, hidden.read(batch)), bar)))

    def _first_layer(self):
        """The layer whose inputs are there, the embeddings if need be."""
        found = [layer for layer in range(self.layers + 1) if self._hidden_path(layer).exists()]
        if found:
            return max(found)
        weight = self._embedding()
        hidden = self._hidden(0, unfinished=True)
        for batch in self.batches:
            hidden.write(batch, weight[torch.from_numpy(self.samples[batch].astype(np.int64))])
        os.replace(hidden.path, self._hidden_path(0))
        return 0

    def _embedding(self):
        weight = self.source.read_hf(f"{self.model.name('embedding')}.weight")
        if self.settings.covers(EMBEDDING):
            return dequantize(self._round(weight), self.settings.group_size)
        return weight

    def _quantize_layer(self, layer, hidden, result, bar):
        """Yield (linear, Levels) of a layer, each calibrated with what the ones before it give when quantized."""
        model = self.model
        heads = Activations(self.folder / "heads.tmp", self.samples.shape[1], model.sizes.query)
        attention_norm, output, ffn_norm, down = (
            model.name(role, layer) for role in ("attention_norm", "o", "ffn_norm", "down"))

        def attention_inputs(batch):
            return model.norm(attention_norm, hidden.read(batch))

        def projection_inputs(batch):
            return heads.write(batch, model.attend(layer, attention_inputs(batch), self.rotation, {}))

        def feed_forward_inputs(batch):
            attention = model.linear(output, heads.read(batch))
            return model.norm(ffn_norm, result.write(batch, hidden.read(batch) + attention))

        def down_inputs(batch):
            return model.gate(layer, model.norm(ffn_norm, result.read(batch)))

        for roles, inputs in ((("q", "k", "v"), attention_inputs), (("o",), projection_inputs),
                              (("up", "gate"), feed_forward_inputs), (("down",), down_inputs)):
            # Roles that are one linear in Hugging Face's model are quantized as one.
            names = list(dict.fromkeys(model.name(role, layer) for role in roles))
            yield from self._calibrate(names, inputs, bar)
        for batch in self.batches:
            result.write(batch, result.read(batch) + model.linear(down, down_inputs(batch)))
        heads.path.unlink()

    def _calibrate(self, names, inputs, bar):
        """Yield (linear, Levels) of linears that have the same inputs; `inputs(batch)` gives those of some samples."""
        weights = [self.model.weights[f"{name}.weight"] for name in names]
        hessian = torch.zeros(weights[0].shape[1], weights[0].shape[1])
        for batch in self.batches:
            x = inputs(batch).flatten(0, 1)
            hessian.addmm_(x.t(), x)
            bar.update(0.5 / len(self.batches))
        hessian /= self.samples.size
        levels = gptq(torch.cat(weights), hessian, self.settings, self.damp)
        first = 0
        for name, weight in zip(names, weights):
            part = Levels(*(tensor[first:first + len(weight)] for tensor in levels[:3]), levels.order)
            self.model.weights[f"{name}.weight"] = dequantize(part, self.settings.group_size)
            first += len(weight)
            yield name, part
        bar.update(0.5)

    # The folder

    def _hidden_path(self, layer):
        return self.folder / f"hidden-{layer:03}.bin"

    def _hidden(self, layer, unfinished=False):
        """The inputs of a layer, or the last one's outputs."""
        path = self._hidden_path(layer).with_suffix(".tmp") if unfinished else self._hidden_path(layer)
        return Activations(path, self.samples.shape[1], self.config["hidden_size"])

    def _part(self, name):
        return self.folder / f"{name}.safetensors"

    def _save_part(self, name, quantized):
        """Write {linear: Levels}, by Hugging Face's names, as packed tensors by MindSpore's."""
        from safetensors.torch import save_file

        bits, tensors = self.settings.bits, {}
        for linear, levels in quantized.items():
            for ms_name, piece in self._rows(linear):
                rows = slice(piece.first, piece.last)
                packed = torch.from_numpy(np.ascontiguousarray(pack(levels.levels[rows].numpy(), bits)))
                found = {"weight": packed, "scales": levels.scales[rows], "zeros": levels.zeros[rows],
                         "order": levels.order}
                base = linear_name(ms_name)
                tensors |= {ms_name if kind == "weight" else f"{base}.{kind}": tensor.contiguous().clone()
                            for kind, tensor in found.items() if tensor is not None}
        path = self._part(name)
        save_file(tensors, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def _rows(self, linear):
        """(MindSpore name, Piece) of the rows of a linear that Hugging Face's model has."""
        return [(name, tensor.pieces[0]) for name, tensor in hf_to_ms(self.config).items()
                if tensor.pieces[0].name == f"{linear}.weight"]

    def _progress(self):
        total = self.layers * (1 if self.samples is None else STEPS) + self.settings.covers(HEAD)
        return progress_bar(total, self.folder.stem, smoothing=0.05,
                            bar_format="{desc}: {percentage:3.0f}% |{bar:30}| {elapsed}, {remaining} left")
