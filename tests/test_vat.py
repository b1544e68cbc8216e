"""VAT against closed forms of a linear softmax model; what its passes leave behind."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from course_lib.data import Split
from course_lib.losses import LossCollector, add_loss
from course_lib.models import mlp, small_cnn
from course_lib.regularization import L1L2, penalty, regularize
from course_lib.training import fit
from course_lib.vat import adversarial_direction, virtual_adversarial_loss


def linear(features=6, classes=4, device="cpu", scale=1.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(features, classes))
    nn.init.normal_(model[1].weight, std=scale)
    return model.to(device, torch.float64)


def batch(*shape, device="cpu", dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=generator, dtype=dtype).to(device)


def curvatures(model, inputs):
    """Return the Hessians of KL(p || model(x + d)) at d = 0: W'(diag p - pp')W."""
    weight, p = model[1].weight.detach(), model(inputs).detach().softmax(dim=1)
    spread = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return weight.T @ spread @ weight  # (batch, features, features)


def by_hand(p, logits):
    """Return mean KL(p || softmax(logits)) from its definition."""
    return (p * (p.log() - logits.log_softmax(dim=1))).sum(dim=1).mean()


# The direction


def test_the_direction_converges_to_the_dominant_singular_direction(device):
    model, inputs = linear(device=device), batch(5, 2, 3, device=device)
    p = model(inputs).detach().softmax(dim=1)
    weight = model[1].weight.detach()
    centered = weight - (p @ weight)[:, None, :]  # (batch, classes, features)
    dominant = torch.linalg.svd(p.sqrt()[:, :, None] * centered).Vh[:, 0]

    def similarity(iterations):
        torch.manual_seed(2)
        d = adversarial_direction(model, inputs, xi=1e-4, iterations=iterations)
        assert d.shape == inputs.shape
        return (d.flatten(1) * dominant).sum(dim=1).abs()

    assert (similarity(200) > 1 - 1e-6).all()
    assert similarity(1).mean() < similarity(4).mean() < similarity(16).mean()


def test_each_iteration_multiplies_by_the_curvature(device):
    model, inputs = linear(device=device), batch(5, 6, device=device)
    torch.manual_seed(2)
    d = torch.randn_like(inputs)
    for iterations in (1, 2, 3):
        d = (curvatures(model, inputs) @ d[:, :, None])[:, :, 0]
        d = d / d.norm(dim=1, keepdim=True)
        torch.manual_seed(2)
        ours = adversarial_direction(model, inputs, xi=1e-5, iterations=iterations)
        torch.testing.assert_close(ours, d, rtol=0, atol=1e-4)


def test_no_other_step_of_that_length_changes_the_answer_more():
    model, inputs = linear(), batch(1, 6)
    p = model(inputs).detach().softmax(dim=1)
    d = adversarial_direction(model, inputs, xi=1e-3, iterations=100)
    others = functional.normalize(batch(500, 6), dim=1)
    change = [by_hand(p, model(inputs + 0.01 * step)) for step in (d, *others)]
    assert change[0] >= max(change) * (1 - 1e-3)
    largest = torch.linalg.eigvalsh(curvatures(model, inputs))[0, -1]
    assert change[0].item() == pytest.approx(0.5 * 0.01**2 * largest.item(), rel=0.02)


@pytest.mark.parametrize("scale", [1e-20, 1.0])
def test_the_direction_has_length_1_however_small_its_gradient(scale, device):
    model = linear(device=device, scale=scale).float()
    inputs = batch(5, 6, device=device, dtype=torch.float32)
    p = torch.zeros(5, 4, device=device)
    p[:, 0] = 1  # far from the model's, or the difference would round to 0
    d = adversarial_direction(model, inputs, logits=p)
    torch.testing.assert_close(d.norm(dim=1), torch.ones(5, device=device))


def test_a_model_that_does_not_look_gives_no_direction_and_no_nan(device):
    model, inputs = linear(device=device), batch(5, 6, device=device)
    nn.init.zeros_(model[1].weight)
    assert adversarial_direction(model, inputs).eq(0).all()
    loss = virtual_adversarial_loss(model, inputs)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad.isfinite().all() for p in model.parameters())


# The loss


class Watch(nn.Module):
    """Note what the model was given in each pass."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.model(x)


def test_the_loss_is_the_divergence_after_a_step_of_length_eps(device):
    model, inputs = Watch(linear(device=device)), batch(5, 1, 2, 3, device=device)
    loss = virtual_adversarial_loss(model, inputs, eps=0.7, xi=0.3, iterations=2)

    clean, *trials, last = model.seen
    lengths = [(x - inputs).flatten(1).norm(dim=1) for x in (*trials, last)]
    torch.testing.assert_close(clean, inputs)
    for length, wanted in zip(lengths, (0.3, 0.3, 0.7), strict=True):
        torch.testing.assert_close(length, torch.full_like(length, wanted))
    p = model.model(inputs).softmax(dim=1)
    torch.testing.assert_close(loss, by_hand(p, model.model(last)))


def test_neither_target_nor_direction_passes_a_gradient_on(device):
    model, inputs = Watch(linear(device=device)), batch(5, 6, device=device)
    loss = virtual_adversarial_loss(model, inputs, eps=0.7, xi=0.3)
    fixed = model.seen[-1]
    ours = torch.autograd.grad(loss, list(model.parameters()))

    p = model.model(inputs).softmax(dim=1)
    for target, same in ((p.detach(), True), (p, False)):  # the latter leaks
        wanted = torch.autograd.grad(
            by_hand(target, model.model(fixed)), list(model.parameters())
        )
        close = map(torch.allclose, ours, wanted)
        assert all(close) is same


def test_no_gradient_is_left_on_the_way(device):
    model, inputs = linear(device=device), batch(5, 6, device=device)
    inputs.requires_grad_()
    loss = virtual_adversarial_loss(model, inputs)
    assert inputs.grad is None
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    loss.backward()  # the last pass alone reaches the inputs
    assert inputs.grad is not None
    assert not adversarial_direction(model, inputs).requires_grad


def test_without_gradients_it_can_still_be_measured():
    model, inputs = linear(), batch(5, 6)
    torch.manual_seed(2)
    wanted = virtual_adversarial_loss(model, inputs)
    torch.manual_seed(2)
    with torch.no_grad():
        loss = virtual_adversarial_loss(model, inputs)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, wanted.detach())


def test_given_logits_save_a_pass_and_change_nothing(device):
    model, inputs = Watch(linear(device=device)), batch(5, 6, device=device)
    outputs = model.model(inputs)
    results = []
    for logits, passes in ((None, 4), (outputs, 3)):
        model.seen = []
        torch.manual_seed(2)
        loss = virtual_adversarial_loss(model, inputs, iterations=2, logits=logits)
        assert len(model.seen) == passes
        grads = torch.autograd.grad(loss, list(model.parameters()))
        results.append([loss, *grads])
    torch.testing.assert_close(*results, rtol=0, atol=0)


# What the passes leave behind


def normalized(device="cpu"):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()]
    return nn.Sequential(*layers, spectral_norm(nn.Linear(8, 4))).to(device).double()


@pytest.mark.parametrize("training", [True, False])
def test_buffers_stay_bit_for_bit_as_they_were(training, device):
    model, inputs = normalized(device).train(training), batch(9, 6, device=device)
    model(inputs)  # so that they are not at their beginnings
    held = dict(model.named_buffers())
    before = {name: buffer.clone() for name, buffer in held.items()}
    virtual_adversarial_loss(model, 5 + inputs, iterations=3).backward()
    assert before.keys() > {"1.running_mean", "1.num_batches_tracked"}
    for name, buffer in model.named_buffers():
        assert buffer is held[name]
        assert torch.equal(buffer, before[name]), name
    assert all(m.training is training for m in model.modules())


def test_in_training_batch_norm_uses_the_batch_of_each_pass(device):
    layers = [nn.Linear(6, 4), nn.BatchNorm1d(4)]
    model = Watch(nn.Sequential(*layers)).to(device).double()
    inputs = batch(9, 6, device=device)
    loss = virtual_adversarial_loss(model, inputs, eps=0.5)

    def logits(x):
        return functional.batch_norm(model.model[0](x), None, None, training=True)

    p = logits(inputs).softmax(dim=1)
    torch.testing.assert_close(loss, by_hand(p, logits(model.seen[-1])))


class Dropping(nn.Module):
    """Drop half of 1,000 units, by a function and not a layer, and note which."""

    def __init__(self):
        super().__init__()
        self.linear, self.masks = nn.Linear(1000, 3), []

    def forward(self, x):
        mask = functional.dropout(torch.ones_like(x), 0.5, self.training)
        self.masks.append(mask)
        return self.linear(x * mask)


def test_all_passes_drop_the_same_units_and_the_next_step_others(device):
    model = Dropping().to(device)
    inputs = batch(2, 1000, device=device, dtype=torch.float32)
    virtual_adversarial_loss(model, inputs, iterations=2)
    clean, *others = model.masks
    assert len(others) == 3
    assert all(torch.equal(mask, clean) for mask in others)
    assert 0.4 < clean.eq(0).float().mean() < 0.6

    virtual_adversarial_loss(model, inputs)
    assert not torch.equal(model.masks[-1], clean)


def test_random_numbers_go_on_as_after_one_pass(device):
    model = Dropping().to(device)
    inputs = batch(2, 1000, device=device, dtype=torch.float32)
    after = []
    for run in (
        lambda: (torch.randn_like(inputs), model(inputs)),
        lambda: virtual_adversarial_loss(model, inputs, iterations=3),
    ):
        torch.manual_seed(2)
        run()
        after.append((torch.rand(3), torch.rand(3, device=device)))
    torch.testing.assert_close(*after, rtol=0, atol=0)


def test_logits_of_other_random_numbers_are_refused(device):
    model = Dropping().to(device)
    inputs = batch(2, 1000, device=device, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"random numbers \(dropout\?\).*Leave logits"):
        virtual_adversarial_loss(model, inputs, logits=model(inputs))
    model.eval()
    virtual_adversarial_loss(model, inputs, logits=model(inputs))


def test_terms_and_activity_costs_are_those_of_the_pass_before(device):
    class Charging(nn.Linear):
        def forward(self, x):
            add_loss("size", x.square().sum())
            return super().forward(x)

    layer = regularize(Charging(6, 4), activity=L1L2(l1=1.0)).to(device).double()
    model, inputs = nn.Sequential(layer), batch(5, 6, device=device)
    with LossCollector() as collector:
        model(inputs)
        cost, size = penalty(model), inputs.square().sum()
        virtual_adversarial_loss(model, inputs, eps=5.0)
        torch.testing.assert_close(penalty(model), cost)
    torch.testing.assert_close(collector.terms, {"size": size})
    model(2 * inputs)  # the next pass begins anew
    wanted = functional.linear(2 * inputs, layer.weight, layer.bias).abs().sum() / 5
    torch.testing.assert_close(penalty(model), wanted)


def test_called_inside_a_module_it_charges_no_activity_either(device):
    class Taught(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = regularize(nn.Linear(6, 4), activity=L1L2(l1=1.0))

        def forward(self, x):
            outputs = self.layer(x)
            add_loss("vat", virtual_adversarial_loss(self.layer, x))
            return outputs

    model, inputs = Taught().to(device).double(), batch(5, 6, device=device)
    for scale in (1, 2):
        outputs = model(scale * inputs)
        torch.testing.assert_close(penalty(model), outputs.abs().sum() / 5)


def test_a_copy_of_the_model_gives_the_same():
    results = []
    model, inputs = normalized(), batch(9, 6)
    for each in (model, copy.deepcopy(model)):
        torch.manual_seed(2)
        results.append(virtual_adversarial_loss(each, inputs))
    torch.testing.assert_close(*results)


# In the training loop


def test_in_fit_it_is_a_term_of_unlabeled_samples_that_leaves_statistics_alone(device):
    inputs = batch(24, 1, 2, 3, device=device, dtype=torch.float32)
    labeled = Split(inputs[:8], torch.arange(8, device=device) % 4)
    unlabeled, costs = inputs[8:], []

    def add_vat(model, inputs, outputs):
        costs.append(virtual_adversarial_loss(model, unlabeled))
        add_loss("vat", costs[-1])

    models = []
    for after_forward in (None, add_vat):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 4))
        history = fit(
            model.to(device),
            labeled,
            loss=functional.cross_entropy,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            epochs=2,
            batch_size=4,
            after_forward=after_forward,
            progress=False,
        )
        models.append(model)
    plain, taught = models
    assert not torch.allclose(plain[2].weight, taught[2].weight)
    torch.testing.assert_close(
        dict(plain[1].named_buffers()), dict(taught[1].named_buffers())
    )
    values = [cost.item() for cost in costs]
    means = [sum(values[:2]) / 2, sum(values[2:]) / 2]
    assert history["vat"] == pytest.approx(means)
    assert min(values) > 0


# Any classifier


class Last(nn.Module):
    """Classify by the last step of a GRU."""

    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.gru(x.squeeze(1))[0][:, -1])


CLASSIFIERS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2)),
    "mlp": lambda: mlp((64, 16, 10), dropout=0.5),
    "cnn": lambda: small_cnn(),
    "batch norm": lambda: nn.Sequential(nn.BatchNorm2d(1), small_cnn()),
    "a class a pixel": lambda: nn.Conv2d(1, 3, 3, padding=1),
    "recurrent": lambda: Last(),
    "frozen": lambda: nn.Sequential(small_cnn().requires_grad_(False), mlp((10, 10))),
}


@pytest.mark.parametrize("make", CLASSIFIERS.values(), ids=CLASSIFIERS.keys())
@pytest.mark.parametrize("training", [True, False])
def test_any_classifier_gets_a_positive_loss_and_gradients(make, training, device):
    model = make().to(device).train(training)
    inputs = batch(7, 1, 8, 8, device=device, dtype=torch.float32)
    if device.type == "cuda" and not training and isinstance(model, Last):
        pytest.skip("cuDNN has no gradient of recurrent layers in eval mode")
    loss = virtual_adversarial_loss(model, inputs, eps=2.0, xi=1.0)
    loss.backward()
    assert loss.item() > 0
    trained = [p for p in model.parameters() if p.requires_grad]
    assert any(p.grad.abs().sum() > 0 for p in trained)
    assert all(p.grad.isfinite().all() for p in trained)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_comes_near_to_float32(dtype, device):
    torch.manual_seed(0)
    model = small_cnn().to(device)
    nn.init.normal_(model[-1].weight)  # sure of its answers, or rounding is all
    inputs = batch(7, 1, 8, 8, device=device, dtype=torch.float32)
    results = []
    for enabled in (False, True):
        torch.manual_seed(2)
        with torch.autocast(device.type, dtype, enabled=enabled):
            loss = virtual_adversarial_loss(model, inputs, eps=2.0, xi=1.0)
        assert loss.dtype == torch.float32
        results.append(loss.item())
    assert results[1] == pytest.approx(results[0], rel=0.1)


def test_compiled_models_give_the_same(device):
    torch.compiler.reset()
    model, inputs = normalized(device), batch(9, 6, device=device)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    results = []
    for each in (model, torch.compile(model, backend="eager")):
        torch.manual_seed(2)
        loss = virtual_adversarial_loss(each, inputs)
        results.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(*results)
    torch.testing.assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)


# Arguments


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"eps": 0},
            "virtual_adversarial_loss: got eps=0; wanted a finite",
        ),
        ({"eps": math.inf}, "got eps=inf"),
        ({"xi": -1.0}, r"got xi=-1\.0; wanted .* a length in the inputs' units"),
        ({"xi": math.nan}, "got xi=nan"),
        ({"iterations": 0}, r"got iterations=0; wanted an int >= 1"),
        ({"iterations": 1.0}, r"got iterations=1\.0"),
        ({"iterations": True}, "got iterations=True"),
        ({"model": [torch.zeros(1)]}, "got list; wanted an nn.Module"),
        (
            {"inputs": torch.zeros(5, 6).long()},
            "inputs of torch.int64.* embeddings",
        ),
        ({"inputs": torch.zeros(5)}, r"shape \(5,\); wanted floats \(batch, \.\.\.\)"),
        ({"model": nn.Linear(6, 1)}, r"output is \(5, 1\); .* the two \[0, z\]"),
        ({"model": nn.GRU(6, 2)}, "output is tuple; wanted logits"),
        ({"logits": torch.zeros(3, 4)}, "there are 3 logits for 5 inputs"),
        ({"logits": torch.zeros(5, 3)}, r"has shape \(5, 3\), other \(5, 4\)"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    given = {"model": nn.Linear(6, 4), "inputs": torch.zeros(5, 6), **changes}
    with pytest.raises(ValueError, match=message):
        virtual_adversarial_loss(given.pop("model"), given.pop("inputs"), **given)


def test_the_direction_checks_its_arguments_too():
    with pytest.raises(ValueError, match="adversarial_direction: got xi=0"):
        adversarial_direction(nn.Linear(6, 4), torch.zeros(5, 6), xi=0)


# Wrapped models, and arguments of other kinds


def test_a_data_parallel_model_is_its_inner_one():
    inner = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    model, inputs = nn.DataParallel(inner), torch.randn(8, 4)
    before = copy.deepcopy(inner.state_dict())
    values = []
    for each in (model, inner):
        torch.manual_seed(0)
        values.append(virtual_adversarial_loss(each, inputs))
    torch.testing.assert_close(*values)
    for name, value in inner.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("function", [virtual_adversarial_loss, adversarial_direction])
def test_models_and_inputs_of_other_kinds_are_refused(function):
    model, inputs = nn.Linear(4, 3), torch.randn(8, 4)
    calls = [
        ((torch.jit.script(model), inputs), {}, "got a ScriptModule.*share their"),
        ((model, (inputs, inputs)), {}, r"inputs of type tuple; wanted one tensor"),
        ((model, inputs.numpy()), {}, "inputs of type ndarray"),
        ((model, inputs), {"xi": "1"}, "got xi='1'; wanted a finite number > 0"),
        (
            (model, inputs),
            {"logits": torch.randn(8, 3).to("meta")},
            "logits are on meta",
        ),
    ]
    for arguments, options, message in calls:
        with pytest.raises(ValueError, match=message):
            function(*arguments, **options)
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match=r"inference_mode\(\) is on"),
    ):
        function(model, inputs)
