"""For llama.cpp's tests: no presets are started beforehand, for there are no models of theirs."""
import utils

utils.ServerPreset.load_all = staticmethod(lambda: None)
utils.DEFAULT_HTTP_TIMEOUT = 300
utils.ServerProcess.start.__defaults__ = (300,)
