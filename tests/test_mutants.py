"""No mutant of a stored solution is praised: one small change, and the answer is wrong.

Each solution is changed at one place at a time: an operator, a constant, a term, a
condition, an index, a call or a keyword of it; a statement or a `return` is left out;
two neighbors in a call, a tuple or a list change places. A mutant that computes the
same is listed with its reason; a test sees that it is still needed.
"""

import ast
import copy
import importlib
from collections.abc import Iterator

import pytest

from course_lib.lessons import exercises
from course_lib.lessons.exercises import Verdict, lessons
from tests.test_exercises import Desk, cell_with, exercises_of, notebook_of, solution_in

OTHER = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


def changes_of(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what one node may turn into."""
    if isinstance(node, ast.BinOp):
        yield node.left
        yield node.right
        if type(node.op) in OTHER:
            yield ast.BinOp(node.left, OTHER[type(node.op)](), node.right)
        if not isinstance(node.op, ast.Add | ast.Mult):  # whose order is free
            yield ast.BinOp(node.right, node.op, node.left)
    elif isinstance(node, ast.AugAssign) and type(node.op) in OTHER:
        yield ast.AugAssign(node.target, OTHER[type(node.op)](), node.value)
        yield ast.Assign([node.target], node.value)
    elif isinstance(node, ast.Compare):
        operators = [OTHER.get(type(op), type(op))() for op in node.ops]
        yield ast.Compare(node.left, operators, node.comparators)
        yield ast.UnaryOp(ast.Not(), node)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(OTHER[type(node.op)](), node.values)
        yield from node.values
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant):
        for value in _other_constants(node.value):
            yield ast.Constant(value)
    elif isinstance(node, ast.Call):
        yield from _changed_calls(node)
    elif isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    elif isinstance(node, ast.If):
        yield ast.If(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
        yield ast.If(ast.Constant(True), node.body, node.orelse)
    elif isinstance(node, ast.Subscript):
        yield node.value
    elif isinstance(node, ast.Return) and node.value:
        yield ast.Expr(node.value)
    elif isinstance(node, ast.Tuple | ast.List):
        for elements in _swapped(node.elts):
            yield type(node)(elements, node.ctx)
    if isinstance(node, ast.Expr | ast.Assign | ast.AugAssign | ast.With | ast.For):
        yield ast.Pass()


def _other_constants(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [value * 2, -value]
    return [value + "x"] if isinstance(value, str) else []


def _changed_calls(node: ast.Call) -> Iterator[ast.AST]:
    if node.args:
        yield node.args[0]
    if isinstance(node.func, ast.Attribute):
        yield node.func.value
    for i in range(len(node.keywords)):
        rest = node.keywords[:i] + node.keywords[i + 1 :]
        yield ast.Call(node.func, node.args, rest)
    for args in _swapped(node.args):
        yield ast.Call(node.func, args, node.keywords)


def _swapped(nodes: list[ast.expr]) -> Iterator[list[ast.expr]]:
    """Yield the list with each two neighbors swapped."""
    for i in range(len(nodes) - 1):
        yield [*nodes[:i], nodes[i + 1], nodes[i], *nodes[i + 2 :]]


def mutants(source: str) -> list[str]:
    """Return the distinct programs that differ from this one at one place."""
    tree = ast.parse(source)
    found = {}
    for place, node in enumerate(ast.walk(tree)):
        for change in changes_of(node):
            text = ast.unparse(_with_change(tree, place, change))
            if text != ast.unparse(tree):
                found[text] = None
    return list(found)


def _with_change(tree: ast.AST, place: int, change: ast.AST) -> ast.AST:
    tree = copy.deepcopy(tree)
    target = list(ast.walk(tree))[place]
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is target:
                setattr(parent, name, copy.deepcopy(change))
            elif isinstance(value, list):
                value[:] = [copy.deepcopy(change) if v is target else v for v in value]
    return ast.fix_missing_locations(tree)


_SHIFTS = "shifts = [({}) for {} in places for {} in places]"
_PADDED = "self.padded, self.kernel = (pad(x, ({})), second.weight)"

# Mutants that compute the same: (lesson.exercise, line of the mutant) -> why
EQUIVALENT = {
    ("closures.shares", "theirs, mine = (f.__closure__ or (), g.__closure__ or ())"): (
        "f and g may change places"
    ),
    ("closures.shares", "mine, theirs = (g.__closure__ or (), f.__closure__ or ())"): (
        "f and g may change places"
    ),
    (
        "regularization.same_as_penalty",
        "groups = [{'params': biases}, {'params': weights, 'weight_decay': 2 * l2}]",
    ): "groups have no order",
    ("regularization.count_once", "weights = {m.weight: m.weight for m in linears}"): (
        "a tensor is its own key by identity"
    ),
    (
        "keras_models.same_padding",
        "missing = max(0, (windows - 1) * stride + kernel - size)",
    ): "the larger of two, in either order",
    ("explicit.fit", "losses.append(value)"): "a tensor with the same number",
    (
        "explicit.fit",
        "log.append({'losses': losses, 'accuracy': right.double().mean()})",
    ): "a tensor with the same number",
    ("keras_models.conv", "missing = max(0, (windows - 1) * stride + kernel - size)"): (
        "the larger of two, in either order"
    ),
    ("keras_models.conv", "self.weight = nn.Parameter(kernel.permute(3, 2, 0, 1))"): (
        "the numbers of the file, without a copy"
    ),
    ("keras_models.conv", "self.bias = None if bias is None else nn.Parameter(bias)"): (
        "the numbers of the file, without a copy"
    ),
    ("keras_models.run", "name, number, _ = file['config']['output_layers'][-1]"): (
        "the list has one reference"
    ),
    (
        "adversaries.began_step",
        "own = ((discriminator, loss(real, generated)), (generator, generated))",
    ): "the players have no order",
    (
        "adversaries.began_step",
        "real = absolute_error(images, discriminator(images)).mean()",
    ): "a distance has no order",
    (
        "adversaries.began_step",
        "generated = absolute_error(made, discriminator(made)).mean()",
    ): "a distance has no order",
    (
        "adversaries.worse_side",
        "return torch.where((ahead >= behind)[:, None, None, None], step, -step)",
    ): "of two equal sides either is good",
    ("rules.careful", "share = min((steps + 1) / self.warmup, 1)"): (
        "the arguments of min may change places"
    ),
    ("rules.warm_cosine", "done = (warmup - step) / (total - warmup)"): (
        "the cosine is even"
    ),
    ("rules.warm_cosine", "done = (step - warmup) / (warmup - total)"): (
        "the cosine is even"
    ),
    (
        "rules.accumulate",
        "total = sum((g * n for g, n in zip(sizes, grads)))",
    ): "a product has no order",
    (
        "rules.accumulate",
        "total = sum((g * n for n, g in zip(grads, sizes)))",
    ): "a product has no order, whatever its factors are called",
    ("rso.best", "return min([w, w - dw, w + dw], key=loss)"): (
        "of two equal candidates either is good"
    ),
    ("rso.he", "return (2 / weight[1].numel()) ** 0.5"): "all rows have one size",
    ("rso.he", "return (2 / weight[-1].numel()) ** 0.5"): "all rows have one size",
    ("rso.cycle", "tries = (w, w - dw, w + dw)"): (
        "of two equal candidates either is good"
    ),
    ("rso.cycle", "if not isinstance(layer, (nn.Conv2d, nn.Linear)):"): (
        "kinds have no order"
    ),
    ("rso.cycle", "losses.append(loss(model(inputs), targets))"): (
        "tensors of one number compare as numbers"
    ),
    ("rso_speed.fold", _SHIFTS.format("last - x, x, y, last - y", "y", "x")): (
        "mirrored places"
    ),
    ("rso_speed.fold", _SHIFTS.format("x, last - x, last - y, y", "y", "x")): (
        "mirrored places"
    ),
    ("rso_speed.one_channel", _PADDED.format("1, 2, 1, 1")): "zeros that nobody reads",
    ("rso_speed.one_channel", _PADDED.format("1, 1, 1, 2")): "zeros that nobody reads",
}


def verdict_on(answer: str, desk: Desk, name: str) -> Verdict | None:
    """Run an answer after the starter, and its check; None if it does not even run."""
    trial = copy.copy(desk)
    trial.names = dict(desk.names)
    trial.run(cell_with(desk.notebook, f"exercise:{name}"))
    try:
        trial.run(answer)
    except Exception:  # the learner sees an error, and no verdict
        return None
    return trial.verdict(name)


def changed_line(source: str, mutant: str) -> str:
    """Return the first line in which a mutant differs."""
    before = ast.unparse(ast.parse(source)).splitlines()
    after = mutant.splitlines()
    pairs = zip(before, after, strict=False)
    return next((two for one, two in pairs if one != two), after[-1]).strip()


@pytest.fixture
def short_clock(monkeypatch, tmp_path):
    """A mutant that never ends is stopped after two seconds."""
    limit = exercises._time_limit
    monkeypatch.setattr(exercises, "_time_limit", lambda s: limit(min(s, 2.0)))
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress.json"))


@pytest.mark.usefixtures("short_clock")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lesson", lessons())
def test_no_mutant_of_a_solution_is_praised(lesson):
    module = importlib.import_module(f"course_lib.lessons.{lesson}")
    notebook = notebook_of(module.NUMBER, lesson)
    desk = Desk(notebook)
    found, judged = set(), []
    for name in exercises_of(module):
        solution = solution_in(cell_with(notebook, f"solution:{name}"))
        unchanged = verdict_on(ast.unparse(ast.parse(solution)), desk, name)
        assert unchanged, f"{name}: the solution does not run"
        assert unchanged.solved, f"{name}: {unchanged}"
        for mutant in mutants(solution):
            verdict = verdict_on(mutant, desk, name)
            judged.append(verdict is not None)
            if verdict and verdict.solved:
                found.add((f"{lesson}.{name}", changed_line(solution, mutant)))
    assert sum(judged) >= len(judged) / 2, "most mutants do not even run"
    assert found == {key for key in EQUIVALENT if key[0].startswith(f"{lesson}.")}


def test_a_mutant_differs_at_one_place():
    assert mutants("x = a - 2 if b else c") == [
        "pass",
        "x = a - 2",
        "x = c",
        "x = a if b else c",
        "x = 2 if b else c",
        "x = a + 2 if b else c",
        "x = 2 - a if b else c",
        "x = a - 3 if b else c",
        "x = a - 1 if b else c",
    ]


def test_a_return_is_left_out_and_neighbors_change_places():
    assert mutants("def f(): return [a, b, c]") == [
        "def f():\n    [a, b, c]",
        "def f():\n    return [b, a, c]",
        "def f():\n    return [a, c, b]",
    ]
    assert mutants("a, b = c") == ["pass", "b, a = c"]
