"""The optimizer's step and the average of the weights (EMA)."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from training.ema import EMA
from training.optimizer import Muon, backward, learning_rate, make_optimizer, orthogonal, update


def settings(**recipe):
    fixed = {"optimizer": "adam", "learning_rate": 0.01, "Adam_beta1": 0.9, "Adam_beta2": 0.99}
    return fixed | {"warmup_steps": 0, "lr_schedule": "constant"} | recipe


def problem():
    torch.manual_seed(0)
    return nn.Linear(5, 3), torch.randn(4, 5)


def test_the_learning_rate_equals_torchs_schedulers():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 20, 1, total_iters=19)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 80)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[20])
    for step in range(100):
        ours = learning_rate(settings(warmup_steps=20, lr_schedule="cosine"), step, 100)
        assert ours == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6)  # theirs is a product over all steps
        assert learning_rate(settings(), step, 100) == 0.01
        optimizer.step()
        scheduler.step()
    assert learning_rate(settings(warmup_steps=200), 49, 50) == 0.01  # a warm-up ends with the training at the latest


@pytest.mark.parametrize("grad_clip", [None, 0.05])
def test_a_step_equals_torchs_adam(grad_clip):
    (ours, x), (theirs, _) = problem(), problem()
    optimizer, reference = make_optimizer(ours, settings()), torch.optim.Adam(theirs.parameters(), 0.5, (0.9, 0.99))
    for step in range(5):
        optimizer.zero_grad()
        backward(ours(x).square().mean())
        norm, taken = update(optimizer, 0.01 / (1 + step), grad_clip)
        reference.zero_grad()
        theirs(x).square().mean().backward()
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), grad_clip or 1e9)
        reference.param_groups[0]["lr"] = 0.01 / (1 + step)
        reference.step()
        assert taken
        torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())  # the fused kernel rounds in another order


def test_orthogonal_equals_the_polynomial_of_the_singular_values():
    generator = np.random.default_rng(0)
    for shape in [(5, 9), (9, 5), (7, 7), (3, 200)]:
        matrix = generator.standard_normal(shape)
        left, s, right = np.linalg.svd(matrix, full_matrices=False)
        s = s / np.linalg.norm(s)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        ours = orthogonal(torch.from_numpy(matrix)[None])[0].numpy()
        np.testing.assert_allclose(ours, left * s @ right, atol=1e-6)  # 1e-7 is added to the norm
        assert abs(np.linalg.svd(ours, compute_uv=False) - 1).max() < 0.35


@pytest.mark.parametrize("at_once", [2**22, 1])
def test_a_step_of_muon_equals_its_formula(at_once, monkeypatch):
    """In float64 and NumPy, for a kernel and matrices, two of one shape, as a batch or not; a bias has Adam's step."""
    monkeypatch.setattr(Muon, "AT_ONCE", at_once)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 5), nn.Linear(5, 5)).double()
    adams, x = copy.deepcopy(model), torch.randn(4, 2, 4, 4, dtype=torch.float64)
    optimizer = make_optimizer(model, settings(optimizer="muon"))
    reference = torch.optim.Adam(adams.parameters(), 0.01, (0.9, 0.99))
    averages = {name: np.zeros((len(weight), weight[0].numel())) for name, weight in model.named_parameters()}
    for step in range(4):
        optimizer.zero_grad()
        backward(model(x).square().mean())
        expected = {}
        for (name, weight), theirs in zip(model.named_parameters(), adams.parameters(), strict=True):
            theirs.grad = weight.grad.clone()
            gradient, before = weight.grad.flatten(1).numpy() if weight.ndim > 1 else None, weight.detach().numpy()
            if gradient is not None:
                averages[name] = 0.95 * averages[name] + 0.05 * gradient
                (direction,) = orthogonal(torch.from_numpy(0.05 * gradient + 0.95 * averages[name])[None]).numpy()
                scale = 0.01 / (1 + step) * 0.2 * max(gradient.shape) ** 0.5
                expected[name] = before - scale * direction.reshape(before.shape)
        reference.param_groups[0]["lr"] = 0.01 / (1 + step)
        reference.step()
        update(optimizer, 0.01 / (1 + step), None)
        for (name, weight), theirs in zip(model.named_parameters(), adams.parameters(), strict=True):
            wanted = expected.get(name, theirs.detach())
            np.testing.assert_allclose(weight.detach(), wanted, atol=1e-10)  # five Newton-Schulz steps magnify rounding


@pytest.mark.parametrize("kind", ["adam", "muon"])
@pytest.mark.parametrize("wrong", ["loss inf", "loss nan", "gradient"])
@pytest.mark.parametrize("grad_clip", [None, 0.05])
def test_a_loss_or_gradient_that_is_not_finite_changes_nothing(wrong, grad_clip, kind):
    model, x = problem()
    optimizer, ema = make_optimizer(model, settings(optimizer=kind)), EMA(model, 0.9)

    def states():
        return copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"], ema.model.state_dict()))

    for step in range(3):
        before = states()
        optimizer.zero_grad()
        loss = model(x).square().mean()
        if step == 1:
            loss = {"loss inf": loss + torch.inf, "loss nan": loss * torch.nan, "gradient": loss}[wrong]
        backward(loss)
        if step == 1 and wrong == "gradient":
            model.bias.grad[1] = torch.inf
        norm, taken = update(optimizer, 0.01, grad_clip)
        ema.update(step, taken)
        assert bool(taken) == (step != 1) == bool(norm.isfinite())
        if step == 1:
            torch.testing.assert_close(states(), before, rtol=0, atol=0)
        else:
            assert not torch.equal(states()[0]["bias"], before[0]["bias"])
            assert not torch.equal(states()[2]["bias"], before[2]["bias"])


def test_in_float16_a_step_is_left_out_while_its_loss_overflows_with_the_scale():
    (ours, x), (theirs, _) = problem(), problem()
    optimizer, scaler = make_optimizer(ours, settings()), torch.amp.GradScaler("cpu")
    reference = torch.optim.Adam(theirs.parameters(), 0.01, (0.9, 0.99), fused=True)
    for step in range(6):
        factor = 1e36 if step in (2, 3) else 1.0  # times the scale of 65,536 it overflows, alone it does not
        optimizer.zero_grad()
        backward(ours(x).square().mean() * factor, scaler)
        norm, taken = update(optimizer, 0.01, 0.05, scaler)
        assert bool(taken) == (step not in (2, 3)) and scaler.get_scale() == 2.0 ** (16 - min(2, max(0, step - 1)))
        if taken:
            reference.zero_grad()
            theirs(x).square().mean().backward()  # in float32, without a scale
            expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.05)
            reference.step()
            assert norm == pytest.approx(float(expected), rel=1e-5)  # sums in another order
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_without_the_fused_kernel_a_wrong_step_is_left_out_too():
    (ours, x), (plain, _) = problem(), problem()
    optimizer = make_optimizer(ours, settings())
    other = torch.optim.Adam(plain.parameters(), lr=0.01, betas=(0.9, 0.99), fused=False)  # as on MPS
    for step in range(4):
        for model, adam in ((ours, optimizer), (plain, other)):
            adam.zero_grad()
            backward(model(x).square().mean() * (torch.nan if step == 1 else 1))
            assert bool(update(adam, 0.01, 0.05)[1]) == (step != 1)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict())
    assert other.state[plain.weight]["step"] == 3


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_ema_equals_its_formula(device):
    model = nn.Linear(3, 2).double().to(device)
    ema, expected = EMA(model, 0.9), [p.detach().clone() for p in model.parameters()]
    for step in range(100):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        taken = step % 7 != 3
        ema.update(step, torch.tensor(taken, device=device))
        decay = min(0.9, (1 + step) / (10 + step)) if taken else 1
        expected = [decay * e + (1 - decay) * p.detach() for e, p in zip(expected, model.parameters(), strict=True)]
    for ours, theirs in zip(ema.model.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)  # the same arithmetic in another order
        assert not ours.requires_grad
