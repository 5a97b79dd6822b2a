// A film as a source of frames, see `follow` in app.js, and the bar to play, pause, seek and end it.

import { Problem } from "./api.js";

const ENDINGS = /\.(mp4|m4v|mov|webm|mkv|avi|ogv|mpe?g|3gp)$/i;
const LEAST_STEP = 0.015; // seconds between two frames; shorter than a frame of any film
const WAIT = 10; // milliseconds between two looks whether there is a new frame

const $ = (id) => document.getElementById(id);

export const isFilm = (file) => file.type.startsWith("video/") || ENDINGS.test(file.name ?? "");

// A film file, in the strip beside the photos. Its frames are those on screen when it is asked for one.
export class Film {
  last = -1; // seconds of the frame that was taken last

  constructor(name, address) {
    Object.assign(this, { name, address });
  }

  // Plays the film from the beginning. Browsers say only that they cannot play a file.
  async open(video) {
    this.last = -1;
    video.src = this.address;
    try {
      await video.play();
    } catch (error) {
      if (error.name === "AbortError") throw error; // another source took the video element
      this.close(video);
      throw new Problem(
        "This browser cannot play it",
        "Convert it to WebM or to MP4 with H.264, or predict the file with the command posefleet predict.",
        { status: 415 },
      );
    }
    $("film").hidden = false;
    show(video);
  }

  close(video) {
    video.pause();
    video.removeAttribute("src");
    video.load();
    $("film").hidden = true;
  }

  // Waits for another frame than the last one: while the film is paused or at its end, for the next jump.
  async ready(video, signal) {
    while (video.seeking || video.readyState < 2 || Math.abs(video.currentTime - this.last) < LEAST_STEP) {
      signal.throwIfAborted();
      await new Promise((resolve) => setTimeout(resolve, WAIT));
    }
  }

  seconds(video) {
    return (this.last = video.currentTime);
  }
}

function togglePlay(video) {
  if (video.paused) video.play();
  else video.pause();
}

// Jumps to the place of the slider.
function seek(video) {
  video.currentTime = $("seek").valueAsNumber;
  showTime($("seek").valueAsNumber, video.duration);
}

function show(video) {
  if ($("film").hidden) return;
  $("play").textContent = video.paused ? "Play" : "Pause";
  if (video.seeking) return;
  if (Number.isFinite(video.duration)) $("seek").max = video.duration;
  $("seek").disabled = !Number.isFinite(video.duration);
  $("seek").value = video.currentTime;
  showTime(video.currentTime, video.duration);
}

function showTime(now, whole) {
  const text = Number.isFinite(whole) ? `${clock(now)} / ${clock(whole)}` : clock(now);
  $("film-time").textContent = text;
  $("seek").setAttribute("aria-valuetext", text);
}

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

for (const event of ["play", "pause", "timeupdate", "seeked", "durationchange"]) {
  $("video").addEventListener(event, ({ target }) => show(target));
}
$("play").addEventListener("click", () => togglePlay($("video")));
$("seek").addEventListener("input", () => seek($("video")));
