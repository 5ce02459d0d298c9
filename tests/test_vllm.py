"""A vLLM engine with HumanOmni gives the log-probabilities of the transformers model, whatever its caches do."""

import asyncio
import base64
import json
import os
import socket
import urllib.error
import urllib.request
from copy import deepcopy
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from documents import documented
from originals import CASES as GOLDEN_CASES
from originals import Golden, frames_of, sound, started

from benchmarks.faults import claim_a_billion_frames
from verl_omni.media import read_audio, read_video
from verl_omni.models import HumanOmniProcessor, HumanOmniQwen2ForCausalLM

pytestmark = pytest.mark.slow
vllm = pytest.importorskip("vllm")

CLIPS = Path(__file__).parent / "golden" / "clips"
HAPPY, SAD = "Is this person happy?", "Is this person sad? Why?"
# (file, media): the golden clips with sight and sound, with either, and a question alone.
CASES = [
    *((f"{name}.mp4", "va") for name in ("landscape", "portrait", "square", "short5", "lateaudio", "shortaudio")),
    *((name, "v") for name in ("noaudio.mp4", "clip.gif", "gif5.gif", "frames_dir", "landscape.mp4")),
    *((name, "a") for name in ("speech1.wav", "landscape.mp4")),
    (None, ""),
]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # lets the tests count the encoders' runs inside the worker
    "VERL_RAY_JOB_ID": f"test{os.getpid()}",  # part of the socket's name for weight updates
}


class Request:
    """One prompt with its media, for both models."""

    def __init__(self, processor, file, media="va", question=HAPPY):
        content = [{"type": {"v": "video", "a": "audio"}[m]} for m in media] + [{"type": "text", "text": question}]
        chat = [{"role": "user", "content": content}]
        self.text = processor.apply_chat_template(chat, add_generation_prompt=True)
        self.data, hf = {}, {}
        if "v" in media:
            frames = read_video(CLIPS / file)
            self.data["video"] = [(frames, {"instruction": question})]
            hf.update(videos=[frames], video_metadata=[{"instruction": question}])
        if "a" in media:
            hf["audio"] = self.data["audio"] = [read_audio(CLIPS / file)]
        self.hf = processor(text=[self.text], return_tensors="pt", **hf)

    def expanded(self):
        """As verl sends it."""
        ids = self.hf["input_ids"][0].tolist()
        kwargs = {"sampling_rate": 16000} if "audio" in self.data else {}
        return {"prompt_token_ids": ids, "multi_modal_data": self.data, "mm_processor_kwargs": kwargs}

    def chat(self):
        return {"prompt": self.text, "multi_modal_data": self.data}

    @torch.no_grad()
    def logprobs(self, model, response):
        """The transformers model's log-probabilities ``[len(response), vocabulary]``."""
        ids = torch.cat([self.hf["input_ids"], torch.tensor([response])], dim=1)
        logits = model(**{**self.hf, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
        return logits[0, -len(response) - 1 : -1].float().log_softmax(-1)


class Engine:
    """A vLLM engine, and the transformers model it is compared with."""

    def __init__(self, directory, dtype, enforce_eager=True, **settings):
        self.processor = HumanOmniProcessor.from_pretrained(directory)
        self.model = HumanOmniQwen2ForCausalLM.from_pretrained(directory, dtype=dtype).eval()
        self.llm = vllm.LLM(
            str(directory),
            dtype=str(dtype).removeprefix("torch."),
            enforce_eager=enforce_eager,
            enable_prefix_caching=True,
            max_model_len=256,
            disable_log_stats=False,
            **settings,
        )

    def request(self, *args, **kwargs):
        return Request(self.processor, *args, **kwargs)

    def generate(self, prompts, tokens=16, **params):
        # No seed per request: vLLM 0.28 cannot rewind a CPU generator after a chunk of a prefill.
        params = vllm.SamplingParams(temperature=1.0, max_tokens=tokens, logprobs=20, ignore_eos=True, **params)
        return self.llm.generate(prompts, params, use_tqdm=False)

    def errors(self, requests, outputs, model=None):
        """|vLLM - transformers| of the 20 largest log-probabilities of every generated token."""
        found = []
        for request, output in zip(requests, outputs, strict=True):
            assert output.prompt_token_ids == request.hf["input_ids"][0].tolist()
            for sample in output.outputs:
                expected = request.logprobs(model or self.model, list(sample.token_ids))
                found += [
                    abs(entry.logprob - expected[step, token].item())
                    for step, top in enumerate(sample.logprobs)
                    for token, entry in top.items()
                ]
        return np.array(found)

    def clear_caches(self):
        """What verl does after a weight update."""
        self.llm.reset_prefix_cache()
        self.llm.reset_mm_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def metric(self, name):
        return sum(metric.value for metric in self.llm.get_metrics() if metric.name == f"vllm:{name}")


@pytest.fixture(scope="module")
def environment():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def engine(environment, converted):
    """float32; chunks of 128 tokens, and a cache for about two prompts."""
    engine = Engine(
        converted,
        torch.float32,
        max_num_batched_tokens=128,
        block_size=32,
        num_gpu_blocks_override=12,
        worker_extension_cls="verl.workers.rollout.vllm_rollout.utils.vLLMColocateWorkerExtension",
        logits_processors=["verl_omni.evaluation.repetition:NewTokensRepetitionPenalty"],
    )
    engine.llm.apply_model(count_encoder_runs)
    yield engine
    engine.llm.llm_engine.engine_core.shutdown()


def count_encoder_runs(model):
    def counted(name, function):
        def count(*args):
            model.runs[name] = model.runs.get(name, 0) + 1
            return function(*args)

        return count

    model.runs = {}
    model.get_video_features = counted("video", model.get_video_features)
    model.get_audio_features = counted("audio", model.get_audio_features)


def take_encoder_runs(model):
    """``(videos, sounds)`` encoded since the last call."""
    runs = model.runs.get("video", 0), model.runs.get("audio", 0)
    model.runs = {}
    return runs


@pytest.mark.parametrize("form", ["expanded", "chat"])
def test_every_clip_in_one_batch_of_chunks_with_preemption(engine, form):
    engine.clear_caches()
    preempted = engine.metric("num_preemptions")
    requests = [engine.request(*case) for case in CASES]
    errors = engine.errors(requests, engine.generate([getattr(request, form)() for request in requests], tokens=32))
    print(f"float32: max {errors.max():.1e}, mean {errors.mean():.1e}")
    assert errors.max() <= 1e-3
    assert engine.metric("num_preemptions") > preempted


@pytest.mark.parametrize(
    ("path", "recorded", "penalty"),
    [("train", "greedy_ids", None), ("infer", "greedy_ids_rep1", None), ("infer", "mm_infer_ids", 1.1)],
)
def test_greedy_tokens_are_the_originals(engine, path, recorded, penalty):
    """With a repetition penalty too, which the original takes of new tokens only."""
    # gif5: the original completes short gifs with frames of other sizes, which an array cannot hold.
    goldens = [Golden(case, path) for case in GOLDEN_CASES if case != "gif5"]
    prompts = [
        {
            "prompt_token_ids": golden.inputs(engine.processor)["input_ids"][0].tolist(),
            "multi_modal_data": {"video": [np.stack(frames_of(golden.case))], "audio": [sound(golden.case)]},
            "mm_processor_kwargs": {"aspect_ratio": golden.aspect_ratio, "prompt_style": golden.style},
        }
        for golden in goldens
    ]
    extra = {"new_tokens_repetition_penalty": penalty} if penalty else None
    params = vllm.SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, extra_args=extra)
    outputs = engine.llm.generate(prompts, params, use_tqdm=False)
    for golden, output in zip(goldens, outputs, strict=True):
        ids = golden.meta[recorded]
        assert list(output.outputs[0].token_ids)[: len(ids)] == ids, golden.case


def test_two_questions_about_one_clip(engine):
    engine.clear_caches()
    engine.llm.apply_model(take_encoder_runs)
    happy, sad = (engine.request("landscape.mp4", question=question) for question in (HAPPY, SAD))
    requests = [happy, sad, happy]
    outputs = [engine.generate([request.expanded()])[0] for request in requests]
    assert engine.errors(requests, outputs).max() <= 1e-3
    assert engine.llm.apply_model(take_encoder_runs) == [(2, 1)]
    # The features do depend on the question: those of the other one would not pass.
    response = list(outputs[1].outputs[0].token_ids)
    swapped = sad.logprobs(engine.model, response) - swap_question(sad, happy).logprobs(engine.model, response)
    assert swapped.abs().max() > 1e-2


def swap_question(request, other):
    swapped = object.__new__(Request)
    swapped.hf = {**request.hf, **{name: other.hf[name] for name in ("bert_input_ids", "bert_attention_mask")}}
    return swapped


def test_the_prefix_cache_serves_media(engine):
    engine.clear_caches()
    request = engine.request("landscape.mp4")
    engine.generate([request.expanded()], tokens=1)
    [output] = outputs = engine.generate([request.expanded()])
    assert output.num_cached_tokens >= 64  # past the video
    assert engine.errors([request], outputs).max() <= 1e-3


def test_eight_samples_encode_a_clip_once(engine):
    engine.clear_caches()
    engine.llm.apply_model(take_encoder_runs)
    request = engine.request("portrait.mp4")
    [output] = outputs = engine.generate([request.expanded()], n=8)
    assert len({tuple(sample.token_ids) for sample in output.outputs}) > 1
    assert engine.errors([request], outputs).max() <= 1e-3
    assert engine.llm.apply_model(take_encoder_runs) == [(1, 1)]


def test_a_prompt_with_placeholders_but_no_media_is_refused(engine):
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="no media were passed"):
        engine.generate([{"prompt_token_ids": engine.request("landscape.mp4").expanded()["prompt_token_ids"]}])


def update_weights(engine, model, use_shm=True):
    """Send a model's weights as verl's trainer does: by name, in buckets of 1 MB, through shared memory or CUDA IPC."""
    from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender

    [handle] = engine.llm.collective_rpc("_get_zmq_handle")
    sender = BucketedWeightSender(handle, bucket_size_mb=1, use_shm=use_shm)
    thread = Thread(target=lambda: asyncio.run(sender.async_send_weights(iter(model.state_dict().items()))))
    thread.start()
    engine.llm.collective_rpc("update_weights_from_ipc", kwargs={"use_shm": use_shm})
    thread.join()
    engine.clear_caches()


def test_a_weight_update_reaches_every_part(engine):
    torch.manual_seed(0)
    new = deepcopy(engine.model)
    for parameter in new.parameters():
        parameter.data += 0.3 * parameter.std() * torch.randn_like(parameter)
    request = engine.request("landscape.mp4")
    update_weights(engine, new)
    outputs = engine.generate([request.expanded()])
    update_weights(engine, engine.model)
    assert engine.errors([request], outputs, new).max() <= 1e-3
    assert engine.errors([request], engine.generate([request.expanded()])).max() <= 1e-3
    # A part left as it was would have been seen.
    state = new.state_dict()
    for part in ("layers", "vision_tower", "audio_tower", "mm_projector", "audio_projector", "bert_model", "bert_gate"):
        old = {name: value for name, value in engine.model.state_dict().items() if name.startswith(f"model.{part}.")}
        new.load_state_dict(state | old)
        assert engine.errors([request], outputs, new).max() > 1e-2, part


# The engine's, with the model in it, as where GRPO runs: it takes 8 s of CPU time less to start.
ONE_PROCESS = ("--distributed-executor-backend", "vllm.v1.executor.uniproc_executor.UniProcExecutor")


def serving(directory, log: Path, *options: str):
    """A server of ``directory``, by the command."""
    *serve, _ = documented("verl_omni serve MODEL")
    settings = ["--max-model-len", "256", "--served-model-name", "tiny", "--allowed-local-media-path", str(CLIPS)]
    return started([*serve, str(directory), *settings, "--enforce-eager", *options], log)


def ask(server: str, content: list) -> dict:
    body = {
        **{"model": "tiny", "messages": [{"role": "user", "content": content}], "return_token_ids": True},
        **{"max_tokens": 16, "logprobs": True, "temperature": 1.0, "seed": 0, "ignore_eos": True},
    }
    url = f"http://{server}/v1/chat/completions"
    query = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(query, timeout=60) as reply:
        return json.load(reply)


def refused(server: str, content: list) -> str:
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(server, content)
    return error.value.read().decode()


def check_served(server: str, request: Request, model, clip: str, question: str) -> dict:
    """A clip's answer over HTTP has the log-probabilities of the transformers model, fed as ``evaluate`` does."""
    path = (CLIPS / clip).resolve()
    data = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
    for url in (path.as_uri(), data):
        media = [{"type": f"{sense}_url", f"{sense}_url": {"url": url}} for sense in ("video", "audio")]
        answer = ask(server, [*media, {"type": "text", "text": question}])
        assert answer["prompt_token_ids"] == request.hf["input_ids"][0].tolist()
        [choice] = answer["choices"]
        expected = request.logprobs(model, choice["token_ids"])
        found = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        exact = [row[token].item() for row, token in zip(expected, choice["token_ids"], strict=True)]
        assert found == pytest.approx(exact, abs=1e-3)
    return answer


def test_vllm_serve_answers_a_chat_with_a_clip(environment, converted, tmp_path):
    request = Request(HumanOmniProcessor.from_pretrained(converted), "landscape.mp4", question=SAD)
    model = HumanOmniQwen2ForCausalLM.from_pretrained(converted, dtype=torch.float32).eval()
    with serving(converted, tmp_path / "log") as server:
        before = check_served(server, request, model, "landscape.mp4", SAD)

        # Bytes on which the decoder aborts cost their own request, not the server.
        killer = base64.b64encode(claim_a_billion_frames((CLIPS / "landscape.mp4").read_bytes())).decode()
        content = [{"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{killer}"}}]
        assert "the decoder crashes" in refused(server, content)
        assert check_served(server, request, model, "landscape.mp4", SAD)["choices"] == before["choices"]

        # Closed unless opened: reached from this machine alone, and fetching nothing, not even from it.
        port = int(server.split(":")[1])
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=5):
            pass
        content = [{"type": "video_url", "video_url": {"url": f"http://{server}/health"}}]
        assert "none.invalid" in refused(server, content)
