// The page: what is drawn or dropped goes to the server, one picture at a time and the latest last; answers are shown.

import { Pad } from "./drawing.js";
import * as show from "./showing.js";

const LARGEST = 16 * 1024 * 1024; // bytes, as on the server
const find = (id) => document.getElementById(id);
const page = document.documentElement;

let model = null;
let names = [];
let photo = null; // a file; without one, the drawing is what is asked about
let target = null; // the class that is to be explained; without one, the likeliest
let answer = null;
let isAsking = false, isStale = false, isWhole = true;

const say = (text) => { find("status").textContent = text; };
const pad = new Pad(find("pad"), find("pen"), drawn, say);

function drawn(whole) {
  isWhole = whole;
  target = null;
  arrange();
  ask();
}

// What is to be seen and can be pressed, as things are.
function arrange() {
  if (!model) return;
  const draws = Boolean(model.draws), isEmpty = photo === null && pad.isEmpty;
  find("input-title").textContent = draws ? (photo ? "Your picture" : model.digits ? "Draw a digit" : "Draw") : "Your picture";
  find("pad").hidden = !draws || photo !== null;
  find("photo").hidden = photo === null;
  find("stage").classList.toggle("empty-photo", !draws && photo === null);
  find("hint").hidden = !isEmpty;
  find("hint").textContent = !draws ? "Drop a picture here, paste one, or choose one"
    : model.digits ? "Draw a digit here, or drop a photograph of one" : "Draw here, or drop a picture";
  find("undo").hidden = !draws;
  find("undo").disabled = photo !== null || pad.isEmpty;
  find("clear").disabled = isEmpty;
  find("keys").hidden = !draws;
}

function take(file) {
  if (!file) return;
  if (!file.type.startsWith("image/")) return problem(`${file.name || "This"} is no picture; PNG, JPEG, WebP, GIF and BMP are read`);
  if (file.size > LARGEST) return problem("The picture is larger than 16 MiB; shrink it");
  URL.revokeObjectURL(find("photo").src);
  find("photo").src = URL.createObjectURL(file);
  photo = file;
  target = null;
  isWhole = true;
  arrange();
  ask();
}

function clear() {
  photo = null;
  find("photo").removeAttribute("src");
  pad.clear();
  find(model?.draws ? "pad" : "choose").focus();
}

function problem(text) {
  find("problem").textContent = text;
  if (text) waiting();
}

function waiting() {
  answer = null;
  find("label").textContent = "?";
  find("label").classList.remove("long");
  find("share").textContent = "";
  show.bars(find("bars"), names, null, null, choose);
  for (const id of ["seen", "heat"]) {
    show.nothing(find(id));
    find(id).setAttribute("aria-label", "Nothing yet");
    find(`${id}-note`).textContent = "";
  }
  find("inside").hidden = true;
  page.classList.add("waiting");
}

async function ask() {
  if (isAsking) { isStale = true; return; }
  if (!model) return;
  isAsking = true;
  do {
    isStale = false;
    try {
      await once();
    } catch {
      problem("The server does not answer; is it still running?");
    }
  } while (isStale);
  isAsking = false;
}

async function once() {
  if (photo === null && pad.isEmpty) {
    problem("");
    waiting();
    say("");
    return;
  }
  const body = photo ?? await pad.picture(model.draws);
  const query = target === null ? "" : `?target=${target}`;
  const response = await fetch(`/look${query}`, { method: "POST", body, headers: { "Content-Type": body.type } });
  let found;
  try {
    found = await response.json();
  } catch {
    found = { error: "The server failed; its window says why" };
  }
  if (isStale && photo === null && pad.isEmpty) return;
  if (response.ok) {
    problem("");
    answered(found);
  } else {
    // Half a digit is often none yet: that is said once the stroke is done.
    problem(isWhole ? found.error : "");
    waiting();
  }
}

function answered(found) {
  if (!names.length) names = found.probabilities.map((_, number) => String(number));
  answer = found;
  page.classList.remove("waiting");
  find("label").textContent = found.label;
  find("label").classList.toggle("long", found.label.length > 10);
  find("share").textContent = show.percent(found.probability);
  show.bars(find("bars"), names, found, target, choose);
  find("inside").hidden = !found.layers.length;
  show.seen(find("seen"), found.seen);
  find("seen-note").textContent = `${found.seen.shape.join(" × ")}, values ${show.short(found.seen.low)} to ${show.short(found.seen.high)}`;
  find("seen").setAttribute("aria-label", `The image that the network took, ${found.seen.shape.join(" by ")}`);
  show.heat(find("heat"), found.seen, found.heat);
  const explained = names[found.heat ? found.heat.target : found.index];
  find("heat-note").textContent = !found.heat ? `There is none: ${found.no_heat}`
    : found.heat.empty ? `Nothing that the last convolution sees speaks for “${explained}”`
      : `Bright is what speaks for “${explained}”`;
  find("heat").setAttribute("aria-label", find("heat-note").textContent);
  show.layers(find("layers"), found.layers);
  if (isWhole) say(`${found.label}, ${show.percent(found.probability)}`);
}

function choose(number) {
  target = target === number ? null : number;
  ask();
}

find("help").open = !matchMedia("(pointer: coarse), (max-width: 48rem)").matches; // there, the answer is worth more
find("undo").addEventListener("click", () => pad.undo());
find("clear").addEventListener("click", clear);
find("choose").addEventListener("click", () => find("file").click());
find("stage").addEventListener("click", () => { if (model && !model.draws && !photo) find("file").click(); });
find("photo").addEventListener("error", () => {
  find("photo").hidden = true;
  find("hint").hidden = false;
  find("hint").textContent = "This cannot be shown";
});
find("file").addEventListener("change", (event) => { take(event.target.files[0]); event.target.value = ""; });
addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
addEventListener("dragover", (event) => { event.preventDefault(); page.classList.add("dragging"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) page.classList.remove("dragging"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  page.classList.remove("dragging");
  const file = [...event.dataTransfer.files][0];
  if (file) take(file); else problem("Drop a file; a picture of another page has to be saved first");
});

try {
  const response = await fetch("/model");
  model = await response.json();
  names = model.classes ?? [];
  if (!names.length && model.digits) names = Array.from({ length: 10 }, (_, digit) => String(digit));
  document.title = `${model.name} – xpcnn`;
  find("name").textContent = model.name;
  find("about").textContent = `${model.network}, ${model.parameters.toLocaleString("en")} parameters, on ${model.backend}`;
  arrange();
  waiting();
} catch {
  problem("The server does not answer; is it still running?");
}
