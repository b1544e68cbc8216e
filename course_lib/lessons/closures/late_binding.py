"""The cases on which lesson 01 measures ruff's rule B023."""

import subprocess
import sys
from typing import Any

# Each makes functions that should return 0, 1, 2 and may not.
CASES = {
    "def in a for loop": """
def make():
    readers = []
    for i in range(3):
        def read():
            return i
        readers.append(read)
    return readers
""",
    "lambda in a for loop": """
def make():
    readers = []
    for i in range(3):
        readers.append(lambda: i)
    return readers
""",
    "list comprehension": """
def make():
    return [lambda: i for i in range(3)]
""",
    "dictionary of lambdas": """
def make():
    table = {}
    for i, name in enumerate("abc"):
        table[name] = lambda: i
    return list(table.values())
""",
    "counter beside the loop": """
def make():
    readers, i = [], 0
    for _ in "abc":
        readers.append(lambda: i)
        i += 1
    return readers
""",
    "variable changed after it": """
def make():
    i = 0
    first = lambda: i
    i = 1
    second = lambda: i
    i = 2
    return [first, second, lambda: i]
""",
    "lazy map": """
def make():
    lazy = []
    for i in range(3):
        lazy.append(map(lambda _: i, "x"))
    return [values.__next__ for values in lazy]
""",
    "generator expression": """
def make():
    lazy = []
    for i in range(3):
        lazy.append(i for _ in "x")
    return [values.__next__ for values in lazy]
""",
    "handed to a helper": """
def add(readers, read):
    readers.append(read)

def make():
    readers = []
    for i in range(3):
        add(readers, lambda: i)
    return readers
""",
    "cured: default argument": """
def make():
    return [lambda i=i: i for i in range(3)]
""",
    "cured: factory": """
def keep(i):
    return lambda: i

def make():
    return [keep(i) for i in range(3)]
""",
    "harmless: called at once": """
def call(function):
    return function()

def make():
    readers = []
    for i in range(3):
        value = call(lambda: i)
        readers.append(lambda value=value: value)
    return readers
""",
}


def is_late(source: str) -> bool:
    """Run a case: True if its functions do not return 0, 1, 2."""
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    return [read() for read in namespace["make"]()] != [0, 1, 2]


def ruff_warns(source: str) -> bool:
    """Let ruff look for B023, a function that does not bind its loop variable.

    Raises:
        RuntimeError: ruff is not installed, or can't read the source.
    """
    flags = ["check", "--isolated", "--quiet", "--select=B023", "-"]
    command = [sys.executable, "-m", "ruff", *flags]
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"ruff_warns: ruff ended with {done.stderr.strip()}.")
    return done.returncode == 1
