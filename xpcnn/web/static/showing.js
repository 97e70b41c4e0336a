// Answers of the server as pictures: bars, the image that the network took, heat laid over it, maps of layers.

const VIRIDIS = ramp([[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137],
  [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37]]);
const INFERNO = ramp([[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51],
  [249, 140, 10], [249, 201, 50], [252, 255, 164]]);
const SHARE = 0.6; // of the heat in the mixture
const HEAT_SIDE = 256; // pixels of the mixture's longer side, about
const TILE = 50; // pixels of a map on the page, about
const MOST_BARS = 12;

export function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

export function percent(share) {
  const hundredths = 100 * share;
  return hundredths >= 99.95 ? "> 99.9 %" : `${hundredths.toFixed(1)} %`; // no network is certain
}

// Classes in their order; of many, the likeliest. `choose(index)` is called for the one that is to be explained.
export function bars(list, names, found, target, choose) {
  const many = names.length > MOST_BARS;
  const numbers = names.map((_, i) => i);
  if (many && found) numbers.sort((a, b) => found.probabilities[b] - found.probabilities[a]);
  const shown = numbers.slice(0, many ? MOST_BARS : names.length);
  while (list.children.length > shown.length) list.lastChild.remove();
  while (list.children.length < shown.length) list.append(bar(choose));
  list.classList.toggle("names", names.some((name) => name.length > 3));
  shown.forEach((number, i) => {
    const button = list.children[i].firstChild, share = found ? found.probabilities[number] : 0;
    const [name, track, text] = button.children;
    button.dataset.index = number;
    button.disabled = !found;
    button.setAttribute("aria-pressed", String(target === number));
    button.setAttribute("aria-label", found ? `${names[number]}: ${percent(share)}` : names[number]);
    button.classList.toggle("best", Boolean(found) && found.index === number);
    name.textContent = names[number];
    track.firstChild.style.transform = `scaleX(${share})`;
    text.textContent = found ? percent(share) : "";
  });
}

function bar(choose) {
  const item = document.createElement("li"), button = document.createElement("button");
  button.type = "button";
  for (const kind of ["class", "track", "percent"]) {
    const span = document.createElement("span");
    span.className = kind;
    button.append(span);
  }
  const fill = document.createElement("span");
  fill.className = "fill";
  button.children[1].append(fill);
  button.addEventListener("click", () => choose(Number(button.dataset.index)));
  item.append(button);
  return item;
}

export function seen(canvas, image) {
  paint(canvas, image.width, image.height, colours(image));
}

export function nothing(canvas) {
  paint(canvas, 1, 1, new Uint8ClampedArray(4));
}

// The image in grey with the heat over it, in straight lines between the middles of its cells.
export function heat(canvas, image, map) {
  const scale = Math.max(1, Math.round(HEAT_SIDE / Math.max(image.width, image.height)));
  const width = image.width * scale, height = image.height * scale;
  const base = colours(image), values = map ? bytes(map.pixels) : null;
  const out = new Uint8ClampedArray(4 * width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const from = 4 * (Math.floor(y / scale) * image.width + Math.floor(x / scale)), to = 4 * (y * width + x);
      const grey = (base[from] + base[from + 1] + base[from + 2]) / 3;
      const hot = values ? INFERNO[Math.round(between(values, map, (x + 0.5) / width, (y + 0.5) / height))] : null;
      for (let i = 0; i < 3; i++) out[to + i] = hot ? (1 - SHARE) * grey + SHARE * hot[i] : grey;
      out[to + 3] = 255;
    }
  }
  paint(canvas, width, height, out);
}

function between(values, map, x, y) {
  const along = (position, size) => {
    const exact = Math.min(size - 1, Math.max(0, position * size - 0.5)), low = Math.floor(exact);
    return [low, Math.min(size - 1, low + 1), exact - low];
  };
  const [left, right, dx] = along(x, map.width), [top, bottom, dy] = along(y, map.height);
  const at = (row, column) => values[row * map.width + column];
  return (1 - dy) * ((1 - dx) * at(top, left) + dx * at(top, right))
    + dy * ((1 - dx) * at(bottom, left) + dx * at(bottom, right));
}

// Figures are made once for a network, and painted anew for each answer.
export function layers(place, all) {
  const form = JSON.stringify(all.map((layer) => [layer.path, layer.kind, layer.count, layer.width, layer.height]));
  if (place.dataset.form !== form) {
    place.dataset.form = form;
    place.replaceChildren(...all.map(figure));
  }
  all.forEach((layer, number) => {
    const tiles = place.children[number].querySelectorAll("canvas"), pixels = bytes(layer.pixels);
    const size = layer.width * layer.height;
    tiles.forEach((canvas, i) => {
      const out = new Uint8ClampedArray(4 * size);
      for (let k = 0; k < size; k++) out.set(VIRIDIS[pixels[i * size + k]], 4 * k);
      paint(canvas, layer.width, layer.height, out);
    });
    place.children[number].querySelector(".range").textContent = `${short(layer.low)} to ${short(layer.high)}`;
  });
}

function figure(layer) {
  const made = document.createElement("figure"), caption = document.createElement("figcaption");
  const tiles = document.createElement("div"), name = document.createElement("b");
  name.textContent = layer.path ? `${layer.path}  ${layer.kind}` : layer.kind;
  const lines = [layer.shape.join(" × "), ""].map((text) => {
    const span = document.createElement("span");
    span.textContent = text;
    return span;
  });
  lines[1].className = "range";
  if (!layer.flat && layer.count < layer.shape[0]) lines[0].textContent += `, the first ${layer.count}`;
  if (layer.flat && layer.width < layer.shape[0]) lines[0].textContent += `, the first ${layer.width}`;
  caption.append(name, ...lines);
  tiles.className = layer.flat ? "tiles flat" : "tiles";
  tiles.setAttribute("aria-hidden", "true");
  const scale = Math.max(1, Math.round(TILE / layer.width));
  for (let i = 0; i < layer.count; i++) {
    const canvas = document.createElement("canvas");
    if (!layer.flat) canvas.style.width = `${Math.max(24, layer.width * scale)}px`;
    tiles.append(canvas);
  }
  made.append(caption, tiles);
  return made;
}

export function short(value) {
  const isPlain = value === 0 || (Math.abs(value) >= 0.01 && Math.abs(value) < 1000);
  return (isPlain ? value.toFixed(2) : value.toExponential(1)).replaceAll("-", "−");
}

function colours(image) {
  const values = bytes(image.pixels), size = image.width * image.height;
  const out = new Uint8ClampedArray(4 * size);
  for (let k = 0; k < size; k++) {
    for (let i = 0; i < 3; i++) out[4 * k + i] = values[(image.count === 3 ? i : 0) * size + k];
    out[4 * k + 3] = 255;
  }
  return out;
}

function paint(canvas, width, height, pixels) {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
}

function ramp(stops) {
  return Array.from({ length: 256 }, (_, i) => {
    const exact = i / 255 * (stops.length - 1), low = Math.min(stops.length - 2, Math.floor(exact)), part = exact - low;
    return [...stops[low].map((value, k) => Math.round(value + part * (stops[low + 1][k] - value))), 255];
  });
}
