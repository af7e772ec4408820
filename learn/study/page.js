"use strict";
// The page's pictures, its slider, and the way from a link to what it names. All numbers were computed by Python.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, text = "") {
  const made = document.createElementNS(/^(svg|line|path|circle|text)$/.test(tag) && attributes.svg ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml", tag);
  for (const [name, value] of Object.entries(attributes)) if (name !== "svg") made.setAttribute(name, value);
  made.textContent = text; // never innerHTML: a token of the text may look like a tag
  return made;
}

// Nine digits tell float32 values apart, seventeen float64 values.
function number(value, digits = 9) {
  const rounded = Number(value.toPrecision(digits));
  return Math.abs(rounded) < 1e-4 && rounded !== 0 ? rounded.toExponential() : String(rounded);
}

// --- tensors ---

function decode(tensor) {
  if (tensor.numbers) return tensor.numbers;
  const parse = (text) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const view = new DataView(bytes.buffer), wide = tensor.dtype === "float64", width = wide ? 8 : 4;
    return Float64Array.from({ length: bytes.length / width }, (_, i) =>
      wide ? view.getFloat64(8 * i, true) : view.getFloat32(4 * i, true));
  };
  const manual = parse(tensor.manual);
  tensor.numbers = { manual };
  if (hasAutograd(tensor)) {
    const autograd = tensor.autograd ? parse(tensor.autograd) : stepped(tensor);
    Object.assign(tensor.numbers, { autograd, difference: manual.map((value, i) => autograd[i] - value) });
  }
  return tensor.numbers;
}
// Autograd's number lies so many floats from the one by hand: their bits are counted on, a sign aside.
function stepped(tensor) {
  const view = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const manual = view(tensor.manual), steps = view(tensor.steps), bits = new DataView(new ArrayBuffer(4));
  return Float64Array.from({ length: steps.byteLength / 2 }, (_, i) => {
    const own = manual.getInt32(4 * i, true), at = (own < 0 ? -(own & 0x7fffffff) : own) + steps.getInt16(2 * i, true);
    bits.setInt32(0, at < 0 ? -at | 0x80000000 : at);
    return bits.getFloat32(0);
  });
}
// What is inside an operation is in the hand-written code alone.
const hasAutograd = (tensor) => Boolean(tensor.autograd || tensor.steps);
const kindsOf = (tensor, titles) => titles.filter(([kind]) => kind === "manual" || hasAutograd(tensor));
const finite = (numbers) => numbers.reduce((most, value) => Number.isFinite(value) ? Math.max(most, Math.abs(value)) : most, 0);

function label(axis, place) {
  if (axis === "T") return `${data.labels[data.inputs[place]]}`;
  if (axis === "V") return `${data.labels[place]}`;
  return String(place);
}
const axisWords = { T: "token", V: "vocabulary", C: "channel", "H·D": "channel", "(H+2K)·D": "output", D: "channel of the head", F: "wide channel", P: "place" };
// A token may be written from right to left: the two marks keep it from turning the words around it about.
const words = (axis, place) =>
  axis === "T" || axis === "V" ? `${axisWords[axis]} ${place} “\u2068${label(axis, place)}\u2069”` : `${axisWords[axis] || "index"} ${place}`;

// Blue below 0, red above, the page's background at 0: against the largest magnitude of the picture.
function colour(value, largest, dark) {
  const share = largest ? Math.max(-1, Math.min(1, value / largest)) : 0, strength = Math.sqrt(Math.abs(share));
  const end = share < 0 ? [33, 102, 230] : [214, 69, 33], middle = dark ? [24, 30, 37] : [250, 250, 250];
  return `rgb(${middle.map((each, i) => Math.round(each + (end[i] - each) * strength)).join()})`;
}
const isDark = () => {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};

function drawPanel(canvas, tensor, kind, panel, largest, width) {
  const [rows, columns] = [tensor.rows.length, tensor.columns.length];
  const [rowAxis, columnAxis] = tensor.axes, square = columns <= 40;
  const room = (axis, places) => 12 + 7 * Math.min(10, Math.max(...places.map((place) => label(axis, place).length)));
  const margin = rowAxis ? room(rowAxis, tensor.rows) : 4, head = columnAxis === "T" ? room("T", tensor.columns) : 4;
  // A square one is made small enough for three beside each other, as long as its cells can be told apart.
  const fit = (room) => Math.floor((room - margin - 6) / columns), beside = fit((width - 24) / 3);
  const cell = Math.max(2, Math.min(square ? 22 : 9, square && beside >= 6 ? beside : fit(width)));
  const height = rows > 24 ? Math.max(5, Math.min(cell, 12)) : 16;
  const [fullWidth, fullHeight] = [margin + cell * columns + 2, head + height * rows + 2];
  const ratio = window.devicePixelRatio || 1, context = canvas.getContext("2d");
  Object.assign(canvas, { width: fullWidth * ratio, height: fullHeight * ratio });
  Object.assign(canvas.style, { width: `${fullWidth}px`, height: `${fullHeight}px` });
  context.scale(ratio, ratio);
  const ink = getComputedStyle(document.body).color, dark = isDark(), values = decode(tensor)[kind];
  context.font = "11px ui-monospace, 'DejaVu Sans Mono', monospace";
  context.fillStyle = ink;
  const every = Math.ceil(12 / height);
  tensor.rows.forEach((place, r) => {
    if (rowAxis && r % every === 0) context.fillText(label(rowAxis, place).slice(0, 10), 2, head + height * r + Math.min(12, height), margin - 6);
  });
  if (columnAxis === "T") tensor.columns.forEach((place, c) => {
    if (c % Math.ceil(12 / cell)) return;
    context.save();
    context.translate(margin + cell * c + cell / 2 + 4, head - 4);
    context.rotate(-Math.PI / 2);
    context.fillText(label("T", place).slice(0, 10), 0, 0);
    context.restore();
  });
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
    context.fillStyle = colour(values[(panel * rows + r) * columns + c], largest, dark);
    context.fillRect(margin + cell * c, head + height * r, cell, height);
  }
  const mark = (r, c, style) => {
    context.strokeStyle = style;
    context.lineWidth = 2;
    context.strokeRect(margin + cell * c - 1, head + height * r - 1, cell + 2, height + 2);
  };
  const [p, r, c] = worstCell(tensor);
  if (kind === "difference" && p === panel && largest) mark(r, c, getComputedStyle(document.documentElement).getPropertyValue("--mark"));
  if (canvas.cursor) mark(...canvas.cursor, ink);
  canvas.cellAt = (x, y) => [Math.floor((y - head) / height), Math.floor((x - margin) / cell)];
}

// What the colours mean, said of those that occur.
function scale(values, largest) {
  const low = values.some((value) => value < 0), high = values.some((value) => value > 0);
  if (!low && !high) return "0 everywhere";
  return [low ? `−${number(largest, 3)} is blue` : "", "0 is blank", high ? `${number(largest, 3)} is red` : ""].filter(Boolean).join(", ");
}

// Which places a sample has, axis by axis.
function sampled(tensor) {
  const sizes = [1, 1, 1, ...tensor.shape].slice(-3), [rowAxis, columnAxis] = tensor.axes;
  return [["heads", tensor.panels, ""], ["rows", tensor.rows, rowAxis], ["columns", tensor.columns, columnAxis]]
    .map(([name, places, axis], i) => places.length === sizes[i] ? "" :
      `${places.length} of ${sizes[i].toLocaleString("en")} ${name} (${data.most[i]} evenly spaced, plus ${axis === "V" ? "the text's tokens and " : ""}the worst place)`)
    .filter(Boolean).join(", ");
}

function worstCell(tensor) {
  const [p, r, c] = [0, 0, 0, ...tensor.worst].slice(-3);
  return [tensor.panels.indexOf(p), tensor.rows.indexOf(r), tensor.columns.indexOf(c)];
}

function show(viewer, key) {
  const tensor = data.tensors[key], pictures = viewer.querySelector(".pictures"), readout = viewer.querySelector(".readout");
  const numbers = decode(tensor), [rows, columns] = [tensor.rows.length, tensor.columns.length];
  viewer.querySelector("select").value = key;
  pictures.replaceChildren();
  readout.textContent = "Point at a number, or tab to a picture and use the arrow keys.";
  const total = tensor.shape.reduce((a, b) => a * b, 1), shown = numbers.manual.length;
  pictures.append(element("p", { class: "about" }, `Shape ${tensor.shape.join(" × ") || "of one number"}, ${tensor.dtype}. ` +
    (shown < total ? `A sample, ${shown.toLocaleString("en")} of ${total.toLocaleString("en")} numbers: ${sampled(tensor)}.` : total > 1 ? `All ${total.toLocaleString("en")} numbers.` : "")));
  const canvases = [];
  const say = (panel, r, c) => {
    const at = (panel * rows + r) * columns + c, digits = tensor.dtype === "float64" ? 17 : 9;
    const where = [tensor.panels.length > 1 ? `head ${tensor.panels[panel]}` : "", tensor.axes[0] ? words(tensor.axes[0], tensor.rows[r]) : "", tensor.shape.length ? words(tensor.axes[1], tensor.columns[c]) : ""];
    const place = where.filter(Boolean).join(", ");
    if (!numbers.autograd) readout.textContent = `${place || "the only number"}: ${number(numbers.manual[at], digits)}`;
    else readout.textContent = `${place}: by hand ${number(numbers.manual[at], digits)}, autograd ${number(numbers.autograd[at], digits)}, difference ${number(numbers.difference[at], 3)}`;
  };
  // Head by head, so that what is to be compared stands side by side where there is room.
  const heads = tensor.panels.map((head) => {
    const box = element("div", { class: "panels" });
    if (tensor.panels.length > 1) box.append(element("h5", {}, `head ${head}`));
    return box;
  });
  for (const [kind, title] of kindsOf(tensor, [["manual", "By hand (NumPy)"], ["autograd", "Autograd (PyTorch)"], ["difference", "Difference"]])) {
    const largest = finite(numbers[kind]);
    const [p, r, c] = worstCell(tensor), worst = tensor.shape.length ? `[${tensor.worst.join(", ")}]` : "the only number";
    pictures.append(element("p", { class: "scale" }, kind === "difference"
      ? `${title}: ${largest ? `largest ${number(largest, 3)}, at ${worst}, outlined` : "0 everywhere"}`
      : `${title}: ${scale(numbers[kind], largest)}`));
    tensor.panels.forEach((head, panel) => {
      const figure = element("figure"), canvas = element("canvas", { tabindex: "0", role: "img",
        "aria-label": `${title}, ${key}${tensor.panels.length > 1 ? `, head ${head}` : ""}: ${rows} rows, ${columns} columns; arrow keys read the numbers` });
      figure.append(element("figcaption", {}, title), canvas);
      heads[panel].append(figure);
      const redraw = () => drawPanel(canvas, tensor, kind, panel, largest, Math.min(viewer.clientWidth - 24, 1150));
      canvases.push(redraw);
      for (const kind of ["pointermove", "pointerdown"]) canvas.addEventListener(kind, (event) => { // a finger does not hover
        const [row, column] = canvas.cellAt(event.offsetX, event.offsetY);
        if (row >= 0 && column >= 0 && row < rows && column < columns) say(panel, row, column);
      });
      canvas.addEventListener("keydown", (event) => {
        const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -1e9], End: [0, 1e9] }[event.key];
        if (!step) return;
        event.preventDefault();
        const [row, column] = canvas.cursor || (p === panel ? [r, c] : [0, 0]), moved = canvas.cursor ? step : [0, 0];
        canvas.cursor = [Math.max(0, Math.min(rows - 1, row + moved[0])), Math.max(0, Math.min(columns - 1, column + moved[1]))];
        redraw();
        say(panel, ...canvas.cursor);
      });
      canvas.addEventListener("blur", () => { canvas.cursor = null; redraw(); });
    });
  }
  const groups = element("div", { class: "heads" });
  groups.append(...heads);
  pictures.append(groups);
  viewer.redraw = () => canvases.forEach((each) => each());
  viewer.redraw();
  const details = viewer.querySelector(".numbers");
  details.open = false;
  details.ontoggle = () => { if (details.open) fillTable(details.querySelector(".scroll"), tensor); };
}

function fillTable(box, tensor) {
  const numbers = decode(tensor), [rows, columns] = [tensor.rows.length, tensor.columns.length], digits = tensor.dtype === "float64" ? 17 : 9;
  box.replaceChildren();
  for (const [kind, title] of kindsOf(tensor, [["manual", "By hand"], ["autograd", "Autograd"], ["difference", "Difference"]])) tensor.panels.forEach((head, panel) => {
    const table = element("table"), top = element("tr");
    table.append(element("caption", {}, title + (tensor.panels.length > 1 ? `, head ${head}` : "")));
    top.append(element("th", { scope: "col" }, ""));
    tensor.columns.forEach((place) => top.append(element("th", { scope: "col" }, label(tensor.axes[1], place))));
    table.append(top);
    for (let r = 0; r < rows; r++) {
      const line = element("tr");
      line.append(element("th", { scope: "row" }, label(tensor.axes[0], tensor.rows[r])));
      for (let c = 0; c < columns; c++) line.append(element("td", {}, number(numbers[kind][(panel * rows + r) * columns + c], kind === "difference" ? 3 : digits)));
      table.append(line);
    }
    box.append(table);
  });
}

// --- chapters, links, search ---

function openChapter(chapter) {
  chapter.open = true;
  const viewer = chapter.querySelector(".viewer");
  if (viewer && !viewer.redraw) show(viewer, viewer.querySelector("select").value);
}

function readable(hash) {
  try { return decodeURIComponent(hash); } catch { return hash; } // an address may be cut off anywhere
}

function follow() {
  // "#softmax" is a chapter, "#softmax:activation~blocks.0.attention.probabilities" one of its tensors too.
  const [id, key] = readable(location.hash.slice(1)).split(":");
  const target = id && byId(id), chapter = target && target.closest("details.chapter");
  document.querySelectorAll(".map a[aria-current]").forEach((each) => each.removeAttribute("aria-current"));
  if (!target) return;
  if (chapter) {
    if (chapter.hidden) {
      byId("search").value = "";
      search();
    }
    openChapter(chapter);
  } else if (target.closest("details")) target.closest("details").open = true;
  const name = key && key.replaceAll("~", " "), viewer = chapter && chapter.querySelector(".viewer");
  if (viewer && Object.hasOwn(data.tensors, name)) {
    show(viewer, name);
    document.querySelectorAll(".map a").forEach((each) => { if (each.hash === location.hash) each.setAttribute("aria-current", "true"); });
  }
  (viewer && Object.hasOwn(data.tensors, name) ? viewer : target).scrollIntoView();
}
// The address does not change, and says nothing, where it is chosen again.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  if (link && link.getAttribute("href") === location.hash) follow();
});

document.querySelectorAll("details.chapter").forEach((chapter) => {
  chapter.addEventListener("toggle", () => { if (chapter.open) openChapter(chapter); });
  const select = chapter.querySelector(".viewer select");
  if (select) select.addEventListener("change", () => {
    show(chapter.querySelector(".viewer"), select.value);
    history.replaceState(null, "", `#${chapter.id}:${select.value.replaceAll(" ", "~")}`); // a link to just this
  });
});

// A step and its lines light up together.
document.querySelectorAll(".step").forEach((step) => {
  const lines = step.dataset.targets.split(" ").filter(Boolean).map(byId);
  const light = (on) => [step, ...lines].forEach((each) => each.classList.toggle("lit", on));
  for (const each of [step, ...lines]) {
    each.addEventListener("pointerenter", () => light(true));
    each.addEventListener("pointerleave", () => light(false));
    each.addEventListener("focusin", () => light(true));
    each.addEventListener("focusout", () => light(false));
  }
});

// "cross entropy" finds "Cross-entropy"; the tables' headings, the same in every chapter, are not looked at.
const plain = (text) => text.toLowerCase().replace(/[\s‐-―-]+/g, " ").trim();
function wordsOf(chapter) {
  if (!chapter.words) {
    const copy = chapter.cloneNode(true);
    copy.querySelectorAll("thead, .viewer").forEach((each) => each.remove());
    chapter.words = plain(copy.textContent);
  }
  return chapter.words;
}
function search() {
  const wanted = plain(byId("search").value), chapters = document.querySelectorAll("details.chapter");
  let count = 0;
  chapters.forEach((chapter) => {
    const title = chapter.querySelector("h3"), squashed = plain(`${title.textContent} ${title.dataset.words}`).replaceAll(" ", "");
    const found = !wanted || wordsOf(chapter).includes(wanted) || squashed.includes(wanted.replaceAll(" ", ""));
    chapter.hidden = !found;
    document.querySelector(`nav li[data-chapter="${chapter.id}"]`).hidden = !found;
    count += found;
  });
  byId("found").textContent = wanted ? `${count} of ${chapters.length} operations` : "";
}
byId("search").addEventListener("input", search);
byId("open-all").addEventListener("click", () => document.querySelectorAll("details.chapter").forEach(openChapter));
byId("close-all").addEventListener("click", () => document.querySelectorAll("details.chapter").forEach((each) => { each.open = false; }));
byId("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  redrawAll();
});
// --- the map ---

// The edges that do not lead from one node to the next: a straight line to the row below, a bracket at the side else.
function drawMap() {
  const map = document.querySelector(".map");
  byId("map-hint").hidden = map.scrollWidth <= map.clientWidth;
  map.querySelectorAll(".block").forEach((lane) => {
    const origin = lane.getBoundingClientRect(), edges = element("svg", { svg: true, class: "edges", "aria-hidden": "true" });
    const box = (node) => {
      const { left, right, top, bottom } = node.getBoundingClientRect();
      return { left: left - origin.left, right: right - origin.left, top: top - origin.top, bottom: bottom - origin.top };
    };
    const add = (d) => edges.append(element("path", { svg: true, d }));
    lane.querySelectorAll("[data-reads]").forEach((node) => node.dataset.reads.split(" ").forEach((name) => {
      const to = box(node), middle = (to.top + to.bottom) / 2;
      const source = name === "lane" ? lane.querySelector("h3") : lane.querySelector(`[data-tensor="${name}"]`), from = box(source);
      if (/residual/.test(node.dataset.tensor)) {
        const y = name === "lane" ? from.bottom + 2 : from.bottom - 8, x = to.left - 12;
        add(`M${name === "lane" ? x : from.left},${y}H${x}V${middle}H${to.left}m-5,-4l5,4l-5,4`);
      } else if (!node.closest("li").previousElementSibling.contains(source)) {
        const x = to.right + 10;
        add(`M${from.right},${(from.top + from.bottom) / 2}H${x}V${middle}H${to.right}m5,-4l-5,4l5,4`);
      } else {
        const x = (from.left + from.right) / 2;
        add(`M${x},${from.bottom}V${to.top}m-4,-5l4,5l4,-5`);
      }
    }));
    lane.querySelector(".edges")?.remove();
    lane.append(edges);
  });
}

function redrawAll() {
  drawMap();
  document.querySelectorAll(".viewer").forEach((each) => each.redraw && each.redraw());
  drawCurve();
}
let waiting;
window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(redrawAll, 150); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);

// --- the slider ---

const weight = byId("weight"), epsilon = byId("epsilon"), curve = byId("curve");

function drawCurve() {
  const sweep = data.sweeps[weight.value], at = Number(epsilon.value), middle = (sweep.steps.length - 1) / 2;
  const loss = sweep.losses[middle], line = sweep.steps.map((step) => loss + sweep.gradient * step);
  const low = Math.min(...sweep.losses), high = Math.max(...sweep.losses), room = (high - low || 1) * 0.2;
  const width = Math.max(320, Math.min(760, curve.clientWidth)), [left, right, top, bottom] = [52, width - 16, 12, 236];
  const x = (i) => left + (right - left) * i / (sweep.steps.length - 1);
  const y = (value) => bottom - (bottom - top) * (value - low + room) / (high - low + 2 * room);
  const path = (values) => values.map((value, i) => `${i ? "L" : "M"}${x(i).toFixed(1)},${y(value).toFixed(1)}`).join("");
  const add = (to, tag, attributes, text) => to.appendChild(element(tag, { svg: true, ...attributes }, text));
  curve.replaceChildren();
  curve.setAttribute("viewBox", `0 0 ${width} 264`);
  for (const value of [low, loss, high]) if (value === loss || Math.abs(y(value) - y(loss)) > 14) add(curve, "text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toPrecision(4));
  [0, middle, sweep.steps.length - 1].forEach((i) => add(curve, "text", { x: x(i), y: 256, "text-anchor": i === middle ? "middle" : i ? "end" : "start" }, `ε = ${number(sweep.steps[i], 2)}`));
  // An inner picture cuts off the line where it leaves the losses' range.
  const [w, h] = [right - left, bottom - top], plot = add(curve, "svg", { x: left, y: top, width: w, height: h, viewBox: `${left} ${top} ${w} ${h}` });
  add(plot, "line", { class: "tick", x1: x(middle), x2: x(middle), y1: top, y2: bottom });
  add(plot, "path", { class: "two", d: path(line) });
  add(plot, "path", { class: "one", d: path(sweep.losses) });
  add(plot, "circle", { class: "two", cx: x(at), cy: y(line[at]), r: 5 });
  add(plot, "circle", { class: "one", cx: x(at), cy: y(sweep.losses[at]), r: 6 });
  const text = `ε ${number(sweep.steps[at], 4)}: weight ${number(sweep.value + sweep.steps[at], 6)}, loss ${number(sweep.losses[at], 9)}, predicted ${number(line[at], 9)}, apart by ${number(sweep.losses[at] - line[at], 3)}. Gradient by hand ${number(sweep.gradient, 12)}, central difference ${number(sweep.difference, 12)}.`;
  byId("moved").textContent = text;
  epsilon.setAttribute("aria-valuetext", text);
  const table = element("table"), head = element("tr");
  for (const each of ["ε", "loss", "predicted", "difference"]) head.append(element("th", { scope: "col" }, each));
  table.append(head);
  sweep.steps.forEach((step, i) => {
    const row = element("tr");
    for (const value of [number(step, 4), number(sweep.losses[i]), number(line[i]), number(sweep.losses[i] - line[i], 3)]) row.append(element("td", {}, value));
    table.append(row);
  });
  byId("losses").replaceChildren(table);
}
weight.addEventListener("change", () => { epsilon.value = (data.sweeps[weight.value].steps.length - 1) / 2; drawCurve(); });
epsilon.addEventListener("input", drawCurve);

// --- narrow windows and paper ---

// On a phone a row of a table stands as a list: each cell is told by its column's heading.
document.querySelectorAll("table.stack").forEach((table) => {
  const titles = [...table.querySelectorAll("th")].map((each) => each.textContent);
  table.querySelectorAll("td").forEach((cell) => { cell.dataset.title = titles[cell.cellIndex]; });
});

// Paper shows every chapter, on white, whatever is open: and afterwards the page is as it was.
let before;
window.addEventListener("beforeprint", () => {
  const shut = [...document.querySelectorAll("details.chapter:not([open])")];
  before = { shut, theme: document.documentElement.dataset.theme };
  document.documentElement.dataset.theme = "light";
  shut.forEach(openChapter);
  redrawAll();
});
window.addEventListener("afterprint", () => {
  before.shut.forEach((each) => { each.open = false; });
  if (before.theme) document.documentElement.dataset.theme = before.theme;
  else delete document.documentElement.dataset.theme;
  redrawAll();
});

drawMap();
drawCurve();
window.addEventListener("hashchange", follow);
follow();
