"use strict";

// Draws the answers of POST /v1/predict. Texts of the server are set as text, never as HTML.
const BOX_COLOUR = "rgb(255, 80, 255)";
const PARALLEL = 2; // uploads at the same time
const RETRIES = 60; // after the status 429

class Refusal extends Error {
  constructor(problem, remedy) {
    super(problem);
    this.remedy = remedy;
  }
}

const find = (selector, parent = document) => parent.querySelector(selector);
const waiting = [];
let network = null;
let palette = null;
let active = 0;
let done = 0;
let failed = 0;
let total = 0;

async function load() {
  try {
    const answers = await Promise.all(["v1/model", "palette.json"].map((address) => fetch(address)));
    [network, palette] = await Promise.all(answers.map((answer) => answer.json()));
  } catch {
    find("#model").textContent = "The server does not answer; reload the page when it runs.";
    return;
  }
  const calibrated = network.calibrated ? "" : ", not calibrated";
  find("#model").textContent =
    `${network.model}${network.networks > 1 ? `, mean of ${network.networks} networks` : ""}, threshold ${network.threshold.toFixed(3)}${calibrated}, ${network.heatmap}` +
    ` (fractatlas ${network.versions.fractatlas})`;
  find("#notice").textContent = network.notice;
  start();
}

function add(files) {
  for (const file of files) {
    const article = find("#result").content.cloneNode(true).firstElementChild;
    find(".name", article).textContent = file.name;
    find("#results").append(article);
    waiting.push({ file, article });
    total += 1;
  }
  report();
  start();
}

function start() {
  while (network && active < PARALLEL && waiting.length) {
    const { file, article } = waiting.shift();
    active += 1;
    predict(file, article).finally(() => {
      active -= 1;
      done += 1;
      report();
      start();
    });
  }
}

function report() {
  const errors = failed ? `: ${done - failed} predicted, ${failed} failed` : "";
  find("#status").textContent = total ? `${done} of ${total} files done${errors}` : "";
}

async function predict(file, article) {
  const state = find(".state", article);
  state.textContent = "Uploading and predicting …";
  try {
    const answer = await send(file);
    const result = answer.results && answer.results[0];
    if (answer.error || !result || result.error) {
      const error = answer.error || (result && result.error) || { problem: "no result", remedy: "repeat the upload" };
      throw new Refusal(error.problem, error.remedy);
    }
    await show(result, answer.threshold, article);
  } catch (error) {
    failed += 1;
    const offline = error instanceof TypeError; // of fetch
    find(".problem", article).textContent = offline ? "the file could not be sent" : error.message;
    find(".remedy", article).textContent =
      error.remedy || (offline ? "check that it is not a folder, and that the server runs" : "repeat the upload");
    find(".error", article).hidden = false;
  } finally {
    state.hidden = true;
  }
}

async function send(file) {
  if (file.size > network.limits.max_bytes) {
    const limit = network.limits.max_bytes.toLocaleString("en");
    throw new Refusal(`the file is larger than ${limit} bytes`, "use a smaller file");
  }
  const form = new FormData();
  form.append("files", file, file.name);
  for (let attempt = 0; ; attempt += 1) {
    const response = await fetch("v1/predict?map=true&image=true", { method: "POST", body: form });
    if (response.status !== 429 || attempt >= RETRIES) return response.json();
    const seconds = Number(response.headers.get("Retry-After")) || 1;
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  }
}

async function pixelsOf(address) {
  const bytes = Uint8Array.from(atob(address.split(",")[1]), (character) => character.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  return { canvas, context, pixels: context.getImageData(0, 0, bitmap.width, bitmap.height) };
}

async function show(result, threshold, article) {
  const decision = find(".decision", article);
  decision.textContent = result.prediction ? "fractured" : "not fractured";
  decision.classList.toggle("fractured", Boolean(result.prediction));
  find(".probability", article).textContent =
    `${result.probability.toFixed(4)} (threshold ${threshold.toFixed(4)})`;
  find(".calibrated", article).textContent =
    result.probability_calibrated === null ? "not available" : result.probability_calibrated.toFixed(4);
  find(".size", article).textContent = `${result.width} x ${result.height} pixels`;
  find(".warning", article).textContent = result.warning ? `Check the image: ${result.warning}.` : "";
  find(".warning", article).hidden = !result.warning;
  const score = network.box_threshold === null ? "" : network.box_threshold.toFixed(3);
  find(".heat", article).textContent =
    result.boxes === null
      ? "This network has no fracture map. The heatmap is Grad-CAM: it shows what raised the probability, without boxes."
      : `Fracture map: the probability of a fracture at each place. ${result.boxes.length ? "Boxes have" : "No box has"} a score of at least ${score}.`;
  const boxes = result.boxes || [];
  for (const box of boxes) {
    const row = find(".boxes tbody", article).insertRow();
    const texts = [box.score.toFixed(3), ...["left", "top", "right", "bottom"].map((edge) => box[edge].toFixed(0))];
    for (const text of texts) row.insertCell().textContent = text;
  }
  find(".boxes", article).hidden = !boxes.length;
  find(".showboxes", article).parentElement.hidden = result.boxes === null;
  find(".body", article).hidden = false;

  const [image, map] = await Promise.all([pixelsOf(result.image), pixelsOf(result.map)]);
  colourMap(map, result);
  new Viewer(article, image, map, boxes, result);
}

// Colours and opacity are those of the overlays that the commands draw.
function colourMap({ context, pixels }, result) {
  const data = pixels.data;
  for (let index = 0; index < data.length; index += 4) {
    const stored = data[index] / 255;
    const heat = result.boxes === null ? stored * result.probability : Math.min(1, stored / network.full_heat);
    const [red, green, blue] = palette.colours[Math.round(255 * heat)];
    data[index] = red;
    data[index + 1] = green;
    data[index + 2] = blue;
    data[index + 3] = Math.round(255 * heat);
  }
  context.putImageData(pixels, 0, 0);
}

class Viewer {
  constructor(article, image, map, boxes, result) {
    Object.assign(this, { image, map, boxes, result, left: 0, top: 0 });
    this.canvas = find("canvas", article);
    this.canvas.setAttribute("aria-label", `Radiograph ${result.name}, ${result.prediction ? "" : "not "}fractured`);
    this.grey = Uint8ClampedArray.from(image.pixels.data.filter((value, index) => index % 4 === 0));
    this.inputs = {};
    for (const name of ["opacity", "level", "width", "zoom", "showboxes"]) {
      this.inputs[name] = find(`.${name}`, article);
      this.inputs[name].addEventListener("input", () => {
        if (name === "level" || name === "width") this.applyWindow();
        this.draw();
      });
    }
    find(".reset", article).addEventListener("click", () => this.reset());
    this.canvas.addEventListener("keydown", (event) => this.press(event));
    this.canvas.addEventListener("wheel", (event) => this.turn(event), { passive: false });
    this.canvas.addEventListener("pointerdown", (event) => this.canvas.setPointerCapture(event.pointerId));
    this.canvas.addEventListener("pointermove", (event) => this.drag(event));
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    this.draw();
    this.canvas.dataset.drawn = "true";
  }

  value(name) {
    return Number(this.inputs[name].value);
  }

  // The linear function of DICOM (PS3.3, C.11.2.1.2): level 128 and width 256 change nothing.
  applyWindow() {
    const data = this.image.pixels.data;
    const [level, width] = [this.value("level"), this.value("width")];
    for (let index = 0; index < this.grey.length; index += 1) {
      const shown = 255 * ((this.grey[index] - level + 0.5) / (width - 1) + 0.5);
      data[4 * index] = data[4 * index + 1] = data[4 * index + 2] = Math.min(255, Math.max(0, shown));
    }
    this.image.context.putImageData(this.image.pixels, 0, 0);
  }

  draw() {
    for (const input of Object.values(this.inputs)) {
      const unit = ["opacity", "zoom"].includes(input.className) ? " %" : "";
      if (input.type === "range") input.nextElementSibling.textContent = input.value + unit;
    }
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.canvas.clientWidth * ratio, this.canvas.clientHeight * ratio];
    if (!width || !height) return;
    this.canvas.width = width;
    this.canvas.height = height;
    const { canvas: picture } = this.image;
    const zoom = this.value("zoom") / 100;
    const scale = zoom * Math.min(width / picture.width, height / picture.height);
    const [shownWidth, shownHeight] = [picture.width * scale, picture.height * scale];
    const limit = (offset, shown, whole) => Math.max(-Math.max(0, shown - whole) / 2, Math.min(Math.max(0, shown - whole) / 2, offset));
    this.left = limit(this.left, shownWidth, width);
    this.top = limit(this.top, shownHeight, height);
    const x = (width - shownWidth) / 2 + this.left;
    const y = (height - shownHeight) / 2 + this.top;
    const context = this.canvas.getContext("2d");
    context.fillRect(0, 0, width, height);
    context.imageSmoothingEnabled = scale < 4;
    context.drawImage(picture, x, y, shownWidth, shownHeight);
    context.globalAlpha = this.value("opacity") / 100;
    context.drawImage(this.map.canvas, x, y, shownWidth, shownHeight);
    context.globalAlpha = 1;
    if (this.inputs.showboxes.checked) this.drawBoxes(context, x, y, shownWidth / this.result.width, ratio);
  }

  drawBoxes(context, x, y, scale, ratio) {
    context.strokeStyle = BOX_COLOUR;
    context.lineWidth = 2 * ratio;
    context.font = `${13 * ratio}px system-ui, sans-serif`;
    context.textBaseline = "bottom";
    for (const box of this.boxes) {
      const [left, top] = [x + box.left * scale, y + box.top * scale];
      context.strokeRect(left, top, (box.right - box.left) * scale, (box.bottom - box.top) * scale);
      const text = box.score.toFixed(2);
      context.fillStyle = "black";
      context.fillRect(left, top - 18 * ratio, context.measureText(text).width + 6 * ratio, 17 * ratio);
      context.fillStyle = "white";
      context.fillText(text, left + 3 * ratio, top - 2 * ratio);
    }
    context.fillStyle = "black";
  }

  setZoom(factor) {
    this.inputs.zoom.value = Math.round(this.value("zoom") * factor);
    this.draw();
  }

  turn(event) {
    event.preventDefault();
    this.setZoom(event.deltaY < 0 ? 1.15 : 1 / 1.15);
  }

  drag(event) {
    if (!event.buttons) return;
    const ratio = window.devicePixelRatio || 1;
    this.left += event.movementX * ratio;
    this.top += event.movementY * ratio;
    this.draw();
  }

  press(event) {
    const moves = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
    if (moves[event.key]) {
      this.left += moves[event.key][0];
      this.top += moves[event.key][1];
      this.draw();
    } else if (event.key === "+" || event.key === "=") this.setZoom(1.25);
    else if (event.key === "-") this.setZoom(0.8);
    else if (event.key === "0") this.reset();
    else return;
    event.preventDefault();
  }

  reset() {
    for (const input of Object.values(this.inputs)) {
      if (input.type === "checkbox") input.checked = input.defaultChecked;
      else input.value = input.defaultValue;
    }
    this.left = this.top = 0;
    this.applyWindow();
    this.draw();
  }
}

const drop = find("#drop");
find("#files").addEventListener("change", (event) => {
  add([...event.target.files]);
  event.target.value = ""; // so that the same file can be chosen again
});
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragenter" || name === "dragover");
  });
}
document.addEventListener("drop", (event) => add([...event.dataTransfer.files]));
load();
