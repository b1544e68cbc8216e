"""What a refused Lambda's bytecode tells, without ever becoming code."""

from __future__ import annotations

import base64
import marshal
import random
import time

import pytest

from course_lib.keras_models import KerasFormatError, load_keras
from course_lib.keras_models.schema.lambda_code import describe

# lambda x, s=3: K.l2_normalize(x * 2.5, axis=-1)[:, 2:5] + sum(q for q in x)
# as marshal.dumps of its __code__, by each Python.
CODES = {
    "2.7": (
        "YwIAAAACAAAABAAAAEMAAABzQQAAAHQAAGoBAHwAAGQBABRkAgBkAwCDAQFkAABkAACFAgBkBABk"
        "BQCFAgBmAgAZdAIAZAYAhAAAfAAARIMBAIMBABdTKAcAAABOZwAAAAAAAARAdAQAAABheGlzaf//"
        "//9pAgAAAGkFAAAAYwEAAAACAAAAAgAAAHMAAABzFQAAAHwAAF0LAH0BAHwBAFYBcQMAZAAAUygB"
        "AAAATigAAAAAKAIAAAB0AgAAAC4wdAEAAABxKAAAAAAoAAAAAHMIAAAAPHN0cmluZz5zCQAAADxn"
        "ZW5leHByPgMAAABzAgAAAAYAKAMAAAB0AQAAAEt0DAAAAGwyX25vcm1hbGl6ZXQDAAAAc3VtKAIA"
        "AAB0AQAAAHh0AQAAAHMoAAAAACgAAAAAcwgAAAA8c3RyaW5nPnQIAAAAPGxhbWJkYT4DAAAAdAAA"
        "AAA="
    ),
    "3.6": (
        "4wIAAAAAAAAAAgAAAAQAAABDAAAAczQAAAB0AGoBfABkARQAZAhkA40CZABkAIUCZARkBYUCZgIZ"
        "AHQCZAZkB4QAfABEAIMBgwEXAFMAKQlO5wAAAAAAAARA6QEAAAApAdoEYXhpc+kCAAAA6QUAAABj"
        "AQAAAAAAAAACAAAAAgAAAHMAAABzEgAAAHwAXQp9AXwBVgABAHECZABTACkBTqkAKQLaAi4w2gFx"
        "cgYAAAByBgAAANoIPHN0cmluZz76CTxnZW5leHByPgMAAABzAgAAAAQAehs8bGFtYmRhPi48bG9j"
        "YWxzPi48Z2VuZXhwcj7p/////ykD2gFL2gxsMl9ub3JtYWxpemXaA3N1bSkC2gF42gFzcgYAAABy"
        "BgAAAHIJAAAA2gg8bGFtYmRhPgMAAABzAAAAAA=="
    ),
    "3.7": (
        "4wIAAAAAAAAAAgAAAAQAAABDAAAAczQAAAB0AGoBfABkARQAZAJkA40CZABkAIUCZARkBYUCZgIZ"
        "AHQCZAZkB4QAfABEAIMBgwEXAFMAKQhO5wAAAAAAAARA6f////8pAdoEYXhpc+kCAAAA6QUAAABj"
        "AQAAAAAAAAACAAAAAgAAAHMAAABzEgAAAHwAXQp9AXwBVgABAHECZABTACkBTqkAKQLaAi4w2gFx"
        "cgYAAAByBgAAANoIPHN0cmluZz76CTxnZW5leHByPgMAAABzAgAAAAQAehs8bGFtYmRhPi48bG9j"
        "YWxzPi48Z2VuZXhwcj4pA9oBS9oMbDJfbm9ybWFsaXpl2gNzdW0pAtoBeNoBc3IGAAAAcgYAAABy"
        "CQAAANoIPGxhbWJkYT4DAAAA8wAAAAA="
    ),
    "3.8": (
        "4wIAAAAAAAAAAAAAAAIAAAAEAAAAQwAAAHM0AAAAdABqAXwAZAEUAGQCZAONAmQAZACFAmQEZAWF"
        "AmYCGQB0AmQGZAeEAHwARACDAYMBFwBTACkITucAAAAAAAAEQOn/////KQHaBGF4aXPpAgAAAOkF"
        "AAAAYwEAAAAAAAAAAAAAAAIAAAACAAAAcwAAAHMSAAAAfABdCn0BfAFWAAEAcQJkAFMAKQFOqQAp"
        "AtoCLjDaAXFyBgAAAHIGAAAA2gg8c3RyaW5nPtoJPGdlbmV4cHI+AwAAAHMEAAAABAACAHobPGxh"
        "bWJkYT4uPGxvY2Fscz4uPGdlbmV4cHI+KQPaAUvaDGwyX25vcm1hbGl6ZdoDc3VtKQLaAXjaAXNy"
        "BgAAAHIGAAAAcgkAAADaCDxsYW1iZGE+AwAAAPMAAAAA"
    ),
    "3.10": (
        "4wIAAAAAAAAAAAAAAAIAAAAEAAAAQwAAAHM0AAAAdABqAXwAZAEUAGQCZAONAmQAZACFAmQEZAWF"
        "AmYCGQB0AmQGZAeEAHwARACDAYMBFwBTACkITucAAAAAAAAEQOn/////KQHaBGF4aXPpAgAAAOkF"
        "AAAAYwEAAAAAAAAAAAAAAAIAAAACAAAAcwAAAHMUAAAAgQB8AF0FfQF8AVYAAQBxAmQAUwApAU6p"
        "ACkC2gIuMNoBcXIGAAAAcgYAAADaCDxzdHJpbmc+2gk8Z2VuZXhwcj4DAAAAcwQAAAACgBIAehs8"
        "bGFtYmRhPi48bG9jYWxzPi48Z2VuZXhwcj4pA9oBS9oMbDJfbm9ybWFsaXpl2gNzdW0pAtoBeNoB"
        "c3IGAAAAcgYAAAByCQAAANoIPGxhbWJkYT4DAAAAcwIAAAA0AA=="
    ),
    "3.11": (
        "4wIAAAAAAAAAAAAAAAUAAAADAAAA84wAAACXAHQAAAAAAAAAAAAAAKABAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAB8AGQBegUAAGQCrAOmAgAAqwIAAAAAAAAAAGQAZACFAmQEZAWFAmYCGQAAAAAAAAAAAHQF"
        "AAAAAAAAAAAAAGQGhAB8AEQApgAAAKsAAAAAAAAAAACmAQAAqwEAAAAAAAAAAHoAAABTACkHTucA"
        "AAAAAAAEQOn/////KQHaBGF4aXPpAgAAAOkFAAAAYwEAAAAAAAAAAAAAAAIAAAAzAAAA8xoAAABL"
        "AAEAlwB8AF0GfQF8AVYAlwEBAIwHZABTACkBTqkAKQLaAi4w2gFxcwIAAAAgIPoIPHN0cmluZz76"
        "CTxnZW5leHByPnobPGxhbWJkYT4uPGxvY2Fscz4uPGdlbmV4cHI+AwAAAHMaAAAA6ADoAIAAuF64"
        "XsBBuGG4XrheuF64XrheuF7zAAAAACkD2gFL2gxsMl9ub3JtYWxpemXaA3N1bSkC2gF42gFzcwIA"
        "AAAgIHILAAAA+gg8bGFtYmRhPnITAAAAAwAAAHNCAAAAgACVEZcekh6gAaAjoQWoQpAe0REv1BEv"
        "sAGwAbABsDGwUbAzsAbUETe9I7heuF7IEbheuV68XtE6S9Q6S9ERS4AAcg0AAAA="
    ),
    "3.13": (
        "4wIAAAAAAAAAAAAAAAUAAAADAAAA82gAAACVAFsAAAAAAAAAAABSAwAAAAAAAAAAAAAAAAAAAAAA"
        "AFUAUwEtBQAAUwJTAzkCUwBTADICUwRTBTICNAIFAAAAWwUAAAAAAAAAAFMGGgBVABMANQAAAAAA"
        "AAA1AQAAAAAAAC0AAAAkACkHTucAAAAAAAAEQOn/////KQHaBGF4aXPpAgAAAOkFAAAAYwEAAAAA"
        "AAAAAAAAAAIAAAAzAAAA8yIAAAAjACAAlQBVAEgGAABvEXYAlQUgAE0IAAALACAAZwA3A2YBKQFO"
        "qQApAtoCLjDaAXFzAgAAACAg2gg8c3RyaW5nPtoJPGdlbmV4cHI+2hs8bGFtYmRhPi48bG9jYWxz"
        "Pi48Z2VuZXhwcj4DAAAAcw8AAADpAIAAuF7JEcBBvGHKEflzBAAAAIINDwEpA9oBS9oMbDJfbm9y"
        "bWFsaXpl2gNzdW0pAtoBeNoBc3MCAAAAICByCwAAANoIPGxhbWJkYT5yEwAAAAMAAABzMAAAAIAA"
        "lBGXHpEeoAGgI6EFqEKQHtARL7IBsDGwUbAzsAbRETe8I7leyRG7XtM6S9IRS/MAAAAA"
    ),
}


@pytest.mark.parametrize("version", CODES)
def test_code_of_every_python(version, monkeypatch):
    monkeypatch.setattr(marshal, "loads", lambda *_: pytest.fail("it was unmarshalled"))
    text = describe({"function": [CODES[version], None, None]})
    start = " Its code takes (x, s), uses the names K, l2_normalize, sum, and has the "
    assert text.startswith(f"{start}constants 2.5, ")
    assert "'axis'" in text
    assert ", 2, 5" in text


def own(function):
    return base64.b64encode(marshal.dumps(function.__code__)).decode()


FORMS = [
    ([own(lambda x: x[:, 5:]), None, None], "takes (x), and has the constants 5"),
    ({"class_name": "__lambda__", "config": {"code": own(lambda q: q)}}, "takes (q)."),
    ({"class_name": "function", "config": "crop"}, " Its function is 'crop'."),
    ("crop", " Its function is 'crop'."),
    (
        marshal.dumps((lambda y: y + 0.5).__code__).decode("raw_unicode_escape"),
        "takes (y), and has the constants 0.5",
    ),
]


@pytest.mark.parametrize(("function", "match"), FORMS, ids=range(5))
def test_the_forms_of_every_keras(function, match):
    assert match in describe({"function": function})


def test_the_refusal_says_it():
    config = {"name": "norm", "function": [own(lambda x: K.sum(x)), None, None]}  # noqa: F821
    config |= {"arguments": {"axis": 1}, "batch_input_shape": [None, 3]}
    layer = {"class_name": "Lambda", "config": config}
    data = {"class_name": "Sequential", "keras_version": "2.2.4", "config": [layer]}
    with pytest.raises(KerasFormatError) as caught:
        load_keras(data)
    text = str(caught.value)
    assert "'norm' (Lambda): it carries Python code, which is never run. " in text
    assert "takes (x), uses the names K, sum; it is called with {'axis': 1}." in text
    assert text.endswith("Pass replacements={'norm': a module or function}.")


@pytest.mark.parametrize("function", [None, 3, "", [], {}, [None], "a b", "x" * 10**6])
def test_nothing_to_tell(function):
    assert describe({"function": function}) == ""


@pytest.mark.parametrize("seed", range(300))
def test_damaged_code(seed):
    """It ends soon, and with a text."""
    rng = random.Random(seed)
    data = bytearray(base64.b64decode(CODES[rng.choice(list(CODES))]))
    for _ in range(rng.choice([1, 2, 8])):
        data[rng.randrange(len(data))] = rng.choice([0, 255, rng.randrange(256)])
    if seed % 3 == 0:
        del data[rng.randrange(len(data)) :]
    text = describe({"function": [base64.b64encode(data).decode(), None, None]})
    assert len(text) < 2000


def test_references_that_would_never_be_written_out():
    """A tuple of two references to a tuple of two references, and so on."""
    count = 16
    pairs = b"\xa9\x02NN"  # the innermost, which is number `count` of all
    for inner in range(count, 0, -1):
        pairs = b"\xa9\x02" + pairs + b"r" + inner.to_bytes(4, "little")
    code = b"c" + bytes(24)  # six numbers: Python 3.8 to 3.10
    code += b"s" + bytes(4) + b")\x01" + pairs
    code += b")\0" * 4 + 2 * b"z\x01f" + bytes(4) + b"s" + bytes(4)
    start = time.monotonic()
    found = describe({"function": base64.b64encode(code).decode()})
    assert time.monotonic() - start < 2
    assert "(((...), (...)), ((...), (...)))" in found
