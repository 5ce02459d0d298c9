"""The report: logs, escaping and self-containment on any machine; filters, pictures and sound in headless Chromium."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from verl_omni.__main__ import main
from verl_omni.evaluation.results import Answer, ResultsFile
from verl_omni.media import read_video, store
from verl_omni.report.clips import envelope, view
from verl_omni.report.curves import LogError, charts, read_log
from verl_omni.report.page import differences, make_cards, modality_rows

CLIPS = Path(__file__).parent / "golden" / "clips"
NASTY = '</article><script>document.title="taken over"</script><img src=x onerror=alert(1)>'


def answer(model: str, index: int, label: str, predicted: str, variant: str = "normal", **changes) -> Answer:
    clip = str(CLIPS / ("landscape.mp4", "portrait.mp4", "square.mp4")[index % 3])
    known = {
        "key": f"{model}-{variant}-{index}",
        "model": model,
        "data_source": "demo",
        "id": f"demo/{index}",
        "variant": variant,
        "label": label,
        "question": "Which emotion?",
        "videos": [clip],
        "audios": [clip],
        "completion": f"<think>It looks {predicted}.</think>\n<answer>{predicted}</answer>",
        "finish_reason": "stop",
    }
    return Answer(**known | changes)


def study() -> list[Answer]:
    return [
        answer("R1", 0, "happy", "happy"),
        answer("R1", 1, "sad", "sad"),
        answer("R1", 2, "angry", "sad", completion=f"<think>{NASTY}</think>\n<answer>sad</answer>"),
        answer("R1", 0, "happy", "sad", "video_blanked"),
        answer("R1", 1, "sad", "sad", "video_blanked"),
        answer("R1", 2, "angry", "sad", "video_blanked"),
        answer("R1", 0, "happy", "happy", "audio_muted"),
        answer("R1", 1, "sad", "happy", "audio_muted"),
        answer("R1", 2, "angry", "sad", "audio_muted"),
        answer(f"SFT {NASTY}", 0, "happy", "sad"),
        answer(f"SFT {NASTY}", 1, "sad", "sad"),
        answer(f"SFT {NASTY}", 2, "angry", "", completion="", error="c.mp4: no such file; put it back"),
    ]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    out = tmp_path / "report.html"
    log = tmp_path / "grpo.jsonl"
    log.write_text("".join(json.dumps({"step": s, "data": {"critic/rewards/mean": s / 4}}) + "\n" for s in range(1, 6)))
    with ResultsFile(tmp_path / "all.jsonl", {}) as results:
        for item in study():
            results.add(item)
    assert main(["report", str(results.path), "--logs", str(log), "--out", str(out), "--title", "A study"]) == 0
    return out


# --- logs


def test_verls_own_trackers_are_read(tmp_path: Path, monkeypatch) -> None:
    from verl.utils.logger.aggregate_logger import concat_dict_to_str
    from verl.utils.tracking import FileLogger

    path = tmp_path / "grpo.jsonl"
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(path))
    logger = FileLogger("project", "experiment")
    steps = [
        (1, {"critic/rewards/mean": 0.5, "note": "text"}),
        (2, {"critic/rewards/mean": 1e-05, "actor/kl_loss": -2}),
    ]
    console = tmp_path / "console.log"
    with console.open("w") as file:
        for step, data in steps:
            logger.log(data, step)
            file.write(f"(TaskRunner pid=1) {concat_dict_to_str(data, step)}\nunrelated: line - 1:2\n")
    logger.finish()
    expected = {"critic/rewards/mean": [(1, 0.5), (2, 1e-05)], "actor/kl_loss": [(2, -2.0)]}
    assert read_log(path) == expected
    assert read_log(console) == expected


def test_uar_is_drawn_from_the_recalls_of_the_classes(tmp_path: Path) -> None:
    recalls = {f"val-aux/demo/recall/{label}/mean@1": value for label, value in {"happy": 1.0, "sad": 0.5}.items()}
    path = tmp_path / "grpo.jsonl"
    path.write_text(json.dumps({"step": 5, "data": recalls | {"val-aux/demo/recall/fear/mean@1": 0.0}}) + "\n")
    assert read_log(path)["val-aux/demo/UAR"] == [(5, 0.5)]
    assert [chart["metric"] for chart in charts({"grpo": read_log(path)}, {"grpo": 0})] == ["val-aux/demo/UAR"]


def test_a_log_cut_off_in_its_last_line_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "grpo.jsonl"
    path.write_text('{"step":1,"data":{"critic/rewards/mean":0.5}}\n{"step":2,"data":{"critic/rew')
    assert read_log(path) == {"critic/rewards/mean": [(1, 0.5)]}


def test_a_file_that_is_no_log_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("hello\n")
    with pytest.raises(LogError, match=r"notes\.txt: no training step found"):
        read_log(path)


def test_runs_share_a_panel_and_points_stay_in_the_box() -> None:
    logs = {
        "a": {"critic/rewards/mean": [(1, 0.0), (10, 2.0)], "unknown/metric": [(1, 1.0)]},
        "b": {"critic/rewards/mean": [(1, 1.0)], "actor/kl_loss": [(1, 3.0)]},
    }
    found = charts(logs, {"a": 0, "b": 1})
    assert [(chart["metric"], list(chart["series"])) for chart in found] == [
        ("critic/rewards/mean", ["a", "b"]),
        ("actor/kl_loss", ["b"]),
    ]
    assert [[f"var(--c{colour})" in chart["svg"] for colour in (0, 1, 2)] for chart in found] == [
        [True, True, False],
        [False, True, False],
    ]
    for chart in found:
        width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', chart["svg"]).groups())
        points = re.findall(r'<use xlink:href="\S+" x="(\S+)" y="(\S+)"', chart["svg"])
        assert points and all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in points)


# --- the page


def test_the_page_is_self_contained(page: Path) -> None:
    html = page.read_text()
    for address in re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)["']""", re.sub(r"<script>.*?</script>", "", html)):
        assert address.startswith(("data:", "#")) or address == "x", address
    assert "&lt;img src=x" in html and "<img src=x" not in html
    assert not re.search(r"<link|@import|url\(", html)
    assert "default-src 'none'" in html


def test_all_text_is_escaped(page: Path) -> None:
    html = page.read_text()
    assert NASTY not in html
    assert html.count("<script>") == 1
    assert "&lt;/article&gt;&lt;script&gt;" in html


def test_published_figures_are_marked_as_such(page: Path) -> None:
    html = page.read_text()
    published = html[html.index("Published, not measured here") :]
    assert all(figure in published for figure in ("65.83", "56.27", "7.33", "44.69"))
    measured = html[html.index("Measured here") : html.index("Published, not measured here")]
    assert "66.67" in measured and "65.83" not in measured


def test_each_model_is_compared_with_the_one_before_it_on_the_rows_of_both(page: Path) -> None:
    answers = [answer("SFT", i, "sad", "happy") for i in range(4)] + [answer("R1", i, "sad", "sad") for i in range(3)]
    (found,) = differences(answers)
    assert (found.model, found.other, found.rows, found.war) == ("R1", "SFT", 3, 100.0)
    assert differences(answers[:4]) == []
    assert "against" in page.read_text()


def test_failures_are_listed(page: Path) -> None:
    html = page.read_text()
    assert "1 clips without an answer, counted as misses" in html
    assert "c.mp4: no such file; put it back" in html


def test_ablation_compares_the_same_rows() -> None:
    sound_only = answer("R1", 3, "sad", "happy", videos=[])
    rows = {row["sense"]: row for row in modality_rows([*study(), sound_only])}
    assert rows["picture"]["war"] == pytest.approx(200 / 3)  # without row 3, which has no picture
    assert rows["picture"]["war_without"] == pytest.approx(100 / 3)
    assert (rows["picture"]["changed"], rows["picture"]["compared"]) == (1, 3)


def test_cards_are_spread_over_all_rows() -> None:
    answers = [answer("R1", index, "sad", "sad", videos=[], audios=[]) for index in range(100)]
    assert [card["id"] for card in make_cards(answers, 3)] == ["demo/0", "demo/50", "demo/99"]


def test_a_clip_is_shown_with_frames_and_sound() -> None:
    shown = view([str(CLIPS / "landscape.mp4")], [str(CLIPS / "landscape.mp4")])
    assert len(shown.frames) == 8 and all(frame.startswith("data:image/jpeg;base64,") for frame in shown.frames)
    assert shown.sound.startswith("data:audio/mpeg;base64,") and shown.seconds > 1
    assert shown.wave == envelope_path(shown.wave)
    assert not shown.problems


@pytest.mark.parametrize("case", ["landscape", "portrait", "square"])
def test_frames_from_the_media_cache_show_the_clips_own_picture(case: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("VERL_OMNI_MEDIA_CACHE", str(tmp_path))
    clip = str(CLIPS / f"{case}.mp4")
    view([clip], [])
    monkeypatch.setattr(store, "read_video", lambda *_: pytest.fail("decoded again"))
    for shown, frame in zip(view([clip], []).frames, read_video(clip), strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2])))
        assert picture.height == 96 and abs(picture.width - frame.shape[1] * 96 / frame.shape[0]) <= 3
        pair = [np.asarray(image.resize((24, 24))).ravel() for image in (picture, Image.fromarray(frame))]
        assert np.corrcoef(pair)[0, 1] > 0.97  # 0.8 and 0.3 with the padding in it


def envelope_path(path: str) -> str:
    """``path`` if it is a closed path within the waveform's box."""
    points = [tuple(map(float, pair.split(","))) for pair in path.strip("MZ").split("L")]
    assert all(0 <= x <= 240 and 0 <= y <= 40 for x, y in points)
    return path


def test_media_that_do_not_decode_are_shown_as_a_problem() -> None:
    shown = view([str(CLIPS / "broken.mp4")], [str(CLIPS / "noaudio.mp4")])
    assert not shown.frames and not shown.sound
    assert len(shown.problems) == 2 and "broken.mp4" in shown.problems[0] and "noaudio.mp4" in shown.problems[1]


def test_silence_and_no_samples_have_a_waveform() -> None:
    envelope_path(envelope(np.zeros(1000, dtype=np.float32)))
    envelope_path(envelope(np.zeros(0, dtype=np.float32)))


def test_errors_name_the_file_and_the_remedy(tmp_path: Path, capsys) -> None:
    with ResultsFile(tmp_path / "r.jsonl", {}) as results:
        results.add(study()[0])
    assert main(["report", str(results.path), str(results.path)]) == 2
    assert "a second normal answer of R1 to demo/0" in capsys.readouterr().err
    (tmp_path / "empty.jsonl").touch()
    assert main(["report", str(tmp_path / "empty.jsonl")]) == 2
    assert "no answers in" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: no such results file" in capsys.readouterr().err


# --- in a browser

PROBE = """
<script>
"use strict";
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
const visible = () => cards.filter((card) => !card.hidden).map((card) => card.querySelector("h3").textContent);
const set = (values) => {
  form.reset();
  for (const [name, value] of Object.entries(values)) form.elements[name].value = value;
  form.dispatchEvent(new Event("input"));
  return visible();
};
const probe = { start: visible(), hash: location.hash, title: document.title };
const once = (node, name) => new Promise((done) => node.addEventListener(name, done, { once: true }));
(async () => {
  const images = [...document.images];
  images.forEach((image) => { image.loading = "eager"; });
  await Promise.all(images.map((image) => image.decode().catch((error) => errors.push(`${image.alt}: ${error}`))));
  probe.images = images.map((image) => image.naturalWidth);
  const audio = document.querySelector("audio");
  if (!(audio.readyState > 0)) {
    audio.load();
    await Promise.race([once(audio, "loadedmetadata"), once(audio, "error")]);
  }
  probe.seconds = audio.duration;
  probe.wrong = set({ outcome: "wrong" });
  probe.wrong_r1 = set({ outcome: "wrong", model: "R1" });
  probe.right_r1 = set({ outcome: "right", model: "R1" });
  probe.sad = set({ label: "sad" });
  probe.picture = set({ sense: "picture" });
  probe.sound = set({ sense: "sound" });
  probe.either = set({ sense: "either" });
  probe.text = set({ text: "ONERROR" , model: "R1" });
  probe.nothing = set({ label: "sad", outcome: "wrong" });
  probe.nothing_shown = !document.getElementById("nothing").hidden;
  document.getElementById("reset").click();
  await new Promise((done) => setTimeout(done, 50));
  probe.reset = visible();
  probe.count = document.getElementById("count").textContent;
  probe.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  probe.unlabelled = [...document.querySelectorAll("select, input, img, audio, svg[role=img]")]
    .filter((node) => !(node.labels?.length || node.alt || node.ariaLabel)).map((node) => node.outerHTML.slice(0, 80));
  probe.errors = errors;
  console.log(`PROBE ${JSON.stringify(probe)} END`);
})();
</script>
"""


def browse(page: Path, hash_: str = "", width: int = 1280) -> dict:
    """Open the page in headless Chromium with the probe at its end, and return what the probe found."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine: `apt-get install chromium` to test the page in a browser")
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text().replace("</body>", f"{PROBE}</body>"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},1000"]
    command += ["--disable-background-networking", "--no-first-run", "--enable-logging=stderr"]
    command += [f"--user-data-dir={page.parent / 'profile'}", f"file://{probed}{hash_}"]
    # The page says when it is done: a budget of virtual time runs out before its sound is read on a busy machine.
    shown = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as chromium:
        patience = threading.Timer(90, os.killpg, (chromium.pid, signal.SIGKILL))
        patience.start()
        for line in chromium.stderr:
            shown += line
            if "PROBE {" in line:
                break
        patience.cancel()
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(chromium.pid, signal.SIGKILL)
    found = re.search(r"PROBE (\{.*\}) END", shown)
    assert found, shown
    return json.loads(found[1])


@pytest.mark.slow
def test_filters_pictures_and_sound_work_in_chromium(page: Path) -> None:
    probe = browse(page)
    everything = ["demo/0", "demo/1", "demo/2"]
    assert probe["errors"] == []
    assert probe["title"] == "A study"  # the text in the results did not run
    assert probe["start"] == probe["reset"] == everything
    assert probe["count"] == "3 of 3 clips"
    assert len(probe["images"]) == 24 and min(probe["images"]) > 0
    assert probe["seconds"] == pytest.approx(view([], [str(CLIPS / "landscape.mp4")]).seconds, abs=0.2)
    assert probe["wrong"] == ["demo/0", "demo/2"]
    assert probe["wrong_r1"] == ["demo/2"]
    assert probe["right_r1"] == ["demo/0", "demo/1"]
    assert probe["sad"] == ["demo/1"]
    assert probe["picture"] == ["demo/0"]
    assert probe["sound"] == ["demo/1"]
    assert probe["either"] == ["demo/0", "demo/1"]
    assert probe["text"] == ["demo/2"]
    assert probe["nothing"] == [] and probe["nothing_shown"]
    assert probe["unlabelled"] == []
    assert probe["overflow"] <= 0


@pytest.mark.slow
def test_a_link_with_filters_opens_filtered(page: Path) -> None:
    assert browse(page, "#outcome=wrong&model=R1")["start"] == ["demo/2"]


@pytest.mark.slow
def test_a_phone_does_not_scroll_sideways(page: Path) -> None:
    assert browse(page, width=500)["overflow"] <= 0
