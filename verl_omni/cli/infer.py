"""``python -m verl_omni infer CLIP``: think and answer for one clip, with transformers alone."""

import argparse
import sys
from contextlib import closing
from pathlib import Path

from av.stream import Disposition

from verl_omni.checkpoints import model_directory
from verl_omni.media import MediaError, read_audio
from verl_omni.media.child import Children
from verl_omni.media.container import open_container
from verl_omni.media.errors import existing, media_boundary
from verl_omni.media.store import decode_frames
from verl_omni.prompts import QUESTION, instruction
from verl_omni.rewards import extract_answer, extract_explanation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("clip", type=Path, help="video, gif, sound file, or folder of frames")
    add("--model", type=Path, default=Path("R1-Omni-0.5B"), help="as `convert` makes them (default ./R1-Omni-0.5B)")
    add("--ask", metavar="QUESTION", default=QUESTION, help="in place of R1-Omni's; think and answer in tags is added")
    add("--max-tokens", type=int, default=512, help="length limit of the answer (default 512)")
    add("--repetition-penalty", type=float, default=1.0, help="default 1; the original took 1.1 from its checkpoints")


def run(args: argparse.Namespace) -> int:
    import torch

    from verl_omni.models.families import family_in
    from verl_omni.platforms.cpu import default_dtype

    model = model_directory(args.model)
    senses = senses_of(args.clip)
    family = family_in(model)
    processor = family.load_processor(model)
    wanted = processor.num_frames, processor.frame_format()
    read: dict[str, tuple] = {"video": (decode_frames, str(args.clip), *wanted), "audio": (read_audio, str(args.clip))}
    with closing(Children()) as children:  # since damaged clips make decoders abort
        items = [{"type": sense, sense: children.call(*read[sense])} for sense in senses]
    messages = [{"role": "user", "content": [*items, {"type": "text", "text": instruction(args.ask)}]}]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    network = family.load_model(model, dtype=default_dtype())
    network = network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    output = network.generate(
        **inputs.to(network.device, dtype=network.dtype),
        do_sample=False,
        max_new_tokens=args.max_tokens,
        repetition_penalty=args.repetition_penalty,
    )
    completion = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    if senses != ["video", "audio"]:
        print(f"note: {args.clip} has {'picture' if senses == ['video'] else 'sound'} only", file=sys.stderr)
    print(f"think:  {extract_explanation(completion) or '(none)'}")
    print(f"answer: {extract_answer(completion) or '(none)'}")
    return 0


@media_boundary("not a media file that can be opened")
def senses_of(clip: Path) -> list[str]:
    """``video`` and ``audio`` where a file has them; a folder of frames has ``video``.

    Raises:
        MediaError: The file is not there, is no media file, or has neither.
    """
    if existing(clip).is_dir():
        return ["video"]
    with open_container(clip) as container:
        # A sound file's cover picture is a video stream too.
        moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        senses = ["video"] * bool(moving) + ["audio"] * bool(container.streams.audio)
    if not senses:
        raise MediaError(f"{clip}: neither picture nor sound in it; give a video, a gif or a sound file")
    return senses
