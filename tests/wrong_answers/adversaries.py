"""Wrong answers to the exercises of lesson 05, each with a piece of its message."""

from tests.wrong_answers import function

_balance = function("balance(k, real, generated, gamma, lambda_k)")
_vat_term = function("vat_term(model, x, d, eps)")


_IMBALANCE = "imbalance = (gamma * real - generated).detach()"
_LOSS = "loss = real - k * generated"
_NEW_K = "new = (k + lambda_k * imbalance).clamp(0, 1)"
_RETURN = "return loss, new, real.detach() + imbalance.abs()"
_PASSES = "p, q = model(x).log_softmax(1), model(x + eps * d).log_softmax(1)"


def _memory(start="", update=""):
    """A class `Memory` with these lines."""
    return (
        "class Memory(nn.Module):\n"
        "    def __init__(self, k):\n"
        "        super().__init__()\n"
        f"        {start}\n"
        "    def update_(self, step):\n"
        f"        {update}\n"
    )


_BUFFER = "self.register_buffer('k', torch.tensor(k))"
_MOVED = "self.k = (self.k + step.detach()).clamp(0, 1)"

_began = function("began_step(loss, generator, discriminator, optimizers, images, z)")
_MADE = "made = generator(z)"
_REAL = "real = absolute_error(discriminator(images), images).mean()"
_GENERATED = "generated = absolute_error(discriminator(made), made).mean()"
_GRADS = (
    "for player, error in parts:",
    "    ws = list(player.parameters())",
    "    gs = torch.autograd.grad(error, ws, retain_graph=True)",
    "    for w, g in zip(ws, gs): w.grad = g",
)
_PARTS = "parts = (generator, generated), (discriminator, loss(real, generated))"
_STEPS = "[o.step() for o in optimizers]"
_UPDATE = "loss.update_(real, generated)"
_BOTH = "return real.detach(), generated.detach()"
_ERRORS = (_MADE, _REAL, _GENERATED)

_worse = function("worse_side(model, x, step)")
_KLS = (
    "here = model(x)",
    "ahead = kl_from_logits(here, model(x + step))",
    "behind = kl_from_logits(here, model(x - step))",
)

_vat_loss = function("vat_loss(model, x, d, eps, xi, iterations)")
_UNIT = "unit = lambda d: d / d.flatten(1).norm(dim=1)[:, None, None, None]"
_TARGET = "target = model(x).detach()"
_SEARCH = (
    "for _ in range(iterations):",
    "    d = d.detach().requires_grad_()",
    "    change = kl_from_logits(target, model(x + xi * d)).sum()",
    "    d = unit(torch.autograd.grad(change, d)[0])",
)
_END = "return kl_from_logits(target, model(x + eps * d)).mean()"


def _search(old, new, end=_END, first="d = unit(d)", unit=_UNIT, target=_TARGET):
    """The whole of VAT, with a piece of its search replaced."""
    lines = "\n".join(_SEARCH).replace(old, new).split("\n")
    return _vat_loss(unit, target, first, *lines, end)


WRONG = {
    "remembers": [
        (
            _memory("self.k = k", "self.k = min(max(self.k + float(step), 0), 1)"),
            "k is a Python number",
        ),
        (_memory("self.k = torch.tensor(k)", _MOVED), "k is a plain attribute"),
        (_memory("self.k = nn.Parameter(torch.tensor(k))", _MOVED), "k is a parameter"),
        (
            _memory(_BUFFER.replace("(k))", "(k), persistent=False)"), _MOVED),
            "persistent=False",
        ),
        (
            _memory(_BUFFER.replace("(k))", "(0.0))"), _MOVED),
            "k starts at the number that it was given",
        ),
        (
            _memory(_BUFFER.replace("(k))", "(0.3))"), _MOVED),
            "The k of `Memory(0.9)`: got 0.3",
        ),
        (_memory(_BUFFER, "pass"), "leaves k where it was"),
        (_memory(_BUFFER, "self.k = step.detach().clamp(0, 1)"), "k became the step"),
        (_memory(_BUFFER, _MOVED.replace("+", "-")), "the wrong way"),
        (_memory(_BUFFER, _MOVED.replace(".detach()", "")), "hangs on the graph"),
        (_memory(_BUFFER, _MOVED.replace(".clamp(0, 1)", "")), "clip it"),
        (
            _memory("self.register_buffer('state', torch.tensor(k))", "pass"),
            "has no `k`",
        ),
        (
            _memory(_BUFFER, "self.k = min(max(self.k + step.item(), 0.0), 1.0)"),
            "cannot assign",
        ),
        (
            _memory(_BUFFER, "self.k = self.k + step.detach().clamp(0, 1)"),
            "The step was clipped",
        ),
        (
            _memory(
                f"self.start = k; {_BUFFER}",
                "self.k = (self.start + step.detach()).clamp(0, 1)",
            ),
            "k went on from 0.9, its start",
        ),
        (
            "memory = {}\n"
            + _memory(
                f"memory.setdefault('k', k); {_BUFFER}",
                "memory['k'] += step.item(); self.k.fill_(memory['k']).clamp_(0, 1)",
            ),
            "Two modules share one k",
        ),
        (
            _memory(_BUFFER, "step.data += self.k; self.k = step.detach().clamp(0, 1)"),
            "You changed the step",
        ),
    ],
    "began_step": [
        (
            _began(
                _MADE,
                _REAL.replace("mean", "sum"),
                _GENERATED.replace("mean", "sum"),
                _PARTS,
                *_GRADS,
                _STEPS,
                _UPDATE,
                _BOTH,
            ),
            "5 times as far as its optimizer would",
        ),
        (
            _began(*_ERRORS, _PARTS, *_GRADS, _STEPS, *_ERRORS, _UPDATE, _BOTH),
            "errors that were taken after the step",
        ),
        (
            _began(
                *_ERRORS,
                _PARTS.replace("loss(real, generated)", "loss(generated, real)"),
                *_GRADS,
                _STEPS,
                _UPDATE,
                _BOTH,
            ),
            "has L_gen - k * L_real in its loss",
        ),
        (
            _began(*_ERRORS, _PARTS, *_GRADS, _UPDATE, _BOTH),
            "The discriminator did not move",
        ),
        (_began(*_ERRORS, _PARTS, *_GRADS, _STEPS, _BOTH), "k did not move"),
        (
            _began(
                *_ERRORS,
                _PARTS,
                *_GRADS,
                _STEPS,
                "loss.update_(generated, real)",
                _BOTH,
            ),
            "takes L_real first",
        ),
        (
            _began(*_ERRORS, _UPDATE, _PARTS, *_GRADS, _STEPS, _BOTH),
            "has the new k in its loss already",
        ),
        (
            _began(
                *_ERRORS,
                _PARTS.replace("loss(real, generated)", "real - generated"),
                *_GRADS,
                _STEPS,
                _UPDATE,
                _BOTH,
            ),
            "has no k",
        ),
        (
            _began(
                *_ERRORS,
                _PARTS.replace("loss(real, generated)", "real"),
                *_GRADS,
                _STEPS,
                _UPDATE,
                _BOTH,
            ),
            "trained on real images only",
        ),
        (
            _began(
                *_ERRORS,
                _PARTS.replace("(generator, generated)", "(generator, -generated)"),
                *_GRADS,
                _STEPS,
                _UPDATE,
                _BOTH,
            ),
            "moved against L_gen",
        ),
        (
            _began(
                *_ERRORS,
                _PARTS.replace(
                    "(generator, generated)", "(generator, loss(real, generated))"
                ),
                *_GRADS,
                _STEPS,
                _UPDATE,
                _BOTH,
            ),
            "The generator follows the discriminator's loss",
        ),
        (
            _began(
                *_ERRORS,
                "[o.zero_grad() for o in optimizers]",
                "generated.backward(retain_graph=True)",
                "loss(real, generated).backward()",
                _STEPS,
                _UPDATE,
                _BOTH,
            ),
            "The discriminator got the gradient of L_gen as well",
        ),
        (
            _began(
                *_ERRORS,
                "[o.zero_grad() for o in optimizers]",
                "generated.backward(retain_graph=True)",
                "optimizers[1].zero_grad()",
                "loss(real, generated).backward()",
                _STEPS,
                _UPDATE,
                _BOTH,
            ),
            "The generator got the gradient of the discriminator's loss as well",
        ),
        (
            _began(
                *_ERRORS,
                _PARTS,
                *_GRADS[:3],
                "    for w, g in zip(ws, gs): w.grad += g",
                _STEPS,
                _UPDATE,
                _BOTH,
            ),
            "the sum of its old gradient and the new one",
        ),
        (
            _began(
                "g, d = optimizers",
                _MADE,
                _REAL,
                "fake = absolute_error(discriminator(made.detach()), made.detach())",
                "d.zero_grad()",
                "loss(real, fake.mean()).backward()",
                "d.step()",
                _GENERATED,
                "g.zero_grad()",
                "generated.backward()",
                "g.step()",
                _UPDATE,
                _BOTH,
            ),
            "The generator moved along another direction than its own",
        ),
        (
            _began(
                _MADE + ".detach()",
                _REAL,
                _GENERATED,
                "generator.zero_grad()",
                "discriminator.zero_grad()",
                "loss(real, generated).backward()",
                _STEPS,
                _UPDATE,
                _BOTH,
            ),
            "The generator did not move",
        ),
        (
            _began(
                *_ERRORS,
                _PARTS,
                *_GRADS,
                "[o.step() for o in optimizers * 2]",
                _UPDATE,
                _BOTH,
            ),
            "moved twice",
        ),
        (
            _began(
                *_ERRORS,
                _PARTS,
                *_GRADS,
                _STEPS,
                _UPDATE,
                "return generated.detach(), real.detach()",
            ),
            "L_real comes first",
        ),
        (
            _began(
                *_ERRORS, _PARTS, *_GRADS, _STEPS, _UPDATE, "return real, generated"
            ),
            "still hangs on the graph",
        ),
        (_began(*_ERRORS, _PARTS, *_GRADS, _STEPS, _UPDATE), "Is a `return` missing?"),
        (
            _began(
                _MADE,
                _REAL,
                "generated = absolute_error(discriminator(made), made.detach()).mean()",
                _PARTS,
                *_GRADS,
                _STEPS,
                _UPDATE,
                _BOTH,
            ),
            "moved as if the image were a fixed target",
        ),
        (
            _began(
                "generator.eval()",
                *_ERRORS,
                _PARTS,
                *_GRADS,
                _STEPS,
                _UPDATE,
                _BOTH,
            ),
            "is in evaluation mode",
        ),
        (
            _began(
                *_ERRORS,
                _PARTS,
                *_GRADS,
                _STEPS,
                "discriminator.requires_grad_(False)",
                _UPDATE,
                _BOTH,
            ),
            "the discriminator is frozen",
        ),
    ],
    "worse_side": [
        (
            _worse(
                "p = model(x).argmax(1)",
                "changed = model(x + step).argmax(1) != p",
                "return torch.where(changed[:, None, None, None], step, -step)",
            ),
            "of 60 samples have the wrong side",
        ),
        (
            _worse(*_KLS, "return step * (ahead > behind)[:, None, None, None]"),
            "You returned other numbers than those of `step`",
        ),
        (
            _worse(
                *_KLS,
                "flat = step.flatten(1)",
                "return torch.where((ahead > behind)[:, None], flat, -flat)",
            ),
            "You returned numbers of shape (60, 6)",
        ),
        (
            _worse(
                *_KLS,
                "return torch.where((ahead < behind)[:, None, None, None], "
                "step, -step)",
            ),
            "the answer *less*",
        ),
        (
            _worse(*_KLS, "return step if ahead.sum() > behind.sum() else -step"),
            "Each has its own",
        ),
        (
            _worse(*_KLS, "return torch.maximum(ahead, behind)"),
            "one number for each sample",
        ),
        (
            _worse(
                *_KLS,
                "return x + torch.where((ahead > behind)[:, None, None, None],"
                " step, -step)",
            ),
            "the image after the step",
        ),
        (
            _worse(
                "here = model(x)",
                "ahead = kl_from_logits(model(x + step), here)",
                "behind = kl_from_logits(model(x - step), here)",
                "return torch.where((ahead > behind)[:, None, None, None], step, "
                "-step)",
            ),
            "You compare KL(q || p)",
        ),
        (
            _worse("for i in range(len(x)):", "    step[i] = -step[i]", "return step"),
            "You changed x or step",
        ),
    ],
    "vat_loss": [
        (
            _search("", "", end=_END.replace("eps * d", "eps * xi * d")),
            "takes eps times xi",
        ),
        (
            _search("", "", end=_END.replace("+ eps", "- eps")),
            "The last step goes back",
        ),
        (_search("iterations", "1"), "One gradient was taken, and not"),
        (
            _search("range(iterations)", "range(iterations - 1)"),
            "No gradient was taken",
        ),
        (_search("", "", first="pass"), "The start d is not of length 1"),
        (
            _search(
                "unit(torch.autograd.grad(change, d)[0])",
                "torch.autograd.grad(change, d)[0]",
            ),
            "What a gradient gives is not of length 1",
        ),
        (
            _search("", "", unit="unit = lambda d: d / d.norm()"),
            "its length over the whole batch",
        ),
        (
            _search("", "", unit="unit = lambda d: normalize(d, dim=3)"),
            "along axis 3 alone",
        ),
        (_search("", "", unit="unit = normalize"), "along axis 1 alone"),
        (_search("xi * d", "d"), "The trial step has no xi"),
        (_search("xi * d", "eps * d"), "takes eps and not xi"),
        (
            _search("", "", end=_END.replace("eps * d", "xi * d")),
            "takes xi and not eps",
        ),
        (_search("", "", end=_END.replace("eps * d", "d")), "has no eps"),
        (_search("d = unit(", "d = -unit("), "d goes downhill"),
        (
            _search(
                "kl_from_logits(target, model(x + xi * d))",
                "kl_from_logits(model(x + xi * d), target)",
            ),
            "In the search p and q are the other way round",
        ),
        (
            _search(
                "",
                "",
                end=_END.replace(
                    "target, model(x + eps * d)", "model(x + eps * d), target"
                ),
            ),
            "In the loss p and q are the other way round",
        ),
        (_search("", "", end=_END.replace("mean", "sum")), "You summed over the batch"),
        (
            _search("", "", target="target = model(x)"),
            "a gradient leaks into the target",
        ),
        (_search("", "", end=_END + ".detach()"), "no gradient comes back"),
        (
            _search(
                "unit(torch.autograd.grad(change, d)[0])",
                "(change.backward(), unit(d.grad))[1]",
            ),
            "left gradients in the weights",
        ),
        (
            _search(
                "unit(torch.autograd.grad(change, d)[0])",
                "(change.backward(), unit(d.grad), model.zero_grad())[1]",
            ),
            "your search has changed or cleared them",
        ),
        (
            _vat_loss(
                _UNIT,
                _TARGET,
                "d = unit(d)",
                "x.requires_grad_()",
                _SEARCH[0],
                _SEARCH[2],
                "    d = unit(torch.autograd.grad(change, x)[0])",
                _END,
            ),
            "x or d has `requires_grad` now",
        ),
        (
            _search("", "", target=f"{_TARGET}; model.requires_grad_(False)"),
            "Your code has frozen the model",
        ),
        (_search("", "", end=_END.replace(" + eps * d", "")), "It is 0"),
        (
            _search(
                "    d = d.detach().requires_grad_()",
                "    start = d.detach().requires_grad_()\n    d = unit(start)",
            )
            .replace("grad(change, d)[0]", "grad(change, start)[0]")
            .replace("unit(torch", "(torch"),
            "made length 1, and was not made",
        ),
        (
            _search("", "", first="d /= d.flatten(1).norm(dim=1)[:, None, None, None]"),
            "belong to the caller",
        ),
    ],
    "balance": [
        (
            _balance(
                _LOSS,
                _IMBALANCE,
                _NEW_K.replace("lambda_k", "0.1"),
                _RETURN,
            ),
            "lambda_k is always 0.1",
        ),
        (
            _balance(
                _LOSS,
                _IMBALANCE,
                _NEW_K.replace("imbalance", "(0.5 * real - generated).detach()"),
                _RETURN,
            ),
            "gamma is always 0.5",
        ),
        (
            _balance(
                _LOSS, _IMBALANCE, _NEW_K, "return loss, real + imbalance.abs(), new"
            ),
            "That is M. It comes third",
        ),
        (
            _balance(
                _LOSS,
                "imbalance = real.detach().mul_(gamma) - generated",
                _NEW_K,
                _RETURN,
            ),
            "You changed the errors",
        ),
        (
            _balance(
                "memory = BEGANLoss(gamma=gamma, lambda_k=lambda_k, k=float(k))",
                "loss = memory(real, generated)",
                "memory.update_(real, generated)",
                "return loss, memory.k, memory.M",
            ),
            "a tensor that the way back needs was changed in place",
        ),
        (
            _balance(
                _LOSS,
                _IMBALANCE,
                _NEW_K,
                "return loss, new, generated.detach() + imbalance.abs()",
            ),
            "M begins with `real`, and not with `generated`",
        ),
        (
            _balance(_LOSS, _IMBALANCE, "new = k", _RETURN),
            "The new k is the old one: it is frozen",
        ),
        (
            _balance(_LOSS, _IMBALANCE, "new = None", _RETURN),
            "The new k is None; wanted a number.",
        ),
        (
            _balance("loss = None", _IMBALANCE, _NEW_K, _RETURN),
            "The loss is None; wanted a tensor.",
        ),
        (
            _balance(_LOSS, _IMBALANCE, _NEW_K, "return loss, new, 0.9"),
            "and generated = 0.9, M: got 0.9, wanted 1.3",
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
        (_balance(_LOSS, "return loss"), "wanted three numbers"),
    ],
    "vat_term": [
        (
            _vat_term(
                "p = model(x).detach()",
                "x += eps * d",
                "return kl_from_logits(p, model(x)).mean()",
            ),
            "You changed x or d",
        ),
        (
            _vat_term(
                "p, q = model(x).detach(), model(x + d)",
                "return eps * kl_from_logits(p, q).mean()",
            ),
            "eps stands in front of the KL",
        ),
        (
            _vat_term(
                "p, q = model(x).detach(), model(eps * d)",
                "return kl_from_logits(p, q).mean()",
            ),
            "q is the answer on eps * d alone",
        ),
        (
            _vat_term(
                "p, q = model(x).softmax(1), model(x + eps * d).softmax(1)",
                "return kl_from_logits(p.detach(), q).mean()",
            ),
            "takes logits, and you gave it probabilities",
        ),
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
