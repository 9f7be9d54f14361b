// Steering: the table, the frontier, samples beside their twins; and the list of errors, drawn in the same way.

const WRITE = { score: figure, score_in_context: figure, forcing: percent, perplexity: (value) => figure(value, 1), distinct3: figure };

function drawSteering() {
  const { own, labels, methods, chosen, mean, settings } = data.steering;
  const measure = picked("measure"), write = WRITE[measure], low = measure === "perplexity";
  const withOwn = !measure.startsWith("score");
  const inUse = Object.keys(settings).length > 0;
  const heads = ["label", ...(withOwn ? ["own text"] : []), ...methods, ...(inUse ? ["setting in use"] : [])];
  const best = (values) => {
    const known = values.filter((value) => value !== null && value !== undefined);
    return known.length ? (low ? Math.min : Math.max)(...known) : null;
  };
  const line = (name, of, ownText, setting) => {
    const ownValue = ownText?.[measure], inContext = (low ? ownText?.perplexity_in_context : null) ?? null;
    const values = methods.map((method) => of(method)?.[measure]);
    const top = low ? null : best(values);
    return el("tr", { class: name ? null : "mean" }, el("th", { scope: "row" }, name ? el("bdi", {}, name) : "mean"),
      withOwn ? el("td", {}, write(ownValue ?? null), inContext === null ? null : el("small", {}, `${write(inContext)} in context`)) : null,
      ...methods.map((method, i) => el("td", { class: values[i] === top && top !== null ? "best" : null,
        title: of(method)?.setting }, values[i] === undefined ? "–" : write(values[i]),
      of(method)?.ci?.[measure]?.length ? el("small", {}, of(method).ci[measure].map((end) => end.toFixed(2)).join(" – ")) : null)),
      inUse ? el("td", { class: "words" }, setting ?? "") : null);
  };
  byId("steering-table").replaceChildren(
    el("thead", {}, el("tr", {}, ...heads.map((name) => el("th", { scope: "col", class: name === "setting in use" ? "words" : null }, name)))),
    el("tbody", {}, ...labels.map((label) => line(label, (method) => chosen[method][label], own[label], settings[label])),
      line("", (method) => mean[method], null, "")));
}

// ---------------------------------------------------------------- frontier

const SHAPES = {
  features: (x, y) => `M${x - 5} ${y}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0`,
  neurons: (x, y) => `M${x - 4.5} ${y - 4.5}h9v9h-9z`,
  diffmean: (x, y) => `M${x} ${y - 6}l6 6l-6 6l-6 -6z`,
  random: (x, y) => `M${x} ${y - 5.5}l5.5 10h-11z`,
};
const OTHER_SHAPES = [
  (x, y) => `M${x - 5} ${y - 1.5}h10v3h-10z`,
  (x, y) => `M${x} ${y + 5.5}l5.5 -10h-11z`,
  (x, y) => `M${x - 1.5} ${y - 5}h3v10h-3z`,
  (x, y) => `M${x - 5} ${y - 1.5}h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z`,
  (x, y) => `M${x} ${y - 6}l4 6l-4 6l-4 -6z`,
];
const shapeOf = (line) => SHAPES[line.method] ?? OTHER_SHAPES[line.place % OTHER_SHAPES.length];
/** Class and hue of a method's line and marks; the golden angle keeps hues apart. */
const styleOf = (kind, line) => ({ class: `${kind} ${line.method}`, style: `--hue: ${(137.5 * line.place) % 360}` });

function drawFrontier() {
  const box = byId("frontier"), label = byId("frontier-label").value;
  const lines = data.steering.lines.map((line) => ({ ...line,
    points: (line.points[label] ?? []).filter(([, x, y]) => x && y !== null) })).filter((line) => line.points.length);
  if (!lines.length) {
    box.replaceChildren(el("p", { class: "absent" }, "Nothing was measured here for which perplexity is known."));
    return;
  }
  const style = getComputedStyle(box), padding = parseFloat(style.paddingLeft) + parseFloat(style.paddingRight);
  const width = Math.max(260, Math.min(box.clientWidth - padding, 820)), height = width < 520 ? 300 : 380;
  const space = { left: 46, right: 14, top: 14, bottom: 44 };
  const xs = lines.flatMap((line) => line.points.map((point) => point[1]));
  const ends = [Math.min(1, ...xs) / 1.15, Math.max(1, ...xs) * 1.15].map(Math.log);
  const x = (value) => space.left + (width - space.left - space.right) * (Math.log(value) - ends[0]) / (ends[1] - ends[0]);
  const y = (value) => height - space.bottom - (height - space.top - space.bottom) * value;
  const ownForcing = label ? data.steering.own[label]?.forcing : mean(Object.values(data.steering.own).map((own) => own.forcing));
  box.replaceChildren(
    svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Forcing against relative perplexity" },
      ...axes(ends, x, y, width, height, space), ...reference(x, y, height, space, ownForcing, width),
      ...lines.flatMap((line) => [
        svg("path", { ...styleOf("line", line), d: `M${line.points.map((p) => `${x(p[1]).toFixed(1)} ${y(p[2]).toFixed(1)}`).join("L")}` }),
        ...line.points.map((point) => mark(line, point, x, y)),
      ])),
    el("ul", { class: "keys" }, ...lines.map((line) => el("li", {},
      svg("svg", { width: 16, height: 16, "aria-hidden": "true" }, svg("path", { ...styleOf("mark", line), d: shapeOf(line)(8, 8) })),
      el("b", {}, line.method), el("small", {}, line.setting)))));
}

const mean = (values) => {
  const known = values.filter((value) => value !== null && value !== undefined);
  return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
};

/** Round numbers of a logarithmic axis, between three and eight where that can be. */
function ticksWithin(low, high) {
  const decades = [0.01, 0.1, 1, 10, 100, 1000, 1e4, 1e5];
  const sets = [[1], [1, 2, 5], [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8]].map((digits) =>
    decades.flatMap((decade) => digits.map((digit) => Number((digit * decade).toPrecision(3))))
      .filter((value) => Math.log(value) >= low && Math.log(value) <= high));
  return sets.find((set) => set.length >= 3 && set.length <= 8) ?? sets[1];
}

function axes(ends, x, y, width, height, space) {
  const ticks = ticksWithin(...ends);
  return [
    ...[0, 0.25, 0.5, 0.75, 1].flatMap((v) => [
      svg("line", { class: "grid", x1: space.left, x2: width - space.right, y1: y(v), y2: y(v) }),
      svg("text", { class: "tick", x: space.left - 8, y: y(v) + 4, "text-anchor": "end" }, `${100 * v} %`)]),
    ...ticks.flatMap((v) => [
      svg("line", { class: "grid", x1: x(v), x2: x(v), y1: space.top, y2: height - space.bottom }),
      svg("text", { class: "tick", x: x(v), y: height - space.bottom + 17, "text-anchor": "middle" }, `${v >= 1000 ? integer(v) : v} ×`)]),
    svg("text", { class: "tick", x: (space.left + width - space.right) / 2, y: height - 6, "text-anchor": "middle" },
      "perplexity, relative to own text"),
  ];
}

function reference(x, y, height, space, forcing, width) {
  const parts = [svg("line", { class: "own", x1: x(1), x2: x(1), y1: space.top, y2: height - space.bottom })];
  if (forcing === null || forcing === undefined) return parts;
  return [...parts, svg("line", { class: "own", x1: space.left, x2: width - space.right, y1: y(forcing), y2: y(forcing) }),
    svg("text", { class: "tick", x: x(1) + 5, y: y(forcing) + 14 }, "own")];
}

function mark(line, [strength, relative, forcing, score], x, y) {
  const words = `${line.method}, strength ${strength ?? "–"}: forcing ${percent(forcing)}, perplexity ${figure(relative, 2)} times own, score ${figure(score)}`;
  const node = svg("path", { ...styleOf("mark", line), d: shapeOf(line)(x(relative), y(forcing)), tabindex: 0,
    role: "img", "aria-label": words });
  for (const event of ["pointerenter", "focus", "click"]) {
    node.addEventListener(event, () => { byId("frontier-readout").textContent = words; });
  }
  return node;
}

// ---------------------------------------------------------------- samples

let samplesShown = 0;

function samplesFound() {
  const label = byId("sample-label").value, method = byId("sample-method").value;
  return data.samples.filter((row) => (!label || row.label === label) && (!method || row.method === method)
    && (!query || plain(`${row.label}\n${row.prompt}\n${row.text}\n${row.twin}`).includes(query)));
}

function drawSamples() {
  const found = samplesFound();
  samplesShown = 0;
  byId("sample-count").textContent = count(found.length, "sample") + (query ? " with the search’s words" : "");
  byId("sample-list").replaceChildren();
  const more = () => {
    byId("sample-list").append(...found.slice(samplesShown, samplesShown + PAGE).map(sample));
    samplesShown += PAGE;
    byId("samples-more").hidden = samplesShown >= found.length;
  };
  more();
  byId("samples-more").onclick = more;
}

function sample(row) {
  const side = (name, text, way, judged, perplexity) => el("div", { class: "side" },
    el("p", { class: "cap" }, el("b", {}, name), " ",
      el("span", { class: judged === row.label ? "judged yes" : "judged" }, "judged ", el("bdi", {}, judged ?? "nothing")),
      perplexity !== null ? ` perplexity ${figure(perplexity, 1)}` : ""),
    el("p", { class: "passage", dir: way }, el("span", { class: "prompt" }, row.prompt), text));
  return el("li", { class: "card" },
    el("div", { class: "name" }, el("b", {}, el("bdi", {}, row.label)), el("span", { class: "unit" },
      `${row.method}, strength ${row.strength ?? "–"}`)),
    el("div", { class: "pair" }, side("steered", row.text, row.text_way, row.judged, row.perplexity),
      side("twin", row.twin, row.twin_way, row.judged_twin, row.perplexity_twin)));
}

function fillSampleFilters() {
  for (const [id, key] of [["sample-label", "label"], ["sample-method", "method"]]) {
    const names = [...new Set(data.samples.map((row) => row[key]))];
    byId(id).append(...names.map((name) => el("option", {}, name)));
  }
}

// ---------------------------------------------------------------- errors

function errorsFound() {
  const length = byId("error-length").value, kind = picked("error-kind"), label = byId("error-label").value;
  return data.errors.filter((row) => row.length === length && row.kind === kind && (!label || row.label === label)
    && (!query || plain(`${row.label}\n${row.text}`).includes(query)));
}

let errorsShown = 0;

function drawErrors() {
  const length = byId("error-length").value, found = errorsFound();
  for (const node of document.querySelectorAll(".count[data-length]")) node.hidden = node.dataset.length !== length;
  errorsShown = 0;
  byId("error-list").replaceChildren();
  const more = () => {
    byId("error-list").append(...found.slice(errorsShown, errorsShown + PAGE).map(errorItem));
    errorsShown += PAGE;
    byId("errors-more").hidden = errorsShown >= found.length;
  };
  more();
  byId("errors-more").onclick = more;
  byId("error-note").textContent = found.length ? `${count(found.length, "text")} kept on the page${query ? " that the search finds" : ""}; `
    + "all are in the table beside it." : "No such text among those kept on the page.";
}

const errorItem = ({ label, text, direction, ours, theirs }) => el("li", {},
  el("p", { class: "passage", dir: direction }, text),
  el("p", { class: "cap" }, "is ", el("b", {}, el("bdi", {}, label)), verdict("linear", ours, label), verdict("fastText", theirs, label)));

const verdict = (who, what, label) => el("span", { class: what === label ? "judged yes" : "judged" }, `${who} `, el("bdi", {}, what ?? "nothing"));
