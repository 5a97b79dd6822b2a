// Takes frames from a video element as JPEG files.

import { Problem } from "./api.js";

const LONG_SIDE = 960; // pixels

// The present frame, at most LONG_SIDE pixels on its longer side.
export function takeFrame(video) {
  const scale = Math.min(1, LONG_SIDE / Math.max(video.videoWidth, video.videoHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(video.videoWidth * scale);
  canvas.height = Math.round(video.videoHeight * scale);
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => {
    const done = (blob) => (blob ? resolve(blob) : reject(new Problem("No image", "The video delivered none.")));
    canvas.toBlob(done, "image/jpeg", 0.85);
  });
}
