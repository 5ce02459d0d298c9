"""Rows and media to answers, with vLLM: greedy, batched by the engine, each answer on disk once it is computed."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from verl_omni.adjustments.vllm_cpu_name import answer_for_vllm
from verl_omni.data.check import MODALITIES, Row, RowsError, keep_modalities, load_rows, settle_sounds
from verl_omni.data.row import TAGS, PromptRow
from verl_omni.errors import InputError
from verl_omni.evaluation.results import AUDIO_MUTED, VIDEO_BLANKED, Answer, ResultsFile, model_fingerprint
from verl_omni.labels import options
from verl_omni.media import MediaError
from verl_omni.media.child import Children
from verl_omni.media.store import Call, fingerprint, media_fingerprint, read_frames, read_sound
from verl_omni.models.families import family_in
from verl_omni.models.humanomni.processing import question_of
from verl_omni.platforms.cpu import is_cpu_only
from verl_omni.plugin import RUN
from verl_omni.prompts import asked

IN_FLIGHT = 256  # requests handed to vLLM at once; bounds the media held in memory

Job = tuple[list[Answer], dict[str, Any]]  # a row's answers, without a completion, and what vLLM is to be asked


@dataclass(frozen=True)
class Settings:
    """What decides an answer besides model and row; decoding is greedy."""

    max_tokens: int = 512  # of an answer
    repetition_penalty: float = 1.0  # on new tokens alone; the original's `generate` took 1.1 from its checkpoint
    aspect_ratio: str | None = None  # `pad` or `squash` frames; None for the model's own way
    use_audio_in_video: bool = False  # of each video and its sound one stream, where the model's family knows such
    no_audio: str = "error"  # what a row of a clip without sound becomes, as in training (NO_AUDIO_POLICIES)
    max_model_len: int = 2048  # prompt and answer together, in tokens
    dtype: str = "auto"  # vLLM's
    modalities: Sequence[str] = MODALITIES  # which of a row's media the model gets, as data.modalities in training


def evaluate(
    model: Path,
    files: Sequence[Path],
    out: Path,
    name: str,
    variants: Sequence[str],
    settings: Settings,
    engine: dict[str, Any],
    question: str | None = None,
    with_options: bool = False,
) -> list[Answer]:
    """Answer every row in every variant that applies to it; answers on file are not computed again.

    Args:
        model: Self-contained model directory, called ``name`` in results and report.
        files, out: Rows files, and the results file.
        engine: Further arguments of ``vllm.LLM``, which decide no answer.
        question: To ask in place of the rows' own, one of ``verl_omni.prompts.QUESTIONS`` or a text.
        with_options: Whether the question lists the corpus's labels to choose from.

    Returns:
        The answers of all rows, in the order of rows and variants.

    Raises:
        RowsError: Rows that do not fit the schema, or share an id; none left without those of clips without sound.
        ResultsError: A results file in use.
    """
    processor = family_in(model).load_processor(model)
    if settings.use_audio_in_video and not hasattr(processor, "one_stream"):
        raise InputError(f"--use-audio-in-video: {model} knows no such streams; leave it out")
    rows = load_rows([str(file) for file in files], PromptRow)
    keep_modalities(rows, settings.modalities)
    if question or with_options:
        ask(rows, question or "think", with_options)
    # What was answered of a row that is dropped now, or of a sound that it no longer has, gives way too.
    keys = {(name, id_of(row), variant): "" for row in rows for variant in variants}
    settle_sounds(rows, settings.no_audio)
    planned = plan(rows, name, variants, [model_fingerprint(model), asdict(settings)])
    keys |= {(a.model, a.id, a.variant): a.key for _, answers in planned for a in answers}
    total = sum(len(answers) for _, answers in planned)
    with ResultsFile(out, keys) as results:
        if results.superseded:
            print(f"{out}: {results.superseded} answers were made with other settings; moved to {out}.superseded")
        unanswered = ((row, [a for a in answers if a.key not in results.answers]) for row, answers in planned)
        if todo := [(row, answers) for row, answers in unanswered if answers]:
            llm = start_engine(model, settings, engine)
            remaining = sum(len(answers) for _, answers in todo)
            progress = tqdm(total=total, initial=total - remaining, desc=f"evaluate {name}", unit="answer")
            # A decoder that dies of a file costs that row, and not the evaluation.
            with progress, closing(Children()) as children:
                jobs = prefetch(partial(load, processor=processor, call=children.call, settings=settings), todo)
                for answer in answer_jobs(llm, jobs, settings, processor.image_processor.image_mean):
                    results.add(answer)
                    progress.update()
        return [results.answers[a.key] for _, answers in planned for a in answers]


def ask(rows: list[Row], question: str, with_options: bool) -> None:
    """Put another question into the rows' prompts, in place; the media stay."""
    labels: dict[str, set[str]] = {}
    for row in rows:
        labels.setdefault(row.data["data_source"], set()).add(row.data["reward_model"]["ground_truth"])
    for row in rows:
        source, (*before, last) = row.data["data_source"], row.data["prompt"]
        text = asked(question, options(source, labels[source]) if with_options else "")
        row.data["prompt"] = [*before, last | {"content": "".join(TAGS.findall(last["content"])) + text}]


def id_of(row: Row) -> str:
    return str((row.data.get("extra_info") or {}).get("id") or f"{row.data['data_source']}/{row.number}")


def plan(rows: list[Row], name: str, variants: Sequence[str], common_to_all: list) -> list[tuple[Row, list[Answer]]]:
    """Each row with the answers wanted for it, still empty, under their keys (``common_to_all`` is part of each)."""
    planned: list[tuple[Row, list[Answer]]] = []
    seen: dict[str, Row] = {}

    def content(source: str | list[str]) -> str:
        paths = [source] if isinstance(source, str) else source
        return fingerprint([media_fingerprint(path) for path in paths])

    for row in tqdm(rows, desc="identify media", unit="row"):
        data, row_id = row.data, id_of(row)
        if row_id in seen:
            raise RowsError(f"{row}: its extra_info.id {row_id!r} is also that of {seen[row_id]}; make ids distinct")
        seen[row_id] = row
        videos, audios = [data.get(key) or [] for key in ("videos", "audios")]
        absent = {VIDEO_BLANKED: not videos, AUDIO_MUTED: not audios}  # the sense that a variant would take away
        media = [[content(source) for source in sources] for sources in (videos, audios)]
        answers = [
            Answer(
                key=fingerprint([row_id, data["prompt"], media, common_to_all, variant]),
                model=name,
                data_source=data["data_source"],
                id=row_id,
                variant=variant,
                label=data["reward_model"]["ground_truth"],
                question=TAGS.sub("", data["prompt"][-1]["content"]),
                videos=videos,
                audios=audios,
                actor=(data.get("extra_info") or {}).get("actor") or "",
            )
            for variant in variants
            if not absent.get(variant)
        ]
        planned.append((row, answers))
    return planned


def load(row: Row, answers: list[Answer], processor: Any, call: Call, settings: Settings) -> Job:
    """Render a row's prompt and read its media, by ``call``; if that fails, its answers have the ``error``."""
    wanted = processor.num_frames, processor.frame_format(settings.aspect_ratio)
    try:
        frames = [read_frames(source, *wanted, call) for source in row.data.get("videos") or []]
        waves = [read_sound(source, call=call) for source in row.data.get("audios") or []]
    except MediaError as error:
        return [replace(answer, error=str(error)) for answer in answers], {}
    text = processor.apply_chat_template(row.conversation(), tokenize=False, add_generation_prompt=True)
    metadata = {"instruction": question_of(text)}  # the question of HumanOmni's gate travels with the video
    data = {"video": [(video, metadata) for video in frames], "audio": waves}
    request = {"prompt": text, "multi_modal_data": {kind: media for kind, media in data.items() if media}}
    if settings.use_audio_in_video:  # not an argument of the engine: vLLM's processor asks the request alone
        request |= {"prompt": processor.one_stream(text), "mm_processor_kwargs": {"use_audio_in_video": True}}
    return answers, request


def prefetch(function: Callable[..., Job], items: Iterable[tuple]) -> Iterator[Job]:
    """``map`` in threads (decoders release the GIL), in order, only a few items ahead."""
    workers = min(os.cpu_count() or 1, 16)
    with ThreadPoolExecutor(workers) as pool:
        calls = (pool.submit(function, *item) for item in items)
        ahead = deque(islice(calls, 2 * workers))
        while ahead:
            ahead.extend(islice(calls, 1))
            yield ahead.popleft().result()


def start_engine(model: Path, settings: Settings, arguments: dict[str, Any]) -> Any:
    """A ``vllm.LLM`` for the model, on a GPU or a CPU."""
    os.environ[RUN] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for the scores
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # the engine must not inherit threads or a driver
    if is_cpu_only():
        answer_for_vllm()
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; the default takes a share of the machine
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # a process of its own doubles the start
        arguments = {"enforce_eager": True, **arguments}
    from vllm import LLM

    # Lines at each request, that threads stay bound to their cores, would bury the progress bar. (vLLM's import resets
    # the levels of its loggers.)
    logging.getLogger("vllm.v1.worker.cpu_worker").setLevel(logging.ERROR)
    arguments = {"max_model_len": settings.max_model_len, "dtype": settings.dtype, **arguments}
    if settings.aspect_ratio:
        arguments["mm_processor_kwargs"] = {"aspect_ratio": settings.aspect_ratio}
    if settings.use_audio_in_video:  # vLLM keeps a stream's placeholders by the frames alone, which may be blank
        arguments["mm_processor_cache_gb"] = 0
    if settings.repetition_penalty != 1:
        arguments["logits_processors"] = ["verl_omni.evaluation.repetition:NewTokensRepetitionPenalty"]
    return LLM(model=str(model), seed=0, limit_mm_per_prompt={"video": 1, "audio": 1}, **arguments)


def answer_jobs(llm: Any, jobs: Iterator[Job], settings: Settings, image_mean: list[float]) -> Iterator[Answer]:
    """Keep vLLM supplied with requests and yield answers as they finish, failures among them."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    from verl_omni.evaluation.repetition import ARGUMENT as PENALTY

    params = SamplingParams(temperature=0.0, max_tokens=settings.max_tokens)
    if settings.repetition_penalty != 1:
        params.extra_args = {PENALTY: settings.repetition_penalty}
    pending: dict[str, Answer] = {}
    job: Job | None = ([], {})
    while pending or job:
        while len(pending) < IN_FLIGHT and (job := next(jobs, None)):
            answers, request = job
            for answer in answers:
                if answer.error:
                    yield answer
                    continue
                try:
                    (sent,) = llm.enqueue([varied(request, answer.variant, image_mean)], params, use_tqdm=False)
                except (ValueError, VLLMValidationError) as error:  # it cannot serve the prompt, which may be too long
                    yield replace(answer, error=f"vLLM refused the row: {error}")
                else:
                    pending[sent.split("-")[0]] = answer  # vLLM adds a random part that its outputs do not have
        for output in llm.llm_engine.step() if pending else ():
            if output.finished:
                text, reason = output.outputs[0].text, output.outputs[0].finish_reason
                yield replace(pending.pop(output.request_id), completion=text, finish_reason=reason)


def blank_video(frames: np.ndarray, image_mean: list[float]) -> np.ndarray:
    """Frames uint8 ``[T, H, W, 3]`` in the image processor's mean colour (times 255, truncated, as in padding).

    The model sees them as zeros: nothing of the clip is left, not even its brightness.
    """
    return np.full_like(frames, [int(channel * 255) for channel in image_mean])


def varied(request: dict[str, Any], variant: str, image_mean: list[float]) -> dict[str, Any]:
    """The request without the sense that the variant takes away."""
    data = dict(request["multi_modal_data"])
    if variant == VIDEO_BLANKED:
        data["video"] = [(blank_video(video, image_mean), metadata) for video, metadata in data["video"]]
    if variant == AUDIO_MUTED:
        data["audio"] = [np.zeros_like(wave) for wave in data["audio"]]
    return request | {"multi_modal_data": data}
