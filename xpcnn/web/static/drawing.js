// The pad: strokes by mouse, pen, touch or keys, kept as points from 0 to 1, and a picture of them for the network.

const WIDTH = 0.085; // of a stroke, of the pad's side: what a digit of MNIST has once it fills its box
const STEP = 1 / 28, LARGE_STEP = 1 / 7; // of the keys
const SIDE = 280, MARGIN = 28; // pixels of the picture, and of the paper around it

export class Pad {
  // `changed(isWhole)` is called whenever the drawing is another; isWhole says that no stroke is under way.
  constructor(canvas, pen, changed, say) {
    Object.assign(this, { canvas, pen, changed, say });
    this.strokes = [];
    this.stroke = null; // the one under way
    this.pointer = null; // of which finger or mouse
    this.at = { x: 0.5, y: 0.25 }; // the pen of the keys
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(name, (event) => this.end(event));
    }
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => { this.lift(); pen.hidden = true; });
    canvas.addEventListener("focus", () => { pen.hidden = !canvas.matches(":focus-visible"); this.placePen(); });
    new ResizeObserver(() => this.paint()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
  }

  get isEmpty() { return !this.strokes.length; }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const inside = (value) => Math.min(1, Math.max(0, value));
    return { x: inside((event.clientX - box.left) / box.width), y: inside((event.clientY - box.top) / box.height) };
  }

  begin(event) {
    if (this.pointer !== null || event.button !== 0) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true, focusVisible: false });
    this.pen.hidden = true;
    this.lift();
    this.pointer = event.pointerId;
    this.canvas.setPointerCapture(event.pointerId);
    this.start(this.point(event));
  }

  move(event) {
    if (event.pointerId !== this.pointer || !this.stroke) return;
    const all = event.getCoalescedEvents?.() ?? [];
    for (const each of all.length ? all : [event]) this.stroke.push(this.point(each));
    this.drawn(false);
  }

  end(event) {
    if (event.pointerId !== this.pointer) return;
    this.pointer = null;
    this.lift();
  }

  start(point) {
    this.stroke = [point];
    this.strokes.push(this.stroke);
    this.drawn(false);
  }

  lift() {
    if (!this.stroke) return;
    this.stroke = null;
    this.drawn(true);
  }

  undo() {
    this.stroke = null;
    if (!this.strokes.pop()) return;
    this.drawn(true);
  }

  clear() {
    this.stroke = null;
    this.strokes = [];
    this.drawn(true);
  }

  key(event) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const way = ways[event.key];
    if (event.altKey || (event.metaKey || event.ctrlKey) && event.key.toLowerCase() !== "z") return;
    if (way) {
      const step = event.shiftKey ? LARGE_STEP : STEP;
      this.at.x = Math.min(1, Math.max(0, this.at.x + way[0] * step));
      this.at.y = Math.min(1, Math.max(0, this.at.y + way[1] * step));
      if (this.stroke) { this.stroke.push({ ...this.at }); this.drawn(false); }
    } else if (event.key === " " || event.key === "Enter") {
      if (event.repeat) { event.preventDefault(); return; }
      if (this.stroke) { this.lift(); this.say("Pen up"); } else { this.start({ ...this.at }); this.say("Pen down"); }
    } else if (event.key === "Backspace" || event.ctrlKey || event.metaKey) {
      this.undo();
    } else if (event.key === "Delete") {
      this.clear();
    } else {
      return;
    }
    event.preventDefault();
    this.placePen();
    this.pen.hidden = false;
  }

  placePen() {
    this.pen.style.left = `${100 * this.at.x}%`;
    this.pen.style.top = `${100 * this.at.y}%`;
    this.pen.classList.toggle("down", this.stroke !== null && this.pointer === null);
  }

  drawn(isWhole) {
    this.paint();
    this.placePen();
    this.changed(isWhole);
  }

  paint() {
    const side = Math.round(this.canvas.clientWidth * (devicePixelRatio || 1));
    if (!side) return;
    if (this.canvas.width !== side) this.canvas.width = this.canvas.height = side;
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, side, side);
    trace(context, this.strokes, side, 0, getComputedStyle(this.canvas).getPropertyValue("--pencil"));
  }

  // A PNG: dark on light paper, or "light" on dark for networks that know no paper.
  picture(shade) {
    const margin = shade === "dark" ? MARGIN : 0, side = SIDE + 2 * margin;
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    context.fillStyle = shade === "dark" ? "#fff" : "#000";
    context.fillRect(0, 0, side, side);
    trace(context, this.strokes, SIDE, margin, shade === "dark" ? "#000" : "#fff");
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  }
}

function trace(context, strokes, side, offset, colour) {
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = WIDTH * side;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    const points = stroke.map(({ x, y }) => ({ x: offset + x * side, y: offset + y * side }));
    context.beginPath();
    context.moveTo(points[0].x, points[0].y);
    if (points.length === 1) context.lineTo(points[0].x + 0.01, points[0].y);
    // Through the middles of neighbours, so that a fast hand leaves curves and no corners.
    for (let i = 1; i + 1 < points.length; i++) {
      const next = points[i + 1];
      context.quadraticCurveTo(points[i].x, points[i].y, (points[i].x + next.x) / 2, (points[i].y + next.y) / 2);
    }
    if (points.length > 1) context.lineTo(points.at(-1).x, points.at(-1).y);
    context.stroke();
  }
}
