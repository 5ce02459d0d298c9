"""Rows with video and sound as verl's two trainers get them."""

import asyncio
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from originals import SILENCE, soundless_clips
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor
from verl.trainer.ppo.utils import create_rl_dataset
from verl.trainer.sft_trainer import create_sft_dataset
from verl.utils.dataset.dataset_utils import SFTTensorCollator
from verl.utils.dataset.rl_dataset import collate_fn
from verl.utils.model import extract_multi_modal_inputs
from verl.utils.tokenizer import build_multimodal_processor_inputs

import verl_omni.models  # noqa: F401 registers the processor
from verl_omni.data.check import RowsError
from verl_omni.data.dataset import OmniRLHFDataset
from verl_omni.media import MediaError, read_audio, read_video
from verl_omni.models.humanomni.tiny import build_tiny
from verl_omni.prompts import instruction

CLIPS = Path(__file__).parent / "golden/clips"
BOTH, VIDEO_ONLY = f"<video><audio>{instruction()}", f"<video>{instruction('What does the face say?')}"
AUDIO_ONLY, TEXT_ONLY = "<audio>Who speaks?", "Which emotions are there?"
ANSWER = "<think>A smile.</think>\n<answer>happy</answer>"


def row(content: str, **media) -> dict:
    return {
        "data_source": "demo",
        "prompt": [{"role": "user", "content": content}],
        "reward_model": {"style": "rule", "ground_truth": "happy"},
        "extra_info": {"index": 7},
        **media,
    }


MIXED = [
    row(BOTH, videos=["landscape.mp4"], audios=["landscape.mp4"]),
    row(VIDEO_ONLY, videos=["noaudio.mp4"]),
    row(AUDIO_ONLY, audios=["speech1.wav"]),
    row(TEXT_ONLY),
    row(BOTH, videos=["frames_dir"], audios=["speech1.wav"]),
]


@pytest.fixture(autouse=True, scope="module")
def decoded_once(tmp_path_factory):
    """Each test has a copy of the clips, whose content the cache knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERL_OMNI_MEDIA_CACHE", str(tmp_path_factory.mktemp("media")))
        yield


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return AutoProcessor.from_pretrained(build_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def folder(tmp_path):
    """A folder of clips, in which the rows files stand."""
    shutil.copytree(CLIPS, tmp_path / "clips")
    return tmp_path / "clips"


def write(folder: Path, rows: list[dict], name: str = "rows.json") -> str:
    (folder / name).write_text(json.dumps(rows))
    return str(folder / name)


def grpo_dataset(file: str, processor, **data):
    """The dataset as verl's trainer makes it from its ``data`` section."""
    config = OmegaConf.create(
        {
            "custom_cls": {"path": "pkg://verl_omni.data.dataset", "name": "OmniRLHFDataset"},
            "prompt_key": "prompt",
            "filter_overlong_prompts": False,
            **data,
        }
    )
    OmegaConf.set_struct(config, True)
    return create_rl_dataset(file, config, processor.tokenizer, processor)


def media_of(dataset, index: int):
    """What an agent-loop worker gets for a prompt."""
    messages = dataset[index]["raw_prompt"]
    return asyncio.run(OmniRLHFDataset.process_multi_modal_info(messages, image_patch_size=8, config=dataset.config))


def test_rows_of_all_modalities_reach_the_agent_loop(folder, processor):
    dataset = grpo_dataset(write(folder, MIXED), processor)
    assert len(dataset) == 5
    images, videos, audios = media_of(dataset, 0)
    assert images is None
    ((frames, metadata),), (wave,) = videos, audios
    np.testing.assert_array_equal(frames, processor.frame_format().apply(read_video(CLIPS / "landscape.mp4")))
    np.testing.assert_array_equal(wave, read_audio(CLIPS / "landscape.mp4"))
    assert metadata == {"instruction": instruction()}
    assert media_of(dataset, 1)[2] is None and media_of(dataset, 1)[1][0][1] != metadata
    assert media_of(dataset, 2)[1] is None and len(media_of(dataset, 2)[2]) == 1
    assert media_of(dataset, 3) == (None, None, None)


def test_the_instruction_is_what_the_processor_reads_in_the_prompt(folder, processor):
    """verl passes it as metadata where the prompt is decoded ids; both must give BERT the same text."""
    dataset = grpo_dataset(write(folder, MIXED), processor)
    prompt = processor.apply_chat_template(dataset[0]["raw_prompt"], add_generation_prompt=True, tokenize=False)
    _, videos, audios = media_of(dataset, 0)
    with_metadata = build_multimodal_processor_inputs(processor, text=[prompt], videos=videos, audio=audios)
    without = processor(text=[prompt], videos=[videos[0][0]], audio=audios)
    assert prompt.count("<vi_start>") == prompt.count("<au_start>") == 1
    torch.testing.assert_close(with_metadata["bert_input_ids"], without["bert_input_ids"], rtol=0, atol=0)


def test_parquet_rows_and_batches(folder, processor):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [MIXED[0], MIXED[4]]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    dataset = grpo_dataset(str(folder / "rows.parquet"), processor)
    batch = collate_fn([dataset[0], dataset[1]])
    assert list(batch["index"]) == [7, 7] and list(batch["data_source"]) == ["demo", "demo"]
    assert [item["type"] for item in batch["raw_prompt"][0][0]["content"]] == ["video", "audio", "text"]


def test_number_of_frames_is_the_models_and_no_other(folder, processor):
    file = write(folder, MIXED[:1])
    assert len(media_of(grpo_dataset(file, processor), 0)[1][0][0]) == processor.num_frames
    assert len(media_of(grpo_dataset(file, processor, num_frames=processor.num_frames), 0)[1][0][0]) == 8
    with pytest.raises(ValueError, match=r"data\.num_frames=3, and the model has 8"):
        grpo_dataset(file, processor, num_frames=3)
    with pytest.raises(ValueError, match=r"data\.num_frames=3, and the model has 8"):
        sft_dataset(write(folder, sft_rows(MIXED[:1])), processor, num_frames=3)


def test_a_model_of_other_frames_is_followed(folder, tmp_path):
    model = build_tiny(tmp_path / "model")
    for name in ("config.json", "processor_config.json"):
        settings = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(settings | {"num_frames": 5}))
    processor = AutoProcessor.from_pretrained(model)
    item = sft_dataset(write(folder, sft_rows(MIXED[:1])), processor)[0]
    assert item["multi_modal_inputs"]["pixel_values"].shape[:2] == (1, 5)
    config = AutoConfig.from_pretrained(model)
    assert (item["input_ids"] == config.video_token_id).sum() == config.num_video_tokens == 20
    inputs = {name: value[None] for name, value in item.items() if name in ("input_ids", "attention_mask")}
    logits = AutoModelForCausalLM.from_pretrained(model)(**inputs, **item["multi_modal_inputs"]).logits
    assert logits.isfinite().all()


def test_max_samples_selects_before_the_check(folder, processor):
    rows = [MIXED[0], row(BOTH, videos=["gone.mp4"], audios=["gone.mp4"])]
    config = grpo_dataset(write(folder, MIXED[:1]), processor).config
    assert len(create_rl_dataset(write(folder, rows), config, processor.tokenizer, processor, max_samples=1)) == 1


@pytest.mark.parametrize("media_check", ["full", "exists"])
def test_unusable_files_stop_the_start_and_are_listed_with_their_rows(folder, processor, media_check):
    (folder / "empty.mp4").touch()
    rows = [
        MIXED[0],
        row(BOTH, videos=["gone.mp4"], audios=["gone.mp4"]),
        row(VIDEO_ONLY, videos=["empty.mp4"]),
        row(BOTH, videos=["landscape.mp4"], audios=["noaudio.mp4"]),
        row(VIDEO_ONLY, videos=["broken.mp4"]),
    ]
    with pytest.raises(RowsError) as error:
        grpo_dataset(write(folder, rows), processor, media_check=media_check)
    message = str(error.value)
    assert f"row 1: {folder}/gone.mp4: no such file" in message
    assert f"row 2: {folder}/empty.mp4: the file is empty" in message
    assert f"row 3: {folder}/noaudio.mp4: no audio track" in message and "data.no_audio=video_only" in message
    assert ("row 4" in message and "broken.mp4" in message) == (media_check == "full")
    assert "row 0" not in message


def test_long_lists_of_problems_are_cut_and_counted(folder, processor):
    rows = [row(VIDEO_ONLY, videos=[f"gone_{index}.mp4"]) for index in range(30)]
    with pytest.raises(RowsError, match=r"30 problems in 30 rows; repair the 30 files") as error:
        grpo_dataset(write(folder, rows), processor)
    assert len(str(error.value).splitlines()) == 22 and "... and 10 more" in str(error.value)


def test_clips_without_sound_can_be_video_only(folder, processor, caplog):
    rows = [MIXED[0], row(BOTH, videos=["noaudio.mp4"], audios=["noaudio.mp4"])]
    dataset = grpo_dataset(write(folder, rows), processor, no_audio="video_only")
    assert [item["type"] for item in dataset[1]["raw_prompt"][0]["content"]] == ["video", "text"]
    assert media_of(dataset, 1)[2] is None
    assert len(media_of(dataset, 0)[2]) == 1
    assert "1 rows have no whole sound" in caplog.text


@pytest.mark.parametrize("media_check", ["full", "exists"])
def test_clips_without_sound_can_hear_silence_in_both_trainers(folder, processor, media_check):
    clips = [str(clip) for clip in soundless_clips(folder)]
    rows = [row(BOTH, videos=[clip], audios=[clip]) for clip in clips]
    options = {"no_audio": "silence", "media_check": media_check}
    prompts = grpo_dataset(write(folder, rows), processor, **options)
    answers = sft_dataset(write(folder, sft_rows(rows)), processor, **options)
    assert len(prompts) == len(answers) == 3
    for index, clip in enumerate(clips):
        _, ((frames, _),), (wave,) = media_of(prompts, index)
        np.testing.assert_array_equal(frames, processor.frame_format().apply(read_video(clip)))
        np.testing.assert_array_equal(wave, SILENCE)  # what the original hears
        expected = processor(text=["<audio>"], audio=[SILENCE])["input_features"]
        torch.testing.assert_close(answers[index]["multi_modal_inputs"]["input_features"], expected, rtol=0, atol=0)


@pytest.mark.parametrize("media_check", ["full", "exists"])
def test_clips_without_sound_can_be_dropped_from_both_trainers(folder, processor, media_check, caplog):
    rows = [row(BOTH, videos=[str(clip)], audios=[str(clip)]) for clip in soundless_clips(folder)]
    rows.insert(1, MIXED[0])
    options = {"no_audio": "drop", "media_check": media_check}
    for made, dataset_of in ((rows, grpo_dataset), (sft_rows(rows), sft_dataset)):
        assert len(dataset_of(write(folder, made), processor, **options)) == 1
        assert "3 rows have no whole sound and are dropped" in caplog.text
        caplog.clear()
    _, _, (wave,) = media_of(grpo_dataset(write(folder, rows), processor, **options), 0)
    np.testing.assert_array_equal(wave, read_audio(CLIPS / "landscape.mp4"))
    with pytest.raises(RowsError, match=r"rows\.json: no row is left of 1"):
        grpo_dataset(write(folder, rows[:1]), processor, **options)


def test_one_modality_can_be_kept_alone(folder, processor):
    file = write(folder, MIXED)
    videos = media_of(grpo_dataset(file, processor, modalities=["video"]), 0)
    audios = media_of(grpo_dataset(file, processor, modalities=["audio"]), 0)
    assert videos[1] and videos[2] is None
    assert audios[1] is None and audios[2]
    with pytest.raises(ValueError, match=r"modalities=\['touch'\]"):
        grpo_dataset(file, processor, modalities=["touch"])


def test_sound_without_a_video_must_have_an_audio_track(folder, processor):
    with pytest.raises(RowsError, match="no audio track"):
        grpo_dataset(write(folder, [row(AUDIO_ONLY, audios=["noaudio.mp4"])]), processor, no_audio="video_only")


def test_rows_that_do_not_fit_stop_both_trainers_by_file_and_row(folder, processor):
    bad = row(BOTH, videos=["landscape.mp4"])
    with pytest.raises(RowsError, match="1 problems in 2 rows") as error:
        grpo_dataset(write(folder, [MIXED[3], bad]), processor)
    assert "rows.json row 1: 1 <audio> in the text and 0 audios" in str(error.value)
    with pytest.raises(RowsError, match=r"rows\.json row 1: 1 <audio> in the text and 0 audios"):
        sft_dataset(write(folder, sft_rows([MIXED[3], bad])), processor)


def test_a_column_of_unlike_values_is_named(folder, processor):
    rows = [row(TEXT_ONLY, note="a"), row(TEXT_ONLY, note=1)]
    with pytest.raises(RowsError, match="column 'note': values of different kinds"):
        grpo_dataset(write(folder, rows), processor)


def test_columns_of_the_user_reach_the_trainer(folder, processor):
    rows = [row(TEXT_ONLY, note="a", turns=3), row(TEXT_ONLY, scores=[{"a": 1.5}])]
    first, second = grpo_dataset(write(folder, rows), processor)
    assert (first["note"], first["turns"], second["note"], second["scores"]) == ("a", 3, None, [{"a": 1.5}])


def test_misspelt_options_are_refused(folder, processor):
    with pytest.raises(ValueError, match=r"data\.media_check=fast; it must be one of full, exists"):
        grpo_dataset(write(folder, MIXED), processor, media_check="fast")


def test_model_without_a_processor_is_an_error(folder):
    with pytest.raises(ValueError, match="verl found no processor"):
        OmniRLHFDataset(write(folder, MIXED), tokenizer=None, config=OmegaConf.create({}), processor=None)


def test_file_lost_during_training_is_an_error_that_survives_pickling(folder, processor):
    dataset = grpo_dataset(write(folder, MIXED[:1]), processor)
    (folder / "landscape.mp4").unlink()
    with pytest.raises(MediaError, match=r"landscape\.mp4: no such file") as error:
        media_of(dataset, 0)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)  # Ray carries it to the driver


def sft_rows(rows: list[dict]) -> list[dict]:
    keep = ("data_source", "videos", "audios", "extra_info")
    return [
        {key: row[key] for key in keep if key in row}
        | {"messages": [*row["prompt"], {"role": "assistant", "content": ANSWER}]}
        for row in rows
    ]


def sft_dataset(file: str, processor, **data):
    """The dataset as verl's SFT trainer makes it from its ``data`` section."""
    config = OmegaConf.create(
        {
            "custom_cls": {"path": "pkg://verl_omni.data.dataset", "name": "OmniSFTDataset"},
            "pad_mode": "no_padding",
            "truncation": "error",
            "max_length": 1024,
            "messages_key": "messages",
            "enable_thinking_default": "none",  # verl's own default
            **data,
        }
    )
    OmegaConf.set_struct(config, True)
    return create_sft_dataset([file], config, processor.tokenizer, processor)


def test_sft_has_the_prompt_of_inference_and_loss_on_the_answer_alone(folder, processor):
    dataset = sft_dataset(write(folder, sft_rows(MIXED)), processor)
    for index, source in enumerate(MIXED):
        item = dataset[index]
        messages = grpo_dataset(write(folder, [source]), processor)[0]["raw_prompt"]
        prompt = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        length = prompt["input_ids"].shape[1]
        torch.testing.assert_close(item["input_ids"][:length], prompt["input_ids"][0])
        assert item["loss_mask"][:length].sum() == 0 and item["loss_mask"][length:].all()
        assert processor.tokenizer.decode(item["input_ids"][length:]) == f"{ANSWER}<|im_end|>\n"
        expected = {key: value for key, value in prompt.items() if key not in ("input_ids", "attention_mask")}
        assert set(item["multi_modal_inputs"]) == set(expected)
        for key, value in expected.items():
            torch.testing.assert_close(item["multi_modal_inputs"][key], value, rtol=0, atol=0)
        assert item["position_ids"].tolist() == list(range(len(item["input_ids"])))


def test_sft_batch_of_all_modalities_is_what_the_engine_takes(folder, processor):
    dataset = sft_dataset(write(folder, sft_rows([MIXED[3], *MIXED])), processor)
    batch = SFTTensorCollator("no_padding")([dataset[index] for index in range(6)])
    inputs = extract_multi_modal_inputs(batch["multi_modal_inputs"])
    assert inputs["pixel_values"].shape[0] == inputs["bert_input_ids"].shape[0] == 3
    assert inputs["input_features"].shape[0] == 3
    assert len(batch["input_ids"].unbind()) == 6


def test_loader_processes_make_the_batches_of_none(folder, processor):
    """verl's default are 8 of them, forked from a process that has decoded clips."""
    dataset = sft_dataset(write(folder, sft_rows(MIXED)), processor)
    collate = SFTTensorCollator("no_padding")
    here, there = (
        list(StatefulDataLoader(dataset, batch_size=2, collate_fn=collate, num_workers=workers)) for workers in (0, 2)
    )
    assert len(here) == len(there) == 3
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one["input_ids"].values(), other["input_ids"].values())
        one, other = (extract_multi_modal_inputs(batch["multi_modal_inputs"]) for batch in (one, other))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_sft_rows_give_the_same_sample_each_epoch(folder, processor):
    dataset = sft_dataset(write(folder, sft_rows(MIXED)), processor)
    first, second = dataset[0], dataset[0]
    torch.testing.assert_close(first["input_ids"], second["input_ids"])


def test_sft_checks_its_media_too(folder, processor):
    rows = sft_rows([MIXED[0], row(VIDEO_ONLY, videos=["broken.mp4"])])
    with pytest.raises(RowsError, match=r"row 1: .*broken\.mp4: the video does not decode"):
        sft_dataset(write(folder, rows), processor)


def test_sft_prompt_longer_than_max_length_is_an_error(folder, processor):
    with pytest.raises(ValueError, match="max_length"):
        sft_dataset(write(folder, sft_rows(MIXED[:1])), processor, max_length=64)[0]
