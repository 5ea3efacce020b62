"""
How the zeros of an AutoGPTQ checkpoint are stored: less one ("gptq"), or as they are ("gptq_v2").

Read in the wrong way every weight is off by one scale. What a config declares is often missing or wrong, but the zeros
themselves can tell: with `sym` each is half of the levels, so that a stored 7 of 4 bits means "gptq", 8 "gptq_v2".
Without `sym` the declared format counts, "gptq" where none is. There the weights can tell: a trained model's are 0 on
average, and so is the mean of level less zero; it is 1 where zeros that are stored less one are taken as they are.
"""
import numpy as np

from qwen_mindspore.common.progress import say

__all__ = ["is_second_version"]

FORMATS = ("gptq", "gptq_v2")
NEAR, ERROR = 0.2, 0.05  # levels: between a mean and what it must be, and the mean's standard error
ENOUGH = 200_000  # groups, of which one has read enough
SPREAD = 1 / 16  # of all levels: what the means of groups differ by, at most, where zeros belong to their weights


def is_second_version(packed, settings):
    """
    Whether the zeros of a checkpoint are stored as they are; where that is not as declared, it is said.

    Args:
        packed (PackedCheckpoint): Read are its zeros, and its levels where `sym` doesn't decide.
        settings (dict): See `gptq.read_settings`.

    Returns:
        (bool, whether all zeros are half of the levels).

    Raises:
        ValueError: It can't be decided.
    """
    half, declared = 2 ** (settings["bits"] - 1), settings.get("checkpoint_format")
    names = list(packed.quantized())
    found = {int(zero) for name in names for zero in np.unique(packed.stored_zeros(name))}
    if settings.get("sym", True) and found <= {half - 1, half}:
        if len(found) > 1:
            raise ValueError(f'{packed.place}: qzeros holds both {half - 1} and {half}: with "sym": true every zero is '
                             f"{half}, stored as {half - 1} (gptq) or as {half} (gptq_v2): fetch a checkpoint of one "
                             'format, or write "sym": false and the checkpoint_format that is right')
        is_v2 = found == {half}
        if is_v2 != (declared == "gptq_v2"):
            say("checkpoint", f'{packed.place}: qzeros is all {half - 1 + is_v2}, which with "sym": true means '
                              f"{FORMATS[is_v2]}, and is read so, though the config says {declared or 'nothing'}")
        return is_v2, True
    is_v2 = declared == "gptq_v2"
    if settings.get("sym", True):
        say("checkpoint", f'{packed.place}: the config says "sym": true, but qzeros has other levels than {half}: read '
                          f'as "sym": false and {FORMATS[is_v2]}{" as declared" if declared else ", the default"}')
    _ask_the_weights(packed, names, settings, is_v2)
    return is_v2, found == {half - 1 + is_v2}


def _ask_the_weights(packed, names, settings, is_v2):
    """ValueError where the weights say the other format and the config names none; a word where it names this one."""
    mean = _mean_distance(packed, names, settings)
    if mean is None or abs(mean - is_v2) > NEAR:
        return
    text = (f"{packed.place}: its levels are {mean:.2f} above qzeros on average, as in {FORMATS[not is_v2]}, whose "
            "weights would be 0 on average")
    if settings.get("checkpoint_format") is None:
        raise ValueError(f"{text}, but the config names no format, which means {FORMATS[is_v2]}: write the "
                         "checkpoint_format that is right into quantize_config.json")
    say("checkpoint", f"{text}; the config says {FORMATS[is_v2]}, and it is read so")


def _mean_distance(packed, names, settings):
    """The mean of level less stored zero, without zeros that may have wrapped around; None where it says nothing."""
    highest, found = 2 ** settings["bits"] - 1, []
    for name in names:
        zeros, levels = packed.stored_zeros(name).astype(np.float32), packed.stored_levels(name)
        inputs = levels.shape[1]
        first = np.arange(0, inputs, inputs if settings["group_size"] == -1 else settings["group_size"])
        means = np.add.reduceat(levels, first, axis=1, dtype=np.float32) / np.diff([*first, inputs])
        found.append((means - zeros)[(zeros > 0) & (zeros < highest)])
        if sum(map(len, found)) > ENOUGH:
            break
    distances = np.concatenate(found)
    spread = distances.std() if len(distances) > 1 else np.inf
    if spread > SPREAD * (highest + 1) or spread > ERROR * np.sqrt(len(distances)):
        return None
    return float(distances.mean())
