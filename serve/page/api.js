// The server: its models, and poses of a picture. Addresses are relative, so that a prefix in front of the page works.

const RETRIES = 5;
const LONGEST_WAIT = 30; // seconds

// Everything that the server knows of; the sliders then need no further request.
const LEAST_SCORE = 0.01;
const MOST_PEOPLE = 100;

let token = "";

// In memory only: another visit asks again.
export function setToken(value) {
  token = value;
}

export const hasToken = () => token !== "";

// What went wrong, in the words of the server where it has any.
export class Problem extends Error {
  constructor(title, detail, { status = 0, retryAfter = null } = {}) {
    super(title);
    Object.assign(this, { title, detail, status, retryAfter });
  }
}

export async function loadModels() {
  return (await (await send("v1/models", {})).json()).models;
}

// The address for poses of a picture by a model.
export function posesAddress(model, options) {
  return `v1/models/${encodeURIComponent(model)}/poses?${new URLSearchParams(options)}`;
}

// The poses of a picture, and how many milliseconds they took as seen from here.
// A busy server is asked again when it said it would like to be; `onBusy` is told the seconds until then.
export async function findPoses(model, picture, { signal, onBusy }) {
  const address = posesAddress(model, { score_threshold: LEAST_SCORE, max_people: MOST_PEOPLE });
  const headers = { "Content-Type": picture.type || "application/octet-stream" };
  for (let attempt = 0; ; attempt++) {
    const start = performance.now();
    try {
      const response = await send(address, { method: "POST", headers, body: picture, signal });
      return { answer: await response.json(), roundTrip: performance.now() - start };
    } catch (problem) {
      if (problem.status !== 503 || problem.retryAfter === null || attempt === RETRIES) throw problem;
      const seconds = Math.min(Math.max(Number(problem.retryAfter) || 1, 0.1), LONGEST_WAIT);
      onBusy(seconds);
      await pause(seconds, signal);
    }
  }
}

async function send(address, { headers = {}, ...options }) {
  if (token) headers = { ...headers, Authorization: `Bearer ${token}` };
  let response;
  try {
    response = await fetch(address, { headers, cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached", "Is it running, and this machine connected to it?");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Problem(
    told.title || `${response.status} ${response.statusText}`.trim(),
    told.detail || "The server gave no reason.",
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
