(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
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

  function heatMap(plot, { z, text, hover, columns, rows, square }) {
    const width = plot.clientWidth - 14, small = width < 520, size = small ? 10 : 12;
    const longest = (names) => Math.max(0, ...names.map((name) => String(name).length));
    const left = Math.min(longest(rows) * size * 0.62, width / 3) + 44;
    const bottom = Math.min(longest(columns) * size * 0.55, 130) + 44;
    const across = (width - left - 12) / Math.max(columns.length, 1);
    const cell = square ? Math.min(Math.max(across, 3), 34) : rows.length > 60 ? 9 : 26;
    const full = square ? left + 12 + cell * columns.length : width;
    const axis = { type: "category", fixedrange: true, automargin: false, showgrid: false, zeroline: false, ticks: "",
      tickfont: { size } };
    const trace = { type: "heatmap", z, x: columns.map(plain), y: rows.map(plain), customdata: hover, xgap: 1, ygap: 1,
      hovertemplate: "%{customdata}<extra></extra>", showscale: false, zmin: 0,
      colorscale: [[0, colour("--empty")], [1, colour("--accent")]] };
    if (text && across > 13) Object.assign(trace, { text, texttemplate: "%{text}", textfont: { size: Math.min(size, across / 2.2) } });
    const layout = { width: Math.max(full, Math.min(width, 260)), height: cell * rows.length + bottom + 12,
      margin: { l: left, r: 12, t: 12, b: bottom }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: colour("--text"), color: colour("--ink"), size },
      hoverlabel: { font: { family: colour("--text"), size: 13 } },
      xaxis: { ...axis, tickangle: longest(columns) > 2 ? -60 : 0 }, yaxis: { ...axis, autorange: "reversed" } };
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
    const sums = counts.map((row) => Math.max(1, row.reduce((a, b) => a + b, 0)));
    heatMap(plot, { rows: labels, columns, square: true,
      z: counts.map((row, r) => row.map((n) => Math.sqrt(n / sums[r]))),
      text: counts.map((row) => row.map((n) => n || "")),
      hover: counts.map((row, r) => row.map((n, c) =>
        `${plain(labels[r])} called ${plain(columns[c])}: ${n} of ${sums[r]} (${(100 * n / sums[r]).toFixed(1)} %)`)) });
  }

  function drawFeatures() {
    const plot = byId("features-plot");
    if (!plot) return;
    const { labels, dictionaries, counts } = data.features[chosen("method")];
    heatMap(plot, { rows: labels, columns: dictionaries, z: counts, square: false,
      text: counts.map((row) => row.map((n) => n || "")),
      hover: counts.map((row, r) => row.map((n, c) => `${plain(labels[r])}, ${plain(dictionaries[c])}: ${n} units`)) });
    plot.removeAllListeners("plotly_click");
    plot.on("plotly_click", (event) => chooseLabel(labels[event.points[0].pointIndex[0]]));
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
    for (const input of document.querySelectorAll('input[name="method"]')) input.addEventListener("change", drawFeatures);
    dark.addEventListener("change", draw);
    let last = innerWidth, timer;
    addEventListener("resize", () => {
      if (innerWidth === last) return;
      last = innerWidth;
      clearTimeout(timer);
      timer = setTimeout(draw, 150);
    });
  }

  for (const input of document.querySelectorAll('input[name="method"], input[name="label"]')) input.addEventListener("change", showUnits);
  showUnits();
  if (!byId("plotly")) return;
  unpackPlotly().then(() => { draw(); onEveryChange(); }).catch((error) => {
    console.error(error);
    for (const plot of document.querySelectorAll(".plot")) {
      plot.textContent = "This browser cannot draw the chart; one of 2023 or later can.";
    }
  });
})();
