"""Wrong answers to the exercises of lesson 04, each with a piece of its message."""


def _function(head):
    def write(*lines):
        return f"def {head}:\n" + "".join(f"    {line}\n" for line in lines)

    return write


_center = _function("center(x)")
_weighted = _function("weighted(losses, weights)")
_balance = _function("balance(k, real, generated, gamma, lambda_k)")
_vat_term = _function("vat_term(model, x, d, eps)")


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
_IMBALANCE = "imbalance = (gamma * real - generated).detach()"
_LOSS = "loss = real - k * generated"
_NEW_K = "new = (k + lambda_k * imbalance).clamp(0, 1)"
_RETURN = "return loss, new, real.detach() + imbalance.abs()"
_PASSES = "p, q = model(x).log_softmax(1), model(x + eps * d).log_softmax(1)"

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
    "balance": [
        (_balance(_LOSS, _IMBALANCE, "new = k", _RETURN), "k is frozen"),
        (
            _balance(_LOSS, _IMBALANCE, "new = None", _RETURN),
            "The new k is None; wanted a tensor.",
        ),
        (
            _balance("loss = None", _IMBALANCE, _NEW_K, _RETURN),
            "The loss is None; wanted a tensor.",
        ),
        (
            _balance(_LOSS, _IMBALANCE, _NEW_K, "return loss, new, 0.9"),
            "M is float; wanted a tensor.",
        ),
        (
            _balance(
                _IMBALANCE, _NEW_K, "k = new", "loss = real - k * generated", _RETURN
            ),
            "The loss has the new k already",
        ),
        (
            _balance(_LOSS, _IMBALANCE, _NEW_K.replace("+", "-"), _RETURN),
            "the wrong way",
        ),
        (
            _balance(_LOSS, _IMBALANCE, "new = lambda_k * imbalance", _RETURN),
            "only the step of k",
        ),
        (
            _balance(_LOSS, _IMBALANCE, "new = (k + imbalance).clamp(0, 1)", _RETURN),
            "The factor lambda_k is missing",
        ),
        (
            _balance(
                _LOSS,
                "imbalance = (real - gamma * generated).detach()",
                _NEW_K,
                _RETURN,
            ),
            "gamma stands at `generated`",
        ),
        (
            _balance(_LOSS, "imbalance = (real - generated).detach()", _NEW_K, _RETURN),
            "gamma is missing",
        ),
        (
            _balance(_LOSS, _IMBALANCE, "new = k + lambda_k * imbalance", _RETURN),
            "stays in [0, 1]",
        ),
        (
            _balance("loss = real + k * generated", _IMBALANCE, _NEW_K, _RETURN),
            "The sign of the second term",
        ),
        (
            _balance("loss = real", _IMBALANCE, _NEW_K, _RETURN),
            "no term of the generated",
        ),
        (_balance("loss = real - generated", _IMBALANCE, _NEW_K, _RETURN), "has no k"),
        (
            _balance(_LOSS, _IMBALANCE, _NEW_K, "return loss, new, real + imbalance"),
            "M takes the size",
        ),
        (
            _balance(_LOSS, _IMBALANCE, _NEW_K, "return loss, new, imbalance.abs()"),
            "the imbalance alone",
        ),
        (
            _balance(_LOSS, "imbalance = gamma * real - generated", _NEW_K, _RETURN),
            "still hangs on this step's graph",
        ),
        (
            _balance(
                _LOSS,
                _IMBALANCE,
                "new = k.add_(lambda_k * imbalance).clamp_(0, 1)",
                _RETURN,
            ),
            "You changed the tensor `k` in place",
        ),
        (
            _balance(_LOSS.replace("real", "real.detach()"), _IMBALANCE, _NEW_K)
            + f"    {_RETURN}\n",
            "not its gradient",
        ),
        (_balance(_LOSS, "return loss"), "wanted three tensors"),
    ],
    "vat_term": [
        (
            _vat_term(_PASSES, "return (p.exp() * (p - q)).sum(1).mean()"),
            "a gradient leaks into the target",
        ),
        (
            _vat_term(_PASSES, "return (p.exp() * (p - q.detach())).sum(1).mean()"),
            "the wrong pass is detached",
        ),
        (
            _vat_term(
                "with torch.no_grad():",
                f"    {_PASSES}",
                "return (p.exp() * (p - q)).sum(1).mean()",
            ),
            "both passes are detached",
        ),
        (
            _vat_term(_PASSES, "return (q.exp() * (q - p.detach())).sum(1).mean()"),
            "the other way round",
        ),
        (
            _vat_term(
                _PASSES,
                "return (p.detach().exp() * (p.detach() - q)).mean()",
            ),
            "mean over samples and classes",
        ),
        (
            _vat_term(_PASSES, "return (p.detach().exp() * (p.detach() - q)).sum()"),
            "You summed over the batch",
        ),
        (
            _vat_term(_PASSES, "return -(p.detach().exp() * q).sum(1).mean()"),
            "the cross-entropy",
        ),
        (
            _vat_term(
                _PASSES.replace("eps * ", ""),
                "return (p.detach().exp() * (p.detach() - q)).sum(1).mean()",
            ),
            "without eps",
        ),
        (
            _vat_term(
                _PASSES.replace(" + eps * d", ""),
                "return (p.detach().exp() * (p.detach() - q)).sum(1).mean()",
            ),
            "both passes saw the same inputs",
        ),
    ],
}
