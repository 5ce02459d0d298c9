"use strict";
// Filters: a clip is shown if one of its answers (of the chosen model, or of any) fits. State lives in the URL's hash.
const form = document.getElementById("filters");
const cards = [...document.querySelectorAll(".card")];

function fits(answer, want) {
  const changes = answer.dataset.sensitive.split(" ").filter(Boolean);
  return (!want.model || answer.dataset.model === want.model)
    && (!want.outcome || answer.dataset.outcome === want.outcome)
    && (!want.sense || (want.sense === "either" ? changes.length > 0 : changes.includes(want.sense)))
    && (!want.text || answer.textContent.toLowerCase().includes(want.text.toLowerCase()));
}

function apply() {
  const want = Object.fromEntries(new FormData(form));
  let shown = 0;
  for (const card of cards) {
    const visible = (!want.label || card.dataset.label === want.label)
      && (!want.corpus || card.dataset.corpus === want.corpus)
      && [...card.querySelectorAll(".answer")].some((answer) => fits(answer, want));
    card.hidden = !visible;
    shown += visible;
  }
  document.getElementById("count").textContent = `${shown} of ${cards.length} clips`;
  document.getElementById("nothing").hidden = shown > 0;
  const state = new URLSearchParams(Object.entries(want).filter(([, value]) => value)).toString();
  if (state || location.hash.includes("=")) history.replaceState(null, "", state ? `#${state}` : "#clips");
}

function restore() {
  if (!location.hash.includes("=")) return;
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    if (form.elements[name]) form.elements[name].value = value;
  }
}

form.addEventListener("input", apply);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(apply));
document.getElementById("reset").addEventListener("click", () => form.reset());
addEventListener("hashchange", () => { restore(); apply(); });

for (const sound of document.querySelectorAll(".sound")) {
  const audio = sound.querySelector("audio");
  const wave = sound.querySelector("svg");
  const played = sound.querySelector(".played");
  audio.addEventListener("timeupdate", () => {
    played.style.clipPath = `inset(0 ${100 * (1 - audio.currentTime / audio.duration)}% 0 0)`;
  });
  wave.addEventListener("click", (event) => {
    const box = wave.getBoundingClientRect();
    const seek = () => { audio.currentTime = audio.duration * (event.clientX - box.left) / box.width; audio.play(); };
    if (audio.readyState > 0) { seek(); } else { audio.addEventListener("loadedmetadata", seek, { once: true }); audio.load(); }
  });
}

restore();
apply();
