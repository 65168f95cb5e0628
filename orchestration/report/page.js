"use strict";
// The page works without this script; with it tables sort, and trials can be looked at one by one.
{
  const SVG = "http://www.w3.org/2000/svg";
  const closer = document.getElementById("closer");
  closer.hidden = false;
  // As wide as there is room, so that letters keep their size on a telephone.
  const WIDTH = Math.min(720, Math.max(320, closer.clientWidth));
  const HEIGHT = 380, LEFT = 70, RIGHT = 16, TOP = 14, BOTTOM = 64;
  const COLORS = ["#D55E00", "#7B3FA0", "#009E73", "#CC79A7", "#56B4E9", "#8a6d00"];
  const { metric, trials, logarithmic } = JSON.parse(document.getElementById("trials").textContent);
  const picked = [];

  const element = (name, attributes = {}, text = "") => {
    const made = document.createElement(name);
    Object.assign(made, attributes);
    if (text) made.textContent = text;
    return made;
  };
  const shape = (name, attributes, text = "") => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text) made.textContent = text;
    return made;
  };
  const short = (value) => {
    if (value === null || value === undefined) return "None";
    if (Array.isArray(value)) return `[${value.map(short).join(", ")}]`;
    return typeof value === "number" ? String(+value.toPrecision(4)) : String(value);
  };
  const settingsOf = (trial) => Object.entries(trial.values).map(([name, value]) => `${name}=${short(value)}`).join(" ");

  // Sorting: a click on a heading, rising, then falling.
  const sortBy = (table, column, heading) => {
    const falling = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const value = (row) => {
      const text = row.children[column].textContent.trim();
      const number = parseFloat(text);
      return Number.isNaN(number) ? text : number;
    };
    const order = (a, b) => {
      // what is missing, or a text among numbers, comes last both ways
      if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
      return (a < b ? -1 : a > b ? 1 : 0) * (falling ? -1 : 1);
    };
    const rows = [...table.tBodies[0].rows].sort((a, b) => order(value(a), value(b)));
    table.tBodies[0].append(...rows);
  };
  for (const table of document.querySelectorAll("table")) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      const button = element("button", { type: "button", className: "sort" }, heading.textContent);
      heading.replaceChildren(button);
      button.addEventListener("click", () => sortBy(table, column, heading));
    });
  }

  // What can be put on an axis.
  const axes = new Map();
  const addAxis = (name, read) => {
    if (trials.some((trial) => read(trial) !== null && read(trial) !== undefined)) axes.set(name, read);
  };
  addAxis(metric, (trial) => trial.score);
  for (const name of new Set(trials.flatMap((trial) => Object.keys(trial.values)))) {
    addAxis(name, (trial) => trial.values[name]);
  }
  addAxis("step", (trial) => trial.step);
  addAxis("seconds", (trial) => trial.seconds);
  addAxis("began after [s]", (trial) => trial.began);
  for (const name of new Set(trials.flatMap((trial) => Object.keys(trial.metrics)))) {
    if (!axes.has(name)) addAxis(name, (trial) => trial.metrics[name]);
  }

  // Where values stand between 0 and 1, and five marks; words stand in the order in which they come.
  const scale = (name, values) => {
    const known = values.filter((value) => value !== null && value !== undefined);
    if (known.some((value) => typeof value !== "number")) {
      const words = [...new Set(known.map(String))];
      const place = (value) => (words.indexOf(String(value)) + 0.5) / words.length;
      return { place, marks: words.map((word) => [place(word), word]) };
    }
    const bend = logarithmic.includes(name) ? Math.log : (value) => value;
    const back = logarithmic.includes(name) ? Math.exp : (value) => value;
    let low = bend(Math.min(...known)), high = bend(Math.max(...known));
    if (low === high) { low -= 0.5; high += 0.5; }
    const margin = 0.04;
    const place = (value) => margin + (1 - 2 * margin) * (bend(value) - low) / (high - low);
    const steps = [0, 0.25, 0.5, 0.75, 1];
    return { place, marks: steps.map((at) => [margin + (1 - 2 * margin) * at, short(back(low + at * (high - low)))]) };
  };
  const x = (at) => LEFT + at * (WIDTH - LEFT - RIGHT);
  const y = (at) => HEIGHT - BOTTOM - at * (HEIGHT - TOP - BOTTOM);

  const chart = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  const note = element("p", { className: "quiet" });
  const cards = element("div", { className: "figures" });
  const choose = (label, chosen, none = "") => {
    const select = element("select");
    if (none) select.append(element("option", { value: "" }, none));
    for (const name of axes.keys()) select.append(element("option", { value: name, selected: name === chosen }, name));
    select.addEventListener("change", draw);
    const wrapped = element("label", {}, `${label} `);
    wrapped.append(select);
    return [wrapped, select];
  };
  const names = [...axes.keys()];
  const [acrossLabel, across] = choose("across", names[1] ?? names[0]);
  const [upLabel, up] = choose("up", names[0]);
  // Two settings and the metric as colour show where good trials lie together.
  const [colorLabel, colorBy] = choose("colour", "", "how it ended");
  const filter = element("input", { type: "search", placeholder: "only trials with …", size: 22 });
  filter.setAttribute("aria-label", "Only trials whose name, settings or status hold these words");
  filter.addEventListener("input", draw);

  const matches = (trial) => {
    const text = `${trial.label} ${trial.status} ${settingsOf(trial)} seed ${trial.seed}`.toLowerCase();
    return filter.value.toLowerCase().split(/\s+/).every((word) => text.includes(word));
  };
  const colorOf = (trial) => COLORS[picked.indexOf(trial)];
  // From light for the lowest to dark for the highest; nothing where the trial has no such value.
  const shades = (shown) => {
    const read = axes.get(colorBy.value);
    if (!read) return () => undefined;
    const { place } = scale(colorBy.value, shown.map(read));
    const known = (value) => value !== null && value !== undefined;
    return (trial) => known(read(trial)) ? `hsl(212, 75%, ${Math.round(84 - 66 * place(read(trial)))}%)` : "#fff";
  };

  function draw() {
    const readX = axes.get(across.value), readY = axes.get(up.value);
    const has = (trial) => [readX(trial), readY(trial)].every((value) => value !== null && value !== undefined);
    const shown = trials.filter((trial) => matches(trial) && has(trial));
    chart.replaceChildren();
    chart.setAttribute("aria-label", `${up.value} against ${across.value} of ${shown.length} trials`);
    note.textContent = `${shown.length} of ${trials.length} trials; point at one to read it, click to compare up to ${COLORS.length}.`
      + (colorBy.value ? ` Dark is a high ${colorBy.value}, or late in a list; white has none.` : "");
    if (shown.length) {
      const horizontal = scale(across.value, shown.map(readX)), vertical = scale(up.value, shown.map(readY));
      drawAxes(horizontal.marks, vertical.marks);
      const shadeOf = shades(shown);
      for (const trial of shown) {
        drawDot(trial, shadeOf(trial), x(horizontal.place(readX(trial))), y(vertical.place(readY(trial))));
      }
    }
    cards.replaceChildren(...picked.map(card));
  }
  function drawAxes(marksX, marksY) {
    const every = Math.ceil(marksX.length * 90 / WIDTH);
    for (const [at, text] of marksX.filter((_, index) => index % every === 0)) {
      chart.append(shape("line", { x1: x(at), x2: x(at), y1: TOP, y2: HEIGHT - BOTTOM, class: "grid" }));
      chart.append(shape("text", { x: x(at), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, text.slice(0, 14)));
    }
    for (const [at, text] of marksY) {
      chart.append(shape("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(at), y2: y(at), class: "grid" }));
      chart.append(shape("text", { x: LEFT - 8, y: y(at) + 4, "text-anchor": "end" }, text.slice(0, 9)));
    }
    chart.append(shape("text", { x: x(0.5), y: HEIGHT - 16, "text-anchor": "middle", class: "name" }, across.value));
    chart.append(shape("text", { x: 4, y: TOP - 2, class: "name" }, up.value));
  }
  function drawDot(trial, shade, cx, cy) {
    const color = colorOf(trial) ?? (trial.status === "finished" ? "#0072B2" : "#8a8a8a");
    const fill = colorOf(trial) ?? shade ?? (trial.status === "finished" ? color : "#fff");
    const dot = shape("circle", { cx, cy, r: colorOf(trial) ? 8 : 5, stroke: color, fill, tabindex: 0, role: "button" });
    const text = `${trial.label}, ${trial.status}: ${metric} ${short(trial.score)}, step ${trial.step}${trial.front ? ", not beaten" : ""}\n${settingsOf(trial)}`;
    if (trial.front) dot.setAttribute("stroke", "#000");
    dot.append(shape("title", {}, text));
    dot.setAttribute("aria-label", text);
    dot.classList.add("trial");
    dot.addEventListener("click", () => pick(trial));
    dot.addEventListener("keydown", (event) => { if (event.key === "Enter") pick(trial); });
    chart.append(dot);
  }
  function pick(trial) {
    const place = picked.indexOf(trial);
    if (place >= 0) picked.splice(place, 1);
    else if (picked.length < COLORS.length) picked.push(trial);
    draw();
  }
  function card(trial) {
    const box = element("figure", { className: "card" });
    box.style.borderTopColor = colorOf(trial);
    box.append(element("strong", {}, `${trial.label}: ${metric} ${short(trial.score)}`));
    box.append(element("figcaption", {}, `${trial.status} at step ${trial.step}; ${settingsOf(trial)}; seed ${trial.seed}`));
    box.append(curveOf(trial));
    if (trial.panel) {
      const picture = element("img", { src: trial.panel, alt: `What ${trial.label} sees`, loading: "lazy" });
      picture.addEventListener("error", () => picture.replaceWith(element("p", { className: "quiet" }, `its masks are in ${trial.folder}`)));
      box.append(picture);
    }
    return box;
  }
  function curveOf(trial) {
    // All picked curves share their scales, so that they can be compared.
    const points = picked.flatMap((other) => other.curve);
    const small = shape("svg", { viewBox: "0 0 300 90", role: "img", "aria-label": `${metric} over the steps` });
    if (!points.length) return small;
    const last = Math.max(...points.map(([step]) => step)), values = points.map(([, value]) => value);
    const low = Math.min(...values), reach = Math.max(...values) - low || 1;
    for (const other of [...picked.filter((one) => one !== trial), trial]) {
      const line = other.curve.map(([step, value]) => `${4 + 292 * step / last},${84 - 78 * (value - low) / reach}`);
      const own = other === trial;
      const stroke = own ? colorOf(trial) : "#ccc";
      small.append(shape("polyline", { points: line.join(" "), stroke, fill: "none", "stroke-width": own ? 2.5 : 1 }));
      for (const point of own ? line : []) {  // a curve of one point is no line
        const [cx, cy] = point.split(",");
        small.append(shape("circle", { cx, cy, r: 3, fill: stroke }));
      }
    }
    return small;
  }
  const controls = element("p", { className: "controls" });
  controls.append(acrossLabel, upLabel, colorLabel, filter);
  closer.append(controls, chart, note, cards);
  draw();
}
