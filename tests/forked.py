"""Commands as processes of their own, without the seconds in which Python imports libraries.

Imports neither Lightning nor a package of ours, and neither does the process that is forked: each command chooses
between Lightning's packages and imports ours as a new interpreter does.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutate import PROCESSES, ROOT, libraries

TRAIN = ROOT / "experiments" / "train.py"


def _work(script, arguments, folder, environment, printed):
    """What the forked process does."""
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # its own processes start as those of a new interpreter do
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for stream, file in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{printed}/{file}", os.O_WRONLY | os.O_CREAT), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    given = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [str(Path(script).parent), *given, *libraries()]
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()


class Forked:
    """``python SCRIPT ARGUMENTS``, forked from a process that has imported the libraries.

    Variables of the environment that are None are those which it shall not have.
    """

    def __init__(self, script, *arguments, cwd=None, **environment):
        self.printed = tempfile.TemporaryDirectory()
        kept = {name: value for name, value in (os.environ | environment).items() if value is not None}
        given = (str(script), list(map(str, arguments)), cwd or os.getcwd(), kept, self.printed.name)
        self.process = PROCESSES.Process(target=_work, args=given)
        self.process.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Nothing of it is left behind."""
        if self.process.exitcode is None:
            os.killpg(self.pid, signal.SIGKILL)

    @property
    def pid(self):
        return self.process.pid

    def send_signal(self, number):
        os.kill(self.pid, number)

    def finish(self, seconds=120):
        """What ``subprocess.run`` returns.

        Raises:
            subprocess.TimeoutExpired: If it takes longer.
        """
        self.process.join(seconds)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, seconds)
        printed = (Path(self.printed.name, name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(self.process.name, self.process.exitcode, *printed)


def wait_for(file, seconds=120):
    deadline = time.monotonic() + seconds
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def run_forked(script, *arguments, **options):
    with Forked(script, *arguments, **options) as process:
        return process.finish()


def run_code(code, *arguments, **options):
    """Runs a program of these lines."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "program.py")
        script.write_text(code)
        return run_forked(script, *arguments, **options)
