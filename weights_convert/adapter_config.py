"""Read adapter_config.json, which says what the tensors of a PEFT adapter file mean.

Only plain LoRA is read: every key is used, known to change nothing (`IRRELEVANT`), or refused by name (`REFUSED` with
the reason, any other as unknown). Source: peft/tuners/lora/config.py and peft/tuners/tuners_utils.py, version 0.21.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from weights_convert.options import Options
from weights_convert.read import load_json

CONFIG = "adapter_config.json"
MERGE = "merge the adapters into the base with PEFT and convert the whole model"
# Keys that turn the adapters into something other than plain LoRA unless they are null, false or empty -> how.
REFUSED = {
    "use_dora": "also scales the sum of base and adapter (DoRA)",
    "use_qalora": "pools the inputs of the adapters (QALoRA)",
    "use_bdlora": "makes the adapters block-diagonal (BD-LoRA)",
    "lora_bias": "adds a bias to each adapter",
    "modules_to_save": "replaces whole modules of the base",
    "trainable_token_indices": "replaces rows of the base's embedding",
    "target_parameters": "adapts parameters that are not the matrix of a linear layer",
    "ensure_weight_tying": "adapts tied modules together",
    "layer_replication": "builds a base with repeated layers",
    "alora_invocation_tokens": "switches the adapters on at a sequence of tokens (aLoRA)",
    "arrow_config": "chooses between several adapters for each token (Arrow)",
    "kasa_config": "removes part of the base's singular values (KaSA)",
    "monteclora_config": "draws the adapters at random (MonteCLoRA)",
    "velora_config": "compresses the inputs of the adapters (VeLoRA)",
    "megatron_config": "belongs to the parallel layers of Megatron",
}
INITS = (True, False, "gaussian", "orthogonal", "eva")  # initialisations that do not change the base
# Initialisations that do, by their first word. PEFT repeats the change whenever it loads the adapters.
REBASING = {
    **dict.fromkeys(("pissa", "olora", "corda", "lora_ga"), "subtracts the first adapters from the base"),
    "loftq": "quantises the base",
}
# Keys that change nothing, each with the reason.
IRRELEVANT = {
    **dict.fromkeys(
        ("base_model_name_or_path", "revision", "peft_version", "auto_mapping", "task_type", "inference_mode"),
        "says where the file comes from, or what it is for",
    ),
    **dict.fromkeys(("lora_dropout", "runtime_config"), "belongs to training"),
    **dict.fromkeys(
        ("eva_config", "corda_config", "loftq_config", "lora_ga_config"),
        "belongs to an initialisation: see init_lora_weights",
    ),
    **dict.fromkeys(("megatron_core", "qalora_group_size"), "has no effect without the option that it belongs to"),
    "fan_in_fan_out": "says that the base stores its matrices transposed, which no supported base does",
}

Pattern = re.Pattern[str]


@dataclass(frozen=True)
class AdapterConfig:
    """The scales of a file's adapters, and which modules PEFT would load them into.

    Modules are named by their path in the model that PEFT wrapped ("vision_model.encoder.layers.0.mlp.fc1").
    """

    file: Path
    rank: float
    alpha: float
    rank_pattern: tuple[tuple[Pattern, float], ...]
    alpha_pattern: tuple[tuple[Pattern, float], ...]
    rank_stabilised: bool  # rsLoRA: the scale is alpha over the square root of the rank
    targets: Pattern | tuple[str, ...] | None  # one regex of whole paths, or ends of paths; None is any module
    excluded: Pattern | tuple[str, ...]
    layers: tuple[int, ...] | None  # numbers of the layers with adapters; None is all
    layers_patterns: tuple[Pattern, ...]  # each finds a module's layer, as its group 1

    def scale(self, module: str, rank: int) -> float:
        """Return the scale of a module's adapter. Raises ValueError if the weights have another rank than is said."""
        r = _first_match(self.rank_pattern, module, self.rank)
        alpha = _first_match(self.alpha_pattern, module, self.alpha)
        if r != rank:
            raise ValueError(
                f"{self.file}: r={r} for {module}, lora_alpha={alpha}, but the weights have rank {rank}; "
                "take both files from one directory"
            )
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def is_target(self, module: str) -> bool:
        """Return whether PEFT would put an adapter on a module."""
        if _names(self.excluded, module):
            return False
        if self.targets is None:
            return True
        if isinstance(self.targets, re.Pattern) or module in self.targets or self.layers is None:
            return _names(self.targets, module)
        layer = next((m[1] for pattern in self.layers_patterns if (m := pattern.match(module))), None)
        return _names(self.targets, module) and layer is not None and int(layer) in self.layers

    def check_targets(self, adapted: Iterable[str], others: Iterable[str]) -> None:
        """Compare the modules with adapters in the file, and the model's other modules, with those that are targeted.

        Raises ValueError for an adapter outside the targets, which PEFT would not load. A target without an adapter,
        which PEFT leaves without effect as well, is reported as a warning.
        """
        if strays := sorted(module for module in adapted if not self.is_target(module)):
            raise ValueError(
                f"{self.file}: target_modules, exclude_modules and layers_to_transform leave out {len(strays)} modules "
                f"that have adapters in the file, the first {strays[0]}; PEFT would not load those. Remove the keys or "
                "the adapters"
            )
        if self.targets is not None and (missing := sorted(module for module in others if self.is_target(module))):
            logging.warning(
                "%s: %d of the modules in target_modules have no adapters in the file and stay as in the base, the "
                "first is %s",
                self.file,
                len(missing),
                missing[0],
            )


def _first_match(patterns: Iterable[tuple[Pattern, float]], module: str, default: float) -> float:
    """Look a value up as PEFT does: by the first pattern that matches the end of a module's path."""
    return next((value for pattern, value in patterns if pattern.fullmatch(module)), default)


def _names(modules: Pattern | tuple[str, ...], module: str) -> bool:
    """Return whether a regex matches a whole path, or one of several names is its end."""
    if isinstance(modules, re.Pattern):
        return modules.fullmatch(module) is not None
    return any(module == end or module.endswith(f".{end}") for end in modules)


def read_adapter_config(file: Path) -> AdapterConfig:
    """Read adapter_config.json. Raises ValueError for anything but plain LoRA."""
    config = load_json(file)
    if "r" not in config or "lora_alpha" not in config:
        raise ValueError(f"{file} has no r or no lora_alpha")
    options = Options(config, str(file))
    for key, effect in REFUSED.items():
        if value := options.get(key):
            raise ValueError(
                f"{file}: {key}={value!r}: {key} is not supported, as it {effect}; only plain LoRA is. {MERGE}"
            )
    options.only("peft_type", "LORA")
    options.only("bias", "none", MERGE)
    _check_initialisation(options)
    read = AdapterConfig(
        file=file,
        rank=options.count("r"),
        alpha=options.number("lora_alpha"),
        rank_pattern=_patterns(options, "rank_pattern"),
        alpha_pattern=_patterns(options, "alpha_pattern"),
        rank_stabilised=options.flag("use_rslora", False),
        targets=_modules(options, "target_modules"),
        excluded=_modules(options, "exclude_modules") or (),
        layers=_layers(options),
        layers_patterns=_layers_patterns(options),
    )
    if read.layers is not None and not isinstance(read.targets, tuple):
        raise ValueError(
            f"{file}: layers_to_transform={config['layers_to_transform']!r} needs a list in target_modules"
        )
    options.finish(IRRELEVANT, unset=(False, {}, []))
    return read


def _check_initialisation(options: Options) -> None:
    """Raise ValueError for an initialisation that changes the base, or one that is not known."""
    init = options.get("init_lora_weights", True)
    if init in INITS or str(init).lower() in INITS:
        return
    named = next((effect for name, effect in REBASING.items() if re.match(name, str(init).lower())), None)
    problem = f"it {named}" if named else f"known are {', '.join(map(str, INITS))}"
    remedy = "save them as plain LoRA (path_initial_model_for_weight_conversion of PEFT's save_pretrained), or " + MERGE
    raise ValueError(f"{options.location}: init_lora_weights={init!r} is not supported: {problem}; {remedy}")


def _compile(options: Options, key: str, regex: str, form: str = "{}") -> Pattern:
    """Compile a regex that stands in ``form``. Raises ValueError if it is none."""
    try:
        return re.compile(form.format(regex))
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{options.location}: {key} has {regex!r}, which is no regular expression: {error}") from None


def _patterns(options: Options, key: str) -> tuple[tuple[Pattern, float], ...]:
    """Return the regexes of a pattern option, each for the end of a module's path, with their values."""
    value = options.get(key) or {}
    if not isinstance(value, dict) or not all(type(v) in (int, float) and 0 < v < math.inf for v in value.values()):
        raise ValueError(f"{options.location}: {key}={value!r} is not a JSON object of numbers above 0")
    return tuple((_compile(options, key, regex, r"(.*\.)?({})"), number) for regex, number in value.items())


def _modules(options: Options, key: str) -> Pattern | tuple[str, ...] | None:
    """Return an option that is a regex, or a list of ends of paths; None if it is not set or means all modules."""
    value = options.get(key)
    if value is None or value == "all-linear":
        return None
    if isinstance(value, str):
        return _compile(options, key, value)
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"{options.location}: {key}={value!r} is neither a regular expression nor a list of names")
    return tuple(value)


def _layers(options: Options) -> tuple[int, ...] | None:
    """Return the layers of layers_to_transform, a number or a list; None if it is not set."""
    value = options.get("layers_to_transform")
    numbers = [value] if type(value) is int else value
    if numbers is None or numbers == []:
        return None
    if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"{options.location}: layers_to_transform={value!r} is not a list of layers' numbers")
    return tuple(numbers)


def _layers_patterns(options: Options) -> tuple[Pattern, ...]:
    """Return regexes that find the number of a module's layer behind one of the names of layers_pattern, or any."""
    value = options.get("layers_pattern")
    names = [value] if isinstance(value, str) and value else value or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{options.location}: layers_pattern={value!r} is not a list of names")
    if not names:
        return (re.compile(r".*?\.[^.]*\.(\d+)\."),)
    return tuple(_compile(options, "layers_pattern", name, r"(?:^|.*?\.)(?:{})\.(\d+)\.") for name in names)
