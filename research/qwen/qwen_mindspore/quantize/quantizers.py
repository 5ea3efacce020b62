"""Round to nearest and GPTQ, in torch: a float weight becomes levels, with a scale and a zero for a group of inputs.

Both fit scales that are already rounded to float16, as checkpoints hold them, so that what is minimized is the error of
the weights that will be computed with.
"""
from typing import NamedTuple

import torch

__all__ = ["Levels", "dequantize", "fit_scales", "gptq", "round_to_nearest"]

BLOCK = 128  # columns whose errors are spread over the rest of the weight at once
ROWS = 16384  # outputs that are quantized at once
SHARES = [1 - step / 50 for step in range(1, 25)]  # parts of a group's range that a scale may cover
SMALLEST = 2.0 ** -24  # of float16


class Levels(NamedTuple):
    """
    A quantized weight [outputs, inputs] with `groups` of inputs.

    Attributes:
        levels (Tensor): uint8 [outputs, inputs]; column k is that of input `order[k]`.
        scales (Tensor): float16 [outputs, groups]; column k is of group k // group_size.
        zeros (Tensor): uint8 [outputs, groups], the level that stands for 0.
        order (Tensor): int32 [inputs], or None where the columns stand as the inputs do.
    """

    levels: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    order: torch.Tensor | None = None


def dequantize(quantized, group_size):
    """The weight that Levels stand for, float32 [outputs, inputs]."""
    inputs = quantized.levels.shape[1]
    group = torch.arange(inputs) // _size(group_size, inputs)
    weight = _value(quantized.levels.float(), quantized.scales.float()[:, group], quantized.zeros.float()[:, group])
    if quantized.order is None:
        return weight
    return torch.empty_like(weight).index_copy_(1, quantized.order.long(), weight)


def round_to_nearest(weight, settings):
    """
    Quantize each weight on its own, with scales that just cover the weights of a group.

    Args:
        weight (Tensor): float32 [outputs, inputs].
        settings (Quantization): bits, group_size, sym.

    Returns:
        Levels.

    Raises:
        ValueError: The weight is too large for float16, or not finite.
    """
    return _by_rows(lambda rows: _round_rows(rows, settings), weight)


def _round_rows(weight, settings):
    scales, zeros = fit_scales(_groups(weight, settings.group_size), settings)
    group = torch.arange(weight.shape[1]) // _size(settings.group_size, weight.shape[1])
    levels = _level(weight, scales[:, group], zeros[:, group], settings.bits)
    return Levels(levels.byte(), scales.half(), zeros.byte())


def gptq(weight, hessian, settings, damp=0.01):
    """
    Quantize input by input, and let the inputs that are still to come make up for each one's error. The inputs with the
    largest mean square come first.

    With `settings.desc_act` a group is of inputs that come one after the other, and its scales are chosen when its turn
    comes. Otherwise a group is of neighbouring inputs, with scales chosen at the beginning: then no `order` is needed.

    Args:
        weight (Tensor): float32 [outputs, inputs].
        hessian (Tensor): float32 [inputs, inputs], the mean of x x^T over inputs x of the linear.
        settings (Quantization): bits, group_size, sym, desc_act.
        damp (float): What is added to the hessian's diagonal, as a share of its mean.

    Returns:
        Levels.

    Raises:
        ValueError: The weight or the hessian is not finite, or the weight is too large for float16.

    Source: Frantar et al., arXiv:2210.17323. The order (desc_act) and fixed groups (static_groups):
    https://github.com/AutoGPTQ/AutoGPTQ
    """
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    importance = hessian.diagonal() + damp * hessian.diagonal().mean()
    factor = _inverse_factor(hessian[order][:, order], damp)
    return _by_rows(lambda rows: _gptq_rows(rows, factor, order, importance, settings), weight)


def _gptq_rows(weight, factor, order, importance, settings):
    """`gptq` of some outputs, which have nothing to do with the others; `order` is the one of quantizing."""
    inputs, size = weight.shape[1], _size(settings.group_size, weight.shape[1])
    if settings.desc_act:
        group = torch.arange(inputs) // size
        scales, zeros = torch.empty(2, len(weight), int(group[-1]) + 1)
    else:
        group = order // size
        scales, zeros = fit_scales(_groups(weight, size), settings, _groups(importance, size))
    # Inputs as rows: each is contiguous.
    rows, importance = weight.t()[order].contiguous(), importance[order]
    levels, errors = torch.empty(rows.shape, dtype=torch.uint8), torch.empty_like(rows)
    for first in range(0, inputs, BLOCK):
        last = min(first + BLOCK, inputs)
        for k in range(first, last):
            if settings.desc_act and k % size == 0:
                coming = rows[k:k + size].clone()
                # What of the group lies beyond this block has not yet made up for the errors within it.
                coming[last - k:] -= factor[first:k, last:k + size].t() @ errors[first:k]
                scales[:, group[k]], zeros[:, group[k]] = fit_scales(coming.t(), settings, importance[k:k + size])
            scale, zero = scales[:, group[k]], zeros[:, group[k]]
            level = _level(rows[k], scale, zero, settings.bits)
            levels[k], errors[k] = level, (rows[k] - _value(level, scale, zero)) / factor[k, k]
            rows[k + 1:last] -= torch.outer(factor[k, k + 1:last], errors[k])
        rows[last:] -= factor[first:last, last:].t() @ errors[first:last]
    # Back to the inputs' own sequence, which they keep within a group, too.
    levels = torch.empty_like(levels).index_copy_(0, order, levels)
    if settings.desc_act:
        order = torch.argsort(torch.empty_like(group).index_copy_(0, order, group), stable=True)
        levels = levels[order]
    return Levels(levels.t().contiguous(), scales.half(), zeros.byte(), order.int() if settings.desc_act else None)


def _by_rows(quantize, weight):
    """What `quantize` gives for some outputs at a time, put together: a head has 151,936."""
    parts = [quantize(rows) for rows in weight.split(ROWS)]
    return Levels(*(torch.cat(tensors) for tensors in list(zip(*parts))[:3]), parts[0].order)


def fit_scales(weights, settings, importance=None):
    """
    The scale and zero of groups.

    Args:
        weights (Tensor): float32 [..., inputs of a group].
        settings (Quantization): bits, sym.
        importance (Tensor): What the squared error of each input counts, to be broadcast. With it, of scales that cover
            all of the range of the weights or a part of it the one with the least error is taken, without it the first.

    Returns:
        (scales, zeros), float32 [...], which float16 and uint8 can hold.
    """
    low, high = weights.amin(-1).clamp(max=0), weights.amax(-1).clamp(min=0)
    if not (low.isfinite() & high.isfinite()).all():
        raise ValueError("the weight has values that are no numbers")
    if settings.sym:
        high = torch.maximum(high, -low)
        low = -high
    best = _grid(low, high, settings)
    if importance is None:
        return best
    least = _error(weights, importance, *best, settings.bits)
    for share in SHARES:
        found = _grid(low * share, high * share, settings)
        error = _error(weights, importance, *found, settings.bits)
        better = error < least
        least = torch.where(better, error, least)
        best = [torch.where(better, new, old) for new, old in zip(found, best)]
    return best


def _grid(low, high, settings):
    """Scale and zero of the levels that span low to high, which lie on both sides of 0."""
    top = 2 ** settings.bits - 1
    if not settings.sym:
        # AutoGPTQ's files hold a zero less one, in as many bits as a level: 0 is not to be had.
        low = torch.minimum(low, -high / (top - 1))
    # A group of zeros alone has any scale.
    scales = torch.where(low == high, 1.0, (high - low) / top).half().float().clamp(min=SMALLEST)
    if scales.isinf().any():
        raise ValueError(f"the weight has values up to {max(high.max(), -low.min()):g}: float16 can't hold their scale")
    if settings.sym:
        return scales, torch.full_like(scales, (top + 1) // 2)
    return scales, (-low / scales).round().clamp(1, top)


def _error(weights, importance, scales, zeros, bits):
    """The sum of the squared errors of each group, weighed by importance."""
    scales, zeros = scales[..., None], zeros[..., None]
    errors = _value(_level(weights, scales, zeros, bits), scales, zeros) - weights
    return (errors.square() * importance).sum(-1)


def _level(weights, scales, zeros, bits):
    return ((weights / scales).round() + zeros).clamp(0, 2 ** bits - 1)


def _value(levels, scales, zeros):
    return (levels - zeros) * scales


def _inverse_factor(hessian, damp):
    """The upper Cholesky factor [inputs, inputs] of the inverse of a hessian, which is altered."""
    if not hessian.isfinite().all():
        raise ValueError("the calibration gave activations that are no numbers")
    diagonal = hessian.diagonal()
    # An input that was always 0 has no say in the others' errors: its weights are rounded to the nearest.
    diagonal[diagonal == 0] = 1
    step = damp * diagonal.mean()
    for _ in range(6):
        diagonal += step
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
        if not failed:
            return factor
        # Of few tokens, in float32, a hessian may not be positive even so.
        step = step * 10
    raise ValueError("the calibration gave activations that can't be told apart: give more text")


def _groups(weight, group_size):
    """[..., inputs] -> [..., groups, inputs of a group]; a shorter last group is filled up with zeros."""
    size = _size(group_size, weight.shape[-1])
    return torch.nn.functional.pad(weight, (0, -weight.shape[-1] % size)).unflatten(-1, (-1, size))


def _size(group_size, inputs):
    return inputs if group_size == -1 else group_size
