"""Wrong answers to the exercises of lesson 03, each with a piece of its message."""

from tests.wrong_answers import function

_cost = function("cost(file, kernels)")
_pads = function("same_padding(size, kernel, stride)")
_run = function("run(file, modules, x)")


def _each(term, *, end="return total"):
    """Return a loop over the layers that have a price, with `term` for each."""
    return _cost(
        "total = torch.zeros(())",
        "for entry in file['config']:",
        "    config = entry['config']",
        "    price = config.get('W_regularizer')",
        "    if price:",
        "        w, l1, l2 = kernels[config['name']], price['l1'], price['l2']",
        f"        total = total + {term}",
        end,
    )


def _gate(expression):
    return f"def hard_sigmoid(x, version):\n    return {expression}\n"


def _weight(expression):
    return f"def linear_weight(kernel, shape):\n    return {expression}\n"


def _recursive(inputs, end, stop="not calls[name]"):
    return _run(
        "layers = file['config']['layers']",
        "calls = {entry['name']: entry['inbound_nodes'] for entry in layers}",
        "def value(name, number):",
        f"    if {stop}:",
        "        return x",
        "    inputs = [value(n, i) for n, i, _ in calls[name][number]]",
        f"    return modules[name]({inputs})",
        "name, number, _ = file['config']['output_layers'][0]",
        f"return {end}",
    )


def _conv(
    weight="kernel.permute(3, 2, 0, 1)",
    keep="self.weight = nn.Parameter({weight})",
    bias="self.bias = None if bias is None else nn.Parameter(bias)",
    cost="regularize(self, weight=L1L2(**c))",
    windows="-(-size // stride)",
    missing="max((windows - 1) * stride + kernel - size, 0)",
    halves="missing // 2, missing - missing // 2",
    pad="(*columns, *rows)",
    strides="self.config['strides']",
    end="y if name == 'linear' else getattr(torch, name)(y)",
    only_end=False,
):
    if only_end:
        end = f"({end}) if name == 'linear' else getattr(torch, name)({end})"
    return f"""class Conv(nn.Module):
    def __init__(self, config, kernel, bias=None):
        super().__init__()
        self.config = config
        {keep.format(weight=weight)}
        {bias}
        if config["kernel_regularizer"]:
            c = config["kernel_regularizer"]["config"]
            {cost}

    def zeros(self, size, kernel, stride):
        windows = {windows}
        missing = {missing}
        return {halves}

    def forward(self, x):
        strides = self.config["strides"]
        if self.config["padding"] == "same":
            sizes = zip(x.shape[2:], self.config["kernel_size"], strides)
            rows, columns = [self.zeros(*axis) for axis in sizes]
            x = nn.functional.pad(x, {pad})
        y = nn.functional.conv2d(x, self.weight, self.bias, {strides})
        name = self.config["activation"]
        return {end}
"""


_WINDOWS = "windows = -(-size // stride)"
_MISSING = "missing = max((windows - 1) * stride + kernel - size, 0)"

WRONG = {
    "cost": [
        (_cost("return ..."), "There is still a `...`"),
        (
            _cost(
                "configs = [entry['config'] for entry in file['config']]",
                "found = [c['W_regularizer'] for c in configs if 'W_regularizer' in c]",
                "prices = [price for price in found if price]",
                "return sum(",
                "    p['l1'] * w.abs().sum() + p['l2'] * w.square().sum()",
                "    for p, w in zip(prices, kernels.values())",
                ")",
            ),
            "by counting",
        ),
        (
            _cost(
                "for entry in file['config']:",
                "    config = entry['config']",
                "    price = config.get('W_regularizer')",
                "    if price:",
                "        w = kernels[config['name']]",
                "        l1, l2 = price['l1'], price['l2']",
                "        return l1 * w.abs().sum() + l2 * w.square().sum()",
            ),
            "the first layer alone",
        ),
        (_each("l1 * w.abs().sum() + l2 * w.norm()"), "That takes the norm"),
        (_each("l1 * w.abs().sum() + l2 / 2 * w.square().sum()"), "You halve"),
        (_each("l1 * w.abs().sum() + l2 * w.square().mean()"), "That is a mean"),
        (_each("l2 * w.square().sum()"), "The l1 part is missing"),
        (_each("l1 * w.abs().sum()"), "The l2 part is missing"),
        (
            _each(
                "l1 * w.abs().sum() + l2 * w.square().sum()", end="return total.item()"
            ),
            "a Python number",
        ),
        (
            _each("(l1 * w.abs().sum() + l2 * w.square().sum()).detach()"),
            "its gradient does not reach",
        ),
        (
            _cost(
                "total = 0",
                "for entry in file['config']:",
                "    if entry['class_name'] == 'Dense':",
                "        price = entry['config']['W_regularizer']",
                "        w = kernels[entry['config']['name']]",
                "        total = total + price['l1'] * w.abs().sum()",
                "        total = total + price['l2'] * w.square().sum()",
                "return total",
            ),
            "skip a layer whose regularizer is None",
        ),
        (
            _cost(
                "total = torch.zeros(())",
                "for entry in file['config']:",
                "    price = entry['config'].pop('W_regularizer', None)",
                "    if price:",
                "        w = kernels[entry['config']['name']]",
                "        total = total + price['l1'] * w.abs().sum()",
                "        total = total + price['l2'] * w.square().sum()",
                "return total",
            ),
            "You changed the file",
        ),
    ],
    "hard_sigmoid": [
        (_gate("..."), "There is still a `...`"),
        (_gate("(0.2 * x + 0.5).clamp(0, 1)"), "That is the line of Keras 1 and 2"),
        (_gate("nn.functional.hardsigmoid(x)"), "That is the line of Keras 3"),
        (_gate("0.2 * x + 0.5"), "Cut it at 0 and 1"),
        (_gate("x / 6 + 0.5"), "Cut it at 0 and at 1"),
        (_gate("x.sigmoid()"), "That is the sigmoid"),
        (_gate("(0.2 * x).clamp(0, 1)"), "add 0.5"),
        (_gate("(0.2 * x + 0.5).clamp(-1, 1)"), "goes down to -1"),
        (
            "def hard_sigmoid(x, version):\n"
            '    slope = 0.2 if version < "3" else 1 / 6\n'
            "    return (slope * x + 0.5).clamp(0, 1)\n",
            "with `<` or `>=`, not its text",
        ),
        (
            "def hard_sigmoid(x, version):\n"
            "    x *= 0.2 if int(version.split('.')[0]) < 3 else 1 / 6\n"
            "    return (x + 0.5).clamp(0, 1)\n",
            "changed the tensor that you were given",
        ),
        (
            "def hard_sigmoid(x, version):\n"
            "    slope = 0.2 if int(version.split('.')[0]) < 3 else 1 / 6\n"
            "    return torch.tensor((slope * x + 0.5).clamp(0, 1).tolist())\n",
            "its gradient does not reach `x`",
        ),
        (
            "def hard_sigmoid(x, version):\n"
            "    is_new = [int(n) for n in version.split('.')] > [3, 0, 0]\n"
            "    return ((1 / 6 if is_new else 0.2) * x + 0.5).clamp(0, 1)\n",
            "For version '3.0.0'",
        ),
    ],
    "run": [
        (_run("return ..."), "There is still a `...`"),
        (
            _run(
                "for name, layer in modules.items():",
                "    x = layer(x)",
                "return x",
            ),
            "raised TypeError",
        ),
        (
            _run(
                "for entry in file['config']['layers'][1:]:",
                "    x = modules[entry['name']](x)",
                "    return x",
            ),
            "That is the output of the first layer",
        ),
        (
            _run(
                "found = {'x': x}",
                "for entry in file['config']['layers'][1:]:",
                "    name = entry['name']",
                "    for call in entry['inbound_nodes']:",
                "        found[name] = modules[name](*[found[n] for n, _, _ in call])",
                "return found[file['config']['output_layers'][0][0]]",
            ),
            "The last call stands for both",
        ),
        (
            _run(
                "found = {'x': x}",
                "for entry in file['config']['layers'][1:]:",
                "    name, (call, *_) = entry['name'], entry['inbound_nodes']",
                "    found[name] = modules[name](*[found[n] for n, _, _ in call])",
                "return found[file['config']['output_layers'][0][0]]",
            ),
            "The first call stands for both",
        ),
        (
            _run(
                "found = {('x', 0): x}",
                "for entry in file['config']['layers'][1:]:",
                "    for i, call in enumerate(entry['inbound_nodes']):",
                "        inputs = [found[n, k] for n, k, _ in call]",
                "        found[entry['name'], i] = modules[entry['name']](*inputs)",
                "name, number, _ = file['config']['output_layers'][0]",
                "return found[name, number]",
            ),
            "a layer that stands further down in the file",
        ),
        (_recursive("*reversed(inputs)", "value(name, number)"), "have changed places"),
        (_recursive("inputs", "value(name, number)"), "Pass the tensors of a call one"),
        (_recursive("*inputs", "value(name, 0)"), "That is its first call"),
        (
            _recursive("*inputs", "value(name, number)", stop="name == 'input'"),
            "`inbound_nodes` of the input is empty",
        ),
        (
            _recursive("*inputs", "value(name, number).detach()"),
            "no gradient comes back to `x`",
        ),
    ],
    "linear_weight": [
        (_weight("..."), "There is still a `...`"),
        (_weight("kernel.T"), "leaves the inputs in Keras's order"),
        (_weight("kernel"), "torch has (units, inputs)"),
        (
            _weight("kernel.reshape(*shape, -1).permute(3, 2, 1, 0).flatten(1)"),
            "Height and width have changed places",
        ),
        (
            _weight(
                "kernel.reshape(shape[2], *shape[:2], -1)"
                ".permute(3, 1, 2, 0).flatten(1)"
            ),
            "That is the way back",
        ),
        (
            _weight("kernel.reshape(*shape, -1).permute(3, 1, 0, 2).flatten(1)"),
            "Write down the axes",
        ),
        (_weight("kernel.neg_().neg().T"), "You changed the kernel"),
        (
            _weight("kernel.T.reshape(5, *shape).permute(0, 3, 1, 2).flatten(1)"),
            "shape '[5, 3, 3, 2]' is invalid",
        ),
    ],
    "same_padding": [
        (_pads("return ..."), "There is still a `...`"),
        (_pads("return kernel // 2, kernel // 2"), "pads alike on both sides"),
        (
            _pads("return (kernel - 1) // 2, kernel // 2"),
            "right for stride 1 only",
        ),
        (
            _pads(_WINDOWS, _MISSING, "return missing - missing // 2, missing // 2"),
            "goes after the numbers, not before",
        ),
        (
            _pads(
                _WINDOWS,
                "missing = (windows - 1) * stride + kernel - size",
                "return missing // 2, missing - missing // 2",
            ),
            "at least 0",
        ),
        (
            _pads(
                "windows = size // stride",
                _MISSING,
                "return missing // 2, missing - missing // 2",
            ),
            "Keras rounds up",
        ),
        (_pads(_WINDOWS, _MISSING, "return 0, missing"), "half of them before"),
        (_pads(_WINDOWS, _MISSING, "return missing / 2, missing / 2"), "whole numbers"),
        (_pads(_WINDOWS, _MISSING, "return missing"), "wanted two numbers"),
    ],
    "conv": [
        ("class Conv(nn.Module):\n    pass\n", "raised TypeError"),
        (_conv(weight="kernel"), "torch wants (filters, channels, height, width)"),
        (
            _conv(keep="self.weight = kernel.permute(3, 2, 0, 1)"),
            "the module trains no numbers",
        ),
        (_conv(bias="self.bias = bias"), "The bias is not among its parameters"),
        (_conv(strides="1"), "The strides are not used"),
        (_conv(strides="self.config['strides'][::-1]"), "height first"),
        (_conv(strides="self.config['strides'][0]"), "The first stride is used"),
        (_conv(pad="(*rows, *columns)"), "went to the width"),
        (_conv(halves="missing - missing // 2, missing // 2"), "comes after the num"),
        (_conv(halves="0, missing"), "Keras puts half of them before"),
        (_conv(halves="kernel // 2, kernel // 2"), "too many for an even kernel"),
        (_conv(windows="size // stride"), "rounded down"),
        (_conv(missing="(windows - 1) * stride + kernel - size"), "Take at least 0"),
        (_conv(end="y"), "The activation is missing"),
        (_conv(end="y.relu()"), ""),
        (_conv(cost="pass"), "Nothing is regularized"),
        (
            _conv(cost="regularize(self, weight=L1L2(c['l2'], c['l1']))"),
            "l1 and l2 have changed places",
        ),
        (_conv(cost="regularize(self, weight=L1L2(l2=c['l2']))"), "l1 part is missing"),
        (_conv(cost="regularize(self, weight=L1L2(l1=c['l1']))"), "l2 part is missing"),
        (_conv(end="y.detach()", only_end=True), "its gradient does not reach"),
        (
            _conv().replace(
                "zip(x.shape[2:], ",
                "zip(self.__dict__.setdefault('size', x.shape[2:]), ",
            ),
            "right for images of one size",
        ),
        (_conv(end="y + 0 * x.zero_().sum()"), "You changed the images"),
    ],
}
