// Takes frames from the camera as JPEG files.

import { Problem } from "./api.js";

const LONG_SIDE = 960; // pixels

export const hasCamera = () => Boolean(navigator.mediaDevices?.getUserMedia);

const REFUSALS = {
  NotAllowedError: "The browser does not allow this page to use the camera.",
  NotFoundError: "There is no camera.",
  NotReadableError: "Another program is using the camera.",
};

// Starts the camera and shows it in the video element.
export async function openCamera(video) {
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } }, audio: false });
    await video.play();
  } catch (error) {
    closeCamera(video);
    throw new Problem("No camera", REFUSALS[error.name] ?? String(error.message || error.name));
  }
}

export function closeCamera(video) {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
}

// The present frame, at most LONG_SIDE pixels on its longer side.
export function takeFrame(video) {
  const scale = Math.min(1, LONG_SIDE / Math.max(video.videoWidth, video.videoHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(video.videoWidth * scale);
  canvas.height = Math.round(video.videoHeight * scale);
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => {
    const done = (blob) => (blob ? resolve(blob) : reject(new Problem("No camera", "It delivered no image.")));
    canvas.toBlob(done, "image/jpeg", 0.85);
  });
}
