// The panel beside the image: the people found, the time taken, the command that gives the same answer.

import { keypointColour, personColour } from "./skeleton.js";
import { capital, many, nameOf } from "./words.js";

const PARTS = [
  ["decode", "Decode"],
  ["queue", "Queue"],
  ["predict", "Predict"],
  ["total", "Total on the server"],
  ["roundTrip", "Round trip"],
];

const $ = (id) => document.getElementById(id);

// Creates an element with a class and children; strings become text, never HTML.
export function element(tag, className = "", ...children) {
  const created = document.createElement(tag);
  if (className) created.className = className;
  created.append(...children);
  return created;
}

// Poses with a `number` each, which colours and highlights go by: in a film the track, below 0 for poses without one; in
// a photo the place in the answer.
export const numbered = (poses) =>
  poses.map((pose, index) => ({ ...pose, number: pose.track === undefined ? index : (pose.track ?? -1 - index) }));

let listed = new Map(); // item of the list, by the number of its person

// Lists every pose of an answer; `filterPeople` then shows those above the thresholds.
// `onFocus` gets {person, keypoint} while the pointer or the keyboard focus is on one, else null.
export function listPeople(poses, onFocus) {
  onFocus(null);
  $("nobody").hidden = false;
  $("people-name").textContent = capital(many());
  $("nobody").textContent = `${capital(many())} found are listed here, with their keypoints.`;
  $("count").textContent = "";
  listed = new Map(numbered(poses).map((person) => [person.number, personItem(person, onFocus)]));
  $("people").replaceChildren(...listed.values());
}

// Lists the people of a film's frame who have numbers. Items stay while their people are seen, so that one can be opened.
export function followPeople(poses, onFocus) {
  const people = numbered(poses).filter(({ number }) => number >= 0);
  const items = people.sort((a, b) => a.number - b.number).map((person) => {
    const item = listed.get(person.number) ?? personItem(person, onFocus);
    const shares = item.querySelectorAll(".share");
    [person, ...person.keypoints].forEach(({ score }, index) => setShare(shares[index], score));
    return [person.number, item];
  });
  if (items.length !== listed.size || items.some(([number]) => !listed.has(number))) {
    const present = new Set(items.map(([number]) => number));
    for (const [number, item] of listed) if (!present.has(number)) item.remove();
    items.forEach(([, item], index) => {
      if ($("people").children[index] !== item) $("people").insertBefore(item, $("people").children[index] ?? null);
    });
  }
  listed = new Map(items);
}

// Hides people and keypoints that are not in `people`, the visible ones; `all` is the number of candidates.
export function filterPeople(people, all) {
  const visible = new Map(people.map((person) => [person.number, new Set(person.keypoints.map(({ name }) => name))]));
  for (const [number, item] of listed) {
    item.hidden = !visible.has(number);
    for (const row of item.querySelectorAll("tr")) row.hidden = !visible.get(number)?.has(row.dataset.keypoint);
  }
  $("nobody").hidden = people.length > 0;
  $("nobody").textContent = all ? "All candidates are below the threshold." : `No ${many()} were found.`;
  $("count").textContent = all > people.length ? `${people.length} of ${all} candidates` : people.length;
}

function personItem(person, onFocus) {
  const dot = element("i", "dot");
  dot.style.background = personColour(person.number);
  const summary = element("summary", "", dot, capital(nameOf(person)), share(person.score));
  const rows = person.keypoints.map((keypoint) => keypointRow(keypoint, person.number, onFocus));
  const details = element("details", "", summary, element("table", "", element("tbody", "", ...rows)));
  const item = element("li", "", details);
  const here = () => onFocus({ person: person.number, keypoint: null });
  summary.addEventListener("pointerenter", here);
  summary.addEventListener("focus", here);
  summary.addEventListener("blur", () => onFocus(null));
  item.addEventListener("pointerleave", () => onFocus(null));
  return item;
}

function keypointRow({ name, score }, person, onFocus) {
  const dot = element("i", "dot");
  dot.style.background = keypointColour(name, personColour(person));
  const head = element("th", "", dot, name.replaceAll("_", " "));
  head.scope = "row";
  const row = element("tr", "", head, element("td", "", share(score)));
  row.dataset.keypoint = name;
  row.addEventListener("pointerenter", () => onFocus({ person, keypoint: name }));
  return row;
}

// A number from 0 to 1 with a bar of that length.
function share(value) {
  return setShare(element("span", "share", element("span")), value);
}

function setShare(bar, value) {
  bar.firstChild.textContent = value.toFixed(2);
  bar.style.setProperty("--share", Math.min(Math.max(value, 0), 1));
  return bar;
}

// Shows the milliseconds of each stage; the whole bar is the round trip. Without a result it shows nothing.
export function showTimings(result) {
  if (!result) {
    for (const id of ["bar", "timings", "round-trip"]) $(id).replaceChildren();
    return;
  }
  const { answer, roundTrip } = result;
  const { timings } = answer;
  const { decode, queue, predict, total } = timings;
  const spans = {
    decode,
    queue,
    predict,
    total: Math.max(total - decode - queue - predict, 0),
    roundTrip: Math.max(roundTrip - total, 0),
  };
  const values = { ...timings, roundTrip };
  const bars = PARTS.map(([part]) => {
    const bar = element("i", part);
    bar.style.flexGrow = spans[part];
    return bar;
  });
  $("bar").replaceChildren(...bars);
  $("timings").replaceChildren(
    ...PARTS.flatMap(([part, label]) => [
      element("dt", "", element("i", `dot ${part}`), label),
      element("dd", "", milliseconds(values[part])),
    ]),
  );
  $("round-trip").textContent = milliseconds(roundTrip);
}

export const milliseconds = (value) => `${value.toFixed(value < 10 ? 1 : 0)} ms`;

// The curl command that gives the same answer.
export function curlCommand(address, file, type, withToken) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  return [
    "curl",
    ...(withToken ? ['-H "Authorization: Bearer $TOKEN"'] : []),
    `-H ${quoted(`Content-Type: ${type}`)}`,
    `--data-binary ${quoted(`@${file}`)}`,
    quoted(address),
  ].join(" \\\n  ");
}
