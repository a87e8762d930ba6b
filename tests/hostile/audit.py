"""A watch over a process: what it reads, writes, imports, loads, runs and connects to.

As a program it watches a command from its first import on:

    python audit.py '{"reads": [...], "writes": [...]}' COMMAND ARGS...
"""

import json
import os
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

STATUS = 66
# modules that only a stranger's file can have asked for
FOREIGN = ("kernels", "flash_attn", "flash_attn_interface", "evil", "transformers_modules")
# to other machines and other programs
AWAY = (
    "socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto",
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.kill",
    "urllib.Request", "ftplib.connect", "http.client.connect", "ctypes.set_exception",
)  # fmt: skip
# what changes the names in folders, by the arguments that are paths
NAMES = {
    "os.remove": (0,), "os.rmdir": (0,), "os.mkdir": (0,), "os.rename": (0, 1), "os.link": (0, 1),
    "os.symlink": (1,), "os.truncate": (0,), "os.chmod": (0,), "os.chown": (0,), "os.utime": (0,),
    "shutil.rmtree": (0,), "shutil.copyfile": (1,), "shutil.move": (0, 1),
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# of the system: what processors there are, the time zone, random bytes
SYSTEM = (
    "/proc", "/sys", "/dev/null", "/dev/urandom", "/dev/tty", "/etc/localtime", "/lib", "/usr/lib",
    "/usr/share/zoneinfo", "/usr/share/fonts", "/usr/local/share/fonts", "/etc/ld.so.cache",
    "/etc/mime.types",
)  # fmt: skip
# where `speed` has the system forget the highest memory so far
OWN = (os.devnull, "/proc/self/clear_refs")


@dataclass
class Watch:
    """Ends the process with status 66, and a line of why, at the first thing that is not allowed.

    It may read below `reads`, below `writes`, Python with its packages and what the system says
    of itself, and write below `writes` only.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]

    def begin(self) -> None:
        """Watch from here to the end of the process."""
        packages = {*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix}
        # torch reads the source of whoever calls it
        own = (str(Path(find_spec("prunecli").origin).parent), str(Path(__file__).parent))
        self.writes = tuple(os.path.realpath(path) for path in (*self.writes, *OWN))
        self.reads = tuple(
            os.path.realpath(path) for path in (*self.reads, *packages, *own, *SYSTEM, *self.writes)
        )
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            self._opened(*args)
        elif event == "import":
            if args[0].partition(".")[0] in FOREIGN:
                self._end(event, args[0])
        elif event in NAMES:
            for number in NAMES[event]:
                self._check(event, args[number], self.writes)
        elif event == "socket.bind" and args[1] == ("::1", 0):
            pass  # urllib3 asks the system whether it has IPv6
        elif event == "subprocess.Popen" and args[0] == "fc-list":
            pass  # matplotlib asks the system for its fonts
        elif event in AWAY:
            self._end(event, args)
        elif event == "ctypes.dlopen" and args[0] and os.sep in str(args[0]):
            self._check(event, args[0], self.reads)

    def _opened(self, path: Any, mode: str | None, flags: int) -> None:
        if not isinstance(path, int):
            self._check("open", path, self.writes if flags & WRITING else self.reads)

    def _check(self, event: str, path: Any, allowed: tuple[str, ...]) -> None:
        if isinstance(path, int):
            return
        real = os.path.realpath(os.fsdecode(path))
        if not any(real == root or real.startswith(root + os.sep) for root in allowed):
            self._end(event, real)

    def _end(self, event: str, what: Any) -> None:
        # nothing can catch this, as it could an exception
        os.write(2, f"watch: {event} {what}\n".encode())
        os._exit(STATUS)


if __name__ == "__main__":
    allowed = json.loads(sys.argv[1])
    sys.argv = ["prunecli", *sys.argv[2:]]
    Watch(tuple(allowed["reads"]), tuple(allowed["writes"])).begin()
    from prunecli.cli.app import main

    main()
