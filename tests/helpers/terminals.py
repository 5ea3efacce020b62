"""Programs in a real terminal: in tmux, and in a pseudo-terminal with an emulator that needs nothing installed."""
import fcntl
import os
import pty
import select
import shlex
import shutil
import signal
import struct
import subprocess
import termios
import time

import pyte

HAS_TMUX = shutil.which("tmux") is not None
COLUMNS, LINES = 80, 40
KEYS = {"Enter": "\r", "C-c": "\x03", "C-d": "\x04", "Up": "\x1b[A", "M-Enter": "\x1b\r"}


class Terminal:
    """What both have. `send` takes text and the names in KEYS."""

    def __enter__(self):
        return self

    def wait_for(self, text):
        """The screen as soon as it shows a text."""
        return self.wait_until(lambda screen: text in screen, repr(text))

    def wait_until(self, is_right, what, looks=2400):
        """
        The screen as soon as a function of it says that it is right; AssertionError, naming `what`, if it never is.
        """
        for _ in range(looks):  # two minutes: looks are counted, so that a machine that pauses fails no test
            screen = self.screen()
            if is_right(screen):
                return screen
            time.sleep(0.05)
        raise AssertionError(f"{what} did not come:\n{screen}")


class Tmux(Terminal):
    def __init__(self, command, folder, environment):
        self.socket = f"qwen-test-{os.getpid()}"
        program = shlex.join(["env", *(f"{name}={value}" for name, value in environment.items()), *map(str, command)])
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", str(COLUMNS), "-y", str(LINES), "-c", str(folder),
                   f"{program}; echo exit code $?; cat")

    def _tmux(self, *arguments):
        return subprocess.run(["tmux", "-u", "-L", self.socket, *arguments], check=True, capture_output=True,
                              encoding="utf-8").stdout

    def send(self, *keys):
        for key in keys:
            self._tmux("send-keys", *([key] if key in KEYS else ["-l", key]))

    def screen(self):
        return self._tmux("capture-pane", "-p")

    def __exit__(self, *_):
        self._tmux("kill-server")


class Pty(Terminal):
    def __init__(self, command, folder, environment):
        self.display = pyte.Screen(COLUMNS, LINES)
        self.stream = pyte.ByteStream(self.display)
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            # The emulator does not answer when it is asked where the cursor is.
            os.environ.update(environment, TERM="xterm", PROMPT_TOOLKIT_NO_CPR="1")
            program = shlex.join(map(str, command))
            os.execvp("sh", ["sh", "-c", f"{program}; echo exit code $?; cat"])
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))

    def send(self, *keys):
        for key in keys:
            os.write(self.terminal, KEYS.get(key, key).encode())

    def screen(self):
        while select.select([self.terminal], [], [], 0)[0]:
            self.stream.feed(os.read(self.terminal, 65536))
        return "\n".join(line.rstrip() for line in self.display.display)

    def __exit__(self, *_):
        os.kill(self.process, signal.SIGHUP)
        os.close(self.terminal)
        os.waitpid(self.process, 0)
