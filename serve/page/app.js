// The page of a pose server: pictures in, poses over them, and the numbers behind.

import { Problem, findPoses, hasToken, loadModels, posesAddress, setToken } from "./api.js";
import { closeCamera, hasCamera, openCamera, takeFrame } from "./camera.js";
import { curlCommand, element, filterPeople, listPeople, milliseconds, showTimings } from "./result.js";
import { placePicture, savePicture, setFocus, showPeople } from "./stage.js";

const SAMPLES = [
  ["dance.jpg", "Sample: two people, one of them dancing"],
  ["group.jpg", "Sample: a group of seven"],
  ["portrait.jpg", "Sample: two people up close"],
];

const $ = (id) => document.getElementById(id);

let models = [];
let model = null;
const thresholds = new Map(); // of each model, where somebody moved the slider
let pictures = []; // those of the strip
let selected = null; // what was asked for last
let shown = null; // what stands on the stage
let request = new AbortController(); // of `selected`, or of the camera while it runs
let filming = false;
let retry = () => {};

// ------------------------------------------------------------------------------------------------------- pictures

// A picture, and what each model said about it. `image` stays null where the browser cannot show the file.
class Picture {
  image = null;
  results = new Map();

  constructor(name, address, file = null) {
    Object.assign(this, { name, address, file });
  }

  async load(signal) {
    this.file ??= await (await fetch(this.address, { signal })).blob();
    if (this.image) return;
    const image = new Image();
    image.src = this.address;
    image.alt = ""; // the canvas over it says what is to be seen
    this.image = await image.decode().then(
      () => image,
      () => null,
    );
  }
}

function addFiles(files) {
  const added = [...files].map((file) => new Picture(file.name || "picture", URL.createObjectURL(file), file));
  if (!added.length) return;
  pictures = [...added, ...pictures];
  $("strip").prepend(...added.map((picture) => thumbnail(picture, picture.name)));
  show(added[0]);
}

function thumbnail(picture, label) {
  const image = element("img");
  Object.assign(image, { src: picture.address, alt: label, decoding: "async" });
  const button = element("button", "thumb", image);
  button.type = "button";
  button.title = label;
  button.addEventListener("click", () => show(picture));
  picture.thumb = button;
  return element("li", "", button);
}

function remove(picture) {
  pictures = pictures.filter((other) => other !== picture);
  picture.thumb?.parentElement.remove();
  URL.revokeObjectURL(picture.address);
}

function select(picture) {
  selected = picture;
  for (const { thumb } of pictures) thumb.removeAttribute("aria-current");
  picture?.thumb?.setAttribute("aria-current", "true");
  picture?.thumb?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

// Shows a picture and its poses. Whatever was asked before is given up and can change nothing any more.
async function show(picture) {
  const { signal } = begin();
  select(picture);
  setBusy(true, "Finding people …");
  try {
    await picture.load(signal);
    signal.throwIfAborted();
    if (picture.image) place(picture);
    if (!model) await chooseModels();
    if (!picture.results.has(model.name)) await ask(picture, signal);
    signal.throwIfAborted();
    if (!picture.image) place(picture);
    showResult();
    setBusy(false);
  } catch (error) {
    if (signal.aborted) return;
    setBusy(false, "");
    const refused = [400, 413, 415, 422].includes(error.status);
    if (refused && !picture.image) remove(picture);
    if (shown) showResult();
    else select(null);
    report(error, () => show(picture), refused ? `${picture.name}: ` : "");
  }
}

async function ask(picture, signal) {
  const { name, version, keypoint_set } = model;
  const onBusy = (seconds) => tell(`The server is busy; asking again in ${Math.max(1, Math.round(seconds))} s.`);
  const result = await findPoses(name, picture.file, { signal, onBusy });
  picture.results.set(name, result);
  // Another version came in meanwhile, or there was none yet.
  if (!keypoint_set || result.answer.model.version !== version) await chooseModels();
}

// Gives up what runs, for something new.
function begin() {
  request.abort();
  request = new AbortController();
  if (filming) {
    filming = false;
    closeCamera($("video"));
    $("camera").textContent = "Start camera";
    $("rate").hidden = true;
  }
  $("problem").hidden = true;
  return request;
}

function place(picture) {
  shown = picture;
  if (selected !== picture) select(picture);
  const answered = picture.results.get(model?.name)?.answer.images[0];
  const image = picture.image;
  placePicture(image, image?.naturalWidth ?? answered.width, image?.naturalHeight ?? answered.height);
  refresh();
}

// --------------------------------------------------------------------------------------------------------- result

const result = () => shown?.results.get(model?.name);
const found = () => result()?.answer.images[0];

// The answer as both sliders leave it: what the server says to the same thresholds.
function visible() {
  const [least, leastOfKeypoint] = [$("score").valueAsNumber, $("keypoint").valueAsNumber];
  const poses = found()
    .poses.filter((pose) => pose.score >= least)
    .map((pose) => ({ ...pose, keypoints: pose.keypoints.filter((keypoint) => keypoint.score >= leastOfKeypoint) }));
  return { ...result().answer, images: [{ ...found(), poses }] };
}

function showResult() {
  const all = found()?.poses ?? [];
  if (shown !== selected) select(shown);
  listPeople(all, setFocus);
  showTimings(result());
  refresh();
}

// After a change of thresholds.
function refresh() {
  $("score-value").textContent = $("score").valueAsNumber.toFixed(2);
  $("keypoint-value").textContent = $("keypoint").valueAsNumber.toFixed(2);
  for (const id of ["copy-json", "download", "copy-curl"]) $(id).disabled = !result();
  $("command").textContent = result() ? command() : "";
  if (!result()) return showPeople([], []); // the panel keeps what it has while the answer is awaited
  for (const id of ["time", "export"]) $(id).hidden = false;
  const people = visible().images[0].poses.map((pose, index) => ({ ...pose, index }));
  const skeleton = model.keypoint_set?.skeleton ?? [];
  // Skeletons live in the pixels of the answer, the stage in those of the file; they are the same but for a
  // server that had to shrink it.
  const ratio = shown.image ? shown.image.naturalWidth / found().width : 1;
  showPeople(ratio === 1 ? people : people.map((person) => stretched(person, ratio)), skeleton);
  filterPeople(people, found().poses.length);
  $("canvas").setAttribute("aria-label", `${shown.name}: ${countOf(people.length)}`);
  if (!filming) tell(summary(people.length));
}

const stretched = (person, ratio) => ({
  ...person,
  keypoints: person.keypoints.map((keypoint) => ({ ...keypoint, x: keypoint.x * ratio, y: keypoint.y * ratio })),
});

const countOf = (people) => (people === 1 ? "1 person" : `${people} people`);

function summary(people) {
  const { poses } = found();
  if (people) return `${countOf(people)} found in ${milliseconds(result().roundTrip)}.`;
  if (!poses.length) return "Nobody found.";
  const best = Math.max(...poses.map((pose) => pose.score));
  return `Nobody above ${$("score").value}; the best candidate has ${best.toFixed(2)}.`;
}

function command() {
  const options = { score_threshold: $("score").value, keypoint_threshold: $("keypoint").value, max_people: 100 };
  const address = new URL(posesAddress(model.name, options), document.baseURI).href;
  return curlCommand(address, shown.name, shown.file.type || "application/octet-stream", hasToken());
}

// --------------------------------------------------------------------------------------------------------- camera

// One frame after another: the next is taken when the answer to the one before is there.
async function film() {
  const { signal } = begin();
  const video = $("video");
  setBusy(true, "Starting the camera …");
  try {
    await openCamera(video);
    if (signal.aborted) return closeCamera(video);
    filming = true;
    $("camera").textContent = "Stop camera";
    select(null);
    if (!model) await chooseModels();
    listPeople([], setFocus); // people come and go too fast for a list
    setBusy(false, "The camera is on.");
    let [before, rate] = [performance.now(), 0];
    while (!signal.aborted) {
      const file = await takeFrame(video);
      const frame = new Picture("camera.jpg", URL.createObjectURL(file), file);
      await Promise.all([frame.load(signal), ask(frame, signal)]).finally(() => URL.revokeObjectURL(frame.address));
      signal.throwIfAborted();
      if (!frame.results.has(model.name)) continue; // another model was chosen meanwhile
      showFrame(frame);
      const now = performance.now();
      rate = rate ? 0.8 * rate + 200 / (now - before) : 1000 / (now - before);
      before = now;
      $("rate").hidden = false;
      $("rate").textContent = `${rate.toFixed(1)} fps`;
    }
  } catch (error) {
    if (signal.aborted) return;
    stopFilming();
    report(error, film);
  }
}

function showFrame(frame) {
  selected = frame;
  place(frame);
  showTimings(result());
}

// The last frame stays, as a picture like any other.
function stopFilming() {
  begin();
  setBusy(false, "");
  if (shown) showResult();
}

// --------------------------------------------------------------------------------------------------------- models

async function chooseModels() {
  models = await loadModels();
  if (!models.length) throw new Problem("No model", "This server serves no model yet.");
  const options = models.map(({ name }) => Object.assign(element("option", "", name), { value: name }));
  $("model").replaceChildren(...options);
  $("model").disabled = models.length === 1;
  const before = models.find(({ name }) => name === model?.name);
  useModel(before ?? models.find((other) => other.default) ?? models[0]);
}

function useModel(chosen) {
  model = chosen;
  $("model").value = model.name;
  $("score").value = thresholds.get(model.name) ?? model.score_threshold;
  $("score-value").textContent = $("score").valueAsNumber.toFixed(2);
  const { method, version, ap, keypoint_set } = model;
  const facts = [
    method,
    version === null ? "from a checkpoint" : `version ${version}`,
    ap === null ? "AP not measured" : `AP ${ap.toFixed(3)}`,
    `${keypoint_set?.keypoints.length} keypoints`,
  ];
  $("about").replaceChildren(...(keypoint_set ? facts : ["not started yet"]).map((fact) => element("span", "", fact)));
  $("about").title = model.source;
}

// ---------------------------------------------------------------------------------------------------- what is told

function tell(text) {
  $("status").textContent = text;
}

function setBusy(busy, text) {
  for (const id of ["stage", "panel"]) $(id).setAttribute("aria-busy", String(busy));
  if (text !== undefined) tell(text);
}

function report(error, again, about = "") {
  const known = error instanceof Problem;
  if (!known) console.error(error);
  retry = again;
  $("problem-title").textContent = about + (known ? error.title : "This should not have happened");
  $("problem-detail").textContent = known ? error.detail : String(error.message ?? error);
  $("access").hidden = error.status !== 401;
  $("again").hidden = error.status === 401 || [400, 413, 415, 422].includes(error.status);
  $("problem").hidden = false;
  if (error.status === 401) $("token").focus();
}

async function copy(text, button) {
  button.dataset.label ??= button.textContent;
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    done = copyOldWay(text); // without https there is no clipboard
  }
  button.textContent = done ? "Copied" : "Not copied";
  setTimeout(() => (button.textContent = button.dataset.label), 1500);
}

function copyOldWay(text) {
  const area = element("textarea", "unseen");
  area.value = text;
  const before = document.activeElement;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  before?.focus();
  return done;
}

async function download() {
  const address = URL.createObjectURL(await savePicture());
  const link = Object.assign(element("a"), { href: address, download: `${shown.name.replace(/\.\w+$/, "")}-poses.png` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

// --------------------------------------------------------------------------------------------------------- wiring

async function start() {
  pictures = SAMPLES.map(([file]) => new Picture(file, `page/samples/${file}`));
  $("strip").append(...pictures.map((picture, index) => thumbnail(picture, SAMPLES[index][1])));
  if (!hasCamera()) {
    $("camera").disabled = true;
    $("camera").title = "The browser offers a camera to pages over https only";
  }
  await connect();
}

async function connect() {
  $("problem").hidden = true;
  try {
    await chooseModels();
  } catch (error) {
    report(error, connect);
  }
}

for (const id of ["drop", "add"]) $(id).addEventListener("click", () => $("files").click());
$("files").addEventListener("change", ({ target }) => {
  addFiles(target.files);
  target.value = "";
});
$("camera").addEventListener("click", () => (filming ? stopFilming() : film()));
$("model").addEventListener("change", ({ target }) => {
  useModel(models.find(({ name }) => name === target.value));
  if (filming) return;
  if (shown) show(shown);
});
for (const id of ["score", "keypoint"]) $(id).addEventListener("input", refresh);
$("score").addEventListener("input", () => model && thresholds.set(model.name, $("score").value));
$("copy-json").addEventListener("click", ({ target }) => copy(JSON.stringify(visible(), null, 2), target));
$("copy-curl").addEventListener("click", ({ target }) => copy(command(), target));
$("download").addEventListener("click", download);
$("dismiss").addEventListener("click", () => ($("problem").hidden = true));
$("again").addEventListener("click", () => retry());
$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken($("token").value);
  $("token").value = "";
  retry();
});

const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  document.body.classList.remove("dragging");
  if (!carriesFiles(event)) return;
  event.preventDefault();
  addFiles(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => addFiles(event.clipboardData.files));
document.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, pre")) return;
  const next = pictures[pictures.indexOf(selected) + step];
  if (!next) return;
  event.preventDefault();
  if ($("strip").contains(document.activeElement)) next.thumb.focus();
  show(next);
});
// Nobody watches: no frame is sent.
document.addEventListener("visibilitychange", () => document.hidden && filming && stopFilming());

start();
