// Histograms.

/** Bars side by side; parts: [{counts, name}], drawn over each other, heights by `height` of the count. */
function bars(parts, { width, tall, height = (n) => n, tell }) {
  const n = parts[0].counts.length, step = width / n;
  const most = Math.max(1e-9, ...parts.flatMap((part) => part.counts.map(height)));
  const drawn = parts.flatMap(({ counts, name }) => counts.map((count, i) => {
    if (!count) return null;
    const high = Math.max(1.5, (tall - 2) * height(count) / most);
    return svg("rect", { class: name, x: (i * step + 0.5).toFixed(2), y: (tall - high).toFixed(2),
      width: Math.max(0.5, step - 1).toFixed(2), height: high.toFixed(2), rx: 1 },
      svg("title", {}, tell(i, count, name)));
  }));
  return svg("svg", { viewBox: `0 0 ${width} ${tall}`, preserveAspectRatio: "none", role: "img" }, ...drawn,
    svg("line", { class: "base", x1: 0, x2: width, y1: tall, y2: tall }));
}

const scale = (low, high) => el("div", { class: "scale" }, el("span", {}, low), el("span", {}, high));

function drawEntropy() {
  const top = Math.log(Math.max(data.entropy.labels, 2));
  byId("entropy-plots").replaceChildren(...data.entropy.parts.map(({ dictionary, bins, chosen, fired, silent }) => {
    const end = (i) => (top * i / bins.length).toFixed(2);
    const sum = chosen.reduce((a, b) => a + b, 0);
    const tell = (i, count, name) => `entropy ${end(i)} to ${end(i + 1)}: ${whole(count)} ${name === "chosen" ? "chosen" : "units"}`;
    return el("figure", {},
      el("figcaption", {}, el("b", {}, dictionary),
        el("small", {}, `${whole(fired)} fire${silent ? `, ${whole(silent)} never` : ""}${sum ? `; ${whole(sum)} chosen` : ""}`)),
      bars([{ counts: bins, name: "fired" }, { counts: chosen, name: "chosen" }],
        { width: 240, tall: 90, height: Math.sqrt, tell }),
      scale("0", top.toFixed(2)));
  }));
}

/** Bins between `edges`; without them, as in older runs, equal ones from 0 to the greatest value. */
function activationPlot({ tokens, fired, max, counts, edges }) {
  const end = (i) => figure(edges ? edges[i] : max * i / counts.length, 2);
  const tell = (i, count) => `${end(i)} to ${end(i + 1)}: ${whole(count)} tokens`;
  return el("div", { class: "chart" }, el("p", { class: "cap" }, "activation where it fires"),
    fired ? bars([{ counts, name: "fired" }], { width: 240, tall: 74, tell }) : null,
    fired ? scale(edges ? figure(edges[0], 2) : "0", figure(max, 1)) : null,
    el("p", { class: "cap" }, fired ? `on ${whole(fired)} of ${whole(tokens)} tokens; silent on ${percent(1 - fired / tokens)}`
      : `silent on all ${whole(tokens)} tokens`));
}
