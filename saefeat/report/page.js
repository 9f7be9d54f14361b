(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const inputs = (name) => document.querySelectorAll(`input[name="${name}"]`);
  const chosen = (name) => Number(document.querySelector(`input[name="${name}"]:checked`)?.value ?? 0);
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Plotly reads tags and entities in its texts; labels are plain.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function showUnits() {
    const method = chosen("method"), label = chosen("label");
    for (const part of document.querySelectorAll("[data-method]")) {
      const otherLabel = "label" in part.dataset && Number(part.dataset.label) !== label;
      part.hidden = Number(part.dataset.method) !== method || otherLabel;
    }
  }

  const short = (name) => (name.length > 26 ? name.slice(0, 25) + "…" : name);
  const longest = (names) => Math.max(0, ...names.map((name) => short(name).length));

  // An axis of names at 0, 1, 2, ...; where cells are too narrow for every name, each nth is written.
  function axisOf(names, cell, size, more) {
    const step = Math.ceil((size + 2) / cell);
    const at = names.map((_, i) => i).filter((i) => i % step === 0);
    return { tickvals: at, ticktext: at.map((i) => plain(short(names[i]))), fixedrange: true, showgrid: false,
      zeroline: false, ticks: "", ticklabelstandoff: 5, tickfont: { size }, ...more };
  }

  function heatMap(plot, { z, counts, hover, columns, rows, square }) {
    const width = plot.parentElement.clientWidth - 14, size = width < 520 ? 10 : 12;
    const tilted = longest(columns) > 2;
    const below = tilted ? longest(columns) * size * 0.56 : size;
    const margin = { t: 12, r: 12, l: longest(rows) * size * 0.62 + 18, b: below + 22 };
    const across = Math.max((width - margin.l - margin.r) / Math.max(columns.length, 1), 1);
    const cell = square ? Math.min(across, 40) : Math.min(across, 120);
    const down = square ? cell : rows.length > 60 ? 12 : 26;
    const text = counts.map((row) => row.map((n) => n || ""));
    const ink = { family: colour("--text"), color: colour("--ink"), size: Math.min(size, cell / 2.2) };
    const trace = { type: "heatmap", z, customdata: hover, xgap: cell > 8 ? 1 : 0, ygap: down > 8 ? 1 : 0,
      showscale: false, zmin: 0, colorscale: [[0, colour("--empty")], [1, colour("--heat")]],
      hovertemplate: "%{customdata}<extra></extra>",
      ...(Math.min(cell, down) > 13 ? { text, texttemplate: "%{text}", textfont: ink } : {}) };
    const layout = { width: margin.l + margin.r + cell * columns.length,
      height: margin.t + margin.b + down * rows.length, margin, font: { ...ink, size },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: { font: { family: colour("--text"), size: 13 } },
      xaxis: axisOf(columns, cell, size, { tickangle: tilted ? -60 : 0 }),
      yaxis: axisOf(rows, down, size, { autorange: "reversed" }) };
    return Plotly.react(plot, [trace], layout, { displayModeBar: false });
  }

  function drawConfusion() {
    const plot = byId("confusion-plot");
    if (!plot) return;
    const { labels, confusion } = data.confusion;
    const cells = confusion[byId("confusion-head").value][byId("confusion-length").value] ?? [];
    const columns = [...labels, "unknown"];
    const counts = labels.map(() => columns.map(() => 0));
    for (let i = 0; i < cells.length; i += 3) counts[cells[i]][cells[i + 1]] = cells[i + 2];
    const percent = (n, sum) => `${(100 * n / sum).toFixed(1)} %`;
    const sums = counts.map((row) => Math.max(1, row.reduce((a, b) => a + b, 0)));
    heatMap(plot, { rows: labels, columns, counts, square: true,
      z: counts.map((row, r) => row.map((n) => Math.sqrt(n / sums[r]))),
      hover: counts.map((row, r) => row.map((n, c) =>
        `${plain(labels[r])} called ${plain(columns[c])}: ${n} of ${sums[r]} (${percent(n, sums[r])})`)) });
  }

  function drawFeatures() {
    const plot = byId("features-plot");
    if (!plot) return;
    const { labels, dictionaries, counts } = data.features[chosen("method")];
    heatMap(plot, { rows: labels, columns: dictionaries, counts, z: counts, square: false,
      hover: counts.map((row, r) => row.map((n, c) => `${plain(labels[r])}, ${plain(dictionaries[c])}: ${n} units`)) });
    plot.removeAllListeners("plotly_click");
    plot.on("plotly_click", (event) => chooseLabel(labels[Math.round(event.points[0].y)]));
  }

  function chooseLabel(label) {
    const input = document.querySelector(`input[name="label"][value="${data.labels.indexOf(label)}"]`);
    if (!input) return;
    input.checked = true;
    showUnits();
    byId("units").scrollIntoView();
  }

  function draw() {
    drawConfusion();
    drawFeatures();
  }

  async function unpackPlotly() {
    const bytes = Uint8Array.from(atob(byId("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  function onEveryChange() {
    byId("confusion-head")?.addEventListener("change", drawConfusion);
    byId("confusion-length")?.addEventListener("change", drawConfusion);
    for (const input of inputs("method")) input.addEventListener("change", drawFeatures);
    dark.addEventListener("change", draw);
    let last = innerWidth, timer;
    addEventListener("resize", () => {
      if (innerWidth === last) return;
      last = innerWidth;
      clearTimeout(timer);
      timer = setTimeout(draw, 150);
    });
  }

  for (const input of [...inputs("method"), ...inputs("label")]) input.addEventListener("change", showUnits);
  showUnits();
  if (!byId("plotly")) return;
  unpackPlotly().then(() => { draw(); onEveryChange(); }).catch((error) => {
    console.error(error);
    for (const plot of document.querySelectorAll(".plot")) {
      plot.textContent = "This browser cannot draw the chart; one of 2023 or later can.";
    }
  });
})();
