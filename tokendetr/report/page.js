"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const [SKIPPED, , MERGED] = [0, 1, 2];
  const pictures = {};

  const checked = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const shape = (tag, attributes) => {
    const made = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };

  // ----------------------------------------------------------------------------------- charts

  const options = { responsive: true, displaylogo: false, displayModeBar: false };
  function drawCharts(place) {
    if (place.childElementCount) return;
    const figures = data.figures[place.dataset.figures];
    const charts = figures.map(() => element("div"));
    place.append(...charts); // all of them first: the grid's columns decide their widths
    charts.forEach((chart, n) => Plotly.newPlot(chart, figures[n].data, figures[n].layout, options));
  }
  const visible = (place) => place.offsetParent !== null;
  const drawVisible = () => document.querySelectorAll(".charts").forEach((place) => {
    if (visible(place)) drawCharts(place);
  });

  // ----------------------------------------------------------------------------------- images

  function boxes(key, found, isTruth) {
    const image = data.images[key];
    const svg = shape("svg", { viewBox: `0 0 ${image.width} ${image.height}`, role: "img" });
    svg.setAttribute("aria-label", `${image.name}: ${found.length} ${isTruth ? "labels" : "detections"}`);
    svg.append(shape("image", { href: image.src, width: image.width, height: image.height }));
    const unit = Math.max(image.width, image.height) / 640;
    const placed = [];
    const labels = []; // above all frames
    for (const box of [...found].sort((a, b) => (b.score ?? 1) - (a.score ?? 1))) {
      const [x, y, width, height] = box.bbox;
      const color = data.colors[box.name];
      const frame = shape("rect", {
        x, y, width, height, fill: "none", stroke: color, "stroke-width": unit * (box.right ? 2 : 4.5),
      });
      if (isTruth) frame.setAttribute("stroke-dasharray", `${6 * unit} ${4 * unit}`);
      const title = shape("title", {});
      const score = box.score === undefined ? "" : ` ${box.score.toFixed(2)}`;
      title.textContent = `${box.name}${score}${box.right ? "" : isTruth ? " (missed)" : " (wrong)"}`;
      frame.append(title);
      svg.append(frame);
      const label = box.name + score;
      const area = { x, y: Math.max(0, y - 16 * unit), w: ([...label].reduce((sum, c) => sum + (/[A-Z]/.test(c) ? 9.6 : 7.7), 0) + 8) * unit, h: 16 * unit };
      area.x = Math.max(0, Math.min(area.x, image.width - area.w));
      const clash = placed.some((o) => area.x < o.x + o.w && o.x < area.x + area.w && area.y < o.y + o.h && o.y < area.y + area.h);
      if (clash) continue;
      placed.push(area);
      labels.push(shape("rect", { x: area.x, y: area.y, width: area.w, height: area.h, fill: color }));
      const text = shape("text", { x: area.x + 4 * unit, y: area.y + 12.5 * unit, fill: "#fff" });
      text.style.fontSize = `${12 * unit}px`;
      text.textContent = label;
      labels.push(text);
    }
    svg.append(...labels);
    return svg;
  }

  function drawImages() {
    const run = data.runs[checked("run")];
    const place = document.getElementById("pairs");
    place.replaceChildren();
    for (const key of run.images[checked("which")]) {
      const { found, wrong, missed } = run.counts[key];
      const views = element("div", { class: "views" },
        boxes(key, run.boxes[key].truth, true), boxes(key, run.boxes[key].detections, false));
      const caption = `${data.images[key].name}: ${found} found, ${wrong} wrong, ${missed} missed`;
      place.append(element("figure", { class: "pair" }, views, element("figcaption", {}, caption)));
    }
  }
  function drawLegend() {
    const classes = data.runs[checked("run")].classes.slice(0, 20);
    document.querySelectorAll(".class-legend").forEach((place) => place.replaceChildren(...classes.map((name) =>
      element("li", {}, element("span", { class: "swatch", style: `background:${data.colors[name]}` }), name))));
  }

  // ----------------------------------------------------------------------------------- tokens

  const canvas = document.getElementById("token-canvas");
  const token = { decoded: new Map(), cell: null };

  function unpack(text, kind) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return kind === 16 ? new Uint16Array(bytes.buffer) : bytes;
  }
  function layerOf(record, index) {
    const layer = record.layers[index];
    if (!token.decoded.has(layer)) {
      token.decoded.set(layer, {
        state: unpack(layer.state), query: layer.query && unpack(layer.query, 16),
        score: layer.score && unpack(layer.score),
      });
    }
    return { ...layer, ...token.decoded.get(layer) };
  }
  const startOf = (record, level) => record.levels.slice(0, level).reduce((sum, [h, w]) => sum + h * w, 0);

  function choices(id, name, labels, keep) {
    const place = document.getElementById(id);
    const legendOf = place.querySelector("legend");
    place.replaceChildren(legendOf, ...labels.map((label, index) => {
      const input = element("input", { type: "radio", name, value: index });
      input.checked = index === Math.min(keep, labels.length - 1);
      return element("label", {}, input, label);
    }));
  }

  function setUpTokens() {
    const records = data.tokens[checked("run")];
    const keys = Object.keys(records);
    document.getElementById("tokens").style.display = keys.length ? "" : "none";
    if (!keys.length) return;
    const before = (name) => Number(document.querySelector(`input[name="${name}"]:checked`)?.value ?? 0);
    choices("token-image", "token-image", keys.map((key) => data.images[key].name), before("token-image"));
    const parts = records[keys[checked("token-image")]];
    choices("token-part", "token-part", parts.map((part) => part.name), before("token-part"));
    document.getElementById("token-part").hidden = parts.length === 1;
    const record = parts[checked("token-part")];
    choices("token-layer", "token-layer", record.layers.map((_, n) => String(n + 1)), before("token-layer"));
    choices("token-level", "token-level", record.levels.map(([h, w], n) => `${n + 1} (${h} x ${w})`), before("token-level"));
    drawTokens();
  }

  function selection() {
    const records = data.tokens[checked("run")];
    const key = Object.keys(records)[checked("token-image")];
    const record = records[key][checked("token-part")];
    const level = Number(checked("token-level"));
    return { key, record, level, layer: layerOf(record, Number(checked("token-layer"))), start: startOf(record, level), grid: record.levels[level] };
  }

  function picture(key) {
    if (!pictures[key]) {
      pictures[key] = new Image();
      pictures[key].onload = drawTokens;
      pictures[key].src = data.images[key].src;
    }
    return pictures[key];
  }

  const heat = (share) => `hsla(${260 - 220 * share}, 90%, ${25 + 35 * share}%, 0.65)`;

  function drawTokens() {
    const { key, record, level, layer, start, grid: [rows, columns] } = selection();
    const image = picture(key);
    if (!image.complete || !image.naturalWidth) return;
    canvas.width = 2 * image.naturalWidth;
    canvas.height = 2 * image.naturalHeight;
    const pen = canvas.getContext("2d");
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    const [w, h] = [canvas.width / columns, canvas.height / rows];
    const fill = (r, c) => { // whole pixels, so that no lines show between cells
      const [x, y] = [Math.round(c * w), Math.round(r * h)];
      pen.fillRect(x, y, Math.round((c + 1) * w) - x, Math.round((r + 1) * h) - y);
    };
    const withScores = document.getElementById("token-scores").checked && layer.score;
    const index = (r, c) => start + r * columns + c;
    let queries = 0;
    for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
      const n = index(r, c);
      if (layer.state[n] !== SKIPPED) queries++;
      if (withScores) {
        pen.fillStyle = heat(layer.score[n] / 255);
        fill(r, c);
      }
      if (layer.state[n] === SKIPPED) {
        pen.fillStyle = withScores ? "rgba(0,0,0,.35)" : "rgba(0,0,0,.72)";
        fill(r, c);
      }
    }
    if (layer.query) {
      pen.strokeStyle = "#e6b800";
      pen.lineWidth = 2;
      pen.beginPath();
      for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
        const n = index(r, c);
        if (layer.state[n] !== MERGED) continue;
        const differs = (rr, cc) => rr < 0 || cc < 0 || rr >= rows || cc >= columns || layer.query[index(rr, cc)] !== layer.query[n];
        if (differs(r - 1, c)) { pen.moveTo(c * w, r * h); pen.lineTo((c + 1) * w, r * h); }
        if (differs(r + 1, c)) { pen.moveTo(c * w, (r + 1) * h); pen.lineTo((c + 1) * w, (r + 1) * h); }
        if (differs(r, c - 1)) { pen.moveTo(c * w, r * h); pen.lineTo(c * w, (r + 1) * h); }
        if (differs(r, c + 1)) { pen.moveTo((c + 1) * w, r * h); pen.lineTo((c + 1) * w, (r + 1) * h); }
      }
      pen.stroke();
    }
    const share = (100 * layer.queries / layer.tokens).toFixed(0);
    document.getElementById("token-count").textContent =
      `Layer ${Number(checked("token-layer")) + 1} works on ${layer.queries} queries for ${layer.tokens} tokens (${share} %); ` +
      `on level ${level + 1} it updates ${queries} of ${rows * columns} tokens.`;
    markCell(pen, w, h);
  }

  function markCell(pen, w, h) {
    if (!token.cell) return;
    const { layer, start, grid: [rows, columns] } = selection();
    const [r, c] = [Math.min(token.cell[0], rows - 1), Math.min(token.cell[1], columns - 1)];
    token.cell = [r, c];
    const n = start + r * columns + c;
    pen.lineWidth = 4;
    if (layer.query && layer.query[n]) {
      pen.strokeStyle = "#ff7f2a";
      for (let m = 0; m < rows * columns; m++) {
        if (layer.query[start + m] === layer.query[n]) pen.strokeRect((m % columns) * w, Math.floor(m / columns) * h, w, h);
      }
    }
    pen.strokeStyle = "#ff00c8";
    pen.strokeRect(c * w, r * h, w, h);
    document.getElementById("token-info").textContent = describe(layer, n, r, c);
  }

  function describe(layer, n, r, c) {
    const layerNumber = Number(checked("token-layer")) + 1;
    const levelNumber = Number(checked("token-level")) + 1;
    let what = "a query of its own";
    if (layer.state[n] === SKIPPED) what = "left out: keeps its features in this layer";
    if (layer.state[n] === MERGED) {
      let together = 0;
      for (const query of layer.query) together += query === layer.query[n];
      what = `one query for ${together} tokens`;
    }
    const lines = [`Layer ${layerNumber}, level ${levelNumber}, row ${r + 1}, column ${c + 1}`, what];
    if (layer.score && layer.score[n]) {
      const value = layer.low + (layer.high - layer.low) * (layer.score[n] - 1) / 254;
      lines.push(`${layer.score_name.replaceAll("_", " ")} ${value.toFixed(3)}`);
    }
    return lines.join("\n");
  }

  function point(event) {
    const { grid: [rows, columns] } = selection();
    const area = canvas.getBoundingClientRect();
    const r = Math.floor((event.clientY - area.top) / area.height * rows);
    const c = Math.floor((event.clientX - area.left) / area.width * columns);
    token.cell = [Math.max(0, Math.min(rows - 1, r)), Math.max(0, Math.min(columns - 1, c))];
    drawTokens();
  }
  const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  function move(event) {
    const step = MOVES[event.key];
    if (!step) return;
    event.preventDefault();
    const { grid: [rows, columns] } = selection();
    const [r, c] = token.cell ?? [0, 0];
    token.cell = [Math.max(0, Math.min(rows - 1, r + step[0])), Math.max(0, Math.min(columns - 1, c + step[1]))];
    drawTokens();
  }

  // --------------------------------------------------------------------------------- together

  function showRun() {
    document.querySelectorAll(".of-run").forEach((place) => place.classList.toggle("shown", place.dataset.run === checked("run")));
    drawVisible();
    drawLegend();
    if (document.getElementById("pairs")) drawImages();
    if (canvas) setUpTokens();
  }
  document.addEventListener("change", (event) => {
    const name = event.target.name;
    if (name === "run") showRun();
    else if (name === "which") drawImages();
    else if (name === "token-image" || name === "token-part") setUpTokens();
    else if (name === "token-layer" || name === "token-level" || event.target.id === "token-scores") drawTokens();
  });
  if (canvas) {
    canvas.addEventListener("pointermove", point);
    canvas.addEventListener("pointerdown", point);
    canvas.addEventListener("keydown", move);
  }
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll(".charts").forEach(drawCharts);
    document.querySelectorAll(".js-plotly-plot").forEach((chart) => Plotly.relayout(chart, { width: 330, height: 280, autosize: false }));
  });
  window.addEventListener("afterprint", () => {
    document.querySelectorAll(".js-plotly-plot").forEach((chart) => Plotly.relayout(chart, { width: null, height: null, autosize: true }));
  });
  showRun();
})();
