"""Late binding in its disguises: what is captured, who shares it, how it freezes.

Python itself is the oracle: each disguise is run as it is, and with its functions
frozen as they are made.
"""
# ruff: noqa: B023, E731 (the bug is the subject)

import asyncio
import copy
import functools
import inspect
import pickle
import queue
import sys
import threading
from collections import namedtuple
from types import MethodType

import numpy as np
import pytest
import torch
from torch import nn

from course_lib.closures import UNSET, captures, freeze_captures, shared_captures

# Each makes three functions, and hands each to `keep` as soon as it is made.


def for_loop(keep):
    readers = []
    for i in range(3):
        readers.append(keep(lambda: i))
    return readers


def comprehension(keep):
    return [keep(lambda: i) for i in range(3)]


def lambdas_in_a_dict(keep):
    return list({name: keep(lambda: i) for i, name in enumerate("abc")}.values())


def function_redefined_in_a_loop(keep):
    readers = []
    for i in range(3):

        def read():
            return i

        readers.append(keep(read))
    return readers


def counter_beside_the_loop(keep):
    readers = []
    i = -1
    for _ in "abc":
        i += 1
        readers.append(keep(lambda: i))
    return readers


def nested_two_levels_down(keep):
    readers = []
    for i in range(3):

        def outer():
            return (lambda: i)()

        readers.append(keep(outer))
    return readers


def keyword_only_default(keep):
    readers = []
    for i in range(3):

        def read(*, scale=1):
            return i * scale

        readers.append(keep(read))
    return readers


def method_that_closes_over_the_loop(keep):
    readers = []
    for i in range(3):

        class Reader:
            @keep
            def read(self):
                return i

        readers.append(Reader().read)
    return readers


def decorated_function(keep):
    def loud(function):
        @functools.wraps(function)
        def wrapper():
            return function()

        return wrapper

    readers = []
    for i in range(3):

        @keep
        @loud
        def read():
            return i

        readers.append(read)
    return readers


def generator(keep):
    streams = []
    for i in range(3):

        @keep
        def count():
            yield i

        streams.append(count())  # runs nothing yet
    return [functools.partial(next, stream) for stream in streams]


def coroutine(keep):
    async def gather():
        waiting = []
        for i in range(3):

            @keep
            async def answer():
                await asyncio.sleep(0)
                return i

            waiting.append(answer())
        return await asyncio.gather(*waiting)

    return [lambda number=number: number for number in asyncio.run(gather())]


def callback_of_the_event_loop(keep):
    async def call_soon():
        seen = []
        for i in range(3):
            callback = keep(lambda: seen.append(i))
            asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0)
        return seen

    return [lambda number=number: number for number in asyncio.run(call_soon())]


def threads_that_start_later(keep):
    seen = queue.Queue()
    threads = []
    for i in range(3):
        threads.append(threading.Thread(target=keep(lambda: seen.put(i))))
    for thread in threads:
        thread.start()
        thread.join()
    return [seen.get_nowait for _ in threads]


def jobs_in_a_queue(keep):
    jobs = queue.Queue()
    for i in range(3):
        jobs.put(keep(lambda: i))
    return [jobs.get() for _ in range(3)]


def forward_hooks(keep):
    seen = []
    model = nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity())
    for i, layer in enumerate(model):
        layer.register_forward_hook(keep(lambda *_: seen.append(i)))
    model(torch.zeros(1))
    return [lambda number=number: number for number in seen]


DISGUISES = [
    for_loop,
    comprehension,
    lambdas_in_a_dict,
    function_redefined_in_a_loop,
    counter_beside_the_loop,
    nested_two_levels_down,
    keyword_only_default,
    method_that_closes_over_the_loop,
    decorated_function,
    generator,
    coroutine,
    callback_of_the_event_loop,
    threads_that_start_later,
    jobs_in_a_queue,
    forward_hooks,
]


@pytest.mark.parametrize("make", DISGUISES, ids=lambda make: make.__name__)
def test_what_python_binds_late_is_shared_and_can_be_frozen_in_time(make):
    made = []

    def remember(function):
        made.append(function)
        return function

    assert [read() for read in make(remember)] == [2, 2, 2]
    innermost = [inspect.unwrap(function) for function in made]
    assert shared_captures(innermost)["i"] == innermost
    assert [read() for read in make(freeze_captures)] == [0, 1, 2]


# captures


def test_captures_lists_names_with_the_values_of_now():
    a, b = 1, [2]
    read = lambda: (b, a)
    assert captures(read) == {"a": 1, "b": [2]}
    assert list(captures(read)) == list(read.__code__.co_freevars)
    a = 3
    assert captures(read)["a"] == 3
    assert captures(read)["b"] is b


def test_globals_arguments_and_defaults_are_not_captured():
    outside = 1

    def read(argument, default=outside):
        return pytest, argument, default

    assert captures(read) == {}


def test_a_default_that_repeats_the_name_leaves_nothing_to_capture():
    readers = [lambda i=i: i for i in range(3)]
    assert [captures(read) for read in readers] == [{}, {}, {}]
    assert shared_captures(readers) == {}


def test_a_name_that_is_assigned_later_or_deleted_is_unset():
    later = lambda: value  # noqa: F821
    assert captures(later) == {"value": UNSET}
    value = 1
    assert captures(later) == {"value": 1}
    del value
    assert captures(later) == {"value": UNSET}


def test_unset_stays_one_object_in_copies_and_pickles():
    assert repr(UNSET) == "<unset>"
    assert copy.copy(UNSET) is UNSET
    assert copy.deepcopy([UNSET])[0] is UNSET
    assert pickle.loads(pickle.dumps(UNSET)) is UNSET


def test_super_captures_its_class():
    class Child(list):
        def append(self, item):
            super().append(item + 1)

    assert captures(Child.append) == {"__class__": Child}
    numbers = Child()
    freeze_captures(Child.append)(numbers, 1)
    assert numbers == [2]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type parameters are of 3.12")
def test_a_type_parameter_is_captured_and_kept():
    namespace = {}
    exec("def first[T](items):\n    return T, items[0]", namespace)
    first = namespace["first"]
    assert captures(first) == {"T": first.__type_params__[0]}
    frozen = freeze_captures(first)
    assert frozen([1]) == first([1])
    assert frozen.__type_params__ == first.__type_params__


# shared_captures


def test_equal_names_in_different_cells_are_not_shared():
    def factory(i):
        return lambda: i

    assert shared_captures(map(factory, (1, 1, 1))) == {}


def test_only_the_shared_names_and_their_users_are_listed_in_order():
    shared, own = 1, 2
    first, second, alone = lambda: shared, lambda: (shared, own), lambda: None
    assert shared_captures([second, alone, first]) == {"shared": [second, first]}


def test_a_function_that_is_given_twice_counts_once():
    i = 0
    read, other = lambda: i, lambda: i
    assert shared_captures([read, read]) == {}
    assert shared_captures([read, other, read]) == {"i": [read, other]}


def test_an_unset_cell_is_shared_as_well():
    first, second = lambda: later, lambda: later
    assert shared_captures([first, second]) == {"later": [first, second]}
    later = None


# freeze_captures


def test_a_frozen_copy_keeps_everything_but_its_cells():
    value = 1

    def read(a, b=2, *, c: int = 3) -> int:
        """Read it."""
        return value + a + b + c

    read.note = ["kept"]
    frozen = freeze_captures(read)
    value = 100

    assert (frozen(0), read(0)) == (6, 105)
    assert frozen is not read
    for name in ("__code__", "__globals__", "__defaults__", "__kwdefaults__"):
        assert getattr(frozen, name) == getattr(read, name)
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__dict__"):
        assert getattr(frozen, name) == getattr(read, name)
    assert frozen.__annotations__ == {"c": int, "return": int}
    assert inspect.signature(frozen) == inspect.signature(read)
    assert not hasattr(frozen, "__wrapped__")


def test_attributes_set_on_the_copy_stay_off_the_original():
    value = 1

    def read(*, scale=1):
        return value * scale

    frozen = freeze_captures(read)
    frozen.note = "mine"
    frozen.__kwdefaults__["scale"] = 10
    assert not hasattr(read, "note")
    assert (read(), frozen()) == (1, 10)


def test_mutable_values_and_defaults_are_shared_and_not_copied():
    captured = []

    def add(item, default=[]):  # noqa: B006  the trap itself
        captured.append(item)
        default.append(item)
        return captured, default

    add(1)
    assert freeze_captures(add)(2) == ([1, 2], [1, 2])
    assert add(3) == ([1, 2, 3], [1, 2, 3])


def test_the_copy_writes_to_its_own_cells():
    count = 0

    def step():
        nonlocal count
        count += 1
        return count

    frozen = freeze_captures(step)
    assert [frozen(), frozen(), step(), frozen()] == [1, 2, 1, 3]
    assert count == 1


def test_copies_made_together_share_a_cell_where_the_originals_do():
    def make():
        count = 0

        def step():
            nonlocal count
            count += 1

        def step_and_read():
            step()
            return count

        return step_and_read

    original = make()
    frozen = freeze_captures(original)
    assert [frozen(), frozen(), original()] == [1, 2, 1]


def test_a_recursive_function_calls_its_frozen_self():
    def count_down(n):
        return [base] if n == 0 else [*count_down(n - 1), base]

    base = "then"
    original, frozen = count_down, freeze_captures(count_down)
    base = "now"
    assert frozen(2) == ["then"] * 3
    assert original(2) == ["now"] * 3
    assert captures(original)["count_down"] is original
    assert captures(frozen)["count_down"] is frozen


def test_mutual_recursion_freezes_both_and_leaks_into_neither():
    def even(n):
        return word if n == 0 else odd(n - 1)

    def odd(n):
        return f"not {word}" if n == 0 else even(n - 1)

    word = "even"
    frozen = freeze_captures(even)
    word = "EVEN"
    assert (frozen(4), frozen(3)) == ("even", "not even")
    assert (even(4), odd(4)) == ("EVEN", "not EVEN")
    assert captures(captures(frozen)["odd"])["even"] is frozen
    assert captures(odd)["even"] is even


def test_a_decorated_function_freezes_what_its_wrapper_captured():
    def twice(function):
        @functools.wraps(function)
        def wrapper():
            return 2 * function()

        return wrapper

    @twice
    def read():
        return i

    i = 1
    frozen = freeze_captures(read)
    i = 10
    assert (frozen(), read()) == (2, 20)
    assert (frozen.__wrapped__(), read.__wrapped__()) == (1, 10)
    assert frozen.__wrapped__ is captures(frozen)["function"]


def test_a_frozen_function_freezes_to_the_same_again():
    i = 1
    once = freeze_captures(lambda: i)
    again = freeze_captures(once)
    i = 2
    assert (once(), again()) == (1, 1)
    assert captures(once) == captures(again) == {"i": 1}


def test_a_function_without_captures_comes_back_as_it_is():
    assert freeze_captures(for_loop) is for_loop


def test_freezing_too_early_names_the_variable_and_the_function():
    def read():
        return later

    message = r"'later' of .*\.read has no value yet\. Freeze the function after"
    with pytest.raises(ValueError, match=message):
        freeze_captures(read)
    with pytest.raises(ValueError, match=message):
        freeze_captures(lambda: read())
    later = None


# Functions behind functions


def logged(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


def nameless(function):
    return lambda *args: function(*args)


class Counted:  # a decorator that is a class
    def __init__(self, function):
        functools.update_wrapper(self, function)

    def __call__(self):
        return self.__wrapped__()


class Shelf:
    pass


def as_method(function):
    return MethodType(lambda self: function(), Shelf())


def in_a_list(function):
    held = [function]
    return lambda: held[0]()


def in_a_dict_in_a_list(function):
    held = [{"read": function}]
    return lambda: held[0]["read"]()


def in_a_set(function):
    held = {function}
    return lambda: next(iter(held))()


def in_a_tuple(function):
    held = (0, function)
    return lambda: held[1]()


Pair = namedtuple("Pair", "number read")


def in_a_namedtuple(function):
    held = Pair(0, function)
    return lambda: held.read()


def as_default(function):
    return lambda read=function: read()


def as_keyword_default(function):
    return lambda *, read=function: read()


def in_a_default_list(function):
    def call(held=[function]):  # noqa: B006
        return held[0]()

    return call


def as_partial(function):
    return functools.partial(function)


def as_argument_of_a_partial(function):
    return functools.partial(lambda read: read(), function)


def as_keyword_of_a_partial(function):
    return functools.partial(lambda *, func: func(), func=function)


def captured_partial(function):
    held = functools.partial(function)
    return lambda: held()


def captured_cache(function):
    held = functools.cache(function)
    return lambda: held()


FROZEN = [
    *(logged, nameless, as_method, in_a_tuple, in_a_namedtuple, as_default),
    *(as_keyword_default, as_partial, as_argument_of_a_partial),
    *(as_keyword_of_a_partial, captured_partial),
]
# A copy would not be the same list, cache or object to those who have it already.
HELD = [
    *(functools.cache, Counted, in_a_list, in_a_dict_in_a_list, in_a_set),
    *(in_a_default_list, captured_cache),
]


def readers(wrap, keep=lambda function: function):
    made = []
    for i in range(3):
        made.append(keep(wrap(lambda: i)))
    return made


@pytest.mark.parametrize("wrap", [*FROZEN, *HELD])
def test_a_late_variable_behind_another_function_is_found(wrap):
    made = readers(wrap)
    assert [read() for read in made] == [2, 2, 2]
    assert [captures(read)["i"] for read in made] == [2, 2, 2]
    assert shared_captures(made)["i"] == made


@pytest.mark.parametrize("wrap", FROZEN)
@pytest.mark.parametrize("outer", [lambda f: f, logged, as_default, as_partial])
def test_and_freezes_in_time(wrap, outer):
    made = readers(lambda function: outer(wrap(function)), freeze_captures)
    assert [read() for read in made] == [0, 1, 2]
    assert "i" not in shared_captures(made)


@pytest.mark.parametrize("wrap", HELD)
def test_or_is_refused_with_the_name_and_the_reason(wrap):
    with pytest.raises(ValueError, match="with a function that captures 'i', and wo"):
        readers(wrap, freeze_captures)
    # What it advises: freeze that function before it goes in there.
    made = readers(lambda function: wrap(freeze_captures(function)))
    assert [read() for read in made] == [0, 1, 2]


def test_the_refusal_names_the_variable_that_holds_the_function():
    holder = in_a_list(logged(len_of))
    with pytest.raises(ValueError, match=r"^freeze_captures: 'held' is a list with"):
        freeze_captures(holder)


def test_a_container_without_late_functions_is_bound_and_not_copied():
    seen, table = [], {"len": len, "plain": logged.__globals__["readers"]}
    frozen = freeze_captures(lambda: (seen, table))
    assert frozen()[0] is seen
    assert frozen()[1] is table


def test_names_of_two_cells_do_not_hide_each_other():
    inner = logged(logged(lambda: 1))
    found = captures(inner)
    assert list(found) == ["function", "function.function"]
    assert captures(found["function"]) == {"function": found["function.function"]}


def test_a_function_counts_once_however_many_ways_lead_to_a_cell():
    i = 1
    one, two = (lambda: i), (lambda: i)
    both = lambda: (one, two, i)
    assert list(captures(both)) == ["i", "one", "two"]
    assert shared_captures([both, one]) == {"i": [both, one]}
    # And once for a name that stands for two cells.
    twice = [logged(logged(one)), logged(logged(two))]
    again = [logged(twice[0]), logged(twice[0])]
    assert shared_captures(again)["function"] == again


def test_a_decorated_function_shows_its_wrapper_and_then_itself():
    i = 5
    assert list(captures(logged(lambda: i))) == ["function", "i"]
    assert captures(functools.partial(len_of, [1])) == {}
    assert captures(Adder().add) == {}
    assert captures(functools.cache(len_of)) == {}


def len_of(x):
    return len(x)


def test_a_partial_and_a_method_keep_their_arguments_and_their_object():
    k = 3
    part = functools.partial(lambda a, b, c=0: (a, b, c, k), 1, c=4)
    part.note = "mine"
    frozen = freeze_captures(part)
    k = 9
    assert (frozen(2), part(2)) == ((1, 2, 4, 3), (1, 2, 4, 9))
    assert frozen.note == "mine"
    shelf = Shelf()
    method = freeze_captures(MethodType(lambda self: (self, k), shelf))
    k = 10
    assert method() == (shelf, 9)


def test_what_captures_nothing_comes_back_from_behind_as_it_is():
    for thing in (functools.partial(len_of), Adder().add, functools.cache(len_of)):
        assert freeze_captures(thing) is thing


def test_functions_that_hold_each_other_come_to_an_end():
    box = []

    def read():
        return len(box)

    box.append(read)
    assert captures(read) == {"box": box}
    with pytest.raises(ValueError, match="'box' is a list with a function"):
        freeze_captures(read)
    pair = (lambda: pair, 1)
    frozen = freeze_captures(pair[0])
    assert frozen()[0] is frozen


def test_long_lists_and_generators_are_not_walked():
    numbers = iter(range(3))
    many = list(range(200_000))
    assert captures(lambda: (numbers, many)) == {"many": many, "numbers": numbers}
    assert list(numbers) == [0, 1, 2]


# What has no cells is refused, with the reason and the remedy.


class Adder:
    def add(self, x):
        return x

    def __call__(self, x):
        return x


REFUSED = {
    "a partial of an object": (functools.partial(Adder()), "a partial of 'Adder'"),
    "a partial of a builtin": (
        functools.partial(len, []),
        "a partial of 'len'; wanted",
    ),
    "a builtin": (len, r"the builtin 'len'; .* no Python cells\. Wrap it in a lambda"),
    "a method in C": ([].append, r"the builtin 'list\.append'; it is written in C"),
    "a descriptor in C": (str.upper, r"the builtin 'str\.upper'; it is written in C"),
    "a slot": (str.__len__, r"the builtin 'str\.__len__'; it is written in C"),
    "a bound slot": ("".__len__, r"the builtin 'str\.__len__'; it is written in C"),
    "torch's own": (torch.relu, r"the builtin .*relu'; it is written in C"),
    "a class": (Adder, r"the class 'Adder'; wanted a function\. Pass one of its"),
    "an object": (Adder(), r"a callable Adder object; .* vars\(\.\.\.\) shows them"),
    "a ufunc": (np.add, "a callable ufunc object; .* Wanted a function"),
    "a module": (nn.ReLU(), "a callable ReLU object; .* Wanted a function"),
    "a number": (3, r"3, which can't be called; wanted a function \(def or lamb"),
    "None": (None, "None, which can't be called"),
}


@pytest.mark.parametrize(("thing", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_cells_is_refused_in_words(thing, message):
    with pytest.raises(TypeError, match=f"^captures: got .*{message}"):
        captures(thing)
    with pytest.raises(TypeError, match=f"^freeze_captures: got .*{message}"):
        freeze_captures(thing)
    with pytest.raises(TypeError, match=f"^shared_captures: got .*{message}"):
        shared_captures([for_loop, thing])


def test_one_function_alone_shares_with_nobody():
    with pytest.raises(TypeError, match=r"got one callable, '.*'; wanted a list of"):
        shared_captures(lambda: 1)
