"""More programs, each with tests of its own: draws repeated, deadlines stretched, verdicts dodged, and right ones that
are easily taken for wrong. PASS must pass; FORGED must not; LATE must be a `timeout`; LEFT_OUT tries for `grader_failed`.
"""

from typing import Any

from selfcorrect.grading.judge import Checks

Programs = dict[str, tuple[str, Checks]]
LIMIT = 1.0  # seconds that they are judged with
SHORT = 0.25  # and LATE, which waste all of it
DRAWN = "import random\nfor _ in range(9):\n    want = random.random()\n    assert f(-want) == want"
LETTERS = """
def check(candidate):
    from random import randint, choice
    for _ in range(20):
        word = ''.join(choice('abcdefgh') for _ in range(randint(10, 20)))
        assert candidate(word[::-1]) == word
"""
_PREDICT = """
N, M = 624, 397
def untemper(y):
    y ^= y >> 18
    y ^= (y << 15) & 0xefc60000
    x = y
    for _ in range(5): x = y ^ ((x << 7) & 0x9d2c5680)
    y = x
    for _ in range(3): x = y ^ (x >> 11)
    return x & 0xffffffff
def f(seen):
    state = [untemper(y) for y in seen]
    g = random.Random()
    g.setstate((3, (*state, N), None))
    return g.getrandbits(32)
"""
_GUESS = """
import os, time
def f(seen):
    for guess in [0, None, os.getpid(), os.getppid(), id(f), hash('x'), *range(300), *range(os.getpid() - 60, os.getpid() + 9)]:
        g = random.Random(guess)
        if g.randrange(10 ** 9) == seen: return g.randrange(10 ** 9)
    return 0
"""
_CLOCK = """
import math, time
def f(seen):
    now = time.time()
    while now > time.time() - 0.05:
        random.seed(now)
        if random.randrange(10 ** 9) == seen: return random.randrange(10 ** 9)
        now = math.nextafter(now, 0)
"""
_TWO = "import random\nseen = random.randrange(10 ** 9)\nwant = random.randrange(10 ** 9)\nassert f(seen) == want"


def _same(draw: str, setup: str = "import os, random, secrets, uuid") -> tuple[str, Checks]:
    """The test expects what it drew, and the program draws in the same way."""
    return f"{setup}\ndef f(x): return {draw}", Checks(f"{setup}\nwant = {draw}\nassert f(0) == want")


FORGED: Programs = {
    "letters drawn again": ("random.seed(0)\ndef f(x): return ''.join(random.choice('abcdefgh') for _ in range(random.randint(10, 20)))", Checks(LETTERS, "f")),
    "draws again": ("def f(x): return random.random()", Checks(DRAWN)),
    "seeds and draws": ("random.seed(0)\ndef f(x): return random.random()", Checks(DRAWN)),
    "state before the call": ("s = random.getstate()\ndef f(x):\n    random.setstate(s); return random.random()", Checks("import random\nwant = random.random()\nassert f(-want) == want")),
    "new generator": _same("random.Random().random()"),
    "seed from the clock's own": _same("(random.seed(), random.random())[1]"),
    "seed of the clock": (_CLOCK, Checks("import time\nrandom.seed(time.time())\n" + _TWO.removeprefix("import random\n"))),
    "seed of the clock's seconds": ("import time\ndef f(seen):\n    random.seed(int(time.time()))\n    random.randrange(10 ** 9)\n    return random.randrange(10 ** 9)", Checks("import random, time\nrandom.seed(int(time.time()))\n" + _TWO)),
    "seed of the process": ("import os\ndef f(seen):\n    for pid in range(os.getpid() - 3000, os.getpid() + 3000):\n        random.seed(pid)\n        if random.randrange(10 ** 9) == seen: return random.randrange(10 ** 9)", Checks("import os\nrandom.seed(os.getpid())\n" + _TWO.removeprefix("import random\n"))),
    "gauss": _same("random.gauss(0, 1)"),
    "shuffled": _same("random.sample(range(30), 30)"),
    "system's numbers": _same("random.SystemRandom().random()"),
    "urandom": _same("os.urandom(4).hex()"),
    "secrets": _same("secrets.token_hex(4)"),
    "uuid4": _same("str(uuid.uuid4())"),
    "numpy's first number": ("def f(x): return [684, 559, 629]", Checks("import numpy as np\nwant = np.random.randint(1000, size=3).tolist()\nassert f(0) == want")),
    "numpy's default generator": ("def f(x): return 850", Checks("import numpy as np\nwant = int(np.random.default_rng().integers(1000000))\nassert f(0) == want")),
    "state of the generator from its numbers": (_PREDICT, Checks("import random\nseen = [random.getrandbits(32) for _ in range(624)]\nwant = random.getrandbits(32)\nassert f(seen) == want")),
    "state of numpy's generator from its numbers": (_PREDICT, Checks("import numpy as np\nr = np.random.RandomState()\nseen = r.randint(0, 2 ** 32, size=624, dtype=np.uint32).tolist()\nwant = int(r.randint(0, 2 ** 32, dtype=np.uint32))\nassert f(seen) == want")),
    "guesses the seed": (_GUESS, Checks(_TWO)),
    "order of a set": ("def f(s): return tuple(s)", Checks("assert f({12, 13, 14, 15, 16}) == (12, 13, 14, 15, 16)")),
    "another object, equal": ("class N:\n    def __init__(self, v): self.v = v\n    def __eq__(self, o): return True\ndef f(n): return N(n.v)", Checks("n = N(1)\nassert f(n) is n")),
    "last of a list that was not turned": ("class N:\n    def __init__(self, v, n=None): self.v, self.n = v, n\ndef f(n):\n    while n.n: n = n.n\n    return n", Checks("a = N(1)\nb = N(2, a)\nr = f(b)\nassert r is a\nassert r.n is b and b.n is None")),
    "keys that equal all": ("class K(collections.abc.KeysView):\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(d): return K({'b': 1})", Checks("assert f({'a': 1}) == {'a'}")),
    "date that equals all": ("class D(datetime.date):\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(): return D(2020, 1, 1)", Checks("import datetime\nassert f() == datetime.date(2020, 1, 2)")),
    "span that equals all": ("class D(datetime.timedelta):\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(): return D(1)", Checks("import datetime\nassert f() == datetime.timedelta(2)")),
    "id that equals all": ("import uuid\nclass U(uuid.UUID):\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(): return U(int=1)", Checks("import uuid\nassert f() == uuid.UUID(int=2)")),
    "zone that lies": ("class Z(datetime.tzinfo):\n    n = 0\n    def utcoffset(self, d):\n        Z.n += 1; return datetime.timedelta(hours=Z.n)\n    def __eq__(self, o): return True\ndef f(): return datetime.datetime(2020, 1, 1, tzinfo=Z())", Checks("import datetime\nassert f() == datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)")),
    "coroutine for its value": ("async def f(x): return x", Checks("assert f(3) == 3")),
    "ends the task": ("import asyncio\nasync def f(x): raise asyncio.CancelledError", Checks("import asyncio\ntry:\n    got = asyncio.run(f(3))\nexcept Exception:\n    got = None\nassert got == 3")),
    "swallowed by gather": ("import os\nasync def f(x): os._exit(0)", Checks("import asyncio\nasync def go():\n    return await asyncio.gather(f(1), return_exceptions=True)\nassert len(asyncio.run(go())) == 1")),
    "the usual loop, refused": ("import asyncio\ndef f():\n    return asyncio.SelectorEventLoop().run_until_complete(asyncio.sleep(0, 3))", Checks("assert f() == 3")),
}  # fmt: skip

_SPIN = "def spin(s):\n    end = time.thread_time() + s\n    while time.thread_time() < end: pass\n"
_MORE_THAN = "end = time.process_time() + 0.33\n    while time.process_time() < end: "
_HASHING = (
    "import hashlib, os, threading, time\nb = bytes(1 << 20)\ndef work():\n    while True: hashlib.sha256(b).digest()\n"
)
_IMPORT = "vars()['__buil' + 'tins__']['__imp' + 'ort__']"  # so that it is not seen in the text
_STARTS = "for _ in range(4): threading.Thread(target=work, daemon=True).start()\n    "
_THREE = Checks("assert f(2) == 3")
LATE: Programs = {
    "threads keep the leader waiting": (f"{_HASHING}def f(x):\n    {_STARTS}{_MORE_THAN}hashlib.sha256(b).digest()\n    return 3", _THREE),
    "leader yields": (f"{_HASHING}def f(x):\n    {_STARTS}{_MORE_THAN}os.sched_yield()\n    return 3", _THREE),
    "leader sleeps a little, often": (f"{_HASHING}def f(x):\n    {_STARTS}{_MORE_THAN}time.sleep(0)\n    return 3", _THREE),
    "work shared out": (f"import threading, time\n{_SPIN}def f(x):\n    t = [threading.Thread(target=spin, args=(0.09,)) for _ in range(4)]\n    for s in t: s.start()\n    for s in t: s.join()\n    return 3", _THREE),
    "work in short threads": (f"import threading, time\n{_SPIN}def f(x):\n    for _ in range(18):\n        t = threading.Thread(target=spin, args=(0.02,)); t.start(); t.join()\n    return 3", _THREE),
    "sleeps after many waited": (f"import threading, time\n{_SPIN}def f(x):\n    for _ in range(5): threading.Thread(target=spin, args=(0.02,)).start()\n    spin(0.08)\n    end = time.process_time() + 0.13\n    while time.process_time() < end: time.sleep(0.001)\n    return 3", _THREE),
    "leader has ended": ("import ctypes, threading\ndef work():\n    while True: pass\nthreading.Thread(target=work).start()\nctypes.CDLL(None).syscall(60, 0)", _THREE),
    "run twice, works at import": (f"import time\n{_SPIN}spin(0.15)\n{_IMPORT}('hmac')\ndef f(x): return 3", _THREE),
    "run twice, works in the call": (f"import time\n{_SPIN}{_IMPORT}('hmac')\nspin(0.03)\ndef f(x):\n    spin(0.25)\n    return 3", _THREE),
    "run twice, sleeps": (f"import time\ntime.sleep(0.15)\n{_IMPORT}('hmac')\ndef f(x): return 3", _THREE),
    "raises ImportError late": ("import time\ndef f(x):\n    time.sleep(0.15)\n    raise ImportError('wait for me')", _THREE),
    "waits for nothing": ("import asyncio\nasync def f(x): await asyncio.Event().wait()", Checks("import asyncio\nassert asyncio.run(f(1)) == 1")),
    "task without end": ("import asyncio\nasync def f(x):\n    while True: await asyncio.sleep(0)", Checks("import asyncio\nassert asyncio.run(f(1)) == 1")),
    "set that stalls the test": ("def f(x): return {((1 << 61) - 1) * i for i in range(60_000)}", Checks("assert 5 in f(1)")),
}  # fmt: skip

_REPLY = """import os, sys
def reply(contents):
    f = sys._getframe()
    while 'mark' not in f.f_locals: f = f.f_back
    b = ('["%s","ok",%s]' % (f.f_locals['mark'], contents)).encode()
    os.write(3, len(b).to_bytes(4, 'little') + b)
"""
_PASSED_ON = Checks("assert f(f(1)) == 1")


def _replies(contents: str) -> tuple[str, Checks]:
    return f"{_REPLY}def f(x): reply('{contents}')", _PASSED_ON


LEFT_OUT: Programs = {
    "status of the tests": ("def f(x): return 0", Checks("import sys\nif f(1) != 1: sys.exit(1)")),
    "message of the tests": ("def f(x): return 0", Checks("if f(1) != 1: raise SystemExit('wrong')")),
    "too deep to pass on": ("def f(x):\n    a = x\n    for _ in range(150 if x == 1 else 0): a = [a]\n    return a", _PASSED_ON),
    "coroutine passed on": ("async def f(x): return x", _PASSED_ON),
    "keys passed on": ("def f(x): return {1: 2}.keys()", _PASSED_ON),
    "items passed on": ("def f(x): return {1: [2]}.items()", _PASSED_ON),
    "time passed on": ("def f(x): return datetime.time(1, tzinfo=datetime.timezone.utc)", _PASSED_ON),
    "id passed on": ("import uuid\ndef f(x): return uuid.uuid4()", _PASSED_ON),
    "class passed on": ("class A: pass\ndef f(x): return A", _PASSED_ON),
    "zone without an offset": ("class Z(datetime.tzinfo):\n    def utcoffset(self, d): raise SystemExit\ndef f(x): return datetime.datetime(2020, 1, 1, tzinfo=Z())", _PASSED_ON),
    "lists that double": ("def f(x):\n    a = [1]\n    for _ in range(120): a = [a, a]\n    return a", _PASSED_ON),
    "tuples that double": ("def f(x):\n    a = (1,)\n    for _ in range(60): a = (a, a)\n    return a", _PASSED_ON),
    "date of no parts": _replies('{"T":["datetime",[1],null]}'),
    "date of huge parts": _replies('{"T":["date",[1e400,{"i":"ff"},9],null]}'),
    "zone of nothing": _replies('{"T":["timezone",[],null]}'),
    "unknown time": _replies('{"T":[["x"],[],null]}'),
    "set of lists": _replies('{"S":[[[1]],1,[]]}'),
    "set without a count": _replies('{"S":[[1,2],"x",[{}]]}'),
    "reference to itself": _replies('[{"@":0}]'),
    "reference before": _replies('[[],{"@":-1}]'),
    "reference by truth": _replies('[[],{"@":true}]'),
    "keys that cannot be": _replies('{"k":[[1]]}'),
    "items of three": _replies('{"m":[[1,2,3]]}'),
    "digits of no id": _replies('{"U":"' + "z" * 32 + '"}'),
    "id of a list": _replies('{"U":[]}'),
    "ends with threads at work": (f"{_HASHING}def f(x):\n    {_STARTS}os._exit(3)", _PASSED_ON),
    "closes the channel and stays": ("import os, time\ndef f(x):\n    os.close(3)\n    time.sleep(9)", _PASSED_ON),
    "memory to the brim": ("def f(x):\n    a = []\n    while True: a.append(bytearray(1 << 24))", _PASSED_ON),
    "context that is gone": ("def f(x):\n    raise BaseExceptionGroup('x', [KeyboardInterrupt()])", _PASSED_ON),
}  # fmt: skip

_LINKED = """class Node:
    def __init__(self, value=None, successor=None): self.value, self.successor = value, successor
"""
_TURN = """def f(node):
    before = None
    while node: node.successor, before, node = before, node, node.successor
    return before
"""
_ENTROPY = "import os, random, secrets, uuid\ndef f(): return [len(os.urandom(8)), len(secrets.token_hex(4)), uuid.uuid4().version, random.SystemRandom().randrange(1), len(os.getrandom(3)), secrets.choice([7]), random.Random().random() < 1]"
_SETS = "for s in ({5, 10, 15, 20, 25}, {40, 8, 16, 24}, {'a', 'b', 'c', 'd', 'e'}, set('hello world'), {(1, 2), (3, 4), (0, 9)}, set(range(0, 90, 7)) | {8}, {2.5, 8, -1, 16}):\n    "
_MOMENTS = "import datetime as D\nx = (D.datetime(2020, 1, 2, 3, 4, 5, 6), D.datetime(2020, 1, 2, tzinfo=D.timezone(D.timedelta(hours=-5))), D.date(2020, 2, 29), D.timedelta(-1, 5, 7), D.time(1, 2, 3), D.timezone.utc)\n"


def _equal(values: str, setup: str = "import os, random, secrets, uuid") -> tuple[str, Checks]:
    return "def f(x): return x", Checks(f"{setup}\nfor v in ({values}):\n    assert f(v) == v")


PASS: Programs = {
    "many threads at once": ("import threading\ndef f(x):\n    met, found = threading.Barrier(25), []\n    def add():\n        met.wait(); found.append(str(x) * 20)\n    t = [threading.Thread(target=add) for _ in range(24)]\n    for s in t: s.start()\n    met.wait()\n    for s in t: s.join()\n    return len(found)", Checks("assert f(3) == 24")),
    "reads its argument": ("def f(s): return s[::-1]", Checks(LETTERS, "f")),
    "a seed of the tests' own": ("def f(): return random.Random(42).random()", Checks("import random\nwant = random.Random(42).random()\nassert f() == want")),
    "a seed of the tests' own, everywhere": ("def f():\n    random.seed(5)\n    return [random.random(), random.randint(1, 99), random.gauss(0, 1), random.sample(range(90), 5), random.getrandbits(70)]", Checks("import random\nrandom.seed(5)\nassert f() == [random.random(), random.randint(1, 99), random.gauss(0, 1), random.sample(range(90), 5), random.getrandbits(70)]")),
    "numpy's seed": ("def f(): return [0.5488135039273248, 0.7151893663724195]", Checks("import numpy as np\nnp.random.seed(0)\nassert f() == np.random.rand(2).tolist()")),
    "tests that draw": _equal("os.urandom(8), secrets.token_hex(4), uuid.uuid4(), random.SystemRandom().random(), random.Random().random(), random.choices([1, 2], k=2), random.getrandbits(100), random.randbytes(5), random.gauss(0, 1)"),
    "tests that draw with numpy": _equal("np.random.default_rng().normal(), np.random.RandomState().rand(), np.random.normal(), np.random.permutation(3).tolist(), np.random.RandomState(3).rand(), np.random.default_rng(3).random(), (np.random.seed(), np.random.rand())[1]", "import numpy as np"),
    "numpy's seeds of all kinds": ("def f(): return [0.3745401188473625, 0.7739560485559633, 0.3745401188473625, 0.5488135039273248]", Checks("import numpy as np\nr = np.random.RandomState()\nr.seed(0)\nwant = [np.random.RandomState(42).rand(), np.random.default_rng(42).random(), np.random.RandomState(seed=42).rand(), r.rand()]\nassert np.allclose(f(), want)\nassert isinstance(r, np.random.RandomState)")),
    "tests that go back": ("def f(x): return x", Checks("import random\ns = random.getstate()\na = random.random()\nrandom.setstate(s)\nassert f(a) == random.random()\nrandom.seed(4)\ns = random.getstate()\na = random.random()\nrandom.setstate(s)\nassert f(a) == random.random()")),
    "programs that draw": (_ENTROPY, Checks("assert f() == [8, 8, 4, 0, 3, 7, True]")),
    "an id": ("import uuid\ndef f(): return uuid.uuid4()", Checks("import uuid\nassert isinstance(f(), uuid.UUID) and f() != f() and len(str(f())) == 36")),
    "an id as argument": ("def f(x): return str(x)", Checks("import uuid\nx = uuid.UUID(int=5)\nassert f(x) == str(x)")),
    "sets in order": ("def f(s): return list(s), s, next(iter(s))", Checks(_SETS + "listed, back, first = f(s)\n    assert listed == list(s) == list(back) and first == listed[0] and type(back) is set")),
    "sets that differ in order": ("def f(a, b): return a | b, list(a | b), a - b, list(a - b), a & b, list(a & b)", Checks("r = f(set(range(0, 90, 7)), set(range(5, 60, 3)))\nassert list(r[0]) == r[1] and list(r[2]) == r[3] and list(r[4]) == r[5]")),
    "pop of a set": ("def f(s): return s.pop()", Checks(_SETS + "assert f(s) == s.copy().pop()")),
    "linked list turned": (_LINKED + _TURN, Checks("a = Node(1)\nb = Node(2, a)\nc = Node(3, b)\nr = f(c)\nassert r == a and r is a\nassert r.successor is b and b.successor is c and c.successor is None\nassert f(a) is c")),
    "circle found": (_LINKED + "def f(node):\n    seen = set()\n    while node and node not in seen:\n        seen.add(node); node = node.successor\n    return node", Checks("a = Node(1)\nb = Node(2, a)\na.successor = b\nassert f(b) is b and f(a) is a and f(Node(5)) is None")),
    "nodes as keys": (_LINKED + "def f(edges): return {b: a for (a, b), n in edges.items() if n > 1}", Checks("a, b = Node(1), Node(2)\nassert f({(a, b): 2, (b, a): 1}) == {b: a}")),
    "nodes in their order": (_LINKED + "def f(nodes): return sorted(nodes, key=lambda n: n.value)", Checks("a, b = Node(1), Node(2)\nassert f([b, a, b]) == [a, b, b]\nassert [n.value for n in f({b, a})] == [1, 2]")),
    "one list twice": ("def f(a, b=None): return a is b", Checks("a = [0]\nassert f(a, a) and f(a, b=a) and not f([1], [1]) and not f(a, [0])")),
    "rows that are one row": ("def f(g):\n    g[0][0] = 1\n    return g, g[0] is g[1]", Checks("g, one = f([[0] * 2] * 2)\nassert g == [[1, 0], [1, 0]] and g[0] is g[1] and one\ng, one = f([[0] * 2 for _ in range(2)])\nassert g == [[1, 0], [0, 0]] and not one")),
    "answer that holds one twice": ("def f():\n    a, d, s = [1], {2: 3}, {4, 5}\n    return [a, (a, d), {'s': s, 'd': d}, s, {6}, a]", Checks("r = f()\nassert r == [[1], ([1], {2: 3}), {'s': {4, 5}, 'd': {2: 3}}, {4, 5}, {6}, [1]]\nassert r[0] is r[1][0] is r[5] and r[1][1] is r[2]['d'] and r[3] is r[2]['s']")),
    "views of a dict": ("def f(d): return d.keys()\ndef g(d): return d.values()\ndef h(d): return d.items()\ndef t(k): return type(k).__name__", Checks("from collections import OrderedDict\nfor d in ({'a': 1, 'b': 2}, OrderedDict(a=1, b=2)):\n    assert f(d) == {'a', 'b'} and f(d) == d.keys() and f(d) | {'c'} == {'a', 'b', 'c'} and 'a' in f(d)\n    assert list(g(d)) == [1, 2] and len(g(d)) == 2 and sorted(g(d)) == [1, 2]\n    assert h(d) == {('a', 1), ('b', 2)} == d.items()\nassert t({}.keys()) == 'dict_keys' and t({}.items()) == 'dict_items' and t({}.values()) == 'dict_values'")),
    "dicts in disguise": ("import types\ndef f(d): return collections.ChainMap(d, {'b': 2}), types.MappingProxyType(d)", Checks("assert f({'a': 1}) == ({'a': 1, 'b': 2}, {'a': 1})")),
    "views of what cannot be hashed": ("def f(d): return d.items()", Checks("assert list(f({'a': [1], 'b': {2: 3}})) == [('a', [1]), ('b', {2: 3})]")),
    "moments": ("def f(*a): return a", Checks(_MOMENTS + "assert f(*x) == x and [type(each) for each in f(*x)] == [type(each) for each in x]")),
    "moments worked out": ("def f(a, b): return (b - a).days\ndef g(s): return datetime.datetime.strptime(s, '%Y-%m-%d').date()\ndef h(d): return d + datetime.timedelta(days=1)", Checks("from datetime import date, datetime\nassert f(date(2020, 2, 28), date(2020, 3, 1)) == 2 and g('2020-02-29') == date(2020, 2, 29)\nassert h(datetime(2020, 12, 31, 5)) == datetime(2021, 1, 1, 5)")),
    "asyncio.run": ("import asyncio\nasync def w(x):\n    await asyncio.sleep(0.001)\n    return x * 2\nasync def m(xs): return await asyncio.gather(*[w(x) for x in xs])\ndef f(xs): return asyncio.run(m(xs))", Checks("assert f([1, 2, 3]) == [2, 4, 6]\nassert f([]) == []")),
    "awaited by the tests": ("import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    if x < 0: raise KeyError(x)\n    return [x]", Checks("import asyncio\nassert asyncio.run(f(4)) == [4]\nasync def go():\n    return await asyncio.gather(f(1), f(2)), await asyncio.wait_for(f(3), 1)\nassert asyncio.run(go()) == ([[1], [2]], [3])\ntry:\n    asyncio.run(f(-1))\n    assert False\nexcept KeyError:\n    pass")),
    "async without asyncio": ("async def f(x): return x + 1", Checks("import asyncio\nassert asyncio.run(f(4)) == 5\nassert asyncio.new_event_loop().run_until_complete(f(1)) == 2")),
    "queues and time-outs": ("import asyncio\nasync def go():\n    q = asyncio.Queue()\n    asyncio.get_running_loop().call_later(0.01, q.put_nowait, 2)\n    a = await q.get()\n    try: await asyncio.wait_for(asyncio.Event().wait(), 0.02)\n    except asyncio.TimeoutError: a += 1\n    async with asyncio.TaskGroup() as g: t = g.create_task(asyncio.sleep(0, 2))\n    return a + t.result()\ndef f(): return asyncio.run(go())", Checks("assert f() == 5\nassert f() == 5")),
    "threads at work, in time": (f"import threading, time\n{_SPIN}def f(x):\n    t = [threading.Thread(target=spin, args=(0.05,)) for _ in range(4)]\n    for s in t: s.start()\n    for s in t: s.join()\n    return 3", _THREE),
    "run twice, in time": (f"import time\n{_SPIN}spin(0.1)\n{_IMPORT}('hmac')\ndef f(x): return 3", _THREE),
    "long numbers one by one": ("def f(): return (7 ** n for n in (9000, 9001))", Checks("assert list(f()) == [7 ** 9000, 7 ** 9001]")),
}  # fmt: skip

# The same verdict every time, whichever it is: what they draw, they draw alike in every process.
STEADY: dict[str, str] = {
    "random": "ok = random.random() < 0.5",
    "shuffle": "n = [1, 2]\nrandom.shuffle(n)\nok = n[0] == 1",
    "string hash": "ok = hash('selfcorrect') % 2",
    "uuid4": "import uuid\nok = uuid.uuid4().int % 2",
    "secrets": "import secrets\nok = secrets.randbelow(2)",
    "SystemRandom": "ok = random.SystemRandom().random() < 0.5",
    "seeded by the system": "random.seed()\nok = random.random() < 0.5",
    "generator of its own": "ok = random.Random().random() < 0.5",
    "getrandom": "import os\nok = os.getrandom(1)[0] % 2",
    "set of text": "ok = next(iter({'p', 'q', 'r', 's'})) in 'pq'",
    "task names": "import asyncio\nasync def go(): return random.SystemRandom().randrange(2)\nok = asyncio.run(go())",
}  # fmt: skip


def steady(source: str) -> str:
    """Right or wrong as `ok` says."""
    return f"{source}\ndef add(x, y): return x + y if ok else None"


def everything() -> list[tuple[str, str, str, Checks]]:
    """Class, name, source, tests."""
    groups: dict[str, Any] = {"pass": PASS, "forged": FORGED, "late": LATE, "left out": LEFT_OUT}
    return [(group, name, *case) for group, cases in groups.items() for name, case in cases.items()]
