"""Wrong answers to the exercises of lesson 04, each with a piece of its message."""

from tests.wrong_answers import function

_center = function("center(x)")
_weighted = function("weighted(losses, weights)")


def _twins(init, *forward):
    return "\n".join(
        (
            "import copy",
            "class Twins(nn.Module):",
            "    def __init__(self, encoder):",
            "        super().__init__()",
            *(f"        {line}" for line in init),
            "    def forward(self, first, second):",
            *(f"        {line}" for line in forward),
            "",
        )
    )


_KEEP = ("self.encoder = encoder",)
_BOTH = "one, other = self.encoder(first), self.encoder(second)"

WRONG = {
    "twins": [
        (
            _twins(
                ["self.one, self.other = encoder, copy.deepcopy(encoder)"],
                "return (self.one(first) * self.other(second)).sum(1)",
            ),
            "has 2 parameters, 1 were given: it has copies",
        ),
        (
            _twins(
                ["self.encoder = copy.deepcopy(encoder)"],
                _BOTH,
                "return (one * other).sum(1)",
            ),
            "does not train the parameters that it was given",
        ),
        (
            _twins(
                ["self.both = [encoder, encoder]"],
                "return (self.both[0](first) * self.both[1](second)).sum(1)",
            ),
            "The module has no parameters",
        ),
        (_twins(_KEEP, _BOTH, "return (one * other).sum()"), "for the whole batch"),
        (_twins(_KEEP, _BOTH, "return one @ other.T"), "with all others"),
        (_twins(_KEEP, _BOTH, "return one * other"), "are not added up"),
        (_twins(_KEEP, _BOTH, "return (one * other).mean(1)"), "mean of the products"),
        (_twins(_KEEP, _BOTH, "return (one * one).sum(1)"), "first code by itself"),
        (_twins(_KEEP, _BOTH, "return (other * other).sum(1)"), "second code by"),
        (
            _twins(_KEEP, _BOTH, "return (one - other).square().sum(1)"),
            "a squared distance",
        ),
        (
            _twins(_KEEP, _BOTH, "return (one * other.detach()).sum(1)"),
            "only a part of the gradient",
        ),
        (_twins(_KEEP, _BOTH, "(one * other).sum(1)"), "`forward` returned None"),
    ],
    "center": [
        (_center("return x - x.mean()"), "one mean over the whole batch"),
        (_center("return x - x.mean(dim=0)"), "the mean over the batch axis"),
        (_center("return x - x.mean(dim=1, keepdim=True)"), "axis 1 alone"),
        (_center("return x - x.mean(dim=-1, keepdim=True)"), "the last axis"),
        (_center("return x.flatten(1).mean(1)"), "That is the means"),
        (
            _center("return x - x.mean(dim=(1, 2), keepdim=True)"),
            "Your code raised IndexError",
        ),
        (
            _center("x -= x.flatten(1).mean(1).view(-1, *[1] * (x.dim() - 1))"),
            "`center` returned None",
        ),
        (
            _center(
                "x -= x.flatten(1).mean(1).view(-1, *[1] * (x.dim() - 1))", "return x"
            ),
            "You changed the batch",
        ),
    ],
    "weighted": [
        (
            _weighted(
                "spread = weights[:, None].expand_as(losses)",
                "return (losses * spread).sum() / spread.sum()",
            ),
            "Keras divides by the number of losses spread over the steps",
        ),
        (
            _weighted("return (losses * weights[:, None]).sum() / weights.sum()"),
            "as torch's `weight=` does",
        ),
        (_weighted("return (losses * weights).mean()"), "The weights met the steps"),
        (_weighted("return losses.mean() * weights.mean()"), "before the weights came"),
        (_weighted("return (losses * weights[:, None]).sum()"), "That is the sum"),
        (
            _weighted("return (losses * weights[:, None]).sum() / len(losses)"),
            "You divided by the samples",
        ),
        (_weighted("return losses.mean()"), "The weights do nothing"),
        (
            _weighted("return (losses * weights[:, None]).detach().mean()"),
            "does not reach the losses",
        ),
        (
            _weighted("return (losses * weights[:, None]).sum() / 9"),
            "For 3 samples of 2 steps",
        ),
    ],
}
