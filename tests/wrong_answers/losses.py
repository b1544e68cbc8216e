"""Wrong answers to the exercises of lesson 04, each with a piece of its message."""

from tests.wrong_answers import function

_untie = function("untie(model)")
_center = function("center(x)")
_weighted = function("weighted(losses, weights)")
_masked = function("masked(losses, counts)")


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

_INIT = "self.encoder, self.digit, self.letters = encoder, digit, letters"
_CODE = "code = self.encoder(x)"
_PAIR = "return self.digit(code), self.letters(code).unflatten(1, (5, 27))"
_NAMED = 'named = cross_entropy(scores, digits.clamp(min=0), reduction="none")'
_SPELLED = 'spelled = cross_entropy(letters.mT, names, reduction="none")'
_TERM = 'add_loss("names", reduce(spelled, mask=names > 0))'
_LOSS = "return reduce(named, mask=digits >= 0)"


def _heads(init=(_INIT,), forward=(_CODE, _PAIR), loss=()):
    loss = ("scores, letters = outputs", *loss)
    return "\n".join(
        (
            "class TwoHeads(nn.Module):",
            "    def __init__(self, encoder, digit, letters):",
            "        super().__init__()",
            *(f"        {line}" for line in init),
            "    def forward(self, x):",
            *(f"        {line}" for line in forward),
            "    def loss(self, outputs, digits, names):",
            *(f"        {line}" for line in loss),
            "",
        )
    )


def _digits(*lines):
    return _heads(loss=(_NAMED, _SPELLED, _TERM, *lines))


def _names(*lines):
    return _heads(loss=(_NAMED, _SPELLED, *lines, _LOSS))


WRONG = {
    "untie": [
        (_untie("return copy.deepcopy(model)"), "Two places still hold one tensor"),
        (
            _untie("return nn.Sequential(*[copy.copy(layer) for layer in model])"),
            "The new model holds tensors of the old one",
        ),
        (
            _untie(
                "return nn.Sequential(*[copy.deepcopy(m) for m in model.children()])"
            ),
            "The new model has 2 places, the old one 4",
        ),
        (
            _untie("return nn.Sequential(nn.Sequential(*map(copy.deepcopy, model)))"),
            "The new model has one place",
        ),
        (
            _untie(
                "for i in range(len(model)):",
                "    model[i] = copy.deepcopy(model[i])",
                "return model",
            ),
            "You changed the model that was given",
        ),
        (
            _untie(
                "new = nn.Sequential(*[copy.deepcopy(layer) for layer in model])",
                "for layer in new.modules():",
                "    if hasattr(layer, 'reset_parameters'):",
                "        layer.reset_parameters()",
                "return new",
            ),
            "The layers have other numbers than before",
        ),
        (
            _untie("return [copy.deepcopy(layer) for layer in model]"),
            "`untie` returned list; wanted an nn.Sequential",
        ),
        (
            _untie(
                "new = [copy.deepcopy(layer) for layer in model]",
                "return nn.Sequential(*new[::-1])",
            ),
            "other layers than the old one, or another order",
        ),
        (
            _untie(
                "with torch.no_grad():",
                "    model[0][0].weight.add_(1)",
                "return nn.Sequential(*[copy.deepcopy(layer) for layer in model])",
            ),
            "You changed the numbers of the model that was given",
        ),
        (
            _untie(
                "new = nn.Sequential(*[copy.deepcopy(layer) for layer in model])",
                "return new.requires_grad_(False)",
            ),
            "The copies are frozen",
        ),
        (
            _untie(
                "return nn.Sequential(*[copy.deepcopy(model[i]) for i in range(4)])"
            ),
            "The new model has 4 places, the old one 6",
        ),
        (
            _untie("return nn.Sequential(*[copy.deepcopy(m).float() for m in model])"),
            "another dtype than the layers",
        ),
    ],
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
        (_twins(_KEEP, _BOTH, "return (one * other).sum(0)"), "summed over the batch"),
        (
            _twins(_KEEP, _BOTH, "return (one * other).sum(1, keepdim=True)"),
            "One axis is left over",
        ),
        (_twins(_KEEP, _BOTH, "return (one * other).mean(1)"), "mean of the products"),
        (_twins(_KEEP, _BOTH, "return (one * one).sum(1)"), "first code by itself"),
        (_twins(_KEEP, _BOTH, "return (other * other).sum(1)"), "second code by"),
        (
            _twins(_KEEP, _BOTH, "return (one - other).square().sum(1)"),
            "a squared distance",
        ),
        (
            _twins(_KEEP, _BOTH, "return (one - other).norm(dim=1)"),
            "That is a distance",
        ),
        (
            _twins(_KEEP, _BOTH, "return nn.functional.cosine_similarity(one, other)"),
            "which gives a cosine",
        ),
        (
            _twins(_KEEP, _BOTH, "return (one * other.detach()).sum(1)"),
            "comes back to the weights",
        ),
        (
            _twins(
                _KEEP,
                "one, other = self.encoder(first), self.encoder(second.detach())",
                "return (one * other).sum(1)",
            ),
            "comes back to the input `second`",
        ),
        (
            _twins(_KEEP, _BOTH, "return (one * other).sum(1).squeeze()"),
            "For a batch of one pair",
        ),
        (
            _twins(
                ["self.encoder = encoder.requires_grad_(False)"],
                _BOTH,
                "return (one * other).sum(1)",
            ),
            "Your code has frozen the weights",
        ),
        (_twins(_KEEP, _BOTH, "(one * other).sum(1)"), "`forward` returned None"),
    ],
    "center": [
        (_center("return x - x.mean()"), "one mean over the whole batch"),
        (_center("return x - x.mean(dim=0)"), "the mean over the batch axis"),
        (_center("return x - x.mean(dim=1, keepdim=True)"), "axis 1 alone"),
        (_center("return x - x.mean(dim=-1, keepdim=True)"), "the last axis"),
        (_center("return x - x.flatten(1).mean(1)"), "The means met the last axis"),
        (_center("return x.flatten(1).mean(1)"), "That is the means. Subtract"),
        (
            _center("return x.mean(tuple(range(1, x.dim())), keepdim=True)"),
            "with as many axes as the batch",
        ),
        (
            _center(
                "m = x.flatten(1).mean(1).view(-1, *[1] * (x.dim() - 1))",
                "return (x - m) / x.flatten(1).std(1).view_as(m)",
            ),
            "divided by the standard deviation as well",
        ),
        (
            _center("return x - x.sum(tuple(range(1, x.dim())), keepdim=True)"),
            "You subtracted the sums",
        ),
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
        (
            _center(
                "m = torch.stack([sample.mean() for sample in x.detach()])",
                "return x - m.view(-1, *[1] * (x.dim() - 1))",
            ),
            "The values are right, but not their gradient",
        ),
        (
            _center("return torch.stack([a - a.mean() for a in x.double()])"),
            "The batch is of torch.float32, and the result of torch.float64",
        ),
    ],
    "weighted": [
        (
            _weighted(
                "spread = weights[:, None].expand_as(losses)",
                "return (losses * spread).sum() / spread.sum()",
            ),
            "(the weights spread over the steps)",
        ),
        (
            _weighted("return (losses * weights[:, None]).sum() / weights.sum()"),
            "as torch's `weight=` does. Keras 3 divides by the number of losses. For",
        ),
        (
            _weighted(
                "sums = (losses * weights[:, None]).mean(1).sum()",
                "return sums / (weights != 0).sum()",
            ),
            "as Keras 2.0.3 did",
        ),
        (_weighted("return (losses * weights).mean()"), "the weights met the steps"),
        (_weighted("return losses.mean() * weights.mean()"), "before the weights came"),
        (_weighted("return (losses * weights[:, None]).sum()"), "That is the sum"),
        (
            _weighted("return (losses * weights[:, None]).sum() / len(losses)"),
            "divided by the number of samples",
        ),
        (
            _weighted("return (losses * weights[:, None]).sum() / losses.shape[1]"),
            "divided by the number of steps",
        ),
        (_weighted("return losses.mean()"), "The weights do nothing"),
        (
            _weighted("return losses.mean(1) * weights"),
            "one number for each sample. Average",
        ),
        (
            _weighted("return losses * weights[:, None]"),
            "one number for each loss. Average",
        ),
        (
            _weighted("return (losses * weights[:, None]).detach().mean()"),
            "does not reach the losses",
        ),
        (
            _weighted("return (losses * weights[:, None]).sum() / 10"),
            "For 3 samples of 3 steps with weights 1, 4, 0: got",
        ),
        (_weighted("(losses * weights[:, None]).mean()"), "returned None"),
        (
            _weighted("return (losses * weights.unsqueeze_(1)).mean()"),
            "You changed what was given",
        ),
        (
            _weighted(
                "return (weights[:, None] * losses).sum() / (weights != 0).sum()"
            ),
            "You divided by the number of weights that are not 0",
        ),
        (
            _weighted("return losses[weights > 0].mean()"),
            "A weight only decides which samples count",
        ),
        (
            _weighted(
                "result = (losses * weights[:, None]).mean()",
                "result.backward()",
                "return result",
            ),
            "your code has called `backward` already",
        ),
    ],
    "masked": [
        (_masked("return (losses * counts).mean()"), "divided by all steps"),
        (_masked("return losses.mean()"), "The mask does nothing"),
        (_masked("return losses[counts].sum()"), "That is the sum"),
        (
            _masked("return losses.where(counts, 0).sum() / len(losses)"),
            "by the number of sequences",
        ),
        (
            _masked("return losses.sum() / counts.sum()"),
            "Padding counts in the sum",
        ),
        (_masked("return losses[~counts].mean()"), "The mask is turned around"),
        (
            _masked(
                "sums, number = losses.where(counts, 0).sum(1), counts.sum(1)",
                "return (sums / number).nanmean()",
            ),
            "so a step of a short one weighs more",
        ),
        (
            _masked(
                "sums = losses.where(counts, 0).sum(1)",
                "return (sums / counts.sum(1).clamp(min=1)).mean()",
            ),
            "the empty one counts as 0",
        ),
        (
            _masked("return (losses * counts).sum() / counts.sum().clamp(min=1)"),
            "so a factor hides nothing",
        ),
        (_masked("return losses[counts].mean()"), "A mean over nothing is 0 / 0"),
        (
            _masked("return reduce(losses, mask=counts).item()"),
            "`masked` returned float; wanted a tensor",
        ),
        (
            _masked("return reduce(losses.detach(), mask=counts)"),
            "does not reach the losses",
        ),
        (
            _masked(
                "losses = losses.nan_to_num(0, 0, 0)",
                "return (losses * counts).sum() / counts.sum().clamp(min=1)",
            ),
            "A nan in a step that counts is hidden",
        ),
        (
            _masked("losses[~counts] = 0", "return losses.sum() / counts.sum()"),
            "Your code raised RuntimeError",
        ),
        (
            _masked("return losses[counts].abs().sum() / counts.sum().clamp(min=1)"),
            "With losses below 0",
        ),
        (
            _masked(
                "kept = losses.where(counts, 0).clamp(max=1e6)",
                "return kept.sum() / counts.sum().clamp(min=1)",
            ),
            "Infinity in a step that counts is hidden",
        ),
        (
            _masked("return losses[counts].sum() / (counts.sum() + 1e-3)"),
            "got nearly 5, but not to five digits",
        ),
        (_masked("return losses[counts].sum() / (counts.sum() + 1)"), "You added 1"),
        (_masked("return losses[0][counts[0]].mean()"), "of the first sequence alone"),
        (
            _masked("return losses.where(counts, 0).mean(dim=1)"),
            "one number for each sequence. Wanted one",
        ),
    ],
    "two_heads": [
        (_heads(init=["self.parts = [encoder, digit, letters]"]), "has no attribute"),
        (
            _heads(
                init=["self.parts = [encoder, digit, letters]"],
                forward=[
                    "encoder, digit, letters = self.parts",
                    "code = encoder(x)",
                    "return digit(code), letters(code).unflatten(1, (5, 27))",
                ],
            ),
            "The module has no parameters",
        ),
        (
            _heads(
                init=[_INIT, "self.second = copy.deepcopy(encoder)"],
                forward=[
                    "scores = self.digit(self.encoder(x))",
                    "return scores, self.letters(self.second(x)).view(-1, 5, 27)",
                ],
            ),
            "it has copies",
        ),
        (
            _heads(forward=[_CODE, "return self.digit(code), self.letters(code)"]),
            "The letters are in one row",
        ),
        (
            _heads(
                forward=[
                    _CODE,
                    "return self.digit(code), self.letters(code).view(-1, 27, 5)",
                ]
            ),
            "in the wrong order, and the axes are exchanged",
        ),
        (
            _heads(
                forward=[
                    _CODE,
                    "return self.digit(code), self.letters(code).view(-1, 27, 5).mT",
                ]
            ),
            "`view(-1, 27, 5)`, transposed, takes each fifth",
        ),
        (
            _heads(
                forward=[
                    _CODE,
                    "return self.digit(code), self.letters(code).view(-1, 5, 27).mT",
                ]
            ),
            "The axes of letters and places are exchanged",
        ),
        (
            _heads(
                forward=[
                    _CODE,
                    "return self.letters(code).view(-1, 5, 27), self.digit(code)",
                ]
            ),
            "the pair is turned around",
        ),
        (
            _heads(
                forward=[
                    "letters = self.letters(self.encoder(x)).view(-1, 5, 27)",
                    "return self.digit(self.encoder(x)), letters",
                ]
            ),
            "calls the encoder 2 times",
        ),
        (
            _heads(
                forward=[
                    _CODE,
                    "letters = self.letters(code.detach())",
                    "return self.digit(code), letters.view(-1, 5, 27)",
                ]
            ),
            "the gradient of the letters does not reach the encoder",
        ),
        (_heads(forward=[_CODE, "return self.digit(code)"]), "returned Tensor; wanted"),
        (_heads(loss=["return cross_entropy(scores, digits)"]), "that is no class"),
        (_digits("return named.mean()"), "The missing label counts, as if"),
        (
            _digits("return named.where(digits >= 0, 0).mean()"),
            "you divided by all samples. Step 2",
        ),
        (_digits("return named[digits >= 0].sum()"), "That is the sum over the labels"),
        (_digits("return reduce(named, mask=digits > 0)"), "0 is masked as well. 0 is"),
        (_digits("return named"), "wanted one number"),
        (
            _digits("return reduce(named, mask=digits < 0)"),
            "the sample without a label",
        ),
        (
            _digits("return reduce(spelled, mask=names > 0)"),
            "Return that of the digits",
        ),
        (
            _digits("return reduce(named, mask=digits >= 0).detach()"),
            "the gradient does not reach the digits",
        ),
        (
            _digits("return named[digits >= 0].mean()"),
            "a batch in which no digit is known: got nan",
        ),
        (
            _digits(
                "names = reduce(spelled, mask=names > 0)",
                "return reduce(named, mask=digits >= 0) + names",
            ),
            "`add_loss` adds the names already",
        ),
        (_names(), "no term arrived"),
        (
            _heads(
                loss=[
                    _NAMED,
                    _SPELLED,
                    "names = reduce(spelled, mask=names > 0)",
                    "return reduce(named, mask=digits >= 0) + names",
                ]
            ),
            "so that they are logged by themselves",
        ),
        (_names("add_loss('names', spelled.mean())"), "Padding counts. Mask it"),
        (
            _names("add_loss('names', spelled.where(names > 0, 0).mean())"),
            "you divided by all places",
        ),
        (
            _names(
                "sums = spelled.where(names > 0, 0).sum(1)",
                "add_loss('names', (sums / (names > 0).sum(1)).nanmean())",
            ),
            "a letter of a short name counts more",
        ),
        (
            _names("known = names.any(1)", "add_loss('names', spelled[known].mean())"),
            "but padding in the others counts",
        ),
        (
            _names(
                "both = (names > 0) & (digits >= 0)[:, None]",
                "add_loss('names', reduce(spelled, mask=both))",
            ),
            "left out because its digit is unknown",
        ),
        (_names("add_loss('letters', spelled.mean())"), "wanted 'names'"),
        (_names(_TERM, _TERM), "passed to `add_loss` twice"),
        (
            _names(_TERM, "add_loss('names', reduce(named, mask=digits >= 0))"),
            "so they would count twice",
        ),
        (
            _names("add_loss('names', spelled[names > 0].mean())"),
            "a batch in which no letter is known: got nan",
        ),
        (
            _heads(
                loss=[
                    _NAMED,
                    'spelled = cross_entropy(letters, names, reduction="none")',
                    _TERM,
                    _LOSS,
                ]
            ),
            "the classes in the second axis",
        ),
        (
            _digits(
                "known = digits >= 0",
                "return cross_entropy(scores[known].softmax(1), digits[known])",
            ),
            "you gave it shares (softmax)",
        ),
        (
            _digits("both = (digits >= 0) & names.any(1)", "return named[both].mean()"),
            "A digit is left out because its name is unknown",
        ),
        (
            _heads(
                loss=[
                    "known = digits >= 0",
                    "digits.clamp_(min=0)",
                    _NAMED,
                    _SPELLED,
                    _TERM,
                    "return reduce(named, mask=known)",
                ]
            ),
            "You changed the labels that were given",
        ),
        (
            _names(
                "add_loss('names', reduce(spelled, mask=names > 1))",
            ),
            "with a single letter that is known",
        ),
        (
            _heads(forward=[_CODE, "add_loss('size', code.square().mean())", _PAIR]),
            "`forward` calls `add_loss`",
        ),
    ],
}
