// The page of a pose server: images in, poses over them, and their scores and times.

import { Problem, findPoses, hasToken, loadModels, posesAddress, setToken } from "./api.js";
import { camera, hasCamera } from "./camera.js";
import { Film, isFilm } from "./film.js";
import { takeFrame } from "./frames.js";
import {
  curlCommand, element, filterPeople, followPeople, listPeople, milliseconds, numbered, showTimings,
} from "./result.js";
import { placeImage, saveImage, setFocus, showOther, showPeople, useKeypoints } from "./stage.js";
import { capital, countOf, many, one, setCategory } from "./words.js";

const SAMPLES = [
  ["dance.jpg", "Sample: two people, one of them dancing"],
  ["group.jpg", "Sample: a group of seven"],
  ["portrait.jpg", "Sample: two people up close"],
];

const $ = (id) => document.getElementById(id);

let models = [];
let model = null;
let other = null; // the model beside it, or null
const thresholds = new Map(); // person score threshold by model, where the slider was moved
let photos = []; // with the films, in the order of the strip
let selected = null; // the photo or film chosen last
let shown = null; // the photo on the stage
let request = new AbortController(); // of `selected`, or of the camera while it is on
let filming = null; // the camera or the film whose frames are shown, or null
let retry = () => {};

// --------------------------------------------------------------------------------------------------------- photos

// An image file and each model's result for it. `image` stays null if the browser cannot show the file.
class Photo {
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
    image.alt = ""; // the canvas over it has the label
    this.image = await image.decode().then(
      () => image,
      () => null,
    );
  }
}

function addFiles(files) {
  const added = [...files].map((file) => {
    const address = URL.createObjectURL(file);
    return isFilm(file) ? new Film(file.name || "film", address) : new Photo(file.name || "image", address, file);
  });
  if (!added.length) return;
  photos = [...added, ...photos];
  $("strip").prepend(...added.map((photo) => thumbnail(photo, photo.name)));
  choose(added[0]);
}

const choose = (item) => (item instanceof Film ? follow(item) : show(item));

function thumbnail(photo, label) {
  const film = photo instanceof Film;
  const image = element("img");
  Object.assign(image, { src: film ? "" : photo.address, alt: label, decoding: "async" });
  const button = element("button", film ? "thumb of-film" : "thumb", film ? label : image);
  button.type = "button";
  button.title = label;
  button.addEventListener("click", () => choose(photo));
  photo.thumb = button;
  return element("li", "", button);
}

function remove(photo) {
  photos = photos.filter((other) => other !== photo);
  photo.thumb?.parentElement.remove();
  URL.revokeObjectURL(photo.address);
}

function select(photo) {
  selected = photo;
  for (const { thumb } of photos) thumb.removeAttribute("aria-current");
  photo?.thumb?.setAttribute("aria-current", "true");
  photo?.thumb?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

// Shows a photo and its poses. The request before is aborted and can no longer change the page.
async function show(photo) {
  const { signal } = begin();
  select(photo);
  setBusy(true, `Finding ${many()} …`);
  try {
    await photo.load(signal);
    signal.throwIfAborted();
    if (photo.image) place(photo);
    if (!model) await chooseModels();
    for (const each of [model, other]) {
      if (each && !photo.results.has(each.name)) await predict(photo, signal, each);
      signal.throwIfAborted();
    }
    if (!photo.image) place(photo);
    showResult();
    setBusy(false);
  } catch (error) {
    if (signal.aborted) return;
    setBusy(false, "");
    const refused = [400, 413, 415, 422].includes(error.status);
    if (refused && !photo.image) remove(photo);
    if (shown) showResult();
    else select(null);
    showProblem(error, () => show(photo), refused ? `${photo.name}: ` : "");
  }
}

async function predict(photo, signal, by = model, tracking = null) {
  const { name, version, keypoint_set } = by;
  const onBusy = (seconds) => setStatus(`The server is busy; asking again in ${Math.max(1, Math.round(seconds))} s.`);
  const result = await findPoses(name, photo.file, { signal, onBusy, tracking });
  photo.results.set(name, result);
  // The model was swapped, or had not started when the page was loaded.
  if (!keypoint_set || result.answer.model.version !== version) await chooseModels();
}

// Aborts the present request, camera or film, to begin something new.
function begin() {
  request.abort();
  request = new AbortController();
  if (filming) {
    filming.close($("video"));
    filming = null;
    $("camera").textContent = "Start camera";
    $("rate").hidden = true;
  }
  $("problem").hidden = true;
  return request;
}

function place(photo) {
  shown = photo;
  if (selected !== photo && !filming) select(photo);
  const answered = photo.results.get(model?.name)?.answer.images[0];
  const image = photo.image;
  placeImage(image, image?.naturalWidth ?? answered.width, image?.naturalHeight ?? answered.height);
  refresh();
}

// --------------------------------------------------------------------------------------------------------- result

const result = () => shown?.results.get(model?.name);
const found = () => result()?.answer.images[0];

// The answer after both thresholds, as the server would send it for the same thresholds.
function visible() {
  const [scoreThreshold, keypointThreshold] = [$("score").valueAsNumber, $("keypoint").valueAsNumber];
  const poses = found()
    .poses.filter((pose) => pose.score >= scoreThreshold)
    .map((pose) => ({ ...pose, keypoints: pose.keypoints.filter((keypoint) => keypoint.score >= keypointThreshold) }));
  const { model, timings } = result().answer;
  return { model, images: [{ ...found(), poses }], timings };
}

function showResult() {
  const all = found()?.poses ?? [];
  if (shown !== selected) select(photos.includes(shown) ? shown : null);
  listPeople(all, setFocus);
  showTimings(result());
  $("keypoint-note").hidden = result()?.answer.model.keypoint_scores !== "pose score, repeated";
  refresh();
}

// After a change of thresholds.
function refresh() {
  $("score-value").textContent = $("score").valueAsNumber.toFixed(2);
  $("keypoint-value").textContent = $("keypoint").valueAsNumber.toFixed(2);
  for (const id of ["copy-json", "download", "copy-curl"]) $(id).disabled = !result();
  $("command").textContent = result() ? command() : "";
  drawOther();
  if (!result()) return showPeople([]); // until the answer comes, the panel keeps the last one
  for (const id of ["time", "export"]) $(id).hidden = false;
  const people = numbered(visible().images[0].poses);
  // Poses are in pixels of the answer, the stage in those of the file. They differ only if the server shrank the image.
  const ratio = shown.image ? shown.image.naturalWidth / found().width : 1;
  const drawn = ratio === 1 ? people : people.map((person) => scaled(person, ratio));
  showPeople(drawn, `${model.name}: ${people.length} found`);
  filterPeople(people, found().poses.length);
  $("canvas").setAttribute("aria-label", `${shown.name}: ${countOf(people.length)}`);
  if (!filming) setStatus(summary(people.length));
}

// The poses of the other model beside those of the model, at its own threshold: methods differ in how high they score.
function drawOther() {
  const found = other && !filming ? shown?.results.get(other.name)?.answer.images[0] : null;
  if (!found || !shown.image) return showOther(null);
  const ratio = shown.image.naturalWidth / found.width;
  const threshold = thresholds.get(other.name) ?? other.score_threshold;
  const people = numbered(found.poses.filter((pose) => pose.score >= threshold)).map((person) => scaled(person, ratio));
  showOther({ people, set: other.keypoint_set, caption: `${other.name}: ${people.length} found` });
}

const scaled = (person, ratio) => ({
  ...person,
  keypoints: person.keypoints.map((keypoint) => ({ ...keypoint, x: keypoint.x * ratio, y: keypoint.y * ratio })),
});

function summary(people) {
  const { poses } = found();
  if (people) return `${countOf(people)} found in ${milliseconds(result().roundTrip)}.`;
  if (!poses.length) return `No ${many()} found.`;
  const best = Math.max(...poses.map((pose) => pose.score));
  return `No ${many()} above ${$("score").value}; the best candidate scores ${best.toFixed(2)}.`;
}

function command() {
  const options = { score_threshold: $("score").value, keypoint_threshold: $("keypoint").value, max_people: 100 };
  const address = new URL(posesAddress(model.name, options), document.baseURI).href;
  return curlCommand(address, shown.name, shown.file.type || "application/octet-stream", hasToken());
}

// ------------------------------------------------------------------------------------------------ camera and films

// Predicts one frame after another of a source, the camera or a film; the next is the one on screen when the answer for
// the last one has come. The tracker's state goes along, so that people keep their numbers.
async function follow(source) {
  const { signal } = begin();
  const video = $("video");
  const film = source instanceof Film;
  setBusy(true, film ? `Opening ${source.name} …` : "Starting the camera …");
  try {
    await source.open(video, signal);
    if (signal.aborted) return source.close(video);
    filming = source;
    if (!film) $("camera").textContent = "Stop camera";
    select(film ? source : null);
    if (!model) await chooseModels();
    listPeople([], setFocus);
    setBusy(false, film ? `Following ${many()} in ${source.name}.` : "The camera is on.");
    const addresses = [];
    let tracking = { seconds: 0, state: null };
    let [by, before, rate] = [model.name, performance.now(), 0];
    while (!signal.aborted) {
      await source.ready(video, signal);
      const seconds = source.seconds(video);
      // A jump back and another model begin with new people.
      const goesOn = by === model.name && seconds >= (tracking.state?.seconds ?? 0);
      tracking = { seconds, state: goesOn ? tracking.state : null };
      by = model.name;
      const file = await takeFrame(video);
      const frame = new Photo(film ? frameName(source, seconds) : source.name, URL.createObjectURL(file), file);
      addresses.push(frame.address);
      await Promise.all([frame.load(signal), predict(frame, signal, model, tracking)]);
      signal.throwIfAborted();
      if (!frame.results.has(model.name)) continue; // another model was chosen meanwhile
      tracking.state = frame.results.get(model.name).answer.tracking?.state ?? null;
      showFrame(frame);
      while (addresses.length > 1) URL.revokeObjectURL(addresses.shift()); // browsers read the image on screen again
      const now = performance.now();
      rate = rate ? 0.8 * rate + 200 / (now - before) : 1000 / (now - before);
      before = now;
      $("rate").hidden = false;
      $("rate").textContent = `${rate.toFixed(1)} fps`;
    }
  } catch (error) {
    if (signal.aborted) return;
    stopFilming();
    if (film && error.status === 415) remove(source);
    showProblem(error, () => follow(source), film ? `${source.name}: ` : "");
  }
}

const frameName = (film, seconds) => `${film.name.replace(/\.\w+$/, "")}-${seconds.toFixed(2)}s.jpg`;

function showFrame(frame) {
  place(frame);
  followPeople(found()?.poses ?? [], setFocus);
  refresh();
  showTimings(result());
}

// Keeps the last frame as a photo.
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
  useModel(before ?? models.find((each) => each.default) ?? models[0]);
  other = models.find(({ name }) => name === other?.name) ?? null;
  const none = Object.assign(element("option", "", "nothing"), { value: "" });
  $("other").replaceChildren(none, ...options.map((option) => option.cloneNode(true)));
  $("other").value = other?.name ?? "";
  showNotes();
  for (const id of ["other", "other-label"]) $(id).hidden = models.length === 1;
}

function useModel(chosen) {
  model = chosen;
  $("model").value = model.name;
  $("score").value = thresholds.get(model.name) ?? model.score_threshold;
  $("score-value").textContent = $("score").valueAsNumber.toFixed(2);
  const { method, version, ap, keypoint_set } = model;
  showNotes();
  useKeypoints(keypoint_set);
  setCategory(model.category);
  $("score-name").textContent = `${capital(one())} score`;
  const facts = [
    method,
    version === null ? "from a checkpoint" : `version ${version}`,
    ap === null ? "AP not measured" : `AP ${ap.toFixed(3)}`,
    `${keypoint_set?.keypoints.length} keypoints`,
  ];
  $("about").replaceChildren(...(keypoint_set ? facts : ["not started yet"]).map((fact) => element("span", "", fact)));
  $("about").title = model.source ?? model.problem ?? "";
}

// What users of the models must know, as their runs said.
function showNotes() {
  const noted = [...new Set([model, other])].filter((each) => each?.note);
  $("model-note").hidden = !noted.length;
  $("model-note").textContent = noted.map(({ name, note }) => (other ? `${name}: ${note}` : note)).join(" ");
}

// ------------------------------------------------------------------------------------------------------- messages

function setStatus(text) {
  $("status").textContent = text;
}

function setBusy(busy, text) {
  for (const id of ["stage", "panel"]) $(id).setAttribute("aria-busy", String(busy));
  if (text !== undefined) setStatus(text);
}

function showProblem(error, again, about = "") {
  const expected = error instanceof Problem;
  if (!expected) console.error(error);
  retry = again;
  $("problem-title").textContent = about + (expected ? error.title : "Unexpected error");
  $("problem-detail").textContent = expected ? error.detail : String(error.message ?? error);
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
    done = copyBySelection(text); // pages without https have no clipboard
  }
  button.textContent = done ? "Copied" : "Not copied";
  setTimeout(() => (button.textContent = button.dataset.label), 1500);
}

function copyBySelection(text) {
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
  const address = URL.createObjectURL(await saveImage());
  const link = Object.assign(element("a"), { href: address, download: `${shown.name.replace(/\.\w+$/, "")}-poses.png` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

// --------------------------------------------------------------------------------------------------------- wiring

async function start() {
  photos = SAMPLES.map(([file]) => new Photo(file, `page/samples/${file}`));
  $("strip").append(...photos.map((photo, index) => thumbnail(photo, SAMPLES[index][1])));
  if (!hasCamera()) {
    $("camera").disabled = true;
    $("camera").title = "Browsers allow the camera only on pages over https";
  }
  await connect();
}

async function connect() {
  $("problem").hidden = true;
  try {
    await chooseModels();
  } catch (error) {
    showProblem(error, connect);
  }
}

for (const id of ["drop", "add"]) $(id).addEventListener("click", () => $("files").click());
$("files").addEventListener("change", ({ target }) => {
  addFiles(target.files);
  target.value = "";
});
$("camera").addEventListener("click", () => (filming === camera ? stopFilming() : follow(camera)));
$("end").addEventListener("click", stopFilming);
$("model").addEventListener("change", ({ target }) => {
  useModel(models.find(({ name }) => name === target.value));
  if (filming) return;
  if (shown) show(shown);
});
$("other").addEventListener("change", ({ target }) => {
  other = models.find(({ name }) => name === target.value) ?? null;
  showNotes();
  if (!filming && shown) show(shown);
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
  const next = photos[photos.indexOf(selected) + step];
  if (!next) return;
  event.preventDefault();
  if ($("strip").contains(document.activeElement)) next.thumb.focus();
  choose(next);
});
// A hidden page sends no frames.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden || !filming) return;
  if (filming instanceof Film) $("video").pause();
  else stopFilming();
});

start();
