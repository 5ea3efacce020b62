"""Where figures and plots go."""
import importlib.util

__all__ = ["import_pyplot", "output_problem"]


def output_problem(json, plot):
    """What keeps a report and its plot from being written to these paths, None where not wanted; None if nothing."""
    for path in filter(None, (json, plot)):
        if not path.resolve().parent.is_dir():
            return f"{path}: there is no folder {path.resolve().parent}"
    if plot and importlib.util.find_spec("matplotlib") is None:
        return "--plot needs matplotlib: pip install matplotlib"
    return None


def import_pyplot():
    """matplotlib's pyplot, which draws into files."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    return pyplot
