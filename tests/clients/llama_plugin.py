"""For llama.cpp's tests, where what they take for granted is no matter of the interface."""
import utils
from requests.structures import CaseInsensitiveDict

ask = utils.ServerProcess.make_request


def make_request(*args, **options):
    """Theirs. Names of headers are read as they are written; HTTP doesn't care."""
    result = ask(*args, **options)
    result.headers = CaseInsensitiveDict(result.headers)
    return result


utils.ServerProcess.make_request = make_request
utils.ServerPreset.load_all = staticmethod(lambda: None)  # there are no models of theirs to bring
utils.ServerProcess.start.__defaults__ = (300,)
