// Client of the HTTP API. Addresses are relative, so that the page also works under a prefix.

const RETRIES = 5;
const MAX_WAIT = 30; // seconds

// The page asks for every candidate, so that moving a slider needs no further request.
const SCORE_THRESHOLD = 0.01;
const MAX_PEOPLE = 100;

let token = "";

// The token stays in memory only; a later visit has to enter it again.
export function setToken(value) {
  token = value;
}

export const hasToken = () => token !== "";

// An error to show: with the title and detail of the server where it sent them.
export class Problem extends Error {
  constructor(title, detail, { status = 0, retryAfter = null } = {}) {
    super(title);
    Object.assign(this, { title, detail, status, retryAfter });
  }
}

export async function loadModels() {
  return (await (await send("v1/models", {})).json()).models;
}

// The address that answers with the poses of an image, by one model.
export function posesAddress(model, options) {
  return `v1/models/${encodeURIComponent(model)}/poses?${new URLSearchParams(options)}`;
}

// Finds the poses of an image: {answer, roundTrip}, where `roundTrip` is in milliseconds and includes the network.
// `tracking` {seconds, state} goes with a frame of a film, whose poses then have the numbers of people.
// A busy server is asked again after the time in its Retry-After; `onBusy` gets the seconds until then.
export async function findPoses(model, file, { signal, onBusy, tracking = null }) {
  const address = posesAddress(model, { score_threshold: SCORE_THRESHOLD, max_people: MAX_PEOPLE });
  const headers = tracking ? {} : { "Content-Type": file.type || "application/octet-stream" };
  const body = tracking ? formOf(file, tracking) : file;
  for (let attempt = 0; ; attempt++) {
    const start = performance.now();
    try {
      const response = await send(address, { method: "POST", headers, body, signal });
      return { answer: await response.json(), roundTrip: performance.now() - start };
    } catch (problem) {
      if (problem.status !== 503 || problem.retryAfter === null || attempt === RETRIES) throw problem;
      const seconds = Math.min(Math.max(Number(problem.retryAfter) || 1, 0.1), MAX_WAIT);
      onBusy(seconds);
      await pause(seconds, signal);
    }
  }
}

function formOf(file, tracking) {
  const form = new FormData();
  form.append("image", file, "frame.jpg");
  form.append("tracking", JSON.stringify(tracking));
  return form;
}

async function send(address, { headers = {}, ...options }) {
  if (token) headers = { ...headers, Authorization: `Bearer ${token}` };
  let response;
  try {
    response = await fetch(address, { headers, cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached", "Check that it is running and that this device can reach it.");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  throw new Problem(
    body.title || `${response.status} ${response.statusText}`.trim(),
    body.detail || "The server gave no reason.",
    { status: response.status, retryAfter: response.headers.get("Retry-After") },
  );
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
