"""HumanOmni's towers, projectors and gate: one mixin for the transformers model and the vLLM model.

The towers are frozen, and running them is a step of its own, so that their outputs can be shared between the samples
of one clip. The projectors, BERT and the gate are trained. Shapes: V videos, T frames, S pixels a side, g patches a
side, A sounds, H the language model's width.

Parameter names are those of R1-Omni's checkpoints (``humanomni/model/projector.py``, ``humanomni_arch.py``).
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertModel, SiglipVisionModel, WhisperForAudioClassification

from .configuration import PROJECTORS, HumanOmniConfig

GATE_WIDTH = 3584  # fixed in the original, whatever the language model's width


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of ``[N, C, h, w]``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def conv_norm(in_channels: int, channels: int, kernel: int, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, then a norm."""
    conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=ChannelLayerNorm(channels)))


class SqueezeExcite(nn.Sequential):
    def __init__(self, channels: int, width: int):
        fc1, fc2 = nn.Conv2d(channels, width, 1), nn.Conv2d(width, channels, 1)
        super().__init__(OrderedDict(fc1=fc1, act=nn.SiLU(), fc2=fc2, gate=nn.Sigmoid()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * super().forward(x.mean((2, 3), keepdim=True))


class RegBlock(nn.Module):
    """RegNetY bottleneck, stride 1, depthwise 3x3 (timm ``regnet.Bottleneck`` with group width 1)."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.conv1 = conv_norm(in_channels, channels, 1)
        self.conv2 = conv_norm(channels, channels, 3, groups=channels)
        self.se = SqueezeExcite(channels, round(in_channels / 4))
        self.conv3 = conv_norm(channels, channels, 1)
        self.downsample = conv_norm(in_channels, channels, 1) if in_channels != channels else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.silu(self.conv1(x))
        y = self.se(F.silu(self.conv2(y)))
        return F.silu(self.conv3(y) + self.downsample(x))


def reg_stage(depth: int, in_channels: int, channels: int) -> nn.Sequential:
    widths = [in_channels] + [channels] * (depth - 1)
    return nn.Sequential(OrderedDict((f"b{i}", RegBlock(width, channels)) for i, width in enumerate(widths, start=1)))


def mlp(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, hidden), nn.GELU(), nn.Linear(hidden, out_features))


class VideoProjector(nn.Module):
    """Three views of a clip (its motion, its bodies, its faces), mixed by the gate's probabilities."""

    def __init__(self, config: HumanOmniConfig):
        super().__init__()
        width, hidden = config.vision_config.hidden_size, config.hidden_size
        depth, padding, _ = PROJECTORS[config.mm_projector_type]
        for branch in ("video", "body"):
            conv = nn.Conv3d(hidden, hidden, kernel_size=2, stride=(1, 2, 2), padding=(1, padding, padding))
            self.add_module(f"s1_{branch}", reg_stage(depth, width, hidden))
            self.add_module(f"sampler_{branch}", nn.Sequential(conv, nn.SiLU()))
            self.add_module(f"s2_{branch}", reg_stage(depth, hidden, hidden))
            self.add_module(f"readout_{branch}", mlp(hidden, hidden, hidden))
        self.mlp_2xgelu_face = mlp(width, hidden, hidden)

    def forward(self, patches: torch.Tensor, branch_probs: torch.Tensor) -> torch.Tensor:
        """``patches [V, T, g*g, C]``, ``branch_probs [V, 3]`` -> ``[V, T * ceil(g/2)**2, H]``."""
        video, body, face = branch_probs[:, :, None, None].unbind(1)  # [V, 1, 1] each
        return (
            self.convolve(patches, "video") * video + self.convolve(patches, "body") * body + self.pool(patches) * face
        )

    def convolve(self, patches: torch.Tensor, branch: str) -> torch.Tensor:
        """A convolved branch of ``patches [V, T, g*g, C]`` -> ``[V, T * ceil(g/2)**2, H]``."""
        V, T, P, _ = patches.shape
        g = math.isqrt(P)
        x = patches.flatten(0, 1).transpose(1, 2).unflatten(2, (g, g))  # [V*T, C, g, g]
        x = self.get_submodule(f"s1_{branch}")(x)  # [V*T, H, g, g]
        x = x.unflatten(0, (V, T)).transpose(1, 2)  # [V, H, T, g, g]
        x = self.get_submodule(f"sampler_{branch}")(x)[:, :, :-1]  # [V, H, T, g/2, g/2]; the padding made T + 1
        x = self.get_submodule(f"s2_{branch}")(x.transpose(1, 2).flatten(0, 1))  # [V*T, H, g/2, g/2]
        x = x.flatten(2).transpose(1, 2)  # [V*T, g/2*g/2, H]
        return self.get_submodule(f"readout_{branch}")(x).unflatten(0, (V, T)).flatten(1, 2)

    def pool(self, patches: torch.Tensor) -> torch.Tensor:
        """The face branch of ``patches [V, T, g*g, C]`` -> ``[V, T * ceil(g/2)**2, H]``."""
        V, T, P, _ = patches.shape
        g = math.isqrt(P)
        x = self.mlp_2xgelu_face(patches.flatten(0, 1))  # [V*T, g*g, H]
        x = x.transpose(1, 2).unflatten(2, (g, g))
        x = F.interpolate(x, size=math.ceil(g / 2), mode="bilinear")  # [V*T, H, g/2, g/2]
        return x.flatten(2).transpose(1, 2).unflatten(0, (V, T)).flatten(1, 2)


class HumanOmniTowers:
    """Mixin for an ``nn.Module``: everything before the language model, under the checkpoint's own names."""

    def init_towers(self, config: HumanOmniConfig) -> None:
        """Create the towers, projectors and gate as attributes of this module."""
        for tower_config in (config.vision_config, config.audio_config, config.bert_config):
            # As the original, and so that trainer and rollout agree whatever the language model's attention is.
            tower_config._attn_implementation = "sdpa"
        self.select_layers = config.mm_vision_select_layer % (config.vision_config.num_hidden_layers + 1)
        self.vision_tower = SiglipVisionModel(config.vision_config)
        # The class with the (unused) head: it gives the tensors that original checkpoints carry a home.
        self.audio_tower = WhisperForAudioClassification(config.audio_config)
        self.mm_projector = VideoProjector(config)
        self.audio_projector = mlp(config.audio_config.d_model, config.hidden_size, config.hidden_size)
        self.bert_model = BertModel(config.bert_config)
        self.bert_gate = mlp(config.bert_config.hidden_size, GATE_WIDTH, 3)
        self.freeze_bert = config.__dict__.pop("freeze_bert", False)  # a choice of the run, not saved with the model
        self.train(self.training)

    def train(self, mode: bool = True):
        """As ``nn.Module``'s, but the towers stay frozen, and BERT without dropout.

        Dropout would part the trainer from the rollout. Freezing belongs here, since ``from_pretrained`` makes every
        parameter trainable before it calls ``eval()``.
        """
        super().train(mode)
        for tower in (self.vision_tower, self.audio_tower, self.bert_model):
            tower.eval()
        bert = self.bert_model if self.freeze_bert else self.bert_model.pooler  # which nothing uses
        for frozen in (self.vision_tower, self.audio_tower, bert):
            frozen.requires_grad_(False)
        return self

    @torch.no_grad()
    def encode_video(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """``[V, T, 3, S, S]`` -> patch features ``[V, T, g*g, C]``. Frozen."""
        V, T = pixel_values.shape[:2]
        x = self.vision_tower.embeddings(pixel_values.flatten(0, 1))  # [V*T, g*g, C], in the tower's dtype
        for layer in self.vision_tower.encoder.layers[: self.select_layers]:
            x = layer(x, None)
        return x.unflatten(0, (V, T))

    @torch.no_grad()
    def encode_audio(self, input_features: torch.Tensor) -> torch.Tensor:
        """Log-mel ``[A, bins, frames]`` -> ``[A, frames / 2, D]``. Frozen."""
        encoder = self.audio_tower.encoder
        return encoder(input_features.to(encoder.conv1.weight.dtype)).last_hidden_state

    def branch_probs(self, bert_input_ids: torch.Tensor, bert_attention_mask: torch.Tensor) -> torch.Tensor:
        """Questions ``[V, L]``, padded on the right -> the branches' weights ``[V, 3]``.

        BERT runs once per distinct question and at its own length: the numbers depend neither on the padding nor on
        the rest of the batch.
        """
        questions, index = torch.unique(
            bert_input_ids.masked_fill(bert_attention_mask == 0, -1), dim=0, return_inverse=True
        )
        # One call for all: verl shards embeddings separately, and ranks must make the same number of calls.
        embeddings = self.bert_model.embeddings(input_ids=questions.clamp(min=0))  # [Q, L, D]
        lengths = (questions >= 0).sum(dim=1).tolist()
        encoded = [self.bert_model.encoder(e[None, :n]) for e, n in zip(embeddings, lengths, strict=True)]
        logits = torch.cat([self.bert_gate(question.last_hidden_state[:, 0]) for question in encoded])  # [Q, 3]
        return logits.softmax(dim=-1)[index]

    def get_video_features(
        self, pixel_values: torch.Tensor, bert_input_ids: torch.Tensor, bert_attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Videos ``[V, T, 3, S, S]`` and their questions ``[V, L]`` -> ``[V, T * ceil(g/2)**2, H]``."""
        patches = self.encode_video(pixel_values)
        return self.mm_projector(patches, self.branch_probs(bert_input_ids, bert_attention_mask))

    def get_audio_features(self, input_features: torch.Tensor) -> torch.Tensor:
        """Log-mel ``[A, bins, frames]`` -> ``[A, frames // 6, H]``."""
        pooled = F.avg_pool1d(self.encode_audio(input_features).transpose(1, 2), kernel_size=3, stride=3)
        return self.audio_projector(pooled.transpose(1, 2))

    # Stand-ins for a modality that a batch lacks, to be added to the embeddings: zeros that depend on all of the
    # modality's trainable parameters, since data-parallel ranks must agree on which parameters have a gradient.
    # Embeddings are called as often as with the modality, and in the same order: where the language model's are untied,
    # verl (FSDP2) shards every nn.Embedding on its own, and a call that one rank lacks hangs the others.

    def zero_video(self) -> torch.Tensor:
        """A zero that stands in for the features of no video."""
        embedded = self.bert_model.embeddings(input_ids=self.skip_video())
        trained = (self.mm_projector, self.bert_model.encoder, self.bert_gate)
        return 0.0 * (embedded.sum() + sum(p.sum() for part in trained for p in part.parameters()))

    def zero_audio(self) -> torch.Tensor:
        """A zero that stands in for the features of no sound."""
        self.skip_audio()
        return 0.0 * sum(p.sum() for p in self.audio_projector.parameters())

    @torch.no_grad()
    def skip_video(self) -> torch.Tensor:
        """Call what ``encode_video`` calls of the embeddings; returns the index it used, ``[1, 1]``."""
        index = torch.zeros(1, 1, dtype=torch.long, device=self.bert_gate[0].weight.device)
        self.vision_tower.embeddings.position_embedding(index)
        return index

    @torch.no_grad()
    def skip_audio(self) -> None:
        """Call what ``encode_audio`` calls of the embeddings."""
        index = torch.zeros(1, dtype=torch.long, device=self.audio_projector[0].weight.device)
        self.audio_tower.encoder.embed_positions(index)
