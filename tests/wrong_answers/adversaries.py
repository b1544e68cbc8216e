"""Wrong answers to the exercises of lesson 05, each with a piece of its message."""

from tests.wrong_answers import function

_balance = function("balance(k, real, generated, gamma, lambda_k)")
_vat_term = function("vat_term(model, x, d, eps)")


_IMBALANCE = "imbalance = (gamma * real - generated).detach()"
_LOSS = "loss = real - k * generated"
_NEW_K = "new = (k + lambda_k * imbalance).clamp(0, 1)"
_RETURN = "return loss, new, real.detach() + imbalance.abs()"
_PASSES = "p, q = model(x).log_softmax(1), model(x + eps * d).log_softmax(1)"

WRONG = {
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
