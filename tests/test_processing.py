"""The processor makes of a clip what the original makes of it: pixels, mel, token ids, BERT ids."""

import hashlib
import json

import numpy as np
import pytest
import torch
from originals import CASES, GOLDEN, HUMANOMNI, PATHS, SILENCE, TOWERS, Golden, expand, frames_of, sound
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoProcessor, WhisperFeatureExtractor

import verl_omni.models  # noqa: F401
from verl_omni.media import read_video
from verl_omni.media.resize import resize
from verl_omni.models.humanomni.processing import AUDIO_TOKEN, GRPO_PREFIX, VIDEO_TOKEN

PIXELS = json.loads((HUMANOMNI / "pixel_sha256.json").read_text())


@pytest.fixture(scope="module")
def processor(converted):
    return AutoProcessor.from_pretrained(converted)


@pytest.mark.parametrize("aspect_ratio", ["pad", "squash"])
@pytest.mark.parametrize("case", CASES)
def test_pixels_are_bit_equal(processor, case, aspect_ratio):
    pixels = processor.process_frames(frames_of(case), aspect_ratio)
    digest = hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
    assert digest == PIXELS[CASES[case].name.replace(".", "_")][aspect_ratio]


COMMON_SIZES = [(180, 320), (360, 640), (720, 1280), (576, 1024), (240, 426), (240, 320), (480, 854), (1080, 1920)]
TARGETS = [(224, 224), (384, 384), (37, 37), (301, 301), (448, 448), (224, 336), (97, 33)]


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("colour", [(127, 116, 104), None], ids=["pad", "squash"])
def test_every_size_is_resized_as_pillow_resizes_the_whole_frame(colour, every):
    generator = np.random.default_rng(0)
    sizes = [size for width, height in COMMON_SIZES for size in ((width, height), (height, width))]
    sizes += [tuple(generator.integers(1, 700, 2).tolist()) for _ in range(290)]
    for number, (width, height) in list(enumerate(sizes))[::every]:
        frame = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        side, whole = max(width, height), Image.fromarray(frame)
        if colour:
            whole = Image.new("RGB", (side, side), colour)
            whole.paste(Image.fromarray(frame), ((side - width) // 2, (side - height) // 2))
        for target in TARGETS[:2] if number < 16 else [TARGETS[number % len(TARGETS)]]:
            expected = np.asarray(whole.resize(target[::-1], Image.Resampling.BICUBIC))
            resized = resize(frame, target, Image.Resampling.BICUBIC, colour)
            np.testing.assert_array_equal(resized, expected, err_msg=f"{width} x {height} to {target}")


def test_pil_images_are_frames_too(processor):
    frames = read_video(CASES["landscape"])
    images = [Image.fromarray(frame) for frame in frames]
    assert torch.equal(processor.process_frames(images), processor.process_frames(frames))


@pytest.mark.parametrize("case", ["landscape", "portrait"])
def test_mel(processor, case):
    inputs = processor(text="x", audio=[sound(case)], return_tensors="pt")
    torch.testing.assert_close(inputs["input_features"], Golden(case, "train")["mel"], atol=1e-4, rtol=0)


def test_mel_of_128_bins():
    """Whisper-large-v3's size: 30 s, 128 bins."""
    recorded = load_file(GOLDEN / "media/landscape_mp4.safetensors")["mel128_first400"]
    extract = WhisperFeatureExtractor(feature_size=128)
    mel = extract(sound("landscape"), sampling_rate=16000, return_tensors="pt")["input_features"]
    torch.testing.assert_close(mel[..., :400], recorded, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("case", "path"), PATHS)
def test_token_ids_and_bert_ids(processor, converted, case, path):
    golden = Golden(case, path)
    inputs = golden.inputs(processor)
    expected = expand(golden["input_ids"][0], AutoConfig.from_pretrained(converted))
    assert inputs["input_ids"][0].tolist() == expected.tolist()
    mask = inputs["bert_attention_mask"][0].bool()
    assert inputs["bert_input_ids"][0][mask].tolist() == golden["bert_input_ids"][0].tolist()
    assert inputs["bert_input_ids"].shape[1] == processor.bert_tokenizer.model_max_length


def test_prompt_style_and_aspect_ratio_are_saved_and_overridable(processor, tmp_path):
    frames, text = read_video(CASES["landscape"]), f"<vi_start>{VIDEO_TOKEN}<vi_end>\nWhy?"
    infer, grpo = (processor(text=text, videos=[frames], prompt_style=s)["input_ids"][0] for s in ("infer", "grpo"))
    assert grpo == processor.tokenizer(GRPO_PREFIX)["input_ids"] + infer
    # Text already in the other style is put right, not decorated twice.
    assert processor(text=GRPO_PREFIX + text, videos=[frames])["input_ids"][0] == infer

    processor.prompt_style, processor.aspect_ratio = "grpo", "squash"
    processor.save_pretrained(tmp_path)
    processor.prompt_style, processor.aspect_ratio = "infer", "pad"
    saved = AutoProcessor.from_pretrained(tmp_path)
    inputs = saved(text=text, videos=[frames], return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == grpo
    assert torch.equal(inputs["pixel_values"][0], processor.process_frames(frames, "squash"))
    assert saved(text=text, videos=[frames], prompt_style="infer")["input_ids"][0] == infer


@pytest.mark.parametrize("option", [{"prompt_style": "sft"}, {"aspect_ratio": "crop"}])
def test_an_unknown_option_is_an_error(processor, option):
    with pytest.raises(ValueError, match="must be one of"):
        processor(text=VIDEO_TOKEN, videos=[read_video(CASES["square"])], **option)


def test_question_comes_from_metadata_else_from_the_prompt(processor):
    frames = read_video(CASES["square"])
    chat = [
        {"role": "user", "content": [{"type": "video"}, {"type": "audio"}, {"type": "text", "text": "Who is sad?"}]}
    ]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    media = {"text": prompt, "videos": [frames], "audio": [SILENCE], "return_tensors": "pt"}
    derived = processor(**media)["bert_input_ids"]
    given = processor(**media, video_metadata=[{"instruction": "Who is happy?"}])["bert_input_ids"]
    assert processor.bert_tokenizer.decode(derived[0], skip_special_tokens=True) == "who is sad?"
    assert processor.bert_tokenizer.decode(given[0], skip_special_tokens=True) == "who is happy?"


def test_text_without_placeholders_leaves_ids_alone(processor):
    """verl's second call: decoded text, media, and the question in the metadata."""
    frames = read_video(CASES["square"])
    inputs = processor(
        text=["user\n<vi_start><vi_end>\nsad"], videos=[frames], audio=[SILENCE],
        video_metadata=[{"instruction": "Who?"}], do_sample_frames=False, sampling_rate=16000, return_tensors="pt",
    )  # fmt: skip
    assert inputs["input_ids"][0].tolist() == processor.tokenizer("user\n<vi_start><vi_end>\nsad")["input_ids"]
    assert inputs["pixel_values"].shape == (1, 8, 3, 32, 32)
    assert inputs["input_features"].shape[0] == inputs["bert_input_ids"].shape[0] == 1


def test_a_batch_is_padded_and_keeps_the_order_of_its_media(processor):
    first, second = read_video(CASES["square"]), read_video(CASES["landscape"])
    texts = [f"<vi_start>{VIDEO_TOKEN}<vi_end>\nA longer question?", "no media", f"{AUDIO_TOKEN} and {VIDEO_TOKEN} b"]
    inputs = processor(text=texts, videos=[first, second], audio=[SILENCE], return_tensors="pt", padding_side="left")
    assert inputs["attention_mask"][:, -1].tolist() == [1, 1, 1]
    assert (inputs["input_ids"] == processor.video_token_id).sum(1).tolist() == [32, 0, 32]
    assert (inputs["input_ids"] == processor.audio_token_id).sum(1).tolist() == [0, 0, 50]
    assert torch.equal(inputs["pixel_values"][1], processor.process_frames(second))
    questions = processor.bert_tokenizer.batch_decode(inputs["bert_input_ids"], skip_special_tokens=True)
    assert questions[0] == "a longer question?"


@pytest.mark.parametrize(
    ("text", "media", "message"),
    [
        (VIDEO_TOKEN * 2, {"videos": [np.zeros((8, 4, 4, 3), np.uint8)]}, "2 placeholders .*1 videos"),
        (AUDIO_TOKEN, {}, "1 placeholders .*0 audio"),
        ("x", {"images": [np.zeros((4, 4, 3), np.uint8)]}, "videos, not images"),
        ("x", {"videos": [np.zeros((8, 4, 4, 3), np.uint8)], "do_sample_frames": True}, "sampled frames"),
    ],
)
def test_media_that_do_not_fit_the_text_are_an_error(processor, text, media, message):
    with pytest.raises(ValueError, match=message):
        processor(text=text, **media)


def test_placeholders_are_unused_ids_and_leave_text_alone(processor, converted):
    config = AutoConfig.from_pretrained(converted)
    assert config.video_token_id < config.audio_token_id < config.vocab_size
    plain = processor.tokenizer.__class__.from_pretrained(HUMANOMNI / "ckpt_no_towers")
    text = "<vi_start><vi_end>\n<au_start><au_end>\n<|im_start|>难过 <think>It's sad.</think>\n\n <answer>sad</answer>"
    assert processor.tokenizer(text)["input_ids"] == plain(text)["input_ids"]


def test_bert_text_is_cut_at_its_maximum(processor):
    ids = processor.process_questions(["sad " * 500])["bert_input_ids"]
    length = json.loads((TOWERS["bert"] / "config.json").read_text())["max_position_embeddings"]
    assert ids.shape == (1, length)


def test_a_chat_names_files(processor):
    """The README's call: paths in, all inputs out, for one conversation and for several."""
    clip = str(CASES["landscape"])
    content = [{"type": "video", "path": clip}, {"type": "audio", "path": clip}, {"type": "text", "text": "Why?"}]
    chat = [{"role": "user", "content": content}]
    how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    one, two = processor.apply_chat_template(chat, **how), processor.apply_chat_template([chat, chat], **how)
    assert torch.equal(one["pixel_values"][0], processor.process_frames(read_video(clip)))
    torch.testing.assert_close(one["input_features"], Golden("landscape", "train")["mel"], atol=1e-4, rtol=0)
    assert all(torch.equal(two[name], torch.cat([one[name]] * 2)) for name in one)
