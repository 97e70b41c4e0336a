"""What a layer is: forward, backward, parameters, buffers, and a stack of what forward keeps for backward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from xpcnn import backend as switch
from xpcnn.backend import Array, Backend, backend_of, get_backend, graph
from xpcnn.backend.graph import Guarded, tracing
from xpcnn.errors import ConfigError, StateError
from xpcnn.functional.precision import cast, check_precision
from xpcnn.nn import caches, hooks
from xpcnn.nn.caches import GONE, Forward, forward_now
from xpcnn.nn.contexts import gradients, traced_calls
from xpcnn.nn.naming import layer_at, name_layer
from xpcnn.nn.parameter import Parameter, clock
from xpcnn.nn.state import IncompatibleKeys, load

Self = TypeVar("Self", bound="Module")


class Module(Guarded):
    """Base of layers and networks.

    A subclass defines `forward(x) -> y` and `backward(dy) -> dx`, keeps with `self.keep(...)` what backward needs and
    takes it back with `self.take()`; a backward that raises gives back what it took. `backward(dy, *,
    input_gradient=True)` may leave dx out. Attributes that are `Parameter` or `Module` (or lists of modules) are found
    by themselves, in the order of their assignment; other arrays that belong to the state are given to
    `register_buffer`.

    Notes
    -----
    A forward that raises keeps nothing and sets the buffers of modules in training mode back. Of forwards that no
    backward follows, evaluation mode keeps the last one's caches, and training mode those of 64: the 17th warns, the
    65th is a `StateError`. What counts are calls that are not made inside another module's forward.

    Caches refer to parameters, inputs and outputs as they are, without copying them. Parameters that the library
    changes between forward and backward are a `StateError`; so are arrays that anybody writes to, with XPCNN_CHECK=1
    in the environment when the package is imported, which costs a checksum of all that is kept.

    Copies and pickles hold parameters and buffers, and neither hooks nor anything that forwards have kept.

    Examples
    --------
    >>> class Double(nn.Module):
    ...     def forward(self, x):
    ...         return 2 * x
    ...
    ...     def backward(self, dy):
    ...         return 2 * dy
    ...
    >>> layer = Double()
    >>> layer(np.ones(2)), layer.backward(np.ones(2))
    (array([2., 2.]), array([2., 2.]))
    """

    _forward_hooks: tuple[tuple[int, hooks.Hook], ...] = ()

    unguarded = frozenset(
        {"_kept", "_forwards", "_buffers", "_groups", "_live", "_replays", "_sample_shape", "_stored_shape"}
    )
    _sample_shape: tuple[int, ...] | None = None  # of one sample of the last x that it was called with by itself
    _stored_shape: tuple[int, ...] | None = None  # of the image of which a loader made that, where a training knows it

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if arguments or options:  # of a layer without a constructor of its own
            given = ", ".join([*map(repr, arguments), *(f"{name}={value!r}" for name, value in options.items())])
            raise ConfigError(f"{type(self).__name__}: expected no arguments, got {given:.80}; leave them out")
        self.training = True
        self._buffers: dict[str, bool] = {}  # name -> whether it is part of state_dict
        self._start_empty()

    def _start_empty(self) -> None:
        self._kept: list[caches.Entry] = []
        self._forwards: list[Forward] = []  # outermost ones of this module that wait for their backward

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.backward is not Module.backward:
            guarded = caches.guarded(cls.backward)
            if guarded is not cls.backward:
                cls.backward = guarded  # type: ignore[method-assign]

    def __getstate__(self) -> dict[str, Any]:
        left = ("_kept", "_forwards", "_forward_hooks")
        return {name: value for name, value in vars(self).items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_empty()
        for name in self._buffers:
            array = getattr(self, name)
            setattr(self, name, backend_of(array).place(array))

    # --- computing ------------------------------------------------------------------------------------------------

    def __call__(self, x: Array) -> Array:
        if graph.traces[0]:
            graph.see(self)
        forward = forward_now.get()
        if forward is None:
            y = self._call_outermost(x)
            if self._sample_shape != x.shape[1:]:
                self._sample_shape = tuple(x.shape[1:])
        else:
            kept, remembered = len(forward.entries), len(forward.buffers)
            try:
                if self._buffers and self.training:
                    forward.remember(self._own_buffers())
                y = self.forward(x)
                if self._forward_hooks:
                    y = hooks.run(self, x, y)
            except BaseException as error:
                forward.undo(kept, remembered)
                name_layer(error, self)
                raise
        record = traced_calls.get()
        if record is not None:
            record.append((self, x, y))
        return y

    def _call_outermost(self, x: Array) -> Array:
        if self._forwards and gradients.get():
            caches.make_room(self._forwards, self.training, type(self).__name__)
        forward = Forward()
        token = forward_now.set(forward)
        try:
            if self._buffers and self.training:
                forward.remember(self._own_buffers())
            y = self.forward(x)
            if self._forward_hooks:
                y = hooks.run(self, x, y)
        except BaseException as error:
            forward.undo()
            name_layer(error, self)
            raise
        finally:
            forward_now.reset(token)
        if forward.entries:
            self._forwards.append(forward)
        return y

    def forward(self, x: Array) -> Array:
        """Return y for x."""
        raise NotImplementedError(f"{type(self).__name__} needs a forward(x)")

    def backward(self, dy: Array, *, input_gradient: bool = True) -> Array:
        """Return dx for dy, adding to the gradients of the parameters; consumes what the last forward kept.

        Parameters
        ----------
        dy : array
            d loss / d y, like y.
        input_gradient : bool
            False leaves dx out (None), as the first layer of a network may.

        Raises
        ------
        StateError
            No forward has kept its cache, or a parameter has changed since that forward.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a backward(dy)")

    def keep(self, cache: Any) -> None:
        """Put what backward needs on the stack, unless inside `no_grad`."""
        if not gradients.get():
            return
        forward = forward_now.get()
        if forward is None:  # forward(x) called by itself
            caches.make_room(self._forwards, self.training, type(self).__name__)
            forward = Forward()
            self._forwards.append(forward)
        entry = forward.keep(self._kept, cache)
        if caches.checks_writes and not graph.is_tracing():
            entry.sums = caches.sums_of(cache, self._parameters_read(cache))

    def take(self) -> Any:
        """Take the cache of the last forward that has had no backward.

        Raises
        ------
        StateError
            There is none, or the library has changed a parameter since (with XPCNN_CHECK=1: anybody an array).
        """
        entry = caches.take(self._kept)
        if entry is None:
            raise StateError(
                f"{type(self).__name__}.backward: expected a forward before it that kept its cache, got none; each "
                "forward outside of no_grad() allows one backward, in evaluation mode the last one alone"
            )
        cache = entry.cache
        if entry.time != clock.now or entry.sums is not None:
            caches.check_unchanged(type(self).__name__, entry, cache, self._parameters_read(cache))
        entry.cache = GONE
        return cache

    def _parameters_read(self, cache: Any) -> Iterable[Parameter]:
        """Return the parameters that a cache of this module goes with."""
        return [value for value in vars(self).values() if isinstance(value, Parameter)]

    def _groups_inside(self) -> Sequence[Any]:
        """Return the groups (`fusion.py`) of a container that does nothing but run them."""
        return ()

    def _own_buffers(self) -> list[Array]:
        return [getattr(self, name) for name in self._buffers]

    def forget(self) -> None:
        """Drop everything that forwards have kept, such as after a forward without a backward."""
        for module in self.modules():
            for entry in module._kept:
                entry.cache = GONE
            module._kept.clear()
            for forward in module._forwards:
                forward.discard()
            module._forwards.clear()

    def register_forward_hook(self, hook: hooks.Hook, *, prepend: bool = False) -> hooks.RemovableHandle:
        """Have a function called after each forward: `hook(module, args, output)`, as in torch.

        Parameters
        ----------
        hook : callable
            `args` is the tuple (x,); what it returns, unless None, is the output from there on. The backward knows
            nothing of such a change. The arrays stay as they are, but must not be written.
        prepend : bool
            Whether it comes before the hooks that are there.

        Returns
        -------
        RemovableHandle
            `handle.remove()` takes the hook away; it may stand in a `with`.

        Raises
        ------
        ConfigError
            `hook` cannot be called.

        Notes
        -----
        While any module has a hook, nothing is recorded or replayed, and its own layer is fused with no other.
        `Inference` calls none.

        Examples
        --------
        >>> import numpy as np
        >>> from xpcnn import nn
        >>> model, seen = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), []
        >>> with model[0].register_forward_hook(lambda module, args, output: seen.append(output.shape)):
        ...     y = model(np.ones((2, 4), "float32"))
        >>> seen
        [(2, 3)]
        """
        return hooks.register(self, hook, prepend)

    # --- traced by `xpcnn.compile` -----------------------------------------------------------------------------------

    def parts(self) -> Iterator[Guarded]:
        """Yield all modules and parameters inside."""
        yield from self.modules()
        yield from self.parameters()

    def enter_trace(self) -> Any:
        """Return the caches and forwards that wait for their backward."""
        return [entry for entry in self._kept if entry.cache is not GONE], list(self._forwards)

    def leave_trace(self, before: Any, undo: bool) -> str | None:
        """Drop the caches of the function that was traced: no later backward could use them."""
        entries, forwards = before
        if self.training and any(entry.cache is GONE for entry in entries):
            return "a backward takes what a forward outside of it has kept; compile both in one function"
        left = [entry for entry in self._kept if entry.cache is not GONE and entry not in entries]
        for forward in [forward for forward in self._forwards if forward not in forwards]:
            self._forwards.remove(forward)
            forward.discard()
            found = tracing()
            if found is not None and not self.training:
                found.afterwards.append(self._end_forwards)
        for entry in left:
            entry.cache = GONE
        if left and self.training and not undo:
            return f"{type(self).__name__} keeps a cache for a backward to come; compile both in one function"
        return None

    def _end_forwards(self) -> None:
        """Drop what earlier forwards have kept, as one more in evaluation mode does."""
        for forward in self._forwards:
            forward.discard()
        self._forwards.clear()

    # --- what it is made of ---------------------------------------------------------------------------------------

    def register_buffer(self, name: str, array: Array, *, persistent: bool = True) -> None:
        """Make `array`, or a copy, part of the state under `name`; `state_dict` leaves it out unless `persistent`."""
        self._buffers[name] = persistent
        setattr(self, name, backend_of(array).place(array))

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield (name, module) of the modules that it holds itself."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple)):
                yield from ((f"{name}.{i}", each) for i, each in enumerate(value) if isinstance(each, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield (path, module) of itself and all modules inside."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def get_submodule(self, target: str) -> Module:
        """Return the module at a path of `named_modules`, such as "4.conv1"; itself at "".

        Raises
        ------
        ConfigError
            There is none; the error lists the paths.
        """
        return layer_at(self, target, "target")

    def modules(self) -> Iterator[Module]:
        """Yield itself and all modules inside."""
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield (path, parameter), each once; the path becomes the parameter's name."""
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    value.name = f"{path}.{name}" if path else name
                    yield value.name, value

    def parameters(self) -> list[Parameter]:
        """Return all parameters, each once."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_buffers(self, *, persistent_only: bool = False) -> Iterator[tuple[str, Array]]:
        """Yield (path, array) of running statistics and the like."""
        for path, module in self.named_modules():
            for name, persistent in module._buffers.items():
                if persistent or not persistent_only:
                    yield (f"{path}.{name}" if path else name), getattr(module, name)

    @property
    def backend(self) -> Backend:
        """The backend of the parameters and buffers; the active one where there are none."""
        for array in self._arrays():
            return backend_of(array)
        return get_backend()

    def _arrays(self) -> Iterator[Array]:
        yield from (parameter.data for _, parameter in self.named_parameters())
        yield from (array for _, array in self.named_buffers())

    # --- modes and state ------------------------------------------------------------------------------------------

    def train(self: Self, mode: bool = True) -> Self:
        """Set training mode (batch norm and dropout) for itself and all modules inside."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: Self) -> Self:
        """Set evaluation mode for itself and all modules inside."""
        return self.train(False)

    def requires_grad_(self: Self, flag: bool = True) -> Self:
        """Freeze all parameters inside (False), or let them be trained again (True); see `Parameter`."""
        for parameter in self.parameters():
            parameter.requires_grad = flag
        return self

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def to(self: Self, backend: str | None = None, *, dtype: Any = None) -> Self:
        """Move parameters, gradients and buffers to a backend, change their dtype, or both; forget what forwards kept.

        Parameters
        ----------
        backend : str, optional
            As `set_backend` takes it.
        dtype : str or dtype, optional
            "float32", "float64" or "float16". float16 is for products: batch norm keeps its parameters and statistics
            in float32. Inputs must then be float16, as the outputs are; a `Trainer` sees to both.

        Raises
        ------
        BackendError
            The backend is not there.
        DTypeError
            The dtype is none of the three.
        """
        kind = None if dtype is None else check_precision(dtype)
        if backend is not None:
            self._move(switch.resolve(backend))
        if kind is not None:
            self.forget()
            for module in self.modules():
                module._cast("float32" if kind == "float16" and module.keeps_float32 else kind)
        return self

    def half(self: Self) -> Self:
        """Change parameters to float16, but for batch norm's: `to(dtype="float16")`."""
        return self.to(dtype="float16")

    def float(self: Self) -> Self:
        """Change parameters and buffers to float32: `to(dtype="float32")`."""
        return self.to(dtype="float32")

    keeps_float32: ClassVar[bool] = False  # whether its own parameters and buffers stay float32 in a float16 network

    def _cast(self, dtype: str) -> None:
        for value in vars(self).values():
            if isinstance(value, Parameter):
                value.cast(dtype)
        for name in self._buffers:
            array = getattr(self, name)
            if array.dtype.kind == "f" and array.dtype != dtype:
                backend = backend_of(array)
                setattr(self, name, backend.place(cast(backend, array, dtype)))

    def _move(self, target: Backend) -> None:
        self.forget()
        for parameter in self.parameters():
            parameter.to(target)
        for module in self.modules():
            for name in module._buffers:
                array = getattr(module, name)
                here = backend_of(array)
                if here is not target:
                    setattr(module, name, target.place(target.asarray(here.to_numpy(array))))

    def state_dict(self) -> dict[str, Array]:
        """Return parameters and persistent buffers by path, the live arrays."""
        state = {name: parameter.data for name, parameter in self.named_parameters()}
        state.update(self.named_buffers(persistent_only=True))
        return state

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copy arrays by path into the parameters and buffers; nothing is changed unless all fit.

        Parameters
        ----------
        state : mapping of str to array
            `state_dict()` of this or a like model, or of one of PyTorch: arrays of any backend, tensors of PyTorch (on
            any device), JAX, and whatever NumPy or DLPack reads. float16 and bfloat16 fit into wider floats. A
            `num_batches_tracked` of a batch norm whose momentum is a number is left out; both names of a layer that
            a model holds twice are known.
        strict : bool
            Whether all names must be there and no others; False takes what both have.

        Returns
        -------
        IncompatibleKeys
            A named tuple (missing_keys, unexpected_keys) of lists of names, empty ones where everything fitted.

        Raises
        ------
        StateError
            A name is missing or unknown, and `strict` is True.
        ShapeError, DTypeError, ConfigError
            A shape differs, a value is no array or of a dtype that the model's does not hold, `state` has no names.

        Examples
        --------
        >>> from xpcnn import nn
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> model.load_state_dict({"0.bias": [], "1.bias": []}, strict=False)
        Traceback (most recent call last):
        xpcnn.errors.DTypeError: 0.bias: expected an array, got list
        >>> model.load_state_dict({"0.bias": model[0].bias.data + 1}, strict=False)
        IncompatibleKeys(missing_keys=['0.weight'], unexpected_keys=[])
        """
        return load(self, state, strict)

    # --- description ----------------------------------------------------------------------------------------------

    def multiply_adds(self, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
        """Return the multiply-adds of one forward of its own; 0 where there is no product."""
        return 0

    def summary(self, input_shape: tuple[int, ...] | None = None) -> str:
        """Return a table of layers with output shapes, parameters and multiply-adds per image; rich in notebooks.

        Parameters
        ----------
        input_shape : (C, H, W) or (D,), optional
            Shape of one sample; that of the last call by default.
        """
        from xpcnn.nn.summary import summary

        return summary(self, input_shape)

    def _repr_html_(self) -> str:
        from xpcnn.nn.summary import display

        return display(self)

    def extra_repr(self) -> str:
        """Return the arguments that its repr shows."""
        return ""

    def __repr__(self) -> str:
        inside = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.children()]
        if not inside:
            return f"{type(self).__name__}({self.extra_repr()})"
        return f"{type(self).__name__}(\n  " + "\n  ".join(inside) + "\n)"
