// What the page calls those whose keypoints the model finds: people, dogs, hands.

const IRREGULAR = {
  person: "people", man: "men", woman: "women", child: "children", mouse: "mice", goose: "geese", foot: "feet",
  fish: "fish", sheep: "sheep", deer: "deer",
};

let singular = "person";

// Takes the name of the model's category; without one, the page speaks of poses.
export function setCategory(name) {
  singular = name || "pose";
}

export const one = () => singular;

export function many() {
  const [, before, word] = singular.match(/^(.*?)([^\s_-]*)$/s);
  if (Object.hasOwn(IRREGULAR, word.toLowerCase())) return before + IRREGULAR[word.toLowerCase()];
  if (/[^aeiou]y$/i.test(word)) return `${singular.slice(0, -1)}ies`;
  return singular + (/(s|x|z|ch|sh)$/i.test(word) ? "es" : "s");
}

export const countOf = (number) => (number === 1 ? `1 ${one()}` : `${number} ${many()}`);

// "person 3": by its track in a film, by its place in a photo.
export function nameOf({ number, track }) {
  if (track === undefined) return `${singular} ${number + 1}`;
  return track === null ? `${singular} without a number` : `${singular} ${track}`;
}

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
