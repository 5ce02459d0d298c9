"""A vLLM engine with upstream's Qwen2.5-Omni gives the log-probabilities of the transformers model."""

import os

import numpy as np
import pytest
import torch
from originals import GOLDEN

from verl_omni.media import read_audio, read_video
from verl_omni.models.families import load

pytestmark = pytest.mark.slow
vllm = pytest.importorskip("vllm")

HAPPY, SAD = "Is this person happy?", "Is this person sad? Why?"
CASES = [
    *((f"{name}.mp4", "va") for name in ("landscape", "portrait", "square", "short5", "lateaudio", "shortaudio")),
    *((name, "v") for name in ("noaudio.mp4", "clip.gif", "gif5.gif", "frames_dir", "landscape.mp4")),
    *((name, "a") for name in ("speech1.wav", "landscape.mp4")),
    (None, ""),
]
FAMILY = load("qwen2_5_omni")


class Request:
    """One prompt with its media, for both models."""

    def __init__(self, processor, file, media="va", question=HAPPY, stream=False):
        content = [{"type": {"v": "video", "a": "audio"}[m]} for m in media] + [{"type": "text", "text": question}]
        self.text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        self.data, hf = {}, {}
        if "v" in media:
            number = 16 if stream else processor.num_frames  # more than two seconds: the senses take turns
            frames = processor.frame_format().apply(read_video(GOLDEN / "clips" / file, number))
            hf["videos"] = [frames]
            self.data["video"] = [(frames, {"instruction": question})]  # as the dataset has it
        if "a" in media:
            hf["audio"] = self.data["audio"] = [read_audio(GOLDEN / "clips" / file)]
        self.options = {"use_audio_in_video": True} if stream else {}
        self.hf = processor(text=[self.text], return_tensors="pt", **hf, **self.options)
        self.positions, _ = processor.get_rope_index(
            self.hf["input_ids"],
            video_grid_thw=self.hf.get("video_grid_thw"),
            **processor.get_rope_index_kwargs(self.hf),
        )

    def chat(self, processor):
        """As ``evaluate`` sends it."""
        text = processor.one_stream(self.text) if self.options else self.text
        return {"prompt": text, "multi_modal_data": self.data, "mm_processor_kwargs": self.options}

    def expanded(self, processor):
        """As verl sends it."""
        ids = processor.collapse_placeholders(self.hf["input_ids"][0].tolist())
        options = self.options | ({"sampling_rate": 16000} if "audio" in self.data else {})
        return {"prompt_token_ids": ids, "multi_modal_data": self.data, "mm_processor_kwargs": options}

    @torch.no_grad()
    def logprobs(self, model, response):
        """The transformers model's log-probabilities ``[len(response), vocabulary]``."""
        ids = torch.cat([self.hf["input_ids"], torch.tensor([response])], dim=1)
        answer = self.positions[:, :, -1:] + torch.arange(1, len(response) + 1)  # as in training
        inputs = {**self.hf, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logits = model.thinker(**inputs, position_ids=torch.cat([self.positions, answer], dim=2)).logits
        return logits[0, -len(response) - 1 : -1].float().log_softmax(-1)


class Engine:
    def __init__(self, directory):
        self.processor = FAMILY.load_processor(directory)
        self.model = FAMILY.load_model(directory, dtype=torch.float32).eval()
        self.llm = vllm.LLM(
            str(directory),
            dtype="float32",
            enforce_eager=True,
            enable_prefix_caching=True,
            max_model_len=256,
            max_num_batched_tokens=128,
            limit_mm_per_prompt={"video": 1, "audio": 1, "image": 0},
            worker_extension_cls="verl.workers.rollout.vllm_rollout.utils.vLLMColocateWorkerExtension",
        )

    def request(self, *args, **kwargs):
        return Request(self.processor, *args, **kwargs)

    def generate(self, prompts, tokens=16, **params):
        banned = dict.fromkeys(FAMILY.placeholders(self.processor.config), -100.0)  # as verl does
        params = vllm.SamplingParams(
            temperature=1.0, max_tokens=tokens, logprobs=20, ignore_eos=True, logit_bias=banned, **params
        )
        return self.llm.generate(prompts, params, use_tqdm=False)

    def clear_caches(self):
        """What verl does after a weight update."""
        self.llm.reset_prefix_cache()
        self.llm.reset_mm_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def errors(self, requests, outputs):
        """|vLLM - transformers| of the 20 largest log-probabilities of every generated token."""
        found = []
        for request, output in zip(requests, outputs, strict=True):
            assert output.prompt_token_ids == request.hf["input_ids"][0].tolist()
            for sample in output.outputs:
                expected = request.logprobs(self.model, list(sample.token_ids))
                found += [
                    abs(entry.logprob - expected[step, token].item())
                    for step, top in enumerate(sample.logprobs)
                    for token, entry in top.items()
                ]
        return np.array(found)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}.items():
            patch.setenv(name, value)
        patch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
        patch.setenv("VERL_OMNI_RUN", "1")
        patch.setenv("VERL_RAY_JOB_ID", f"test{os.getpid()}")
        engine = Engine(FAMILY.build_tiny(tmp_path_factory.mktemp("qwen2_5_omni")))
        yield engine
        engine.llm.llm_engine.engine_core.shutdown()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", ["expanded", "chat"])
def test_every_clip_in_one_batch(engine, form, stream):
    cases = [case for case in CASES if case[1] == "va" or not stream]
    if stream:  # vLLM keeps a stream's placeholders by its frames, which are those of another clip here
        cases.remove(("shortaudio.mp4", "va"))
    requests = [engine.request(*case, stream=stream) for case in cases]
    prompts = [getattr(request, form)(engine.processor) for request in requests]
    errors = engine.errors(requests, engine.generate(prompts, tokens=32))
    print(f"float32: max {errors.max():.1e}, mean {errors.mean():.1e}")
    assert errors.max() <= 1e-3


def test_two_questions_about_one_clip_with_many_samples(engine):
    requests = [engine.request("landscape.mp4", question=question) for question in (HAPPY, SAD, HAPPY)]
    prompts = [request.expanded(engine.processor) for request in requests]
    errors = engine.errors(requests, engine.generate(prompts, n=8))
    assert errors.max() <= 1e-3


def test_placeholders_without_media_are_refused(engine):
    ids = engine.request("landscape.mp4").hf["input_ids"][0].tolist()
    with pytest.raises(vllm.exceptions.VLLMValidationError, match="placeholders"):
        engine.generate([{"prompt_token_ids": ids}])


@torch.no_grad()
def test_a_weight_update_reaches_every_part_of_the_engine(engine):
    from test_vllm import update_weights

    request = engine.request("landscape.mp4")
    prompt = request.expanded(engine.processor)
    before = request.logprobs(engine.model, engine.generate([prompt])[0].outputs[0].token_ids)
    for parameter in engine.model.parameters():
        parameter.mul_(1.1)
    update_weights(engine, engine.model)
    [output] = engine.generate([prompt])
    assert engine.errors([request], [output]).max() <= 1e-3
    assert (before - request.logprobs(engine.model, output.outputs[0].token_ids)).abs().max() > 1e-2


def test_a_served_clip_is_answered_as_the_engine_answers_it(engine, tmp_path):
    from test_vllm import ONE_PROCESS, check_served, serving

    clip = "landscape.mp4"  # 320 x 240 pixels and 22.05 kHz: neither is what the model takes
    directory = engine.llm.llm_engine.model_config.model
    model = FAMILY.load_model(directory, dtype=torch.float32).eval()
    with serving(directory, tmp_path / "log", *ONE_PROCESS) as server:
        check_served(server, engine.request(clip, question=SAD), model, clip, SAD)
