"""Tensors of PyTorch through DLPack, and its states."""

import io

import numpy as np
import pytest

from xpcnn import get_backend, models, nn, no_grad
from xpcnn.datasets.torch_file import read_torch
from xpcnn.errors import BackendError, DataError, DTypeError
from xpcnn.training import to_torch_state_dict

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "uint8", "bool"])
def test_memory_is_shared_both_ways(torch, dtype):
    theirs = torch.arange(24).reshape(4, 6).to(getattr(torch, dtype)).T[::2]
    ours = get_backend().from_dlpack(theirs)
    assert str(ours.dtype) == dtype
    assert [stride // ours.itemsize for stride in ours.strides] == list(theirs.stride())
    np.testing.assert_array_equal(ours, theirs.numpy())
    ours[...] = 1
    assert bool((theirs == 1).all())
    theirs.zero_()
    assert not ours.any()
    again = torch.from_dlpack(ours)
    again.fill_(1)
    assert ours.all()
    assert again.data_ptr() == theirs.data_ptr()


def test_parameters_and_results_go_to_pytorch(torch, rng):
    model = models.create("lenet5").eval()
    with no_grad():
        y = nn.Sequential(*model[:4])(rng.normal(size=(32, 1, 32, 32)).astype("float32"))
    assert not y.flags.c_contiguous  # batch-last
    for array in (y, *(parameter.data for parameter in model.parameters()), *dict(model.named_buffers()).values()):
        theirs = torch.from_dlpack(array)
        assert theirs.data_ptr() == array.ctypes.data
        np.testing.assert_array_equal(theirs.numpy(), array)
        theirs.fill_(2)
        assert (array == 2).all()


def test_what_pytorch_does_not_share(torch):
    backend = get_backend()
    for tensor, error, message in (
        (torch.ones(2, dtype=torch.bfloat16), DTypeError, "expected a dtype that can be shared, .*bfloat16 to float32"),
        (torch.ones(2, requires_grad=True), BackendError, r"hand over x.detach\(\)"),
        (torch.ones(2, device="meta"), BackendError, "meta"),
        (torch.ones(2).to_sparse(), BackendError, "layout"),
        (torch.ones(2, dtype=torch.complex64).conj(), BackendError, "conjugate bit"),
    ):
        with pytest.raises(error, match=message) as caught:
            backend.from_dlpack(tensor)
        assert "\n" not in str(caught.value)


def test_read_only_arrays_go_to_pytorch_as_they_are(torch):
    array = np.arange(4.0)
    array.flags.writeable = False
    np.testing.assert_array_equal(torch.from_dlpack(array).numpy(), array)


def test_negative_strides_after_contiguous(torch):
    array = np.arange(6.0)[::-1]
    np.testing.assert_array_equal(torch.from_dlpack(get_backend().contiguous(array)).numpy(), array)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_state_of_pytorch(torch, dtype):
    theirs = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).to(getattr(torch, dtype))
    ours = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    for state in (theirs.state_dict(), dict(theirs.named_parameters()) | dict(theirs.named_buffers())):
        assert ours.load_state_dict(state) == ([], [])
        for name, array in ours.state_dict().items():
            np.testing.assert_array_equal(array, state[name].detach().float().numpy(), strict=True)


def test_a_report_as_pytorch_gives_it(torch):
    theirs, ours = torch.nn.Sequential(torch.nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 3))
    state = {"0.weight": torch.ones(3, 4), "1.weight": torch.ones(3)}
    mine, other = ours.load_state_dict(state, strict=False), theirs.load_state_dict(state, strict=False)
    assert (mine.missing_keys, mine.unexpected_keys) == (other.missing_keys, other.unexpected_keys)
    other = theirs.load_state_dict(theirs.state_dict())
    assert repr(ours.load_state_dict(theirs.state_dict())) == repr(other)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_pytorch(torch, zipped):
    base = torch.arange(24.0)
    state = {
        "part": base[3:15].view(3, 4).T,
        "whole": base,
        "parameter": torch.nn.Parameter(torch.randn(3, 2)),
        "count": torch.tensor(7),
        "none": torch.zeros(0, 3),
        **{kind: torch.randn(5).mul(9).to(getattr(torch, kind)) for kind in ("float64", "float16", "bfloat16", "int8")},
        "flags": torch.tensor([True, False]),
    }
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    checkpoint = {"epoch": 3, "optimizer": optimizer.state_dict(), "model_state_dict": model.state_dict()}
    for content, expected in ((state, state), (checkpoint, model.state_dict())):
        found = read_torch(saved(torch, content, zipped), "x.pt")
        assert list(found) == list(expected)
        for name, tensor in expected.items():
            tensor = tensor.detach()
            tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
            np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name, strict=True)
    with pytest.raises(DataError, match=r"asks for 'torch.nn.modules.container.Sequential': refused"):
        read_torch(saved(torch, model, zipped), "x.pt")
    with pytest.raises(DataError, match=r"expected a state, .* got int"):
        read_torch(saved(torch, 3, zipped), "x.pt")


def saved(torch, content, zipped):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def test_layers_held_twice_go_over_and_back(torch):
    shared = torch.nn.Linear(3, 3)
    theirs = torch.nn.Sequential(shared, torch.nn.ReLU(), shared)
    mine = nn.Linear(3, 3)
    ours = nn.Sequential(mine, nn.ReLU(), mine)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    state = to_torch_state_dict(ours)
    assert sorted(state) == sorted(theirs.state_dict())
    theirs.load_state_dict(state)
    np.testing.assert_array_equal(mine.weight.data, shared.weight.detach().numpy())


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_state_for_pytorch_has_its_dtypes(torch, dtype):
    ours = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, momentum=None)).to(dtype=dtype)
    for name, tensor in to_torch_state_dict(ours).items():
        array = ours.state_dict()[name]
        assert str(tensor.dtype) == f"torch.{array.dtype}"
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert not np.shares_memory(tensor.numpy(), array)
