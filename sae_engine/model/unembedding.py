"""From a language model's last decoder layer to its logits.

Architectures name the final norm differently, project after it, and scale or cap the logits. None
of that is written down here: one pass on two tokens shows which modules run after the last layer,
and the model's own code computes the logits. Fed by `loading`; read by `language_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_engine.model.hook_points import layer_stack

LARGE = 2.0**10
"""Size of an input next to which a norm's epsilon vanishes in float32."""
SMALL = 2.0**-10
"""Size of a logit that no soft-cap changes noticeably."""


class _Pass(NamedTuple):
    """What ran in a pass of a causal language model."""

    body: nn.Module
    """Called by the model itself; contains the layers."""
    after: list[nn.Module]
    """Ran after the last layer, in order, without their parts."""


class Unembedding:
    """The computation from the last layer's output to the logits, by the model's own code.

    `model` is a causal language model; its layers may be fewer than its files hold.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._head: nn.Module | None = model.get_output_embeddings()
        base = model.base_model
        stack = layer_stack(base)
        assert stack is not None, "the layers were not found"
        self._last_layer: nn.Module = base.get_submodule(stack)[-1]
        self._device = model.get_input_embeddings().weight.device
        self._ids = torch.zeros(1, 2, dtype=torch.long, device=self._device)
        self.body, self._after = _watch(model, self._last_layer, self._ids)
        self.body_path = next(path for path, m in model.named_modules() if m is self.body)

    @property
    def width(self) -> int | None:
        """The width of vectors that the linear part can multiply; None if there is none."""
        linear = (m.in_features for m in self._after if isinstance(m, nn.Linear))
        return next(linear, None)

    @torch.inference_mode()
    def logits(self, hidden: Float[Tensor, "n d_model"], body_output: Any) -> Tensor:
        """The logits [n, vocab] for outputs of the body, in float32 from the head on.

        `body_output` is everything that the body returned, with any hidden states.
        """
        answer = _with_hidden_states(body_output, hidden[None])
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=self._device)
        with ExitStack() as stack:
            stack.enter_context(_answering(self.body, answer))
            if self._head is not None:
                stack.enter_context(_hooked(self._head, lambda _m, _i, output: output.float()))
            return self._model(ids, use_cache=False).logits[0].float()

    @torch.inference_mode()
    def matrix(self) -> Float[Tensor, "vocab d_model"] | None:
        """The linear part: its product with a vector gives the logits that it adds when it is added
        to the residual stream, but for the final norm's division by the scale, which is the same
        for all tokens.

        It is the product of the head, a projection before it, the final norm's gain and, if that
        norm subtracts the mean, its centering. A factor on all logits is included, a soft-cap left
        out. None if the model computes its logits otherwise, which is found by comparing with them.
        """
        weight = getattr(self._head, "weight", None)
        if weight is None or self._after[-1] is not self._head:
            return None
        weight = weight.detach()
        for module in reversed(self._after[:-1]):
            weight = _through(weight, module)
        weight = weight.float()
        if not self._agrees(weight):
            return None
        scale = self._logit_scale()
        return weight if scale == 1 else weight * scale

    def _agrees(self, weight: Tensor) -> bool:
        """Whether `weight` times a random vector is the change of the head's output, up to a
        factor, when the last layer outputs that vector instead of zeros.
        """
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(weight.shape[1], generator=generator).to(weight.device)
        try:
            own = self._head_output(vector) - self._head_output(torch.zeros_like(vector))
        except _WrongWidthError:
            return False
        return torch.cosine_similarity(own, weight @ vector, dim=0).item() > 0.99

    def _head_output(self, vector: Tensor) -> Tensor:
        """The head's output [vocab] if the last layer outputs `vector` at every position."""
        seen: list[Tensor] = []

        def replace(_module: Any, _inputs: Any, output: Any) -> Any:
            old = output[0] if isinstance(output, tuple) else output
            if old.shape[-1] != len(vector):
                raise _WrongWidthError
            new = vector.to(old).expand_as(old)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        assert self._head is not None
        with (
            _hooked(self._last_layer, replace),
            _hooked(self._head, lambda _m, _i, output: seen.append(output)),
        ):
            self._model(self._ids, use_cache=False)
        return seen[0].flatten(0, -2)[-1].float()

    def _logit_scale(self) -> float:
        """What the model multiplies small logits by."""
        assert self._head is not None
        with _hooked(self._head, lambda _m, _i, output: torch.full_like(output.float(), SMALL)):
            logits = self._model(self._ids, use_cache=False).logits
        scale = logits.float().mean().item() / SMALL
        return 1.0 if abs(scale - 1) < 1e-3 else scale


class _WrongWidthError(Exception):
    """The last layer's output is not as wide as the linear part's input."""


@torch.inference_mode()
def _watch(model: nn.Module, last_layer: nn.Module, ids: Tensor) -> _Pass:
    direct: list[nn.Module] = []
    after: list[nn.Module] = []
    running: list[nn.Module] = []
    passed = False

    def enter(module: nn.Module, *_: Any) -> None:
        if len(running) == 1:
            direct.append(module)
        if passed and not any(module in after for module in running):
            after.append(module)
        running.append(module)

    def leave(module: nn.Module, *_: Any) -> None:
        nonlocal passed
        running.pop()
        if module is last_layer:
            passed = True
            after.clear()

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.enter_context(_hooked(module, leave))
        model(ids, use_cache=False)
    inside = (module for module in direct if any(m is last_layer for m in module.modules()))
    return _Pass(next(inside), after)


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Any]) -> Generator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _answering(module: nn.Module, answer: Any) -> Generator[None]:
    """Let a module return `answer` without running."""
    own = module.__dict__.get("forward")  # accelerate and nnsight put theirs there
    module.forward = lambda *_args, **_kwargs: answer
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _with_hidden_states(output: Any, hidden: Tensor) -> Any:
    """A base model's output with other hidden states."""
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    first, *_ = output.keys()
    return type(output)(**{**output, first: hidden})


def _through(weight: Tensor, module: nn.Module) -> Tensor:
    """The product of `weight` and the linear part of a module whose output it multiplies."""
    if isinstance(module, nn.Linear):
        return weight.float() @ module.weight.float()
    gain, centers = _gain(module, weight.shape[1], weight.device)
    scaled = weight * gain
    return scaled - scaled.mean(dim=1, keepdim=True) if centers else scaled


def _gain(norm: nn.Module, width: int, device: torch.device) -> tuple[Tensor, bool]:
    """What a norm multiplies a vector of unit mean square by, in float32; whether it subtracts the
    mean.
    """
    tensors = dict(norm.named_parameters()) | dict(norm.named_buffers())
    exact = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}

    def run(x: Tensor) -> Tensor:
        return torch.func.functional_call(norm, exact, (x[None],))[0]

    unit = torch.ones(width, device=device)  # becomes a vector of mean 0 and mean square 1
    unit[1::2] = -1
    if width % 2:
        unit[-3:] = torch.tensor([0.5, 0.5, -1.0], device=device) * 2**0.5
    bias = run(torch.zeros_like(unit))
    same = run(torch.full_like(unit, LARGE)) - bias
    gain = (run(unit * LARGE) - bias) / unit
    return gain, bool(same.abs().max() <= 1e-3 * gain.abs().max())
