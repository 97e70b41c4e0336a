"""The public names: there with the arguments that were promised, listed, documented, and no others."""

import importlib
import inspect
import re

import pytest

import xpcnn

FUNCTIONAL = """
    conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1)
    conv2d_backward(dy, cache)
    conv_transpose2d(x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1)
    conv_transpose2d_backward(dy, cache)
    max_pool2d(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False)
    max_pool2d_backward(dy, cache)
    avg_pool2d(x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True)
    avg_pool2d_backward(dy, cache)
    global_avg_pool2d(x)
    global_avg_pool2d_backward(dy, cache)
    linear(x, weight, bias=None)
    linear_backward(dy, cache)
    batch_norm(x, gamma, beta, running_mean, running_var, *, training, momentum=0.1, eps=1e-05)
    batch_norm_backward(dy, cache)
    dropout(x, p=0.5, *, training)
    dropout_backward(dy, cache)
    relu(x)
    leaky_relu(x, negative_slope=0.01)
    sigmoid(x)
    tanh(x)
    gelu(x)
    layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-05)
    layer_norm_backward(dy, cache)
    group_norm(x, num_groups, weight=None, bias=None, eps=1e-05)
    group_norm_backward(dy, cache)
    silu(x)
    hardswish(x)
    elu(x, alpha=1.0)
    silu_backward(dy, cache)
    hardswish_backward(dy, cache)
    elu_backward(dy, cache)
    identity(x)
    identity_backward(dy, cache)
    pad_channels(x, before=0, after=0)
    pad_channels_backward(dy, cache)
    concat(arrays, axis=1)
    concat_backward(dy, cache)
    dropout2d(x, p=0.5, *, training)
    dropout2d_backward(dy, cache)
    adaptive_avg_pool2d(x, output_size)
    adaptive_avg_pool2d_backward(dy, cache)
    upsample(x, size=None, scale_factor=None, mode='nearest', align_corners=None)
    upsample_backward(dy, cache)
    relu_backward(dy, cache)
    leaky_relu_backward(dy, cache)
    sigmoid_backward(dy, cache)
    tanh_backward(dy, cache)
    gelu_backward(dy, cache)
    softmax(x, axis=-1)
    log_softmax(x, axis=-1)
    softmax_backward(dy, y, axis=-1)
    log_softmax_backward(dy, y, axis=-1)
    cross_entropy(logits, labels, *, weight=None, ignore_index=None, label_smoothing=0.0, reduction='mean')
    mse_loss(x, target, *, reduction='mean')
    l1_loss(x, target, *, reduction='mean')
    binary_cross_entropy_with_logits(x, target, *, pos_weight=None, reduction='mean')
    im2col(x, kernel_size, *, stride=1, padding=0, dilation=1)
    col2im(cols, x_shape, kernel_size, *, stride=1, padding=0, dilation=1)
"""
API = {
    "xpcnn": """
        Backend()
        set_backend(name)
        get_backend()
        use_backend(name)
        available_backends()
        register_backend(backend)
        manual_seed(seed)
        no_grad()
        set_num_threads(n)
        get_num_threads()
        set_winograd(enabled)
        get_winograd()
        info()
    """,
    "xpcnn.functional": FUNCTIONAL,
    "xpcnn.functional.reference": FUNCTIONAL,
    "xpcnn.nn": """
        Module()
        Parameter(data, name='', requires_grad=True)
        Sequential(*layers)
        Residual(body, shortcut=None)
        Inference(model, records=8)
        Conv2d(in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True)
        Linear(in_features, out_features, bias=True)
        MaxPool2d(kernel_size, stride=None, padding=0, dilation=1, *, ceil_mode=False)
        AvgPool2d(kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True)
        GlobalAvgPool2d()
        BatchNorm1d(num_features, eps=1e-05, momentum=0.1)
        BatchNorm2d(num_features, eps=1e-05, momentum=0.1)
        Dropout(p=0.5)
        ReLU()
        LeakyReLU(negative_slope=0.01)
        Sigmoid()
        Tanh()
        GELU()
        ConvTranspose2d(in_channels, out_channels, kernel_size, stride=1, padding=0, output_padding=0)
        LayerNorm(normalized_shape, eps=1e-05, elementwise_affine=True, bias=True)
        GroupNorm(num_groups, num_channels, eps=1e-05, affine=True)
        SiLU()
        Hardswish()
        ELU(alpha=1.0)
        Identity()
        ChannelPad(before=0, after=0)
        Concat(*branches, dim=1)
        Dropout2d(p=0.5)
        AdaptiveAvgPool2d(output_size)
        Upsample(size=None, scale_factor=None, mode='nearest', align_corners=None)
        Softmax(dim=-1)
        Flatten()
        CrossEntropyLoss(*, weight=None, ignore_index=None, label_smoothing=0.0, reduction='mean')
        BCEWithLogitsLoss(*, pos_weight=None, reduction='mean')
        L1Loss(*, reduction='mean')
        MSELoss(*, reduction='mean')
    """,
    "xpcnn.nn.init": """
        he_normal(shape)
        he_uniform(shape)
        xavier_normal(shape)
        xavier_uniform(shape)
        normal(shape, std=0.01, mean=0.0)
        zeros(shape)
        ones(shape)
    """,
    "xpcnn.optim": """
        SGD(parameters, lr, momentum=0.0, *, weight_decay=0.0, nesterov=False, shrink=0.0)
        Adam(parameters, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0, amsgrad=False)
        AdamW(parameters, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, amsgrad=False)
        RMSprop(parameters, lr=0.01, alpha=0.99, eps=1e-08, weight_decay=0.0, momentum=0.0, centered=False)
        Adagrad(parameters, lr=0.01, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10)
        StepLR(optimizer, step_size, gamma=0.1)
        ExponentialLR(optimizer, gamma)
        InverseTimeLR(optimizer, decay)
        CosineAnnealingLR(optimizer, T_max, eta_min=0.0)
        OneCycleLR(optimizer, max_lr, total_steps)
        LinearLR(optimizer, start_factor=1/3, end_factor=1.0, total_iters=5)
        MultiStepLR(optimizer, milestones, gamma=0.1)
        SequentialLR(optimizer, schedulers, milestones)
        LambdaLR(optimizer, lr_lambda)
        ReduceLROnPlateau(optimizer, mode='min', factor=0.1, patience=10, threshold=0.0001, threshold_mode='rel')
        clip_grad_norm(parameters, max_norm)
    """,
    "xpcnn.datasets": """
        Dataset(images, labels)
        load_mnist()
        load_idx(path)
        load_mnist_pickle(path)
        load_cifar10(folder)
        load_folder(path, *, size=None, mode='RGB')
        load_npz(path)
        load_csv(path, image_shape)
        to_categorical(labels, num_classes)
    """,
    "xpcnn.data": """
        DataLoader(images, labels, batch_size, *, shuffle=True, replacement=False, seed=None, drop_last=False)
        Normalize(mean, std)
        Pad(padding)
        Resize(size)
        RandomCrop(size, padding=0)
        RandomHorizontalFlip(p=0.5)
        RandomAffine(degrees, translate=None, scale=None)
        RandomErasing(p=0.5)
        ColorJitter(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
        MixUp(alpha=1.0, num_classes=None)
    """,
    "xpcnn.training": """
        to_torch_state_dict(model)
        load_parameters(model, path)
        Trainer(model, optimizer, criterion, *, schedule=None, schedule_every=None, callbacks=())
        EarlyStopping(monitor=None, patience=5, min_delta=0.0, restore_best=True)
        ModelAverage(decay=0.999)
        LearningRateFinder(start_lr=1e-07, end_lr=10.0, steps=100)
        TensorBoard(folder, every=1)
        class_metrics(labels, predicted, *, classes=None)
        Metrics(loss, accuracy)
        History()
        save_model(model, path, *, classes=None, transform=None)
        load_model(path, *, layers=())
        Predictor(model, *, classes=None, transform=None)
        Prediction(label, probability, probabilities)
    """,
    "xpcnn.models": """
        create(name, **options)
        names()
    """,
    "xpcnn.recipes": """
        names()
        run(name)
    """,
    "xpcnn.testing": """
        numerical_gradient(f, array, h=1e-05)
        gradcheck(target, inputs, *, backward=None)
        relative_error(a, b)
    """,
    "xpcnn.distributed": """
        init()
        joined()
    """,
    "xpcnn.onnx": """
        export(model, input_shape, path, *, opset=21, fold=False, classes=None, transform=None)
        load(path)
        register(layer)
    """,
    "xpcnn.explain": """
        saliency(model, x, target=None)
        grad_cam(model, x, target=None, *, layer=None)
    """,
    "xpcnn.plot": """
        history(history, path=None, *, ax=None)
        predictions(images, labels, probabilities, path=None, *, ax=None)
        confusion_matrix(labels, predicted, path=None, *, ax=None)
        filters(weight, path=None, *, ax=None)
        feature_maps(model, image, path=None, *, ax=None)
        learning_rates(finder, path=None, *, ax=None)
        saliency(model, images, path=None, *, target=None, ax=None)
        grad_cam(model, images, path=None, *, target=None, layer=None, ax=None)
    """,
}
METHODS = {
    "xpcnn.Backend": """owns(self, array)  asarray(self, a, dtype=None)  to_numpy(self, a)  synchronize(self)
        from_dlpack(self, x)""",
    "xpcnn.nn.Module": """forward(self, x)  backward(self, dy, *, input_gradient=True)  parameters(self)
        named_parameters(self)
        register_forward_hook(self, hook)
        zero_grad(self)  train(self)  eval(self)  to(self, backend)  state_dict(self)  load_state_dict(self, state)
        summary(self, input_shape=None)  requires_grad_(self, flag=True)  keep(self, cache)  take(self)  forget(self)
        register_buffer(self, name, array)  half(self)""",
    "xpcnn.nn.Sequential": """backward(self, dy, *, input_gradient=True)  append(self, layer)
        insert(self, index, layer)  extend(self, layers)""",
    "xpcnn.nn.Conv2d": "backward(self, dy, *, input_gradient=True)",
    "xpcnn.nn.ReLU": "backward(self, dy, *, input_gradient=True)",
    "xpcnn.optim.Optimizer": "step(self)  zero_grad(self)  add_param_group(self, group)  parameters(self)",
    "xpcnn.optim.Schedule": "step(self)",
    "xpcnn.training.Trainer": "fit(self, train, validation=None, epochs=1)  evaluate(self, data)  stop(self)",
    "xpcnn.distributed.Communicator": "allreduce(self, a, op='sum')  broadcast(self, a, root=0)  barrier(self)",
    "xpcnn.training.History": "save(self, path)  plot(self, path=None)  to_pandas(self)",
}
ERRORS = {
    "ShapeError": ValueError,
    "DTypeError": TypeError,
    "BackendError": RuntimeError,
    "MixedBackendsError": TypeError,
    "StateError": RuntimeError,
    "DataError": ValueError,
    "NonFiniteError": ArithmeticError,
}
PACKAGES = [name for name in API if not name.endswith(("reference", "init"))]


def find(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def check_signature(thing, promised):
    """Positional arguments have the promised names, defaults and order, and every name is there; more may follow."""
    name, _, arguments = promised.partition("(")
    namespace = {}
    exec(f"def {name}({arguments}: pass", namespace)
    wanted = inspect.signature(namespace[name]).parameters
    actual = inspect.signature(thing).parameters
    positional = [p for p in actual.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    order = [p.name for p in wanted.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in positional][: len(order)] == order
    for parameter in wanted.values():
        assert parameter.name in actual
        ours = actual[parameter.name]
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            assert ours.kind is inspect.Parameter.KEYWORD_ONLY, parameter.name
        if parameter.default is not inspect.Parameter.empty:
            assert ours.default == parameter.default, parameter.name
    for extra in actual.values():  # whatever else there is can be left out
        variable = extra.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        assert extra.name in wanted or extra.default is not inspect.Parameter.empty or variable, extra.name


CASES = [
    (f"{module}.{line.split('(')[0].strip()}", line.strip())
    for module, text in API.items()
    for line in text.strip().splitlines()
] + [
    (f"{owner}.{call.split('(')[0]}", call)
    for owner, text in METHODS.items()
    for call in re.findall(r"\w+\([^)]*\)", text)
]


@pytest.mark.parametrize(("path", "promised"), CASES, ids=[path for path, _ in CASES])
def test_signature(path, promised):
    owner, _, name = path.rpartition(".")
    thing = getattr(find(owner), name) if owner in METHODS else find(path)
    check_signature(thing, promised)


@pytest.mark.parametrize(("name", "builtin"), ERRORS.items())
def test_errors_are_also_the_builtin_ones(name, builtin):
    error = getattr(xpcnn.errors, name)
    assert issubclass(error, xpcnn.errors.XpcnnError)
    assert issubclass(error, builtin)


@pytest.mark.parametrize("name", PACKAGES)
def test_all_lists_the_public_names(name):
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for each in module.__all__:
        assert hasattr(module, each), each
    own = {
        each
        for each, value in vars(module).items()
        if not each.startswith("_") and str(getattr(value, "__module__", "")).startswith(name)
    }
    if name == "xpcnn":
        own = {each for each in own if callable(vars(module)[each])}
    assert own <= set(module.__all__), "give these names an underscore, or list them"


@pytest.mark.parametrize("name", PACKAGES)
def test_everything_public_is_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for each in module.__all__:
        value = getattr(module, each)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        assert inspect.getdoc(value), each
        if not inspect.isclass(value):
            continue
        for method, function in inspect.getmembers(value, inspect.isfunction):
            if not method.startswith("_") and function.__module__.startswith("xpcnn"):
                assert inspect.getdoc(getattr(value, method)), f"{each}.{method}"  # its own or the base's


def test_dir_shows_the_packages():
    assert {"nn", "functional", "optim", "data", "datasets", "training", "models", "recipes"} <= set(dir(xpcnn))
