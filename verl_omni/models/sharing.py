"""The prompt once per group: rollouts of one prompt run through the language model as one prompt and their answers.

The tokens that several sequences of a batch begin with are computed once; what follows in each attends to them and to
itself. Logits and gradients are those of the plain forward. Independent of the model family: a decoder of transformers
whose attention is ``sdpa`` or ``flash_attention_*`` takes ``shared_prompts=`` like any other keyword of attention.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import accumulate
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .tower_outputs import features_once


@dataclass(frozen=True)
class SharedPrompts:
    """What of a batch is computed: ``[prompt, prompt, ..., answer, answer, ...]``; U tokens in place of all N.

    A prompt is what a group's sequences begin with in common, or a sequence that shares nothing.
    """

    unique: torch.Tensor  # [U], where in the flattened batch the computed tokens stand
    inverse: torch.Tensor  # [N], which of the computed tokens each of the batch is; 0 for padding
    queries: list[int]  # length of each prompt and of each answer
    keys: torch.Tensor  # [keys of all], the computed tokens that each attends to: a prompt itself, an answer both
    lengths: list[int]  # number of those of each


def rows_of(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
) -> torch.Tensor:
    """Where in the flattened batch each sequence's tokens stand: ``[R, longest]``, -1 behind its end.

    Args:
        input_ids: ``[B, L]`` padded on either side, or ``[1, total]`` packed.
        attention_mask: ``[B, L]``, or None.
        position_ids: ``[B, L]`` or ``[K, B, L]``, of which the first runs through the text; packed ones restart.
    """
    batch, length = input_ids.shape
    places = torch.arange(batch * length, device=input_ids.device).view(batch, length)
    if attention_mask is not None:
        rows = [row[mask] for row, mask in zip(places, attention_mask.bool(), strict=True)]
    elif batch == 1 and position_ids is not None:
        starts = (position_ids.flatten(0, -2)[0].diff() != 1).nonzero().squeeze(1) + 1
        rows = list(places[0].tensor_split(starts.cpu()))
    else:
        rows = list(places)
    return pad_sequence(rows, batch_first=True, padding_value=-1)


@dataclass(frozen=True)
class Media:
    """Videos, or sounds, of a batch; ``ValueError`` for another number of placeholders than of features."""

    kind: str  # the argument of the model's forward that they come in
    places: torch.Tensor  # [tokens], where in the flattened batch their placeholders stand
    lengths: Sequence[int]  # tokens of each
    names: Sequence[Hashable]  # what tells them apart
    encode: Callable[[list[int]], torch.Tensor]  # indices of some -> [tokens, H] or [some, tokens, H]
    tower: torch.nn.Module | None = None  # the frozen one that `encode` runs, if nothing else does the encoding

    def __post_init__(self) -> None:
        if len(self.places) != sum(self.lengths):
            raise ValueError(
                f"{self.kind}: {sum(self.lengths)} features but {len(self.places)} placeholders in input_ids. The "
                "prompt was cut (raise its maximum length), or it and the media come from different samples"
            )

    def put_into(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Token embeddings ``[B, L, H]`` with the features, of equal items computed once, at their placeholders."""
        if not self.names:
            return embeddings

        def encode(some: list[int]) -> Sequence[torch.Tensor]:
            return self.encode(some).flatten(0, -2).split([self.lengths[index] for index in some])

        features = torch.cat(features_once(self.names, encode, self.tower)).to(embeddings.dtype)
        return embeddings.flatten(0, 1).index_put((self.places,), features).view_as(embeddings)


def media_of_rows(rows: torch.Tensor, tokens: int, batch: Iterable[Media]) -> tuple[list[tuple | None], list[int]]:
    """What each of ``rows_of``'s sequences shows (None: nothing), and how many of its tokens go to its media's end.

    ``tokens`` is their number in the flattened batch.
    """
    clips, ends = [()] * len(rows), [0] * len(rows)
    rank, owner = rows.new_zeros(2, tokens)
    row, place = (rows >= 0).nonzero(as_tuple=True)
    rank[rows[row, place]], owner[rows[row, place]] = place, row
    for media in batch:
        last = media.places[[end - 1 for end in accumulate(media.lengths)]]
        for row, end, name in zip(owner[last].tolist(), rank[last].tolist(), media.names, strict=True):
            clips[row] += (media.kind, name)
            ends[row] = max(ends[row], end + 1)
    return [clip or None for clip in clips], ends


def common_prefixes(
    rows: torch.Tensor, input_ids: torch.Tensor, position_ids: torch.Tensor | None, media: list[Hashable]
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of ``rows_of``'s sequences, the first one (perhaps itself) with the same media, and the length of what
    all with these media begin with; of a sequence alone, its own. ``[R]`` each.

    Args:
        media: what is seen and heard in each sequence; None where nothing is, and so nothing is shared.
    """
    first: dict[Hashable, int] = {}
    firsts = [row if key is None else first.setdefault(key, row) for row, key in enumerate(media)]
    leaders = torch.tensor(firsts, device=rows.device)
    tokens = input_ids.flatten()[rows]
    same = (tokens == tokens[leaders]) & (rows >= 0) & (rows[leaders] >= 0)  # [R, longest]
    if position_ids is not None:
        positions = position_ids.flatten(-2)[..., rows]
        same &= (positions == positions[..., leaders, :]).reshape(-1, *same.shape).all(0)
    with_first = same.long().cumprod(1).sum(1)
    return leaders, with_first.scatter_reduce(0, leaders, with_first, "amin")[leaders]


def share_prompts(rows: torch.Tensor, leaders: torch.Tensor, common: torch.Tensor, tokens: int) -> SharedPrompts | None:
    """Plan the computation of a batch of ``tokens``; None if nothing is shared. See ``common_prefixes``."""
    rank, valid = torch.arange(rows.shape[1], device=rows.device), rows >= 0
    leads = leaders == torch.arange(len(rows), device=rows.device)
    if leads.all():
        return None
    prompts = valid & (rank < common[:, None]) & leads[:, None]  # [R, longest]
    answers = valid & (rank >= common[:, None])
    unique = torch.cat([rows[prompts], rows[answers]])
    inverse = rows.new_zeros(tokens)
    inverse[unique] = torch.arange(len(unique), device=rows.device)
    inverse[rows[valid]] = inverse[torch.where(prompts | answers, rows, rows[leaders])[valid]]
    answered, of_prompts = answers.any(1), prompts.sum(1)[leads].tolist()
    keys = inverse[torch.cat([rows[prompts], rows[valid & answered[:, None]]])]
    queries, lengths = (of_prompts + each.sum(1)[answered].tolist() for each in (answers, valid))
    return SharedPrompts(unique, inverse, queries, keys, lengths)


def decode_shared(
    decode: Callable[..., BaseModelOutputWithPast],
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    plan: SharedPrompts | None,
    **kwargs: Any,
) -> BaseModelOutputWithPast:
    """``decode`` of the batch ``[B, L, H]``; with a plan, of what is computed, handed out to all of the batch.

    Args:
        decode: a decoder's forward, which hands its keywords on to attention.
        position_ids: ``[B, L]`` or ``[K, B, L]``.
    """
    if plan is None:
        return decode(inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, **kwargs)
    output = decode(
        inputs_embeds=inputs_embeds.flatten(0, 1)[plan.unique][None],  # [1, U, H]
        position_ids=position_ids.flatten(-2)[..., None, plan.unique],
        attention_mask={"full_attention": None},  # the plan says who attends to whom
        shared_prompts=plan,
        **kwargs,
    )
    output.last_hidden_state = output.last_hidden_state[0][plan.inverse].view_as(inputs_embeds)
    return output


Attention = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


def share_in_attention(attend: Attention, varlen: bool) -> Attention:
    """``attend``, an attention function of transformers, that knows ``shared_prompts``.

    With ``varlen`` it takes packed sequences (``cu_seq_lens_q``, ``cu_seq_lens_k``), causal from the bottom right.
    """
    inner = packed_attention if varlen else looped_attention

    @wraps(attend)
    def attend_with_prompts(module, query, key, value, attention_mask, *, shared_prompts=None, **kwargs):
        if shared_prompts is None:
            return attend(module, query, key, value, attention_mask, **kwargs)
        kwargs.pop("position_ids", None)  # they would be taken for those of packed sequences
        states = query, key[:, :, shared_prompts.keys], value[:, :, shared_prompts.keys]
        return inner(attend, module, *states, shared_prompts.queries, shared_prompts.lengths, **kwargs), None

    attend_with_prompts.knows_shared_prompts = True
    return attend_with_prompts


def packed_attention(attend, module, query, key, value, queries: list[int], keys: list[int], **kwargs) -> torch.Tensor:
    """Queries ``[1, heads, Q, D]`` of sequences, each the last of that sequence's keys -> ``[1, Q, heads, D]``."""

    def cumulated(lengths: list[int]) -> torch.Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=query.device)

    return attend(
        module, query, key, value, None, **kwargs, position_ids=None,
        cu_seq_lens_q=cumulated(queries), cu_seq_lens_k=cumulated(keys),
        max_length_q=max(queries), max_length_k=max(keys),
    )[0]  # fmt: skip


def looped_attention(attend, module, query, key, value, queries: list[int], keys: list[int], **kwargs) -> torch.Tensor:
    """As ``packed_attention``, for an attention that does not know where in a row another sequence begins."""
    outputs = []
    for q, k, v in zip(query.split(queries, 2), key.split(keys, 2), value.split(keys, 2), strict=True):
        mask = None  # causal
        if q.shape[2] != k.shape[2]:
            mask = q.new_ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])[None, None]
        outputs.append(attend(module, q, k, v, mask, **kwargs)[0])  # [1, Q, heads, D]
    return torch.cat(outputs, dim=1)


for name in ("sdpa", "flash_attention_2", "flash_attention_3"):
    AttentionInterface.register(name, share_in_attention(ALL_ATTENTION_FUNCTIONS[name], varlen=name != "sdpa"))
