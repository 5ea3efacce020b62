"""A Ray cluster: how one is reached, and what each of several processes takes of it."""
import importlib
import logging
import os

__all__ = ["connect", "environment_of", "resources_of"]

# Ray's own switch for Windows and macOS, where it keeps to the loopback address. Its ports have no keys: on a cluster
# of this machine alone nobody else has anything to do with them.
ONLY_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# MindSpore 2.9's messages need it. MindSpore sets it where it is imported first; in Ray's processes Ray comes first.
PROTOBUF = {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
VERSION = "2.60.0"  # that the tests have
OWN_STORE = 2**28  # bytes that a cluster of this machine alone has for what goes from one process to another


def connect(address, part, option="--ray", verbose=False):
    """
    Reach a cluster, or make one of this machine.

    Args:
        address (str): "local": this machine alone; "auto": the cluster that it belongs to; or HOST:PORT.
        part (str): Of Ray that is needed: "data", "serve".
        option (str): That names the address, for messages.
        verbose (bool): Ray may say what it has to say.

    Returns:
        module: ray.

    Raises:
        ValueError: Ray is not installed, or there is no such cluster.
    """
    if not verbose:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.update(PROTOBUF)
    if address == "local":
        os.environ.setdefault(ONLY_LOOPBACK, "0")
    try:
        import ray
        importlib.import_module(f"ray.{part}")
    except ImportError as error:
        raise ValueError(f'{option} needs Ray ({error}): pip install "ray[{part}]=={VERSION}"') from None
    if not verbose:
        for name in ("ray", f"ray.{part}"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    alone = {"include_dashboard": False, "object_store_memory": OWN_STORE} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=verbose, logging_level="info" if verbose else "critical", **alone)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"{option} {address}: no cluster reached: {error}") from None
    return ray


def resources_of(ray, count, wanted=None, target="CPU"):
    """
    What each of several processes takes, as Ray wants it.

    Args:
        ray (module): Connected.
        count (int): Processes.
        wanted (dict[str, float]): What the user says. Default: an NPU, or its share of the cores.
        target (str): "Ascend" or "CPU".

    Returns:
        (dict, str | None): `num_cpus` and `resources`; and what the cluster has too little of: those that find no
        place wait for it.
    """
    there = ray.cluster_resources()
    if wanted:
        wanted = dict(wanted)
    elif target == "Ascend":
        wanted = {"NPU": 1.0}
    else:
        largest = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
        wanted = {"CPU": max(1.0, min(largest, there.get("CPU", 0) // count))}
    missing = [f"{name}={amount:g} each and the cluster has {there.get(name, 0):g}" for name, amount in wanted.items()
               if amount * count > there.get(name, 0)]
    cpus = wanted.pop("CPU", 0.0 if wanted else 1.0)
    return ({"num_cpus": cpus, "resources": wanted} if wanted else {"num_cpus": cpus}), "; ".join(missing) or None


def environment_of(resources):
    """dict[str, str], the environment of a process that takes those: its kernels use its cores and no others."""
    environment = {**PROTOBUF, "GLOG_v": os.environ.get("GLOG_v", "3")}  # noqa: SIM112  MindSpore spells it so
    if "NPU" not in resources.get("resources", {}):
        environment["QWEN_NUM_THREADS"] = str(max(1, int(resources["num_cpus"])))
    return environment
