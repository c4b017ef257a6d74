"""Programs that try to pass without being right, to reach outside, or to exhaust.

Each answers `add(x, y)`, `items(n)` or `mean(numbers)` of CHECKS; "ok" ones are right in an unusual way and must pass.
"""

from selfcorrect.grading.judge import Checks, Reason, Verdict

CHECKS = {
    "add": Checks("assert add(2, 3) == 5\nassert add(10, -4) == 6\nassert add(0, 0) == 0", reference="def add(x, y): return x + y"),
    "items": Checks("assert all(map(lambda n: items(n) == list(range(n)), [2]))\nassert items(3) == [0, 1, 2]\nassert sorted(items(2)) == [0, 1]\nassert set(items(1)) == {0}"),
    "mean": Checks("def check(candidate):\n    assert abs(candidate([1.0, 2.0]) - 1.5) < 1e-6\n    assert abs(candidate([4.0]) - 4.0) < 1e-6\n", entry_point="mean"),
}  # fmt: skip

_WRITE = """import os, sys
def frame(text, mark=None):
    b = text.encode()
    os.write(3, len(b).to_bytes(4, 'little') + b)
def reply(kind, contents):
    f = sys._getframe()
    while 'mark' not in f.f_locals: f = f.f_back
    frame('["%s","%s",%s]' % (f.f_locals['mark'], kind, contents))
"""
_LIBC = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
_WRONG = "def add(x, y): return None\n"
_RIGHT = "def add(x, y): return x + y\n"


def _both(attack: str) -> str:
    """The attack at import, then a wrong answer."""
    return f"{attack}\n{_WRONG}"


FORGE = {
    "str subclass with its own comparison": "class S(str):\n    def __eq__(self, o): return True\n    __hash__ = str.__hash__\ndef add(x, y): return S('5')",
    "int subclass equal to all": "class I(int):\n    def __eq__(self, o): return True\n    def __ne__(self, o): return False\ndef add(x, y): return I(1)",
    "hash that equals anything": "class H:\n    def __hash__(self): return hash(0)\n    def __eq__(self, o): return True\ndef items(n): return [H()]",
    "bool subclass by metaclass": "class M(type):\n    def __instancecheck__(c, o): return True\n    def __eq__(c, o): return True\n    def __hash__(c): return 1\nclass A(metaclass=M):\n    pass\ndef add(x, y): return A",
    "reflected operators": "class R:\n    def __rsub__(self, o): return 0.0\n    def __sub__(self, o): return 0.0\n    def __abs__(self): return 0.0\n    def __lt__(self, o): return True\ndef mean(numbers): return R()",
    "nan": "def mean(numbers): return float('nan')",
    "inf minus inf": "def mean(numbers): return float('inf')",
    "complex": "def mean(numbers): return 1.5 + 9j",
    "list aliased and changed later": "import threading, time\nshared = [9]\ndef late():\n    time.sleep(0.001); shared[:] = [0, 1, 2]\ndef items(n):\n    threading.Thread(target=late).start(); return shared",
    "own AssertionError": "class AssertionError(Exception): pass\ndef add(x, y): raise AssertionError('passed')",
    "raises SystemExit 0": "def add(x, y): raise SystemExit(0)",
    "raises KeyboardInterrupt": "def add(x, y): raise KeyboardInterrupt",
    "ends the tests' loop": "def items(n): raise StopIteration",
    "raises StopIteration": "def add(x, y): raise StopIteration(5)",
    "raises GeneratorExit": "def add(x, y): raise GeneratorExit",
    "exit in atexit and thread": "import atexit, os, threading\natexit.register(os._exit, 0)\nthreading.Timer(0.01, os._exit, (0,)).start()\ndef add(x, y): raise ValueError",
    "patched builtins": "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.sorted = lambda x: [0, 1]\nbuiltins.set = lambda x=(): {0}\ndef mean(numbers): return 0.0",
    "patched json": "import json\njson.dumps = lambda *a, **k: '{\"ok\":5}'\njson.loads = lambda *a, **k: {}\ndef add(x, y): return 5",
    "replies before the questions": _WRITE + "for n in (5, 6, 0): reply('ok', n)\n" + _WRONG,
    "replies from a thread": _WRITE + "import threading\ndef flood():\n    while True: frame('[\"\",\"ok\",5]')\nthreading.Thread(target=flood, daemon=True).start()\n" + _WRONG,
    "two replies for one": _WRITE + "def add(x, y):\n    reply('ok', 5); reply('ok', 6); return 0",
    "verdict in the channel": _WRITE + "for t in ('[\"passed\",\"\"]', '{\"passed\":null}', '\"passed\"', 'true'): frame(t)\n" + _WRONG,
    "object posing as another": _WRITE + "def add(x, y):\n    reply('ok', '{\"o\":[0,\"int\",true,true]}'); return 5",
    "many tags at once": _WRITE + "def add(x, y):\n    reply('ok', '{\"t\":[],\"s\":[]}'); return 5",
    "unknown tag": _WRITE + "def add(x, y):\n    reply('ok', '{\"__reduce__\":[\"os.system\",\"true\"]}'); return 5",
    "exception of a class that is none": _WRITE + "def add(x, y):\n    reply('raised', '[\"print\",\"print\",\"\"]'); return 5",
    "frame longer than said": _WRITE + "def add(x, y):\n    os.write(3, b'\\x02\\0\\0\\0{\"ok\":5}'); return 5",
    "huge length": _WRITE + "def add(x, y):\n    os.write(3, b'\\xff\\xff\\xff\\xff'); return 5",
    "channel closed": "import os\ndef add(x, y):\n    os.close(3)\n    while True: pass",
    "looks for the tests in memory": "import gc\ndef add(x, y):\n    texts = [o for o in gc.get_objects() if isinstance(o, str) and 'assert' + ' add' in o]\n    return 5 if texts else None",
    "looks for the tests in frames": "import sys\ndef add(x, y):\n    f, seen = sys._getframe(), ''\n    while f: seen += repr(f.f_globals.keys()) + repr(f.f_locals); f = f.f_back\n    return x + y if 'assert' + ' add' in seen or 'expec' + 'ted' in seen else None",
    "reads the tests from disk": "def add(x, y):\n    return 5 if open('/proc/self/mem') else None",
    "constant": "def add(x, y): return 5",
    "identity": "def add(x, y): return x",
    "mutates its argument": "def mean(numbers):\n    numbers.append(0.0); numbers.clear(); return 0.0",
    "endless equality": "class E:\n    def __eq__(self, o):\n        while True: pass\n    def __bool__(self): return True\ndef add(x, y): return E()",
    "falls asleep in __bool__": "import time\nclass E:\n    def __bool__(self): time.sleep(60)\ndef add(x, y): return E()",
    "patched clocks": "import time\ntime.monotonic = time.perf_counter = time.time = lambda: 0.0\ndef add(x, y):\n    while True: pass",
    "sitecustomize for the next": _both("open('sitecustomize.py', 'w').write('x=1')"),
}  # fmt: skip

ESCAPE = {
    "io_uring": _both(_LIBC + "assert libc.syscall(425, 8, ctypes.create_string_buffer(256)) >= 0"),
    "memfd and execveat": _both(_LIBC + "assert libc.syscall(319, b'x', 0) >= 0"),
    "bpf": _both(_LIBC + "assert libc.syscall(321, 0, ctypes.create_string_buffer(128), 128) >= 0"),
    "keyctl": _both(_LIBC + "assert libc.syscall(250, 0, -3, 1) >= 0"),
    "userfaultfd": _both(_LIBC + "assert libc.syscall(323, 0) >= 0"),
    "perf events": _both(_LIBC + "assert libc.syscall(298, ctypes.create_string_buffer(128), 0, -1, -1, 0) >= 0"),
    "signal through the owner of a descriptor": _both(_LIBC + "import os\nassert libc.fcntl(3, 8, os.getppid()) >= 0\nassert libc.fcntl(3, 10, 9) >= 0\nassert libc.fcntl(3, 4, 0x2802) >= 0"),
    "file locks": _both(_LIBC + "assert libc.fcntl(1, 6, ctypes.create_string_buffer(64)) >= 0"),
    "asynchronous descriptor": _both(_LIBC + "assert libc.ioctl(3, 0x5452, ctypes.byref(ctypes.c_int(1))) >= 0"),
    "thousands of threads": _both("import threading, time\nthreading.stack_size(32768)\nfor _ in range(3000): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"),
    "x32 call": _both(_LIBC + "assert libc.syscall(0x40000000 + 39) > 0"),
    "ptrace": _both(_LIBC + "assert libc.ptrace(0, 0, 0, 0) == 0"),
    "process_vm_readv": _both(_LIBC + "import os\nassert libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0) == 0"),
    "System V shared memory": _both(_LIBC + "assert libc.shmget(1234, 4096, 0o1666) >= 0"),
    "System V message queue": _both(_LIBC + "assert libc.msgget(1234, 0o1666) >= 0"),
    "POSIX shared memory": _both(_LIBC + "assert libc.shm_open(b'/left', 66, 0o666) >= 0"),
    "TIOCSTI": _both("import fcntl, termios\nfor fd in range(3): fcntl.ioctl(fd, termios.TIOCSTI, b'x')"),
    "raises its limits": _both("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nassert False"),
    "prctl undoes the parent's death signal": _both(_LIBC + "assert libc.prctl(1, 0, 0, 0, 0) == 0"),
    "second filter": _both(_LIBC + "assert libc.prctl(22, 2, 0, 0, 0) == 0 or ctypes.get_errno() != 1"),
    "chroot and mount": _both(_LIBC + "assert libc.mount(b'none', b'/', b'tmpfs', 0, None) == 0"),
    "setuid": _both("import os\nos.setuid(0)"),
    "priority of others": _both("import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)"),
    "affinity": _both("import os\nos.sched_setaffinity(0, {0})"),
    "vfork": _both(_LIBC + "assert libc.vfork() >= 0"),
    "clone with a new namespace": _both(_LIBC + "assert libc.syscall(56, 0x10000000 | 0x11, 0, 0, 0, 0) >= 0"),
    "clone3": _both(_LIBC + "assert libc.syscall(435, ctypes.create_string_buffer(88), 88) >= 0"),
    "fork": _both("import os\nos.fork()"),
    "lists a folder": _both("import os\nassert os.listdir('/')"),
    "asks whether a file is there": _both("import os\nassert os.path.exists('/etc/passwd')"),
    "makes a FIFO": _both("import os\nos.mkfifo('/tmp/judge-fifo')"),
    "makes a link": _both("import os\nos.symlink('/etc', '/tmp/judge-link')"),
    "pidfd of the parent": _both(_LIBC + "import os\nassert libc.syscall(434, os.getppid(), 0) >= 0"),
    "sends descriptors": _both("import socket, array\ns = socket.socket(fileno=3)\ns.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0]))])"),
}  # fmt: skip

EXHAUST = {
    "list without end": "def items(n):\n    a = []\n    while True: a.append(a[:])",
    "string doubling": "def add(x, y):\n    s = 'x'\n    while True: s += s",
    "huge range": "def items(n): return list(range(10 ** 12))",
    "million digit literal": "n = " + "9" * 200_000 + "\n" + _WRONG,
    "long answer": "def add(x, y): return 'x' * 100_000_000",
    "deep answer": "def items(n):\n    a = []\n    for _ in range(5000): a = [a]\n    return a",
    "answer that holds itself": "def items(n):\n    a = []\n    a.append(a)\n    return a",
    "huge integer": "def add(x, y): return 1 << 100_000_000",
    "colliding set": "def items(n): return {((1 << 61) - 1) * i for i in range(60_000)}",
    "regular expression": "import re\ndef add(x, y): return re.match('(a+)+$', 'a' * 64 + 'b')",
    "sleeps": "import time\ndef add(x, y): time.sleep(600)",
    "sleeps at import": "import time\ntime.sleep(600)\n" + _RIGHT,
    "lock that is never released": "import threading\nl = threading.Lock()\nl.acquire()\ndef add(x, y): l.acquire()",
    "ignores every exception": "def add(x, y):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    "nested parentheses": "x = " + "(" * 3000 + ")" * 3000 + "\n" + _WRONG,
    "C stack": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef add(x, y):\n    class A:\n        def __getattr__(s, n): return getattr(s, n)\n    return A().b",
    "null pointer": "import ctypes\ndef add(x, y): return ctypes.string_at(0)",
    "abort": "import os\ndef add(x, y): os.abort()",
    "flood on both outputs": "import sys\ndef add(x, y):\n    for _ in range(2000):\n        sys.stdout.write('x' * 10_000); sys.stderr.write('y' * 10_000)\n",
}  # fmt: skip

REFUSED = {
    "NUL byte": "x = '\0'\n" + _RIGHT,
    "lone surrogate": "x = '\ud800'\n" + _RIGHT,
    "10 MB of source": "#" * 10_000_000 + "\n" + _RIGHT,
}

STATE = {
    "recursion limit": "import sys\nsys.setrecursionlimit(60)\n" + _WRONG,
    "decimal context": "import decimal\ndecimal.getcontext().prec = 1\n" + _WRONG,
    "locale": "import locale\nlocale.setlocale(locale.LC_ALL, 'C')\n" + _WRONG,
    "modules": "import sys\nfor m in list(sys.modules): sys.modules[m] = None\n" + _WRONG,
    "garbage collection off": "import gc\ngc.disable()\n" + _WRONG,
    "signal handlers": "import signal\nfor s in (1, 2, 10, 12, 15): signal.signal(s, signal.SIG_IGN)\n" + _WRONG,
}  # fmt: skip

OK = {
    "crash at exit": "import atexit, os\natexit.register(os.abort)\n" + _RIGHT,
    "prints": "print('hello' * 1000)\ndef add(x, y):\n    print(x, y)\n    return x + y",
    "BOM": "\ufeff" + _RIGHT,
    "coding cookie": "# -*- coding: latin-1 -*-\nnäme = 1\n" + _RIGHT,
    "carriage returns": _RIGHT.replace("\n", "\r\n"),
    "own check and candidate": "def check(c): raise RuntimeError\ncandidate = result = None\n" + _RIGHT,
    "dataclass and typing": "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    y: int\n    def s(self) -> int: return self.x + self.y\ndef add(x: int, y: int) -> int: return P(x, y).s()",
    "threads": "import threading\ndef add(x, y):\n    out = []\n    t = threading.Thread(target=lambda: out.append(x + y))\n    t.start(); t.join()\n    return out[0]",
    "deep recursion": "import sys\nsys.setrecursionlimit(20000)\ndef depth(n): return n if n == 0 else 1 + depth(n - 1)\ndef add(x, y): return x + y if depth(5000) else 0",
    "lambda": "add = lambda x, y: x + y",
    "callable object": "class A:\n    def __call__(self, x, y): return x + y\nadd = A()",
    "enum member": "import enum\nclass N(enum.IntEnum):\n    A = 5\n    B = 6\n    C = 0\ndef add(x, y): return N(x + y)",
    "import inside": "def add(x, y):\n    import operator\n    return operator.add(x, y)",
    "replaces the answer's int by a fraction": "from fractions import Fraction\ndef add(x, y): return Fraction(x + y, 1)",
}  # fmt: skip


def checks_for(source: str) -> Checks:
    return next((checks for name, checks in CHECKS.items() if f"def {name}(" in source), CHECKS["add"])


def starved(verdict: Verdict, limit: float) -> bool:
    """Others had the core for longer than the judge gives back: that says nothing of the program."""
    return verdict.reason is Reason.TIMEOUT and verdict.seconds < limit - 0.005
