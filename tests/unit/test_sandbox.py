"""What a model's answer may try, what it gets, and how its prime function is judged."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fp4forge.serve import sandbox

BOUND = 10  # seconds of any verdict
TABLE = "[2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47]"


def inside(code: str) -> str:
    """A function is_prime with this body."""
    return "def is_prime(n):\n" + textwrap.indent(textwrap.dedent(code).strip(), "    ") + "\n"


# In every escape: RUN is a shell command that writes into the canary folder and leaves a process,
# READ the path of a secret, WRITE that of a file in the canary folder; all are Python literals.
SHELL = "import os; os.system(RUN)"
REBOUND = inside("""
    found = 0
    g = (math for a in [0] for math in [g] for math in [math.gi_frame] for math in [math.f_back]
         for math in [math.f_back] for math in [math.f_builtins])
    for builtins in g:
        found = builtins
    math = found["__import__"]("os")
    return math.system(RUN)
""")
SUBCLASSES = "().__class__.__base__.__subclasses__()"
POPEN = f"[c for c in {SUBCLASSES} if c.__name__ == '_wrap_close'][0].__init__.__globals__"

ESCAPES = {
    # Frames
    "frames: math rebound to a generator": REBOUND,
    "frames: gi_frame": inside("""
        g = (g.gi_frame.f_back.f_builtins for _ in [0])
        return next(g)['__import__']('os').system(RUN)"""),
    "frames: gi_code": inside("return (lambda: (yield))().gi_code.replace(co_names=('os',))"),
    "frames: cr_frame": inside("""
        async def c(): pass
        c = c()
        return c.cr_frame.f_builtins['open'](READ).read()"""),
    "frames: ag_frame": inside("""
        async def c(): yield 1
        return c().ag_frame.f_builtins['open'](READ).read()"""),
    "frames: tb_frame": inside("""
        try: 1 / 0
        except Exception as e: tb = e.__traceback__
        return tb.tb_frame.f_builtins['open'](READ).read()"""),
    "frames: f_back to the caller": inside("""
        try: raise ValueError
        except ValueError as e: f = e.__traceback__.tb_frame
        while f.f_back: f = f.f_back
        return f.f_globals['__builtins__'].open(READ).read()"""),
    "frames: sys._getframe": inside("""
        import sys
        return sys._getframe(0).f_builtins['open'](READ).read()"""),
    "frames: inspect": "import inspect\n"
    + inside("return inspect.currentframe().f_builtins['open'](READ).read()"),
    "frames: __context__ of an exception": inside("""
        try:
            try: 1 / 0
            except ZeroDivisionError: [][0]
        except IndexError as e:
            return e.__context__.__traceback__.tb_frame.f_builtins['open'](READ).read()"""),
    # Generators and async
    "generators: throw": inside("""
        def g():
            try: yield
            except Exception as e: yield e.__traceback__.tb_frame.f_builtins['open'](READ).read()
        g = g(); next(g)
        return g.throw(ValueError)"""),
    "generators: yield from": "def is_prime(n):\n    yield from open(READ)\n",
    "async: await": "import asyncio\nasync def a(): return open(READ).read()\n"
    + inside("return asyncio.run(a())"),
    "async: a coroutine is true": "async def is_prime(n): return open(READ).read()",
    # Attributes and format strings
    "format: str.format": inside("return '{0.__class__.__mro__}'.format(n)"),
    "format: globals of a function": inside("return '{0.__globals__}'.format(is_prime)"),
    "format: f-string": inside('return f"{open(READ).read()}"'),
    "format: string.Formatter": "import string\n"
    + inside("return string.Formatter().get_field('0.__globals__', [is_prime], {})[0]"),
    "attributes: getattr": inside(f"return getattr(getattr((), '__class__'), '__base__'), {POPEN}"),
    "attributes: a method's self": inside("return print.__self__.open(READ).read()"),
    "attributes: a module of a module": "import math\n"
    + inside("return math.__loader__.load_module('os').system(RUN)"),
    "attributes: __code__ replaced": inside("""
        f = lambda: 0
        f.__code__ = f.__code__.replace(co_names=('open',), co_consts=(READ,))
        return f()"""),
    "attributes: setattr on a builtin": inside("setattr(int, '__bool__', print); return 1"),
    # Where code hides
    "decorators: open": "@lambda f: (lambda n: open(READ).read())\ndef is_prime(n): return n",
    "decorators: exec": "import os\n@lambda f: os.system(RUN)\ndef is_prime(n): return n",
    "defaults: open": "def is_prime(n, x=open(WRITE, 'w').write('x')): return n",
    "defaults: os": "import os\nis_prime = lambda n, x=os.system(RUN): x",
    "annotations: os": "import os\ndef is_prime(n: os.system(RUN)) -> bool: return True",
    "comprehensions: scope": inside(
        "return [x for x in [1] for __builtins__ in [vars()] if __builtins__['open'](READ)]"
    ),
    "classes: body": inside("class A: x = open(READ).read()\nreturn A.x"),
    "classes: metaclass": inside("""
        class M(type):
            def __prepare__(*a): return {'x': open(READ).read()}
        class A(metaclass=M): pass
        return A.x"""),
    "classes: __subclasses__": inside(f"return {POPEN}['system'](RUN)"),
    "classes: mro": inside("return int.mro()[-1].__subclasses__()"),
    "classes: __init_subclass__": inside("""
        class A:
            def __init_subclass__(cls): open(WRITE, 'w').write('x')
        class B(A): pass
        return 1"""),
    "classes: __bool__": inside("""
        class A:
            def __bool__(self): open(WRITE, 'w').write('x'); return True
        return A()"""),
    "classes: type()": inside("""
        return type('A', (), {'__init__': lambda s: open(WRITE, 'w').write('x')})() or 1"""),
    "top level: os": SHELL + "\ndef is_prime(n): return n\n",
    # Imports
    "import: os.system": inside(f"{SHELL}; return 1"),
    "import: os.environ": inside("import os; return os.environ['PATH']"),
    "import: os.listdir": inside("import os; return os.listdir('/')"),
    "import: os.remove": inside("import os; return os.remove(WRITE)"),
    "import: os.fdopen": inside("import os; return os.fdopen(1, 'w').write('[\"right\", 0]')"),
    "import: __import__": inside("return __import__('os').system(RUN)"),
    "import: importlib": inside("import importlib; importlib.import_module('os').system(RUN)"),
    "import: builtins": inside("import builtins; return builtins.open(READ).read()"),
    "import: subprocess": inside("import subprocess; return subprocess.getoutput(RUN)"),
    "import: ctypes": inside("import ctypes; return ctypes.CDLL(None).system(RUN.encode())"),
    "import: socket": inside("import socket; return socket.create_connection(('127.0.0.1', 1))"),
    "import: pathlib": inside("from pathlib import Path; return Path(READ).read_text()"),
    "import: pickle": inside("""
        import pickle
        pickle.loads(b'cos\\nsystem\\n(S' + repr(RUN).encode() + b'\\ntR.')"""),
    "import: math is os": "import os as math\n" + inside("return math.system(RUN)"),
    "import: star": "from os import *\n" + inside("return system(RUN)"),
    "import: the sandbox itself": inside("import pydantic_monty; return pydantic_monty.Monty()"),
    # Builtins
    "builtins: eval": inside("return eval('__import__(\"os\")').system(RUN)"),
    "builtins: exec": inside("exec('import os\\nos.system(' + repr(RUN) + ')'); return 1"),
    "builtins: compile": inside("return eval(compile(f'open({READ!r}).read()', '', 'eval'))"),
    "builtins: open to read": inside("return open(READ).read()"),
    "builtins: open to write": inside("return open(WRITE, 'w').write('x')"),
    "builtins: open a descriptor": inside("return open(3).read()"),
    "builtins: open /proc/self": inside("return open('/proc/self/environ').read()"),
    "builtins: globals": inside("return globals()['__builtins__'].open(READ).read()"),
    "builtins: __builtins__ rebound": "__builtins__ = {}\n" + inside("return open(READ).read()"),
    "builtins: input": inside("return input()"),
    "builtins: the secret in an exception": inside("raise ValueError(open(READ).read())"),
    "builtins: SystemExit": inside("raise SystemExit(0)"),
    # Numbers, strings and lists
    "huge: 10**10**10": inside("return 10**10**10"),
    "huge: 1 << 10**9": inside("return 1 << 10**9"),
    "huge: squares": inside("x = 3\nwhile True: x *= x"),
    "huge: string": inside("return 'a' * 10**12"),
    "huge: list": inside("return [0] * 10**12"),
    "huge: range": inside("return list(range(10**12))"),
    "huge: nested lists": inside("a = []\nfor _ in range(10**6): a = [a]\nreturn str(a)"),
    "huge: nested lists as a value": (
        "a = []\nfor _ in range(10**5): a = [a]\nis_prime = lambda n: a\na"
    ),
    "huge: a list of itself": inside("a = []\na.append(a)\nreturn a == [a]"),
    "huge: memory bomb": inside("a = [0]\nwhile True: a += a"),
    "huge: a regular expression": inside("import re; return re.match('(a+)+$', 'a' * 40 + 'b')"),
    # Time, recursion, processes
    "time: endless loop": inside("while True: pass"),
    "time: endless loop that catches": inside(
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    ),
    "time: endless loop at the top": "while True: pass\n" + inside("return True"),
    "time: sleep": inside("import time; time.sleep(3600); return True"),
    "time: endless sum": inside("return sum(range(10**15))"),
    "time: a faked deadline": inside("raise TimeoutError('feed time limit exceeded')"),
    "recursion: plain": inside("return is_prime(n)"),
    "recursion: __repr__": inside(
        "class A:\n    def __repr__(self): return repr(self)\nreturn repr(A())"
    ),
    "processes: fork bomb": inside("import os\nfor _ in range(8): os.fork()\nreturn True"),
    "processes: orphan": inside("""
        import os
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0: os.execv('/bin/sh', ['sh', '-c', RUN])
        return True"""),
    "processes: multiprocessing": inside(
        "import multiprocessing as m; m.Process(target=print).start()"
    ),
    "processes: threads": inside("""
        import threading
        while True: threading.Thread(target=is_prime, args=(n,)).start()"""),
    "processes: kill": inside("import os; os.kill(os.getppid(), 0); return True"),
    "processes: atexit": "import atexit\natexit.register(open, WRITE, 'w')\n" + inside("return n"),
    "processes: signal": inside("""
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True: pass"""),
    "processes: __del__": inside("""
        class A:
            def __del__(self): open(WRITE, 'w').write('x')
        A()
        return True"""),
    "output: flood": inside("while True: print('x' * 10**4)"),
    "output: flood on stderr": inside(
        "import sys\nwhile True: print('x' * 10**4, file=sys.stderr)"
    ),
    "output: one huge line": inside("print('x' * 10**9, end='')"),
    "output: a forged verdict": 'print(\'["right", ""]\')\n' + inside("return True"),
    "output: a forged range": f"range = lambda *a: {TABLE}\n" + inside("return True"),
    "output: terminal control": inside("raise ValueError('\\x1b]0;owned\\x07' * 1000)"),
    # Source
    "source: str.encode": inside("return 'import os'.encode('rot13').decode('idna')"),
    "source: a codec": "# -*- coding: unicode_escape -*-\n" + inside("return 1 #\\n import os"),
    "source: NUL": inside("return n") + "\0import os",
    "source: NUL in a string": inside("return open(READ + '\0').read()"),
    "source: lone surrogate": inside("return '\ud800' or open(READ)"),
    "source: surrogate made": inside("return chr(0xd800).encode('utf-8', 'surrogatepass')"),
    "source: lookalike name": inside("return ᵒpen(READ).read()"),
    "source: nested parentheses": "is_prime = lambda n: " + "(" * 50_000 + "n" + ")" * 50_000,
    "source: nested lambdas": "is_prime = " + "lambda n: " * 5_000 + "n",
    "source: nested functions": "".join(f"{' ' * depth}def is_prime(n):\n" for depth in range(500))
    + " " * 500
    + "return n",
    "source: a line of 100,000 characters": "is_prime = lambda n: " + "n+" * 50_000 + "1",
    "source: a name of 100,000 characters": inside("return " + "x" * 100_000),
    "source: 200,000 newlines": "\n" * 200_000 + inside("return True"),
    "source: 200,000 newlines inside": "def is_prime(n):" + "\n" * 200_000 + " return open(READ)",
    "source: 100,000 backticks": "`" * 100_000 + inside("return True"),
    "source: 100,000 fences": "```\n" * 100_000 + inside("return True"),
    "source: f-strings in f-strings": inside("return " + "f'{" * 150 + "n" + "}'" * 150),
    "source: an open string": inside("return '''"),
    "source: a backslash at the end": inside("return n \\"),
}


@dataclass(frozen=True)
class Canaries:
    """What an escape would read, write or leave running."""

    folder: Path
    secret: str
    marker: str

    def arm(self, code: str) -> str:
        for name, value in (
            ("RUN", f"touch {self.folder}/written/ran; sleep {self.marker} >/dev/null 2>&1 &"),
            ("READ", f"{self.folder}/secret"),
            ("WRITE", f"{self.folder}/written/file"),
        ):
            code = code.replace(name, repr(value))
        return code

    def written(self) -> list[str]:
        return [path.name for path in (self.folder / "written").iterdir()]

    def running(self) -> list[int]:
        return [pid for pid, arguments, _ in processes() if arguments == f"sleep\0{self.marker}\0"]


def processes() -> Iterator[tuple[int, str, int]]:
    """Each process's id, arguments and session."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                yield int(entry.name), (entry / "cmdline").read_text(), int(fields[3])


@contextlib.contextmanager
def canaries() -> Iterator[Canaries]:
    """Open to every user, so that nothing but the sandbox stands before them."""
    with tempfile.TemporaryDirectory() as name:
        found = Canaries(Path(name), secrets.token_hex(16), f"30.{secrets.randbelow(10**9):09}")
        found.folder.chmod(0o755)
        (found.folder / "secret").write_text(found.secret)
        (found.folder / "written").mkdir()
        (found.folder / "written").chmod(0o777)
        yield found


@dataclass(frozen=True)
class Outcome:
    """An answer's verdict, as `serve quality` reports it, and the seconds that it took."""

    verdict: str
    seconds: float


def judge(answer: str) -> str:
    try:
        return sandbox.wrong_prime(answer) or "right"
    except sandbox.NotJudged as reason:
        return str(reason)


def judge_all(answers: dict[str, str]) -> dict[str, Outcome]:
    """Judge answers side by side, more than there are cores: each of them waits at times."""

    def timed(answer: str) -> Outcome:
        start = time.monotonic()
        verdict = judge(answer)
        return Outcome(verdict, time.monotonic() - start)

    with concurrent.futures.ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
        return dict(zip(answers, pool.map(timed, answers.values()), strict=True))


@dataclass(frozen=True)
class Attack:
    """What came of all escapes, tried with the same canaries."""

    secret: str
    outcomes: dict[str, Outcome]
    written: list[str]
    running: list[int]


def fenced(code: str) -> str:
    """So that all of the code runs, whatever it looks like."""
    return code if "`" in code else f"```python\n{code}\n```"


@pytest.fixture(scope="module")
def attack() -> Attack:
    children: set[int] = set()
    popen = subprocess.Popen

    def spawn(*arguments: object, **options: object) -> object:
        child = popen(*arguments, **options)  # type: ignore[call-overload]
        children.add(child.pid)
        return child

    with canaries() as found:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sandbox, "SECONDS", 0.3)
            patch.setattr(subprocess, "Popen", spawn)
            outcomes = judge_all({name: fenced(found.arm(code)) for name, code in ESCAPES.items()})
        left = [pid for pid, _, session in processes() if session in children]
        return Attack(found.secret, outcomes, found.written(), [*left, *found.running()])


def test_there_are_enough_escapes() -> None:
    assert len(ESCAPES) >= 60


@pytest.mark.parametrize("name", ESCAPES)
def test_no_escape_reads_or_is_right(attack: Attack, name: str) -> None:
    outcome = attack.outcomes[name]
    assert outcome.verdict != "right"
    assert attack.secret not in outcome.verdict
    assert outcome.seconds < BOUND
    # The sandbox itself stays up: each of these is judged, or lacks something in Monty.
    assert not outcome.verdict.startswith("not run"), outcome.verdict


def test_no_verdict_steers_a_terminal(attack: Attack) -> None:
    assert all(outcome.verdict.isprintable() for outcome in attack.outcomes.values())


def test_no_escape_writes(attack: Attack) -> None:
    assert attack.written == []


def test_no_escape_leaves_a_process(attack: Attack) -> None:
    assert attack.running == []


# A frame reaches what an inner scope hides: this is how the sandbox before Monty ran answers.
RESTRICTED = """
import builtins, math, sys
names = "all any range int len sum pow bool min max abs filter map list set next".split()
scope = {"math": math, "__builtins__": {name: getattr(builtins, name) for name in names}}
exec(compile(sys.stdin.read(), "answer", "exec"), scope)
print([n for n in [7] if scope["is_prime"](n)])
"""
PLAIN = "import sys; exec(sys.stdin.read(), globals()); print(is_prime(7))"


@pytest.mark.parametrize(
    ("program", "name"),
    [
        (RESTRICTED, "frames: math rebound to a generator"),
        *(
            (PLAIN, name)
            for name in (
                "frames: math rebound to a generator",
                "frames: gi_frame",
                "frames: tb_frame",
                "frames: __context__ of an exception",
                "generators: throw",
                "format: f-string",
                "decorators: exec",
                "defaults: os",
                "classes: metaclass",
                "classes: __subclasses__",
                "import: os.system",
                "import: ctypes",
                "import: pathlib",
                "builtins: eval",
                "builtins: open to write",
                "processes: __del__",
                "processes: atexit",
            )
        ),
    ],
)
def test_the_escape_works_in_cpython(program: str, name: str) -> None:
    """Else an escape that never worked would prove nothing."""
    with canaries() as found:
        done = subprocess.run(
            [sys.executable, "-I", "-c", program],
            input=found.arm(ESCAPES[name]),
            text=True,
            capture_output=True,
            timeout=BOUND,
            check=False,
        )
        for pid in found.running():
            os.kill(pid, 9)
        assert found.written() or found.secret in done.stdout, done.stderr


RIGHT = {
    "all in a lambda": "is_prime = lambda n: n > 1 and all(n % i for i in range(2, int(n**0.5)+1))",
    "a lambda without a name": "lambda n: n > 1 and all(n % i for i in range(2, n))",
    "a lambda in a span": "Use `lambda n: n > 1 and all(n % i for i in range(2, n))` for it.",
    "a lambda in parentheses": "is_prime = (lambda n: n > 1 and all(n % i for i in range(2, n)))",
    "math.sqrt": (
        "import math\nis_prime = lambda n: n > 1 and "
        "all(n % i for i in range(2, int(math.sqrt(n)) + 1))"
    ),
    "math.isqrt without its import": (
        "def is_prime(n): return n > 1 and all(n % i for i in range(2, math.isqrt(n) + 1))"
    ),
    "from math import isqrt": (
        "from math import isqrt\n"
        "def is_prime(n): return n > 1 and all(n % i for i in range(2, isqrt(n) + 1))"
    ),
    "loops": """def is_prime(n):
    if n < 2:
        return False
    for i in range(2, n):
        if n % i == 0:
            return False
    return True""",
    "while with else": """def is_prime(n):
    i = 2
    while i * i <= n:
        if n % i == 0: return False
        i += 1
    else:
        return n > 1""",
    "6k +- 1": """def is_prime(n):
    if n <= 3: return n > 1
    if n % 2 == 0 or n % 3 == 0: return False
    i = 5
    while i * i <= n:
        if n % i == 0 or n % (i + 2) == 0: return False
        i += 6
    return True""",
    "walrus": (
        "def is_prime(n): return n > 1 and (r := int(n ** 0.5)) > 0 and "
        "all(n % i for i in range(2, r + 1))"
    ),
    "comments": """# Trial division
def is_prime(n):  # n: an integer
    # no divisor below n
    return n > 1 and all(n % i for i in range(2, n))  # done""",
    "a fence": "```python\ndef is_prime(n): return n > 1 and all(n % i for i in range(2, n))\n```",
    "a fence without a language and its end": (
        "```\nis_prime = lambda n: n > 1 and all(n % i for i in range(2, n))"
    ),
    "a fence in a list": """1. Here:

   ```py
   def is_prime(n):
       return n > 1 and all(n % i for i in range(2, n))
   ```
""",
    "text around a fence": """Sure! Here is `is_prime`:

```python
is_prime = lambda n: n > 1 and all(n % i for i in range(2, n))
```

It runs in O(n) and uses `all`.""",
    "text around no fence": """Here is x = the function:

def is_prime(n):
    return n > 1 and all(n % i for i in range(2, n))

Hope this helps!""",
    "another name": "def prime(num): return num > 1 and all(num % i for i in range(2, num))",
    "a helper": """def divides(d, n):
    return n % d == 0

def is_prime(n):
    return n > 1 and not any(divides(d, n) for d in range(2, n))""",
    "type hints": """from typing import Callable
is_prime: Callable[[int], bool] = lambda n: n > 1 and all(n % i for i in range(2, n))""",
    "a docstring": '''def is_prime(n):
    """Return True if n is prime."""
    return n > 1 and all(n % i for i in range(2, n))''',
    "f-strings": """def is_prime(n):
    print(f"{n=} {'x' * 3:>5}")
    return n > 1 and all(n % i for i in range(2, n))""",
    "Wilson": "import math\nis_prime = lambda n: n > 1 and math.factorial(n - 1) % n == n - 1",
    "a regular expression": (
        "import re\nis_prime = lambda n: n > 1 and not re.match(r'^(11+?)\\1+$', '1' * n)"
    ),
    "recursion": (
        "is_prime = lambda n, d=2: n > 1 and (d * d > n or n % d > 0 and is_prime(n, d + 1))"
    ),
    "a cache": """from functools import lru_cache
@lru_cache(maxsize=None)
def is_prime(n): return n > 1 and all(n % i for i in range(2, n))""",
    "takewhile and count": """from itertools import count, takewhile
def is_prime(n): return n > 1 and all(n % i for i in takewhile(lambda i: i * i <= n, count(2)))""",
    "a table": f"is_prime = lambda n: n in {TABLE}",
    "1 for True": "def is_prime(n): return 1 if n > 1 and all(n % i for i in range(2, n)) else 0",
    "lines that end in CR LF": (
        "```python\r\nis_prime = lambda n: n > 1 and all(n % i for i in range(2, n))\r\n```"
    ),
}
WRONG = {
    "odd numbers": ("is_prime = lambda n: n % 2 == 1", "wrong for -1, 1, 2, 9"),
    "1": ("is_prime = lambda n: n > 0 and all(n % i for i in range(2, n))", "wrong for 1"),
    "an endless loop": ("def is_prime(n):\n while True: pass", "it did not finish within 0.5 s"),
    "endless recursion": ("is_prime = lambda n: is_prime(n)", "it fails: RecursionError"),
    "an exception": ("def is_prime(n): return 1 / 0", "it fails: ZeroDivisionError"),
    "a name that is not there": ("def is_prime(n): return prime(n)", "it fails: NameError"),
    "math's own prime": ("is_prime = lambda n: math.prime(n)", "it fails: AttributeError"),
    "a placeholder": ("def is_prime(n): raise NotImplementedError", "it fails: NotImplemented"),
    "two arguments": ("is_prime = lambda n, d: n % d", "it fails: TypeError"),
    "words": ("is_prime = lambda n: 'yes' if n in (2, 3) else 'no'", "wrong for -2, -1"),
    "None": ("def is_prime(n): n > 1 and all(n % i for i in range(2, n))", "wrong for 2, 3, 5"),
    "too much memory": ("is_prime = lambda n: [0] * 10**12", "it fails: MemoryError"),
    "too much output": ("def is_prime(n):\n while True: print('x' * 999)", "it did not finish"),
    "a number": ("is_prime = lambda n: n", "wrong for -2, -1, 1, 4"),
    "a syntax error": ("def is_prime(n: return 1", "not Python: "),
    "no code": ("I cannot write that.", "no Python function in the answer"),
    "nothing": ("", "no Python function in the answer"),
    "code without a function": ("```python\nprint(7)\n```", "no Python function in the answer"),
    "keywords only": ("Use `def ` or `lambda`.", "no Python function in the answer"),
}
UNJUDGED = {
    "another package": "from sympy import isprime\nis_prime = lambda n: isprime(n)",
    "a module of Python's": "import operator\nis_prime = lambda n: operator.gt(n, 1)",
    "a builtin": "is_prime = lambda n: bytearray([1] * 50)[n]",
    "a method": "is_prime = lambda n: not (n / 2).is_integer()",
    "a name of a module": "import sys\nis_prime = lambda n: sys.getrefcount(n)",
    "yield": "def is_prime(n):\n    def g():\n        yield 1\n    return list(g())",
    "a generator's first": (
        "is_prime = lambda n: next((False for i in range(2, n) if n % i == 0), n > 1)"
    ),
    "a generator over no end": (
        "from itertools import count\nis_prime = lambda n: any(n % i == 0 for i in count(2))"
    ),
    "del": "def is_prime(n):\n    del n\n",
}


@pytest.fixture(scope="module")
def verdicts() -> dict[str, Outcome]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "SECONDS", 0.5)
        wrong = {name: answer for name, (answer, _) in WRONG.items()}
        return judge_all({**RIGHT, **wrong, **UNJUDGED})


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_function(verdicts: dict[str, Outcome], name: str) -> None:
    assert verdicts[name].verdict == "right"


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_function(verdicts: dict[str, Outcome], name: str) -> None:
    assert verdicts[name].verdict.startswith(WRONG[name][1])


@pytest.mark.parametrize("name", UNJUDGED)
def test_what_monty_lacks_is_not_the_models_mistake(
    verdicts: dict[str, Outcome], name: str
) -> None:
    expected = "not judged: Monty may lack what it uses: "
    assert verdicts[name].verdict.startswith(expected)


def test_a_verdict_keeps_its_time() -> None:
    """With the limits that users have: a slow definition and then endless calls."""
    slow = inside("while True: pass") + "for i in range(10**7): pass"
    start = time.monotonic()
    assert judge(fenced(slow)) == "it did not finish within 3 s"
    assert time.monotonic() - start < BOUND


def test_the_worker_stands_behind_walls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from outside while the code runs."""
    monkeypatch.setattr(sandbox, "SECONDS", 1)
    running = threading.Thread(target=judge, args=(inside("while True: pass"),))
    running.start()
    try:
        worker = walled_worker()
    finally:
        running.join()
    for limit, value in (
        ("Max open files", 0),
        ("Max processes", 0),
        ("Max file size", 0),
        ("Max address space", 512 * 2**20),
        ("Max cpu time", 4),
        ("Max core file size", 0),
    ):
        assert re.search(rf"^{limit} +{value} +{value} ", worker["limits"], re.MULTILINE), limit
    assert worker["environ"] == ""
    assert worker["cwd"] == "/"
    assert worker["session"] != str(os.getsid(0))
    assert re.search(r"^NoNewPrivs:\t1$", worker["status"], re.MULTILINE)
    if os.getuid() == 0:
        assert re.search(r"^Uid:(\t65534){4}$", worker["status"], re.MULTILINE)
        assert re.search(r"^Gid:(\t65534){4}$", worker["status"], re.MULTILINE)
        assert re.search(r"^CapPrm:\t0{16}$", worker["status"], re.MULTILINE)


def walled_worker() -> dict[str, str]:
    """What /proc shows of Monty's worker once it can open no file."""
    for _ in range(150):
        time.sleep(0.02)
        for pid, arguments, session in processes():
            # Gone by now, or another user's: not the one.
            with contextlib.suppress(OSError):
                entry = Path(f"/proc/{pid}")
                limits = (entry / "limits").read_text()
                if arguments.endswith("\0subprocess\0") and re.search("files +0 ", limits):
                    return {
                        "limits": limits,
                        "status": (entry / "status").read_text(),
                        "environ": (entry / "environ").read_text(),
                        "session": str(session),
                        "cwd": str((entry / "cwd").readlink()),
                    }
    raise AssertionError("no worker behind walls within 3 s")


# What code could do once it has broken out of Monty and is machine code in the worker.
BROKEN_OUT = """
import os, resource, runpy, socket, sys
program, folder = sys.argv[1:]
sandbox = runpy.run_path(program)
before = open(folder + "/written/before", "wb", 0)
sandbox["_drop_privileges"](3)
sandbox["_wall_in"](os.getpid(), 3)
for name, action in {
    "read": lambda: open(folder + "/secret"),
    "write": lambda: open(folder + "/written/file", "w"),
    "write to a file that is open": lambda: before.write(b"x"),
    "connect": socket.socket,
    "copy a handle": lambda: os.dup(1),
    "make a pipe": os.pipe,
    "fork": lambda: os.fork() or os._exit(0),
    "raise a limit": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9)),
    "become root": lambda: os.setuid(0),
    "take much memory": lambda: bytearray(2**30),
}.items():
    try:
        action()
        print(name)
    except (OSError, ValueError, MemoryError):
        pass
print("end")
"""


def test_the_walls_hold_without_monty() -> None:
    with canaries() as found:
        done = subprocess.run(
            [sys.executable, "-I", "-c", BROKEN_OUT, sandbox.__file__, str(found.folder)],
            capture_output=True,
            text=True,
            timeout=BOUND,
            check=False,
        )
        assert done.stdout == "end\n", done
        assert found.written() == ["before"]
        assert (found.folder / "written/before").read_bytes() == b""


def with_program(program: str) -> tuple[str, ...]:
    """A child that finds this program in place of Monty's."""
    return (
        sys.executable,
        "-I",
        "-c",
        f"import runpy, shutil; shutil.which = lambda *_, **__: {program!r}; "
        f"runpy.run_path({sandbox.__file__!r}, run_name='__main__')",
    )


@pytest.mark.parametrize(
    ("child", "reason"),
    [
        ((sys.executable, "-I", "-S", sandbox.__file__), "the sandbox does not start: No module"),
        (("/nonexistent/python",), "the sandbox does not start: [Errno 2]"),
        (with_program(""), "the sandbox does not start: pydantic-monty's program is missing"),
        (with_program("/nonexistent/monty"), "the sandbox does not start: [Errno 2]"),
        (with_program("/etc/hostname"), "the sandbox does not start: "),
        (with_program("/bin/false"), "the sandbox does not start: "),
        (with_program("/bin/yes"), "the sandbox does not start: "),
        (("/bin/false",), "the sandbox gave no verdict (exit code 1)"),
        (("/bin/sh", "-c", "kill -9 $$"), "the sandbox gave no verdict (exit code -9)"),
        (("/bin/echo", "found"), "the sandbox gave no verdict (exit code 0)"),
        (("/bin/echo", '["found"]'), "the sandbox gave no verdict (exit code 0)"),
        (("/bin/echo", "7"), "the sandbox gave no verdict (exit code 0)"),
        (("/bin/echo", '["not run", "broken"]'), "broken"),
    ],
)
def test_without_a_sandbox_nothing_runs(
    monkeypatch: pytest.MonkeyPatch, child: tuple[str, ...], reason: str
) -> None:
    monkeypatch.setattr(sandbox, "_CHILD", child)
    assert judge("is_prime = lambda n: True").startswith(f"not run: {reason}")


def test_the_child_learns_nothing_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "secret")
    look = "import json, os; print(json.dumps(['not run', "
    look += "['CANARY' in os.environ, os.getcwd(), os.getsid(0) == os.getpid()]]))"
    monkeypatch.setattr(sandbox, "_CHILD", (sys.executable, "-I", "-c", look))
    assert judge("is_prime = lambda n: True") == "not run: [False, '/', True]"


def test_monty_may_lie_where_nobody_can_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a checkout of root's under /root."""
    monty = shutil.which("monty", path=sysconfig.get_path("scripts"))
    assert monty
    tmp_path.chmod(0o700)
    monkeypatch.setattr(sandbox, "_CHILD", with_program(shutil.copy(monty, str(tmp_path))))
    assert judge(RIGHT["loops"]) == "right"


def test_a_stuck_child_goes_with_all_that_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    with canaries() as found:
        sleeps = f"(sleep {found.marker} & sleep {found.marker}) & sleep {found.marker}"
        monkeypatch.setattr(sandbox, "_CHILD", ("/bin/sh", "-c", sleeps))
        monkeypatch.setattr(sandbox, "SECONDS", 0.5)
        monkeypatch.setattr(sandbox, "OVERHEAD_SECONDS", 1)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            verdict = pool.submit(judge, "is_prime = lambda n: True")
            while len(found.running()) < 3 and not verdict.done():
                time.sleep(0.02)
            assert not verdict.done()
            assert verdict.result() == "not run: the sandbox gave no verdict within 2 s"
        time.sleep(0.1)
        assert found.running() == []
