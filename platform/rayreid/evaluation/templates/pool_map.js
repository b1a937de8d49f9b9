"use strict";
// The map: points by plotly.js, colours by a column, the crop under the pointer, pinned crops, and clusters.
// Texts from the data reach the page as textContent only, and plotly.js, which reads markup in its texts, gets none.

const data = JSON.parse(document.getElementById("data").textContent);
const element = id => document.getElementById(id);
const map = element("map"), tip = element("tip");

// ---- the data ----

function unpack(text, Type) {
  return new Type(Uint8Array.from(atob(text), letter => letter.charCodeAt(0)).buffer);
}

const count = data.keys.length;
const x = unpack(data.x, Float32Array), y = unpack(data.y, Float32Array);
const spriteOf = unpack(data.sprite, Uint32Array);
const pointOf = new Uint32Array(count);
spriteOf.forEach((sprite, point) => { pointOf[sprite] = point; });
const columns = data.columns.map(column => ({
  ...column,
  codes: column.codes && unpack(column.codes, Int16Array),
  values: column.values && unpack(column.values, Float32Array),
}));

const number = value => Number(value.toPrecision(4)).toString();
const counted = value => value.toLocaleString("en");

function wordOf(column, point) {
  if (column.codes) return column.codes[point] < 0 ? "none" : column.names[column.codes[point]];
  return Number.isNaN(column.values[point]) ? "none" : number(column.values[point]);
}

// ---- thumbnails ----

const sheets = new Map();

function sheetAddress(index) {
  if (!sheets.has(index)) {
    const bytes = unpack(element(`sheet-${index}`).textContent, Uint8Array);
    sheets.set(index, URL.createObjectURL(new Blob([bytes], {type: "image/jpeg"})));
  }
  return sheets.get(index);
}

function showCrop(place, sprite, width) {
  const {side, across, down, thumbnail: [high, wide]} = data.sheet;
  const scale = width / wide, height = high * scale, within = sprite % (across * down);
  const column = within % across, line = Math.floor(within / across);
  Object.assign(place.style, {
    width: `${width}px`,
    height: `${height}px`,
    backgroundImage: `url("${sheetAddress(Math.floor(sprite / (across * down)))}")`,
    backgroundSize: `${side * scale}px auto`,
    backgroundPosition: `${-column * width}px ${-line * height}px`,
  });
}

function describe(words, point, shown) {
  const lines = shown.map(column => {
    const line = document.createElement("span");
    line.textContent = `${column.name}: ${wordOf(column, point)}`;
    return line;
  });
  const key = document.createElement("b");
  key.textContent = data.keys[point];
  words.replaceChildren(key, ...lines);
}

// ---- colours, and the part of the images that is shown ----

const DIM = 0.1;
let colouring = columns[0];
let focus = null;  // {column, code}: only these images are shown

function bounds(values) {
  const known = values.filter(value => !Number.isNaN(value)).sort();
  const at = share => known[Math.round(share * (known.length - 1))];
  return known.length ? {low: at(0.01), middle: at(0.5), high: at(0.99), missing: values.length - known.length} : null;
}

function colourIndices(column) {
  // Positions in a list of colours, of which the last one is that of images without a value.
  if (column.codes) {
    const last = column.colours.length;
    return {colours: [...column.colours, data.none], indices: Array.from(column.codes, code => code < 0 ? last : code)};
  }
  const steps = 64, range = bounds(column.values);
  const colours = Array.from({length: steps}, (_, step) => blend(step / (steps - 1)));
  const level = value => Math.round((steps - 1) * Math.min(1, Math.max(0, (value - range.low) / (range.high - range.low || 1))));
  const indices = Array.from(column.values, value => Number.isNaN(value) ? steps : level(value));
  return {colours: [...colours, data.none], indices};
}

function blend(share) {
  const channels = text => [1, 3, 5].map(start => parseInt(text.slice(start, start + 2), 16));
  const place = share * (data.scale.length - 1), left = Math.min(Math.floor(place), data.scale.length - 2);
  const from = channels(data.scale[left]), to = channels(data.scale[left + 1]);
  return `rgb(${from.map((value, i) => Math.round(value + (to[i] - value) * (place - left)))})`;
}

function markers(column) {
  const {colours, indices} = colourIndices(column);
  const parts = colours.length;
  const steps = colours.flatMap((colour, i) => [[i / parts, colour], [(i + 1) / parts, colour]]);
  return {color: indices.map(index => index + 0.5), colorscale: steps, cmin: 0, cmax: parts};
}

function inFocus(point) {
  return !focus || focus.column.codes[point] === focus.code;
}

function focused() {
  return focus ? Array.from(x.keys()).filter(inFocus) : null;
}

function recolour() {
  const {color, colorscale, cmin, cmax} = markers(colouring);
  drawLegend();
  return Plotly.update(map, {
    "marker.color": [color], "marker.colorscale": [colorscale], "marker.cmin": cmin, "marker.cmax": cmax,
  }, {annotations: clusterNames()});
}

function refocus(next) {
  focus = next;
  const shown = element("focus"), points = focused();
  shown.hidden = !focus;
  if (focus) {
    const words = `${focus.column.name}: ${focus.column.names[focus.code]}`;
    shown.firstElementChild.textContent = `Only ${words} (${counted(points.length)})`;
  }
  drawLegend();
  return Plotly.update(map, {selectedpoints: [points]}, {annotations: clusterNames()});
}

function toggleFocus(column, code) {
  refocus(focus && focus.column === column && focus.code === code ? null : {column, code});
}

// ---- the legend ----

function drawLegend() {
  const legend = element("legend");
  legend.classList.toggle("many", Boolean(colouring.names && colouring.names.length > 12));
  legend.replaceChildren(...(colouring.codes ? categoryLegend() : numberLegend()));
}

function categoryLegend() {
  const all = new Array(colouring.names.length).fill(0), shown = [...all];
  colouring.codes.forEach((code, point) => {
    if (code < 0) return;
    all[code] += 1;
    shown[code] += inFocus(point);
  });
  return colouring.names.map((name, code) => {
    const line = document.createElement("button");
    const [dot, label, size] = ["i", "span", "span"].map(tag => document.createElement(tag));
    dot.style.background = colouring.colours[code];
    label.textContent = name;
    const part = focus && focus.column !== colouring;
    size.textContent = part ? `${counted(shown[code])} of ${counted(all[code])}` : counted(all[code]);
    line.type = "button";
    line.title = "Show only these";
    line.classList.toggle("chosen", Boolean(focus && focus.column === colouring && focus.code === code));
    line.append(dot, label, size);
    line.addEventListener("click", () => toggleFocus(colouring, code));
    return line;
  });
}

function numberLegend() {
  const range = bounds(colouring.values);
  const bar = document.createElement("div"), ends = document.createElement("div"), missing = document.createElement("div");
  if (range) {
    bar.className = "bar";
    bar.style.background = `linear-gradient(to right, ${data.scale.join(",")})`;
    ends.className = "ends";
    ends.append(...[`≤ ${number(range.low)}`, `median ${number(range.middle)}`, `≥ ${number(range.high)}`].map(text => {
      const end = document.createElement("span");
      end.textContent = text;
      return end;
    }));
  }
  const without = range ? range.missing : count;
  missing.textContent = without ? `grey: ${counted(without)} images without a value` : "";
  return [bar, ends, missing];
}

// ---- drawing ----

const centres = data.clusters === null ? [] : clusterCentres(columns[data.clusters]);

function clusterCentres(column) {
  // Each cluster with the median of its images' places.
  const members = column.names.map(() => []);
  column.codes.forEach((code, point) => { if (code >= 0) members[code].push(point); });
  const median = values => values.sort((a, b) => a - b)[values.length >> 1];
  return members.map((points, code) => ({code, points})).filter(({points}) => points.length).map(({code, points}) => ({
    code, x: median(points.map(point => x[point])), y: median(points.map(point => y[point])),
  }));
}

function clusterNames() {
  // Numbers on the map, as annotations: other texts of plotly.js lie below the points.
  const column = columns[data.clusters];
  if (colouring !== column) return [];
  const named = focus && focus.column === column ? centres.filter(({code}) => code === focus.code) : centres;
  return named.map(({code, x, y}) => ({
    x, y, text: String(code + 1), showarrow: false, borderpad: 1, bgcolor: "rgba(255,255,255,0.75)",
    font: {size: 13, color: "#111", weight: 700}, captureevents: false,
  }));
}

function hasWebGL() {
  return Boolean(document.createElement("canvas").getContext("webgl"));
}

function draw() {
  const accelerated = hasWebGL();
  if (!accelerated) {
    element("trouble").textContent = "This browser offers no WebGL, and the map is slow: switch on its hardware acceleration.";
    element("trouble").hidden = false;
  }
  const size = Math.max(3, Math.min(8, 800 / Math.sqrt(count)));
  const axis = {visible: false, zeroline: false, showgrid: false};
  const points = {
    type: accelerated ? "scattergl" : "scatter",
    mode: "markers", x, y, hoverinfo: "none",
    marker: {size, opacity: 0.8, line: {width: 0}, ...markers(colouring)},
    selected: {marker: {opacity: 0.9}},
    unselected: {marker: {opacity: DIM, color: "#6b7280"}},
  };
  const layout = {
    margin: {l: 0, r: 0, t: 0, b: 0}, showlegend: false, hovermode: "closest", hoverdistance: 12, dragmode: "pan",
    xaxis: axis, yaxis: {...axis, scaleanchor: "x"}, plot_bgcolor: "#fff", paper_bgcolor: "#fff",
    annotations: clusterNames(),
  };
  const config = {
    scrollZoom: true, displaylogo: false, responsive: true, plotlyServerURL: "",
    plotGlPixelRatio: devicePixelRatio,  // the default of 2 draws four times as many pixels
    modeBarButtons: [["pan2d", "zoom2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"], ["toImage"]],
  };
  drawLegend();
  return Plotly.newPlot(map, [points], layout, config);
}

// ---- pointing and pinning ----

let hovered = null;

function point(event) {
  const {pointNumber} = event.points[0];
  return inFocus(pointNumber) ? pointNumber : null;
}

function hover(event) {
  hovered = point(event);
  tip.hidden = hovered === null;
  if (tip.hidden) return;
  showCrop(tip.querySelector(".crop"), spriteOf[hovered], 96);
  const shown = [colouring, focus?.column, columns[data.clusters]].filter(Boolean);  // a pinned image has all columns
  describe(tip.querySelector(".words"), hovered, [...new Set(shown)]);
  const {clientX, clientY} = event.event, gap = 16;
  const {width, height} = tip.getBoundingClientRect();
  const left = clientX + gap + width > innerWidth ? clientX - gap - width : clientX + gap;
  tip.style.left = `${Math.max(0, left)}px`;
  tip.style.top = `${Math.max(0, Math.min(clientY + gap, innerHeight - height - gap))}px`;
}

const pinned = new Map();

function pin(chosen) {
  if (chosen === null) return;
  const card = pinned.get(chosen) || newCard(chosen);
  element("pins").prepend(card);
  element("hint").hidden = true;
  markPinned();
}

function newCard(chosen) {
  const card = document.createElement("div"), remove = document.createElement("button");
  const crop = document.createElement("div"), words = document.createElement("div");
  card.className = "pin";
  crop.className = "crop";
  words.className = "words";
  showCrop(crop, spriteOf[chosen], 96);
  describe(words, chosen, columns);
  remove.type = "button";
  remove.title = "Remove";
  remove.textContent = "×";
  remove.addEventListener("click", () => {
    pinned.delete(chosen);
    card.remove();
    markPinned();
  });
  card.append(crop, words, remove);
  pinned.set(chosen, card);
  return card;
}

function markPinned() {
  // A ring around each pinned image on the map.
  const shapes = Array.from(pinned.keys(), chosen => ({
    type: "circle", xsizemode: "pixel", ysizemode: "pixel", xanchor: x[chosen], yanchor: y[chosen],
    x0: -8, x1: 8, y0: -8, y1: 8, line: {color: "#111", width: 2},
  }));
  return Plotly.relayout(map, {shapes});
}

// ---- the table of clusters ----

function showLater(crops) {
  const seen = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(entry => {
    seen.unobserve(entry.target);
    showCrop(entry.target, Number(entry.target.dataset.sprite), 40);
  }), {rootMargin: "200px"});
  crops.forEach(crop => {
    crop.style.height = `${40 * data.sheet.thumbnail[0] / data.sheet.thumbnail[1]}px`;
    seen.observe(crop);
    crop.addEventListener("click", () => pin(pointOf[Number(crop.dataset.sprite)]));
  });
}

function sortable(table) {
  const body = table.tBodies[0];
  let last = null, sign = 1;
  const value = (row, index) => Number(row.cells[index].dataset.value ?? -Infinity);
  table.querySelectorAll("th[data-sort]").forEach(head => head.addEventListener("click", () => {
    const index = Number(head.dataset.sort);
    sign = last === index ? -sign : (index === 0 ? 1 : -1);
    last = index;
    body.append(...Array.from(body.rows).sort((a, b) => sign * (value(a, index) - value(b, index) || 0)));
  }));
}

function showCluster(code) {
  colouring = columns[data.clusters];
  element("colour").value = String(data.clusters);
  recolour().then(() => refocus({column: colouring, code}));
  element("desk").scrollIntoView();
}

// ---- start ----

element("colour").addEventListener("change", event => {
  colouring = columns[Number(event.target.value)];
  recolour();
});
element("focus").querySelector("button").addEventListener("click", () => refocus(null));

const loaded = new Promise(resolve => window.addEventListener("load", resolve));  // the sheets come last in the file

draw().then(() => loaded).then(() => {
  map.on("plotly_hover", hover);
  map.on("plotly_unhover", () => { tip.hidden = true; hovered = null; });
  map.on("plotly_relayouting", () => { tip.hidden = true; });
  map.on("plotly_click", event => pin(point(event)));
  document.body.dataset.ready = "yes";
});

if (data.clusters !== null) {
  const table = element("clusters");
  loaded.then(() => showLater(table.querySelectorAll(".crop")));
  sortable(table);
  table.querySelectorAll("[data-cluster]").forEach(button => {
    button.addEventListener("click", () => showCluster(Number(button.dataset.cluster)));
  });
}
