"""A search that is on record: for the check of lesson 08's last exercise.

`Lab` hands an answer all that it needs to run a cycle of RSO, and writes down what it
asks for. `judge` reads the record visit by visit and names what is wrong. It never
runs a search of its own.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from course_lib.lessons.checks import reject
from course_lib.lessons.exercises import NotYet

Answer = Callable[..., object]  # (model, sigmas, draw, take, loss)


@dataclass(frozen=True)
class Place:
    """Where one number of the model belongs."""

    layer: int
    name: str  # "the Linear layer"
    kind: str  # "weight", "bias" or "other"


@dataclass
class Lab:
    """A model, and a record of all that an answer does with it.

    Args:
        model: the layers, one after another.
        sigmas: a number for each layer, 0 for one without weights.
        inputs: the shape of a mini-batch.
        sign: of the loss; with -1, w + dw and w - dw are often both better than w.
    """

    model: nn.Sequential
    sigmas: list[float]
    inputs: Sequence[int]
    sign: int = 1
    drawn: list[tuple[float, float]] = field(default_factory=list)  # sigma, dw
    taken: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    judged: list[tuple[Tensor, int, float]] = field(default_factory=list)
    last: tuple[list[float], list[float]] = ([], [])  # candidates, losses of a visit
    last_tried: float = 0.0

    def __post_init__(self) -> None:
        # with this seed the first visits have w - dw, then w, as the best
        self.generator = torch.Generator().manual_seed(5)
        for parameter in self.model.double().parameters():
            nn.init.normal_(parameter, generator=self.generator)

    @property
    def numbers(self) -> Tensor:
        """Return a copy of all numbers that the model could train, in one vector."""
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    @property
    def places(self) -> list[Place]:
        """Return the place of each of the `numbers`."""
        found = []
        for number, layer in enumerate(self.model):
            name = f"the {type(layer).__name__} layer"
            searched = isinstance(layer, nn.Linear | nn.Conv2d)
            for kind, parameter in layer.named_parameters():
                place = Place(number, name, kind if searched else "other")
                found += [place] * parameter.numel()
        return found

    # What an answer is given

    def draw(self, sigma: float) -> float:
        """Return a change: normal, of deviation sigma."""
        dw = float(sigma) * torch.randn((), generator=self.generator).double().item()
        self.drawn.append((float(sigma), dw))
        return dw

    def take(self) -> tuple[Tensor, Tensor]:
        """Return a mini-batch that nobody has seen: (inputs, targets)."""
        options = {"generator": self.generator, "dtype": torch.float64}
        inputs = torch.randn(*self.inputs, **options)
        inputs[:, -1] = 0.0  # the weights of this input or channel change nothing
        with torch.no_grad():
            shape = self.model(inputs).shape
        self.taken.append((inputs, torch.randn(shape, **options)))
        return self.taken[-1]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the signed mean squared error, and write down for which weights."""
        owners = [i for i, (_, t) in enumerate(self.taken) if t is targets]
        is_swapped = any(t is outputs for _, t in self.taken)
        if is_swapped or not owners:
            raise NotYet("Call `loss(model(inputs), targets)` with both from `take()`.")
        (batch,) = owners
        with torch.no_grad():
            wanted = self.model(self.taken[batch][0])
            if outputs.shape != wanted.shape or not torch.allclose(outputs, wanted):
                raise NotYet(
                    "`loss` got outputs that the model does not have now for these "
                    "inputs. Run the model after the candidate is in its place."
                )
        value = self.sign * (outputs - targets).square().mean()
        self.judged.append((self.numbers, batch, value.item()))
        return value


def judge(lab: Lab, answer: Answer) -> None:
    """Run an answer in a lab, and read the record."""
    before = lab.numbers
    parameters = list(lab.model.parameters())
    modes = [module.training for module in lab.model.modules()]
    try:
        answer(lab.model, list(lab.sigmas), lab.draw, lab.take, lab.loss)
    except RuntimeError as error:
        if "inplace" in str(error) or "in-place" in str(error):
            raise NotYet(
                "torch refuses to write into weights that record gradients. Put "
                "`@torch.no_grad()` above the `def`."
            ) from None
        raise
    now = list(lab.model.parameters())
    if [id(p) for p in now] != [id(p) for p in parameters]:
        raise NotYet("The model has new parameters. Write into those that it has.")
    _judge_counts(lab)
    visited = _judge_visits(lab, before)
    _judge_coverage(lab, visited)
    if [module.training for module in lab.model.modules()] != modes:
        raise NotYet("The model has another mode than before. Leave it in its own.")
    if not all(p.requires_grad for p in now):
        raise NotYet("Leave `requires_grad` alone; `torch.no_grad()` is enough.")


def _judge_counts(lab: Lab) -> None:
    losses, takes, draws = len(lab.judged), len(lab.taken), len(lab.drawn)
    per_batch = Counter(batch for _, batch, _ in lab.judged)
    most = max(per_batch.values(), default=0)
    reject(
        {
            "You take mini-batches and never call `loss(outputs, targets)`, which "
            "your function is given.": losses == 0 < takes,
            "No loss was asked for: not one weight was visited. Which of the layers "
            "does your loop reach?": losses == 0,
            "You never call `draw`. A dw comes from `draw(sigma)`.": draws == 0,
            "Each candidate has a mini-batch of its own. A lower loss then says only "
            "that the samples are easier; judge all three on one.": (
                takes == losses > 1 and most == 1
            ),
            "You compare two losses for each weight, or a loss of the visit before. "
            "On a fresh mini-batch `keep` has another loss; take all three.": (
                most == 2
            ),
            f"Mini-batches taken: {takes}. Visits: {losses // 3}. Each visit takes its "
            "own.": most > 3 and takes < losses // 3,
            f"For one mini-batch you ask for {most} losses; wanted three, of w, "
            "w + dw and w - dw.": most != 3,
            "You draw twice for a weight. w + dw and w - dw share one dw.": (
                draws == 2 * takes
            ),
            f"You draw {draws} changes for {takes} visits; wanted one for each.": (
                draws != takes
            ),
            "You take mini-batches that you do not use.": losses != 3 * takes,
        }
    )


def _judge_visits(lab: Lab, state: Tensor) -> list[int]:
    """Return which number each visit was to; refuse the first visit that is wrong."""
    state, open_draws = state.clone(), list(lab.drawn)
    visited: list[int] = []
    for visit in range(len(lab.judged) // 3):
        tries = lab.judged[3 * visit : 3 * visit + 3]
        snapshots = torch.stack([numbers for numbers, _, _ in tries])
        if visited:
            _judge_end(lab, visited[-1], snapshots[0], state, is_last=False)
        if len({batch for _, batch, _ in tries}) > 1:
            raise NotYet("The three losses of a visit are of different mini-batches.")
        j = _moving(snapshots, state)
        _judge_kind(lab.places[j], j in visited)
        candidates = _candidates(lab, j, snapshots[:, j], state[j].item(), open_draws)
        losses = {t[0][j].item(): t[2] for t in tries}
        state[j] = min(candidates, key=lambda w: losses[w])
        lab.last = (candidates, [losses[w] for w in candidates])
        lab.last_tried = snapshots[2, j].item()
        visited.append(j)
    _judge_end(lab, visited[-1], lab.numbers, state, is_last=True)
    return visited


def _moving(snapshots: Tensor, state: Tensor) -> int:
    """Return the one number that differs from the weights as they were."""
    moved = (snapshots != state).any(dim=0).nonzero().flatten().tolist()
    if not moved:
        raise NotYet(
            "The three losses of a visit are of the same weights: the model never saw "
            "the candidates. Do you write into a copy? `view(-1)` shares the memory; "
            "`flatten`, `clone` or a new tensor may not."
        )
    if len(moved) > 1:
        raise NotYet(
            f"A visit changes {len(moved)} numbers at once; wanted one weight. Is "
            "there a loop over the numbers that feed one output?"
        )
    return moved[0]


def _judge_kind(place: Place, is_again: bool) -> None:
    reject(
        {
            "You visit a bias. It feeds no input to its output, so it is none of the "
            "weights that this exercise searches.": place.kind == "bias",
            f"You visit {place.name}. It has parameters and yet no outputs that add "
            "up weighted inputs. Choose the layers by their kind.": (
                place.kind == "other"
            ),
            f"You visit a weight of {place.name} twice in one cycle.": is_again,
        }
    )


def _candidates(
    lab: Lab, j: int, tried: Tensor, w: float, open_draws: list[tuple[float, float]]
) -> list[float]:
    """Return w, w + dw and w - dw; take the draw that fits from the open ones."""
    values = tried.tolist()
    for sigma, dw in open_draws:
        if sorted(values) == sorted([w, w + dw, w - dw]):
            _judge_sigma(lab, j, sigma)
            open_draws.remove((sigma, dw))
            return [w, w + dw, w - dw]
    if w not in values and any(abs(value - w) < 1e-9 for value in values):
        raise NotYet(
            "None of the three is w itself, only nearly: (w + dw) - dw is not always "
            "w. Remember w and write it back."
        )
    shown = ", ".join(f"{value:.3g}" for value in values)
    dw = open_draws[0][1]  # there is a draw for each visit, as `_judge_counts` saw
    raise NotYet(
        f"At w = {w:.3g}, with dw = {dw:.3g}, you try {shown}; wanted w, w + dw "
        f"and w - dw, which are {w:.3g}, {w + dw:.3g}, {w - dw:.3g}."
    )


def _judge_sigma(lab: Lab, j: int, sigma: float) -> None:
    place = lab.places[j]
    wanted = lab.sigmas[place.layer]
    if sigma != wanted:
        raise NotYet(
            f"For {place.name} you draw with sigma = {sigma:g}; its own is "
            f"{wanted:g}. `sigmas` has a number for each layer, in their order."
        )


def _judge_end(lab: Lab, j: int, now: Tensor, state: Tensor, *, is_last: bool) -> None:
    """Refuse a visit that leaves another weight than the best."""
    got, wanted = now[j].item(), state[j].item()
    others = [k for k in (now != state).nonzero().flatten().tolist() if k != j]
    if is_last and others:
        raise NotYet("After the last visit, weights changed that it did not visit.")
    if got == wanted:
        return
    candidates, losses = lab.last
    w, is_tie = candidates[0], len(set(losses)) == 1
    reject(
        {
            "A weight without effect is left at the candidate that was tried last. Is "
            "the winner written back, and does a tie keep w?": (
                is_tie and got == lab.last_tried
            ),
            "A weight without effect was moved: its three losses are equal. Stay at a "
            "tie.": is_tie and got in candidates,
            "You leave a position in the weight. The winner is one of w, w + dw and "
            "w - dw, not its number.": got in (0, 1, 2, -1),
            "You leave a loss in the weight; wanted the weight that has it.": (
                any(abs(got - value) < 1e-9 for value in losses)
            ),
            "After a visit the weight is not quite w, which was the best. A step that "
            "is taken back by arithmetic leaves rounding; write w itself.": (
                wanted == w and abs(got - w) < 1e-9
            ),
            "A visit leaves the candidate that it tried last, and another has a lower "
            "loss. Is the winner written back?": got == lab.last_tried,
            "A visit leaves the change although the loss rose.": (
                got in candidates and losses[candidates.index(got)] > losses[0]
            ),
            "A visit leaves w although a candidate has a lower loss.": got == w,
            "A visit leaves the second best of the three.": got in candidates,
        }
    )
    raise NotYet(f"A visit leaves {got:.4g}; the best of the three is {wanted:.4g}.")


def _judge_coverage(lab: Lab, visited: Sequence[int]) -> None:
    """Refuse a weight that is left out, and a wrong order of the layers."""
    places = lab.places
    wanted = [j for j, place in enumerate(places) if place.kind == "weight"]
    missing = Counter(places[j].name for j in set(wanted) - set(visited))
    layers = [places[j].layer for j in visited]
    for name, count in missing.items():
        total = sum(p.name == name and p.kind == "weight" for p in places)
        part = "all" if count == total else f"{count} of the {total}"
        raise NotYet(f"You leave out {part} weights of {name}.")
    if layers != sorted(layers, reverse=True):
        raise NotYet(
            "You do not go from the output layer to the input layer. The layer "
            "closest to the loss comes first."
        )
