// Draws poses on a canvas in posefleet's colours: left limbs orange, right limbs blue, the middle in the person's colour.
// Keypoints of a schema without left and right have colours by their order instead, from red to violet.
// Positions are pixels of the image; line widths and sizes are units of the canvas.

const LEFT = "rgb(255 138 30)";
const RIGHT = "rgb(40 150 255)";
const OUTLINE = "rgb(20 20 20)";
const PEOPLE = ["#4ade80", "#e879f9", "#facc15", "#f87171", "#2dd4bf", "#c0a2ff", "#bef264"];

const FADED = 0.22;

export const personColour = (index) => PEOPLE[index % PEOPLE.length];

let colours = new Map();
let fineness = 1; // factor of widths: many keypoints, as of a face, would cover each other

// Tells the names of all keypoints, and the `pairs` of left and right ones, the left one first.
export function setKeypoints(names, pairs) {
  const hue = (index) => `hsl(${Math.round((index * 281) / (names.length - 1))} 90% 60%)`;
  colours = new Map(
    pairs.length || names.length < 2
      ? pairs.flatMap(([left, right]) => [[left, LEFT], [right, RIGHT]])
      : names.map((name, index) => [name, hue(index)]),
  );
  fineness = Math.min(1, Math.sqrt(17 / Math.max(names.length, 1)));
}

export const keypointColour = (keypoint, middle) => colours.get(keypoint) ?? middle;

// A limb has the colour of a side if both ends are on that side, or one end is and the other is in the middle of the
// body; where colours go by order, that of its second end.
function limbColour(a, b, middle) {
  const [one, other] = [keypointColour(a, null), keypointColour(b, null)];
  if (!one || !other || one === other) return one ?? other ?? middle;
  return one === LEFT || one === RIGHT ? middle : other;
}

// Draws people, the best on top. `people` are {index, score, keypoints} with the visible keypoints;
// `focus` is null or {person, keypoint}: the index of the highlighted person, and the name of a keypoint or null.
export function drawPoses(context, people, skeleton, scale, focus = null) {
  context.lineCap = context.lineJoin = "round";
  const faded = (person) => focus !== null && focus.person !== person.index;
  const inOrder = [...people].reverse().sort((a, b) => faded(b) - faded(a));
  for (const person of inOrder) {
    context.globalAlpha = faded(person) ? FADED : 1;
    drawFigure(context, person, skeleton, scale);
  }
  for (const person of inOrder.filter((person) => person.keypoints.length)) {
    context.globalAlpha = faded(person) ? FADED : 1;
    drawLabel(context, person, scale);
  }
  context.globalAlpha = 1;
  const at = people.find((person) => person.index === focus?.person)?.keypoints.find((k) => k.name === focus.keypoint);
  if (at) {
    circle(context, at.x * scale, at.y * scale, 9.5);
    stroke(context, OUTLINE, 4);
    stroke(context, "white", 2);
  }
}

function drawFigure(context, { index, keypoints }, skeleton, scale) {
  const middle = personColour(index);
  const at = new Map(keypoints.map(({ name, x, y }) => [name, [x * scale, y * scale]]));
  const [xs, ys] = [0, 1].map((axis) => [...at.values()].map((point) => point[axis]));
  const extent = at.size ? Math.hypot(Math.max(...xs) - Math.min(...xs), Math.max(...ys) - Math.min(...ys)) : 0;
  const thickness = Math.min(Math.max(0.017 * fineness * extent, 1.6 * fineness), 7);
  const limbs = skeleton.filter(([a, b]) => at.has(a) && at.has(b));
  for (const dark of [true, false]) {
    for (const [a, b] of limbs) {
      context.beginPath();
      context.moveTo(...at.get(a));
      context.lineTo(...at.get(b));
      stroke(context, dark ? OUTLINE : limbColour(a, b, middle), thickness + (dark ? 1.6 * fineness : 0));
    }
  }
  const radius = 0.85 * thickness + 0.8 * fineness;
  for (const [name, [x, y]] of at) {
    circle(context, x, y, radius + 0.9 * fineness);
    fill(context, OUTLINE);
    circle(context, x, y, radius);
    fill(context, keypointColour(name, middle));
  }
}

function drawLabel(context, { index, score, keypoints }, scale) {
  const text = score.toFixed(2);
  context.font = "600 11px system-ui, sans-serif";
  const width = context.measureText(text).width + 8;
  const x = Math.max(scale * Math.min(...keypoints.map((keypoint) => keypoint.x)), 0);
  const y = Math.max(scale * Math.min(...keypoints.map((keypoint) => keypoint.y)) - 22, 0);
  context.beginPath();
  context.roundRect(x, y, width, 16, 4);
  fill(context, "rgb(20 20 20 / .78)");
  context.fillStyle = personColour(index);
  context.textBaseline = "middle";
  context.fillText(text, x + 4, y + 8.5);
}

// The keypoint nearest to (x, y), in pixels of the image, and closer than `reach`: {person, keypoint} or null. At equal
// distance the better person wins.
export function nearestKeypoint(people, x, y, reach) {
  let [nearest, least] = [null, reach];
  for (const person of people) {
    for (const keypoint of person.keypoints) {
      const distance = Math.hypot(keypoint.x - x, keypoint.y - y);
      if (distance < least) [nearest, least] = [{ person, keypoint }, distance];
    }
  }
  return nearest;
}

function circle(context, x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
}

function stroke(context, colour, width) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.stroke();
}

function fill(context, colour) {
  context.fillStyle = colour;
  context.fill();
}
