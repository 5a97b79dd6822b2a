// Places the score labels of poses where they cover neither heads nor each other, as labels.py does for files.
// Boxes are [x1, y1, x2, y2], all in units of the canvas.

const MARGIN = 5;
const HEAD = 2; // half the side of a head's square, in distances from the middle of its keypoints to the outermost
const SMALLEST_HEAD = 0.07; // smallest half side, in diagonals of the pose
const HEADS_WEIGHT = 3; // a covered pixel of a head costs as much as so many of another label

// The box around points [x, y].
export function boxOf(points) {
  const [xs, ys] = [0, 1].map((axis) => points.map((point) => point[axis]));
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

// The square around a head, from its points and all points of the pose; null without a point of the head.
export function headBox(head, all) {
  if (!head.length) return null;
  const [x1, y1, x2, y2] = boxOf(head);
  const [x, y] = [(x1 + x2) / 2, (y1 + y2) / 2];
  const reach = Math.max(...head.map((point) => Math.hypot(point[0] - x, point[1] - y)));
  const whole = boxOf(all);
  const half = Math.max(HEAD * reach, SMALLEST_HEAD * Math.hypot(whole[2] - whole[0], whole[3] - whole[1]));
  return [x - half, y - half, x + half, y + half];
}

// Upper left corners [x, y] of labels of `sizes` [width, height], one for each pose; the first pose chooses first.
// `poses` are the boxes of the poses with their heads; labels stay inside `canvas` [width, height].
export function placeLabels(poses, sizes, heads, canvas) {
  const placed = [];
  poses.forEach(([x1, y1, x2, y2], index) => {
    const [width, height] = sizes[index];
    const [middleX, middleY] = [(x1 + x2 - width) / 2, (y1 + y2 - height) / 2];
    const [above, below, left, right] = [y1 - MARGIN - height, y2 + MARGIN, x1 - MARGIN - width, x2 + MARGIN];
    const labels = [
      [middleX, above], [x1, above], [x2 - width, above],
      [right, y1], [left, y1], [right, middleY], [left, middleY],
      [middleX, below], [x1, below], [x2 - width, below],
      [right, y2 - height], [left, y2 - height], [middleX, middleY],
    ].map(([x, y]) => {
      const corner = [inside(x, canvas[0] - width), inside(y, canvas[1] - height)];
      return [...corner, corner[0] + width, corner[1] + height];
    });
    const costs = labels.map((label) => HEADS_WEIGHT * covered(label, heads) + covered(label, placed));
    placed.push(labels[costs.indexOf(Math.min(...costs))]);
  });
  return placed;
}

const inside = (value, most) => Math.min(Math.max(value, 0), Math.max(most, 0));

function covered(label, boxes) {
  return boxes.reduce((sum, box) => {
    const width = Math.min(label[2], box[2]) - Math.max(label[0], box[0]);
    const height = Math.min(label[3], box[3]) - Math.max(label[1], box[1]);
    return sum + Math.max(width, 0) * Math.max(height, 0);
  }, 0);
}
