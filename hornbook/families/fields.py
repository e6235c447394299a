"""What the fields of published configs mean, where several families share the spelling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hornbook.errors import UserError, near
from hornbook.model.rope import Dynamic, Linear, Llama3, LongRope, Rope, Scaling, Yarn

Config = Mapping[str, Any]
ACTS = {
    "gelu_fast": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu2": "relu_squared", "swish": "silu",
}  # fmt: skip
ROPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")


def act(name: str) -> str:
    """A published activation in our spelling; what is not known fails where it is built."""
    return ACTS.get(name, name)


def fixed(config: Config, **known: Any) -> None:
    """Refuse a field that would change the logits in a way that no code here follows."""
    for name, value in known.items():
        if config.get(name, value) not in (value, None):
            raise UserError(f"{name} is not known yet", where=f"config.json: {name}", fix=f"set it to {str(value).lower()}")


def architecture(config: Config, known: Sequence[str]) -> str:
    """The published class that the config names, the family's first where it names none."""
    names = config.get("architectures") or [known[0]]
    if names[0] not in known:
        raise UserError(f"architecture {names[0]!r} is not known", where="config.json: architectures", fix=near(names[0], known))
    return str(names[0])


def either(config: Config, name: str, other: str) -> Any:
    """A field that published configs spell in two ways."""
    return config[other] if name not in config and other in config else config[name]


def head_dim(config: Config, default: int | None = None) -> int:
    """`default`: what the family's published configs may leave out; None, an even share of the width."""
    return int(config.get("head_dim", default) or config["hidden_size"] // config["num_attention_heads"])


def labels(config: Config) -> int:
    """How many classes a classifier has; two where the config does not say."""
    return int(config.get("num_labels") or len(config.get("id2label") or (0, 1)))


def tied(config: Config, default: bool = False, owner: str = "stem.tokens.weight") -> tuple[tuple[str, str], ...]:
    return (("head.out.weight", owner),) if config.get("tie_word_embeddings", default) else ()


def windows(config: Config, everywhere: bool = False, default: int | None = None) -> list[int | None]:
    """Each layer's window, by `layer_types` where the config lists them; else all layers' own, or none's."""
    layers, window = config["num_hidden_layers"], config.get("sliding_window", default) or None
    kinds = config.get("layer_types")
    if kinds is None:
        return [window if everywhere else None] * layers
    if len(kinds) != layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
        why = f"{len(kinds)} entries for {layers} layers: {sorted(set(kinds))}"
        fix = "one entry per layer, 'full_attention' or 'sliding_attention'"
        raise UserError("layer_types do not fit the layers", where="config.json: layer_types", why=why, fix=fix)
    if window is None and "sliding_attention" in kinds:
        raise UserError("sliding layers without a window", where="config.json: sliding_window", fix="set it to a number of tokens")
    return [window if kind == "sliding_attention" else None for kind in kinds]


def optional_windows(config: Config) -> list[int | None]:
    """Qwen's: none unless `use_sliding_window`; then by `layer_types`, or from layer `max_window_layers` on."""
    if not config.get("use_sliding_window"):
        return [None] * config["num_hidden_layers"]
    if config.get("layer_types"):
        return windows(config)
    first = config.get("max_window_layers", 28)
    return [config["sliding_window"] if layer >= first else None for layer in range(config["num_hidden_layers"])]


def rope(config: Config, width: int, parameters: Config | None = None) -> Rope:
    """The rope of a config.json, in its older spelling (rope_theta, rope_scaling) or its newer (rope_parameters)."""
    parameters = parameters or config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = parameters.get("rope_theta") or config.get("rope_theta") or 10_000.0
    share = parameters.get("partial_rotary_factor") or config.get("partial_rotary_factor") or config.get("rotary_pct") or 1.0
    turned = int(width * share)
    return Rope(width, float(theta), turned if turned < width else None, _scaling(config, parameters))


def _scaling(config: Config, parameters: Config) -> Scaling | None:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    kind = "longrope" if kind == "su" else kind
    if kind not in ROPES:
        raise UserError(f"rope type {kind!r} is not known", where="config.json: rope_scaling", fix=near(str(kind), ROPES))
    if kind == "default":
        return None
    longest = config["max_position_embeddings"]
    context = parameters.get("original_max_position_embeddings") or config.get("original_max_position_embeddings") or longest
    factor = parameters.get("factor") or longest / context
    if kind == "linear":
        return Linear(factor)
    if kind == "dynamic":
        return Dynamic(factor, longest)
    if kind == "llama3":
        return Llama3(factor, context, parameters["low_freq_factor"], parameters["high_freq_factor"])
    magnitude = parameters.get("attention_factor")
    if kind == "longrope":
        if magnitude is None:
            magnitude = math.sqrt(1 + math.log(factor) / math.log(context)) if factor > 1 else 1.0
        return LongRope(tuple(parameters["short_factor"]), tuple(parameters["long_factor"]), context, magnitude)
    if magnitude is None:
        one, other = parameters.get("mscale"), parameters.get("mscale_all_dim")
        magnitude = _yarn_magnitude(factor, one) / _yarn_magnitude(factor, other) if one and other else _yarn_magnitude(factor, 1.0)
    fast, slow = parameters.get("beta_fast") or 32.0, parameters.get("beta_slow") or 1.0
    return Yarn(factor, context, magnitude, fast, slow, parameters.get("truncate", True))


def _yarn_magnitude(factor: float, scale: float) -> float:
    """Peng et al. 2023, equation 22."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
