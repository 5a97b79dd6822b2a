// The camera as a source of frames; see `follow` in app.js.

import { Problem } from "./api.js";

export const hasCamera = () => Boolean(navigator.mediaDevices?.getUserMedia);

const REFUSALS = {
  NotAllowedError: "The browser does not allow this page to use the camera.",
  NotFoundError: "There is no camera.",
  NotReadableError: "Another program is using the camera.",
};

export const camera = { name: "camera.jpg", open: openCamera, close: closeCamera, ready, seconds };

let opened = 0;

// Starts the camera and shows it in the video element, unless the user chose something else while the browser asked.
async function openCamera(video, signal) {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } }, audio: false });
    signal.throwIfAborted();
    video.srcObject = stream;
    await video.play();
    opened = performance.now();
  } catch (error) {
    stream?.getTracks().forEach((track) => track.stop());
    if (signal.aborted) throw error;
    video.srcObject = null;
    throw new Problem("No camera", REFUSALS[error.name] ?? String(error.message || error.name));
  }
}

function closeCamera(video) {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
}

// A camera always has a frame.
async function ready() {}

function seconds() {
  return (performance.now() - opened) / 1000;
}
