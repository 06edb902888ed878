"""Files as other libraries write them: true networks with random weights under their own names."""

import itertools
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision.models
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, ResNet

State = dict[str, Tensor]


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """With statistics of batch norms that differ from their defaults, in evaluation mode."""
    if next(network.parameters()).is_meta:
        return network.eval()
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


def resnet18(seed: int = 0, *, fc: nn.Module | None = None, small_border: int | None = None) -> Any:
    """torchvision's; with a 3x3 stem and a border where that is given."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ResNet(BasicBlock, [2, 2, 2, 2])
        if small_border is not None:
            network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=small_border, bias=False)
            network.maxpool = nn.Identity()
    network.fc = nn.Identity() if fc is None else fc
    return randomised(network, seed)


def vit(seed: int = 0) -> Any:
    """timm's smallest, for images of 32 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
        nn.init.normal_(network.get_parameter("pos_embed"))
    return network.eval()


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def mlp(*widths: int) -> State:
    """Linear layers as a Sequential with a nonlinearity behind each names them."""
    pairs = list(itertools.pairwise(widths))
    found: State = {}
    for place, (before, after) in enumerate(pairs):
        found[f"{2 * place}.weight"] = torch.randn(after, before)
        found[f"{2 * place}.bias"] = torch.randn(after)
    return found


def with_fc(network: nn.Module, head: State) -> State:
    return network.state_dict() | prefixed("fc.", head)


LINEAR: State = {"weight": torch.zeros(7, 512), "bias": torch.zeros(7)}
OPTIMIZER: dict[str, Any] = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": []}


@dataclass(frozen=True)
class Foreign:
    """A file and the network that it is of.

    Attributes:
        content: what torch.save is given.
        network: from (batch, 3, 32, 32) to features.
        layout: the name in the table that it must be read by.
        encoder: the name that must be found.
    """

    content: Any
    network: nn.Module
    layout: str
    encoder: str = "resnet18"


def torchvision_flat() -> Foreign:
    network = resnet18()
    return Foreign(OrderedDict(with_fc(network, LINEAR)), network, "torchvision or timm")


def timm_ema() -> Foreign:
    network, other = resnet18(), resnet18(1)
    content = {
        "epoch": 3,
        "arch": "resnet18",
        "state_dict": prefixed("module.", with_fc(other, LINEAR)),
        "state_dict_ema": prefixed("module.", with_fc(network, LINEAR)),
        "optimizer": OPTIMIZER,
    }
    return Foreign(content, network, "torchvision or timm")


def moco_v2() -> Foreign:
    network, key = resnet18(), resnet18(1)
    state = (
        prefixed("encoder_q.", with_fc(network, mlp(512, 512, 128)))
        | prefixed("encoder_k.", with_fc(key, mlp(512, 512, 128)))
        | {"queue": torch.randn(128, 64), "queue_ptr": torch.zeros(1, dtype=torch.int64)}
    )
    content = {"epoch": 1, "arch": "resnet18", "state_dict": prefixed("module.", state)}
    return Foreign(content | {"optimizer": OPTIMIZER}, network, "MoCo v1 and v2")


def moco_v1() -> Foreign:
    network, key = resnet18(), resnet18(1)
    state = prefixed("encoder_q.", with_fc(network, LINEAR))
    state |= prefixed("encoder_k.", with_fc(key, LINEAR)) | {"queue": torch.randn(7, 64)}
    return Foreign({"state_dict": prefixed("module.", state)}, network, "MoCo v1 and v2")


def moco_published() -> Foreign:
    """As the authors' files are: of the query encoder only."""
    network = resnet18()
    state = prefixed("module.encoder_q.", with_fc(network, mlp(512, 512, 128)))
    content = {"epoch": 200, "arch": "resnet18", "state_dict": state}
    return Foreign(content, network, "MoCo v1 and v2")


def moco_v3() -> Foreign:
    network, key = resnet18(), resnet18(1)
    state = (
        prefixed("base_encoder.", with_fc(network, mlp(512, 64, 32)))
        | prefixed("momentum_encoder.", with_fc(key, mlp(512, 64, 32)))
        | prefixed("predictor.", mlp(32, 64, 32))
    )
    content = {"epoch": 1, "arch": "resnet18", "state_dict": prefixed("module.", state)}
    return Foreign(content | {"optimizer": OPTIMIZER, "scaler": {}}, network, "MoCo v3")


def moco_v3_vit() -> Foreign:
    network = vit()
    state = prefixed("base_encoder.", network.state_dict() | prefixed("head.", mlp(192, 64, 32)))
    state |= prefixed("momentum_encoder.", vit(1).state_dict())
    content = {"state_dict": prefixed("module.", state)}
    return Foreign(content, network, "MoCo v3", "vit_tiny_patch16_224")


def moco_v3_vit_small() -> Foreign:
    """Its ViT-S has 12 heads, which no shape shows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(
            "vit_small_patch16_224", img_size=32, num_classes=0, num_heads=12
        )
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
    state = prefixed("module.base_encoder.", network.state_dict())
    content = {"arch": "vit_small", "state_dict": state}
    return Foreign(content, network.eval(), "MoCo v3", "vit_small_patch16_224")


def simclr_converted() -> Foreign:
    network = resnet18()
    content = {"state_dict": with_fc(network, LINEAR)}
    return Foreign(content, network, "torchvision or timm")


def simclr_pytorch() -> Foreign:
    network = resnet18()
    state = prefixed("encoder.", network.state_dict()) | prefixed("projector.", mlp(512, 512, 64))
    return Foreign(state, network, "a backbone beside heads")


def byol() -> Foreign:
    network, target = resnet18(), resnet18(1)
    state = (
        prefixed("online_network.encoder.", network.state_dict())
        | prefixed("online_network.projector.", mlp(512, 64, 32))
        | prefixed("target_network.encoder.", target.state_dict())
        | prefixed("predictor.", mlp(32, 64, 32))
    )
    return Foreign({"state_dict": prefixed("module.", state)}, network, "BYOL")


def byol_learner() -> Foreign:
    """Of byol-pytorch, which keeps the network itself beside the one with the projector."""
    network, target = resnet18(), resnet18(1)
    state = (
        prefixed("net.", with_fc(network, LINEAR))
        | prefixed("online_encoder.net.", with_fc(network, LINEAR))
        | prefixed("online_encoder.projector.", mlp(512, 64, 32))
        | prefixed("target_encoder.net.", with_fc(target, LINEAR))
        | prefixed("online_predictor.", mlp(32, 64, 32))
    )
    return Foreign(state, network, "BYOL")


def byol_sequential() -> Foreign:
    network = resnet18()
    inner = nn.Sequential(*list(network.children())[:-1])
    state = prefixed("encoder.", inner.state_dict()) | prefixed("projetion.net.", mlp(512, 64, 32))
    content = {"online_network_state_dict": state, "optimizer_state_dict": OPTIMIZER}
    content["target_network_state_dict"] = prefixed("encoder.", resnet18(1).state_dict())
    return Foreign(content, network, "BYOL")


def swav() -> Foreign:
    network = resnet18()
    state = network.state_dict() | prefixed("projection_head.", mlp(512, 64, 32))
    state |= {"prototypes.weight": torch.randn(30, 32)}
    return Foreign({"state_dict": prefixed("module.", state)}, network, "SwAV")


def barlow_twins() -> Foreign:
    network = resnet18()
    state = (
        prefixed("backbone.", network.state_dict())
        | prefixed("projector.", mlp(512, 64, 32))
        | {"bn.running_mean": torch.zeros(32), "bn.running_var": torch.ones(32)}
    )
    content = {"epoch": 1, "model": prefixed("module.", state), "optimizer": OPTIMIZER}
    return Foreign(content, network, "Barlow Twins")


def vicreg() -> Foreign:
    network = resnet18()
    state = prefixed("backbone.", network.state_dict())
    state |= prefixed("projector.", mlp(512, 64, 32))
    return Foreign({"epoch": 1, "model": prefixed("module.", state)}, network, "VICReg")


def dino() -> Foreign:
    teacher, student = vit(), vit(1)
    head = prefixed("head.mlp.", mlp(192, 64, 32))
    head |= {"head.last_layer.weight_g": torch.ones(40, 1)}
    content = {
        "student": prefixed("module.", prefixed("backbone.", student.state_dict()) | head),
        "teacher": prefixed("backbone.", teacher.state_dict()) | head,
        "optimizer": OPTIMIZER,
        "epoch": 1,
        "dino_loss": {"center": torch.zeros(1, 40)},
    }
    return Foreign(content, teacher, "DINO", "vit_tiny_patch16_224")


def vissl() -> Foreign:
    network = resnet18()
    trunk = prefixed("_feature_blocks.", network.state_dict())
    heads = prefixed("0.clf.0.", LINEAR)
    inner = {"model": {"trunk": trunk, "heads": heads}}
    content = {"phase_idx": 1, "classy_state_dict": {"base_model": inner, "optimizer": OPTIMIZER}}
    return Foreign(content, network, "VISSL")


def mmselfsup() -> Foreign:
    network, key = resnet18(), resnet18(1)
    state = (
        prefixed("backbone.", network.state_dict())
        | prefixed("neck.mlp.", mlp(512, 64, 32))
        | prefixed("encoder_k.module.0.", key.state_dict())
        | {"queue": torch.randn(32, 64)}
    )
    return Foreign({"meta": {"epoch": 1}, "state_dict": state}, network, "mmselfsup")


def mmselfsup_vit() -> Foreign:
    network = vit()
    names = {
        "patch_embed.proj": "patch_embed.projection",
        "blocks": "layers",
        "mlp.fc1": "ffn.layers.0.0",
        "mlp.fc2": "ffn.layers.1",
        ".norm1": ".ln1",
        ".norm2": ".ln2",
    }
    state: State = {}
    for name, tensor in network.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state["ln1" + name.removeprefix("norm") if name.startswith("norm.") else name] = tensor
    content = {"state_dict": prefixed("backbone.", state) | prefixed("neck.", mlp(192, 64, 32))}
    return Foreign(content, network, "mmselfsup", "vit_tiny_patch16_224")


def _solo_learn(network: nn.Module, name: str) -> dict[str, Any]:
    state = (
        prefixed(f"{name}.", network.state_dict())
        | prefixed("projector.", mlp(512, 64, 32))
        | prefixed("classifier.", LINEAR)
        | prefixed(f"momentum_{name}.", resnet18(1).state_dict())
        | {"queue": torch.randn(2, 32, 64)}
    )
    return {"epoch": 1, "pytorch-lightning_version": "1.6", "state_dict": state, "callbacks": {}}


def solo_learn() -> Foreign:
    network = resnet18()
    return Foreign(_solo_learn(network, "backbone"), network, "solo-learn")


def solo_learn_dino() -> Foreign:
    network = resnet18(small_border=2)
    head = {"last_layer.weight_g": torch.ones(40, 1), "last_layer.weight_v": torch.randn(40, 32)}
    state = (
        prefixed("backbone.", network.state_dict())
        | prefixed("classifier.", LINEAR)
        | prefixed("head.", mlp(512, 64, 32) | head)
        | prefixed("momentum_backbone.", resnet18(1).state_dict())
        | prefixed("momentum_head.", mlp(512, 64, 32) | head)
    )
    return Foreign({"epoch": 1, "state_dict": state}, network, "solo-learn")


def solo_learn_cifar() -> Foreign:
    network = resnet18(small_border=2)
    return Foreign(_solo_learn(network, "encoder"), network, "solo-learn")


def lightly() -> Foreign:
    from lightly.models.modules import MoCoProjectionHead

    class MoCo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.backbone_momentum = resnet18(), resnet18(1)
            self.projection_head = MoCoProjectionHead(512, 64, 32)
            self.projection_head_momentum = MoCoProjectionHead(512, 64, 32)

    model = MoCo()
    return Foreign({"state_dict": model.state_dict()}, model.backbone, "lightly")


def lightly_sequential() -> Foreign:
    from lightly.models.modules import SimCLRProjectionHead

    class SimCLR(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.backbone = nn.Sequential(*list(network.children())[:-1])
            self.projection_head = SimCLRProjectionHead(512, 64, 32)

    network = resnet18()
    content = {"epoch": 1, "state_dict": SimCLR(network).state_dict(), "hyper_parameters": {}}
    return Foreign(content, network, "lightly")


def _lightly_dino(backbone: Callable[[nn.Module], nn.Module]) -> Foreign:
    from lightly.models.modules import DINOProjectionHead

    class DINO(nn.Module):
        def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
            super().__init__()
            self.student_backbone, self.teacher_backbone = backbone(student), backbone(teacher)
            with warnings.catch_warnings():  # of torch's older weight norm
                warnings.simplefilter("ignore", FutureWarning)
                self.student_head = DINOProjectionHead(512, 64, 32, 48)
                self.teacher_head = DINOProjectionHead(512, 64, 32, 48)

    network = resnet18()
    return Foreign({"state_dict": DINO(resnet18(1), network).state_dict()}, network, "lightly")


def lightly_dino() -> Foreign:
    return _lightly_dino(lambda network: nn.Sequential(*list(network.children())[:-1]))


def lightly_dino_network() -> Foreign:
    return _lightly_dino(lambda network: network)


def with_mask_token() -> Foreign:
    """As a network that also learned from masked images is published."""
    network = resnet18()
    state = {**network.state_dict(), "mask_token": torch.zeros(1, 512)}
    return Foreign(state, network, "torchvision or timm")


def lightly_train() -> Foreign:
    network = resnet18()
    return Foreign(with_fc(network, LINEAR), network, "torchvision or timm")


def stable_pretraining() -> Foreign:
    network, student = resnet18(), resnet18(1)
    state = (
        prefixed("backbone.student.", student.state_dict())
        | prefixed("backbone.teacher.", network.state_dict())
        | prefixed("projector.", mlp(512, 64, 32))
        | prefixed("callbacks_modules.probe.", LINEAR)
    )
    return Foreign({"state_dict": state}, network, "stable-pretraining")


def stable_pretraining_plain() -> Foreign:
    network = resnet18()
    state = prefixed("backbone.", network.state_dict())
    state |= prefixed("projector.", mlp(512, 64, 32))
    state |= prefixed("callbacks_modules.probe.", LINEAR)
    return Foreign({"state_dict": state}, network, "a backbone beside heads")


def compiled() -> Foreign:
    network = resnet18()
    state = prefixed("_orig_mod.module.", with_fc(network, LINEAR))
    return Foreign({"model_state_dict": state}, network, "torchvision or timm")


def small_stem() -> Foreign:
    network = resnet18(small_border=1)
    content = {"model": prefixed("backbone.", network.state_dict())}
    return Foreign(content, network, "a backbone beside heads")


# --- transformers -----------------------------------------------------------------------------


class _ConvLayer(nn.Module):
    def __init__(self, wide: int, wider: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(wide, wider, kernel, stride, kernel // 2, bias=False)
        self.normalization = nn.BatchNorm2d(wider)

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = self.normalization(self.convolution(maps))
        return found


class _BasicLayer(nn.Module):
    def __init__(self, wide: int, wider: int, stride: int) -> None:
        super().__init__()
        differs = wide != wider or stride != 1
        self.shortcut: nn.Module = _ConvLayer(wide, wider, 1, stride) if differs else nn.Identity()
        self.layer = nn.Sequential(
            _ConvLayer(wide, wider, 3, stride), _ConvLayer(wider, wider, 3, 1)
        )

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.layer[1](functional.relu(self.layer[0](maps)))
        return functional.relu(inner + self.shortcut(maps))


class TransformersResNet(nn.Module):
    """ResNet-18 under the attribute names of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedder = nn.ModuleDict({"embedder": _ConvLayer(3, 64, 7, 2)})
        stages = [
            nn.ModuleDict(
                {
                    "layers": nn.Sequential(
                        _BasicLayer(wide, wider, stride), _BasicLayer(wider, wider, 1)
                    )
                }
            )
            for wide, wider, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        ]
        self.encoder = nn.ModuleDict({"stages": nn.ModuleList(stages)})

    def forward(self, images: Tensor) -> Tensor:
        maps = functional.relu(self.embedder["embedder"](images))
        maps = functional.max_pool2d(maps, 3, 2, 1)
        stages: Any = self.encoder["stages"]
        for stage in stages:
            maps = stage["layers"](maps)
        return maps.mean(dim=(2, 3))


def transformers_resnet() -> Foreign:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = randomised(TransformersResNet())
    state = prefixed("resnet.", network.state_dict()) | prefixed("classifier.1.", LINEAR)
    return Foreign(state, network, "transformers")


# --- SimCLR v2 ---------------------------------------------------------------------------------


def _normed(wide: int, *, activated: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(wide), nn.ReLU() if activated else nn.Identity())


def _kernel(wide: int, wider: int, side: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(wide, wider, side, stride, side // 2, bias=False)


class _SimCLRv2Block(nn.Module):
    def __init__(self, wide: int, inner: int, stride: int, *, projects: bool) -> None:
        super().__init__()
        self.projection: nn.Module = nn.Identity()
        if projects:
            shortcut = _kernel(wide, 4 * inner, 1, stride)
            bn = _normed(4 * inner, activated=False)
            self.projection = nn.Sequential(OrderedDict(shortcut=shortcut, bn=bn))
        self.net = nn.Sequential(
            *(_kernel(wide, inner, 1), _normed(inner)),
            *(_kernel(inner, inner, 3, stride), _normed(inner)),
            *(_kernel(inner, 4 * inner, 1), _normed(4 * inner, activated=False)),
        )

    def forward(self, maps: Tensor) -> Tensor:
        return functional.relu(self.projection(maps) + self.net(maps))


class SimCLRv2ResNet(nn.Module):
    """ResNet-50 without selective kernels, under the names of the converted weights."""

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Sequential(_kernel(3, 64, 7, 2), _normed(64), nn.MaxPool2d(3, 2, 1))
        stages: list[nn.Module] = [stem]
        wide = 64
        for inner, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            blocks = nn.Sequential()
            for place in range(count):
                first = place == 0
                block = _SimCLRv2Block(wide, inner, stride if first else 1, projects=first)
                blocks.append(block)
                wide = 4 * inner
            stages.append(nn.Sequential(OrderedDict(blocks=blocks)))
        self.net = nn.Sequential(*stages)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.net(images).mean(dim=(2, 3))
        return found


def simclr_v2() -> Foreign:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = randomised(SimCLRv2ResNet())
    content = {"resnet": with_fc(network, LINEAR), "head": prefixed("layers.", mlp(2048, 64, 32))}
    return Foreign(content, network, "SimCLR v2 converted", "resnet50")


class _Dense(nn.Module):
    def __init__(self, wide: int, wider: int) -> None:
        super().__init__()
        self.dense = nn.Linear(wide, wider)


class _SelfAttention(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(wide, wide) for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        parts = [
            one(tokens).unflatten(2, (3, 64)).transpose(1, 2)
            for one in (self.query, self.key, self.value)
        ]
        scores = (parts[0] @ parts[1].transpose(2, 3) / 8.0).softmax(dim=3)
        return (scores @ parts[2]).transpose(1, 2).flatten(2)


class _ViTLayer(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {"attention": _SelfAttention(wide), "output": _Dense(wide, wide)}
        )
        self.intermediate, self.output = _Dense(wide, 4 * wide), _Dense(4 * wide, wide)
        self.layernorm_before = nn.LayerNorm(wide, eps=1e-6)
        self.layernorm_after = nn.LayerNorm(wide, eps=1e-6)

    def forward(self, tokens: Tensor) -> Tensor:
        seen: Any = self.attention
        inner = seen["attention"](self.layernorm_before(tokens))
        tokens = tokens + seen["output"].dense(inner)
        inner = functional.gelu(self.intermediate.dense(self.layernorm_after(tokens)))
        found: Tensor = tokens + self.output.dense(inner)
        return found


class _ViTEmbeddings(nn.Module):
    def __init__(self, wide: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, wide))
        self.position_embeddings = nn.Parameter(torch.randn(1, 5, wide))
        self.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(3, wide, 16, 16)})

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embeddings["projection"](images).flatten(2).transpose(1, 2)
        whole = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1)
        return whole + self.position_embeddings


class TransformersViT(nn.Module):
    """The smallest ViT under the attribute names of transformers."""

    def __init__(self, wide: int = 192) -> None:
        super().__init__()
        self.embeddings = _ViTEmbeddings(wide)
        layers = nn.ModuleList(_ViTLayer(wide) for _ in range(12))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.layernorm = nn.LayerNorm(wide, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embeddings(images)
        layers: Any = self.encoder["layer"]
        for layer in layers:
            tokens = layer(tokens)
        found: Tensor = self.layernorm(tokens)[:, 0]
        return found


def transformers_vit() -> Foreign:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = TransformersViT().eval()
    state = prefixed("vit.", network.state_dict())
    state |= prefixed("vit.pooler.dense.", mlp(192, 192)) | prefixed("classifier.", LINEAR)
    return Foreign(state, network, "transformers", "vit_tiny_patch16_224")


class _ClassToken(nn.Module):
    """Its feature of an image is the class token."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTModel

        tiny: Any = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.vit = ViTModel(ViTConfig(image_size=32, **tiny))
            # As large as trained ones: of smaller numbers the epsilons of their norms would show.
            for parameter in self.vit.parameters():
                nn.init.normal_(parameter, std=0.1)
            nn.init.normal_(self.vit.embeddings.position_embeddings)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.vit(images).last_hidden_state[:, 0]
        return found


def transformers_vit_in_memory() -> Foreign:
    """The library's own network, by torch.save of its state dict."""
    network = _ClassToken(0).eval()
    state = dict(network.vit.state_dict())
    return Foreign(state, network, "transformers", "vit_tiny_patch16_224")


def stable_pretraining_vit() -> Foreign:
    network, student = _ClassToken(0).eval(), _ClassToken(1)
    state = prefixed("backbone.teacher.", network.vit.state_dict())
    state |= prefixed("backbone.student.", student.vit.state_dict())
    state |= prefixed("projector.teacher.", mlp(192, 64, 32))
    content = {"state_dict": state}
    return Foreign(content, network, "stable-pretraining", "vit_tiny_patch16_224")


def torchvision_vit() -> Foreign:
    """Too large to be fast: torchvision has no smaller one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.vit_b_16(weights=None, image_size=32)
    state = network.state_dict()
    network.heads = nn.Identity()
    return Foreign(state, network.eval(), "torchvision or timm", "vit_b_16")


FILES: dict[str, Callable[[], Foreign]] = {
    one.__name__: one
    for one in (
        *(torchvision_flat, timm_ema, moco_v1, moco_v2, moco_published, moco_v3, moco_v3_vit),
        *(moco_v3_vit_small, simclr_converted),
        *(simclr_pytorch, byol, byol_learner, byol_sequential, swav, barlow_twins, vicreg, dino),
        *(vissl, mmselfsup, mmselfsup_vit, solo_learn, solo_learn_dino, lightly),
        *(solo_learn_cifar, lightly_sequential, lightly_dino, lightly_dino_network),
        *(with_mask_token, lightly_train, stable_pretraining),
        *(stable_pretraining_plain, stable_pretraining_vit, compiled, small_stem),
        *(transformers_resnet, transformers_vit, transformers_vit_in_memory, simclr_v2),
    )
}
