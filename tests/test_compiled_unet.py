"""What the compiler makes of the network: its graph holds no operation that is slow on a GPU."""

import pytest
import torch
from functorch.compile import aot_function, aot_module, make_boxed_func
from helpers.networks import noisy, randomise
from torch._inductor.decomposition import select_decomp_table

from models import UNet
from models.blocks import Upsample
from models.layout import doubled


def test_enlarging_has_two_forms_and_the_one_for_the_compiler_needs_no_sort():
    """It makes an index_put of the gradient of interpolate, which is deterministic on CUDA only by sorting."""

    def interpolated(x):
        return torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest")

    results, sorts, names = [], [], []

    def keep(graph, _):
        names.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    for enlarge in (interpolated, doubled):
        names.clear()
        x = torch.arange(24.0).reshape(1, 2, 4, 3).requires_grad_()
        y = aot_function(enlarge, keep, keep, decompositions=select_decomp_table())(x)
        y.square().sum().backward()
        results.append((y, x.grad))
        sorts.append(any("index_put" in name for name in names))
    torch.testing.assert_close(results[1], results[0])
    assert sorts == [True, False]


@pytest.mark.slow
def test_no_convolution_on_tensor_cores_has_to_copy_a_picture_or_gradient_into_its_layout(monkeypatch):
    """In the compiler's graph of both passes, for channels last: cuDNN copies what is laid out otherwise, slowly."""
    monkeypatch.setattr(Upsample, "forward", lambda self, x, emb: self.conv(doubled(x)))  # as compiled for CUDA
    layouts = []

    def keep(graph, _):
        for node in graph.graph.nodes:
            if "convolution" in str(node.target):
                tensors = [argument.meta["val"] for argument in node.args[: 3 if "backward" in str(node.target) else 2]]
                layouts.append([x.is_contiguous(memory_format=torch.channels_last) for x in tensors])
        return make_boxed_func(graph.forward)

    model = UNet(model_channels=16, channel_mult=(1, 2), num_res_blocks=1).to(memory_format=torch.channels_last)
    convolutions = sum(isinstance(part, torch.nn.Conv2d) for part in model.modules())
    network = aot_module(model, keep, keep, decompositions=select_decomp_table())
    network(noisy(2, 3, 32, 32), torch.tensor([3, 500])).square().sum().backward()
    assert len(layouts) == 2 * convolutions and all(map(all, layouts))


def test_channels_last_changes_neither_the_output_nor_the_gradients():
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = randomise(UNet(model_channels=16, channel_mult=(1, 2), num_res_blocks=1).double())
        output = model.to(memory_format=layout)(noisy(2, 3, 16, 16, dtype=torch.float64), torch.tensor([3, 500]))
        output.square().sum().backward()
        results.append([output, *(weight.grad for weight in model.parameters())])
    torch.testing.assert_close(results[1], results[0])
