"""Which expert saw how many tokens, counted by hooks; and tokens for those that saw none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


class Coverage:
    """Tokens of each expert by layer; a batch counts when ``commit`` is called."""

    def __init__(self, model: Any) -> None:
        self.fused = {n: m for n, m in model.named_modules() if _fused(m)}
        self.listed = {n: m for n, m in model.named_modules() if _listed(n, m)}
        self.counts = {n: torch.zeros(m.num_experts, dtype=torch.long) for n, m in self.all()}
        self.pending: dict[str, torch.Tensor] = {}

    def all(self) -> Iterator[tuple[str, Any]]:
        """Every group of experts with ``num_experts``."""
        yield from self.fused.items()
        for name, module in self.listed.items():
            module.num_experts = len(module)
            yield name, module

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Counts while it lasts."""
        with contextlib.ExitStack() as stack:
            for name, module in self.fused.items():
                hook = module.register_forward_pre_hook(self._chosen(name), with_kwargs=True)
                stack.callback(hook.remove)
            for name, module in self.listed.items():
                for number, expert in enumerate(module):
                    hook = expert.register_forward_pre_hook(self._given(name, number))
                    stack.callback(hook.remove)
            yield

    def begin(self) -> None:
        """A batch begins; what an aborted one counted is forgotten."""
        self.pending = {name: torch.zeros_like(count) for name, count in self.counts.items()}

    def commit(self) -> None:
        """The batch is done."""
        for name, count in self.pending.items():
            self.counts[name] += count

    def unreached(self) -> dict[str, list[int]]:
        """Experts that no token reached, by layer."""
        found = {name: (count == 0).nonzero().flatten().tolist() for name, count in self._items()}
        return {name: experts for name, experts in found.items() if experts}

    @contextlib.contextmanager
    def rerouting(self, length: int) -> Iterator[None]:
        """While it lasts, experts that saw nothing get tokens too, by position in their sample.

        The output of these extra passes is dropped, so later layers see what they saw before.
        """
        with contextlib.ExitStack() as stack:
            for name, experts in self.unreached().items():
                if name in self.fused:
                    hook = self.fused[name].register_forward_hook(
                        self._extra(name, experts, length), with_kwargs=True
                    )
                    stack.callback(hook.remove)
            yield

    def figures(self) -> dict[str, Any]:
        """Numbers for the report."""
        counts = torch.cat([c for _, c in self._items()]) if self.counts else torch.zeros(0)
        return {
            "experts": counts.numel(),
            "unreached": sum(len(e) for e in self.unreached().values()),
            "fewest": int(counts.min()) if counts.numel() else 0,
            "median": int(counts.median()) if counts.numel() else 0,
            "most": int(counts.max()) if counts.numel() else 0,
        }

    def _items(self) -> Any:
        return self.counts.items()

    def _chosen(self, name: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            index = _argument(args, kwargs, 1, "top_k_index")
            self.pending[name] += torch.bincount(
                index.flatten().cpu(), minlength=module.num_experts
            )[: module.num_experts]

        return hook

    def _given(self, name: str, number: int) -> Any:
        def hook(module: Any, args: Any) -> None:
            if name in self.pending and args:
                self.pending[name][number] += args[0].numel() // args[0].shape[-1]

        return hook

    def _extra(self, name: str, experts: list[int], length: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, _: Any) -> None:
            hidden = _argument(args, kwargs, 0, "hidden_states")
            hidden = hidden.reshape(-1, hidden.shape[-1])
            places = torch.arange(hidden.shape[0], device=hidden.device) % length % len(experts)
            index = torch.tensor(experts, device=hidden.device)[places][:, None]
            weights = torch.ones_like(index, dtype=hidden.dtype)
            module.forward(hidden, index, weights)  # not the module: its hooks must not run
            self.pending[name] += torch.bincount(
                index.flatten().cpu(), minlength=module.num_experts
            )

        return hook


def _fused(module: Any) -> bool:
    """Whether ModelOpt wrapped all experts of a layer at once (transformers 5's 3D weights)."""
    return hasattr(module, "num_experts") and hasattr(module, "down_proj_weight_quantizers")


def _listed(name: str, module: Any) -> bool:
    """Whether it is a list of experts, each a module of its own."""
    return name.endswith(".experts") and isinstance(module, torch.nn.ModuleList)


def _argument(args: Any, kwargs: Any, place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs[name]
