// Heat maps as tables: cells show their number if there is room, and a line above describes the cell under the pointer.

/**
 * rows, columns: names; cell(r, c): {text, shade (-1 warm to 1 cool), mark} or null; describe(r, c): a sentence; open(r): the row's
 * name is a button.
 */
function drawHeat(id, { rows, columns, cell, describe, open }) {
  const box = byId(id), readout = byId(`${id}-readout`);
  const size = columns.length > 60 ? "tiny" : columns.length > 24 ? "small" : "";
  const head = el("tr", {}, el("td", { class: "corner" }),
    ...columns.map((name) => el("th", { scope: "col", title: name }, el("span", {}, el("bdi", {}, name)))));
  const body = rows.map((name, r) => el("tr", {},
    el("th", { scope: "row", title: name },
      open ? rowButton(name, () => open(r)) : el("bdi", {}, name)),
    ...columns.map((_, c) => heatCell(cell(r, c), size))));
  const upright = columns.every((name) => name.length <= 3) && size !== "tiny";
  box.replaceChildren(el("table", { class: `${size} ${upright ? "upright" : ""}` },
    el("thead", {}, head), el("tbody", {}, ...body)));
  follow(box, (r, c) => { readout.textContent = describe(r, c); }, rows.length, columns.length);
}

function rowButton(name, act) {
  const button = el("button", { type: "button" }, el("bdi", {}, name));
  button.addEventListener("click", act);
  return button;
}

function heatCell(found, size) {
  if (!found) return el("td");
  const shade = Math.max(-1, Math.min(1, found.shade || 0));
  const names = [shade > 0 ? "cool" : shade < 0 ? "warm" : "", found.mark ?? ""].join(" ").trim();
  const style = shade ? `--v:${Math.abs(shade).toFixed(3)}` : null;
  return el("td", { class: names || null, style }, size === "tiny" ? "" : String(found.text ?? ""));
}

/** Tell the cell under the pointer, and the one that arrow keys move to. */
function follow(box, describe, rows, columns) {
  let here = null, at = [0, 0];
  const go = (r, c) => {
    here?.classList.remove("here");
    here = box.querySelector("tbody").rows[r].cells[c + 1];
    here.classList.add("here");
    at = [r, c];
    describe(r, c);
  };
  const point = (event) => {
    const cell = event.target.closest("tbody td");
    if (cell) go(cell.parentElement.sectionRowIndex, cell.cellIndex - 1);
  };
  box.onpointerover = point;
  box.onclick = point;
  box.onkeydown = (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step || event.target !== box || !rows || !columns) return;
    event.preventDefault();
    const next = here ? [at[0] + step[0], at[1] + step[1]] : at;
    go(Math.max(0, Math.min(rows - 1, next[0])), Math.max(0, Math.min(columns - 1, next[1])));
    here.scrollIntoView({ block: "nearest", inline: "nearest" });
  };
}

// ---------------------------------------------------------------- the page's heat maps

function drawConfusion() {
  const { labels, confusion } = data.confusion;
  const cells = confusion[byId("confusion-head").value][byId("confusion-length").value] ?? [];
  const columns = [...labels, "unknown"];
  const counts = labels.map(() => columns.map(() => 0));
  for (let i = 0; i < cells.length; i += 3) counts[cells[i]][cells[i + 1]] = cells[i + 2];
  const sums = counts.map((row) => Math.max(1, row.reduce((a, b) => a + b, 0)));
  drawHeat("confusion-heat", {
    rows: labels, columns,
    cell: (r, c) => (counts[r][c] ? { text: counts[r][c], shade: (r === c ? 1 : -1) * Math.sqrt(counts[r][c] / sums[r]) } : null),
    describe: (r, c) => `${labels[r]} called ${columns[c]}: ${counts[r][c]} of ${sums[r]} (${percent(counts[r][c] / sums[r])})`,
  });
}

function drawWhere() {
  const { labels, dictionaries, counts } = data.methods[Number(picked("method") ?? 0)];
  const most = greatest(counts.flat(), 1);
  drawHeat("where-heat", {
    rows: labels, columns: dictionaries,
    cell: (r, c) => (counts[r][c] ? { text: counts[r][c], shade: Math.sqrt(counts[r][c] / most) } : null),
    describe: (r, c) => `${labels[r]}, ${dictionaries[c]}: ${integer(counts[r][c])} units`,
    open: (r) => chooseLabel(labels[r]),
  });
}

function drawOverlap() {
  drawBoth("overlap-heat", data.overlap);
}

function drawSets() {
  const chosen = data.sets[Number(byId("sets-method").value)];
  drawBoth("sets-heat", chosen);
  byId("sets-chance").textContent = chosen.chance === null ? ""
    : `Random sets with as many units in each dictionary have a Jaccard of ${percent(chosen.chance, 2)} on average.`;
}

/** Units that two labels own, as a count or as Jaccard. */
function drawBoth(id, { labels, both }) {
  const jaccard = (r, c) => both[r][c] / Math.max(1, both[r][r] + both[c][c] - both[r][c]);
  const byCount = picked("overlap") === "both";
  const others = labels.flatMap((_, r) => labels.map((_, c) => (byCount ? both[r][c] : jaccard(r, c))).filter((_, c) => c !== r));
  const most = greatest(others, 0), least = -greatest(others.map((value) => -value), -most);
  drawHeat(id, {
    rows: labels, columns: labels,
    cell: (r, c) => {
      if (r === c) return { text: both[r][r], shade: 0, mark: "own" };
      const value = byCount ? both[r][c] : jaccard(r, c);
      return value ? { text: byCount ? value : (100 * value).toFixed(value < 0.095 ? 1 : 0), shade: 0.1 + 0.9 * (value - least) / Math.max(most - least, 1e-9) } : null;
    },
    describe: (r, c) => (r === c ? `${labels[r]} owns ${integer(both[r][r])} units`
      : `${labels[r]} and ${labels[c]}: ${integer(both[r][c])} units in both, ${integer(both[r][r])} and ${integer(both[c][c])} `
        + `owned (Jaccard ${percent(jaccard(r, c))})`),
  });
}

function drawMatrix() {
  const { labels, interventions } = data.matrix;
  const { rows, changes, counts, diagonal, name } = interventions[Number(byId("matrix-intervention").value)];
  const measure = byId("matrix-measure").value, relative = measure.startsWith("perplexity");
  const values = changes[measure];
  const known = values.flat().filter((value) => value !== null);
  const scale = greatest(known.map(Math.abs), 1e-9);
  const text = (value) => {
    const digits = relative ? 1 : 2, written = Math.abs(relative ? 100 * value : value).toFixed(digits);
    return Number(written) === 0 ? written : (value > 0 ? "+" : "−") + written;
  };
  byId("matrix-verdict").textContent = `${name}: on ${diagonal[measure]} of ${rows.length} rows the greatest rise is on the `
    + "diagonal, at the label whose units are changed.";
  drawHeat("matrix-heat", {
    rows, columns: labels,
    cell: (r, c) => {
      const value = values[r][c];
      if (value === null) return null;
      const most = value > 0 && value === greatest(values[r].map((other) => other ?? 0), 0);
      const shade = -Math.sign(value) * (Math.abs(value) / scale) ** 0.7;
      return { text: text(value), shade, mark: `${most ? "most" : ""} ${labels[c] === rows[r] ? "own" : ""}` };
    },
    describe: (r, c) => `${counts[r] === null || counts[r] === undefined ? "" : `${integer(counts[r])} `}units of ${rows[r]} changed, `
      + `text of ${labels[c]}: ${values[r][c] === null ? "not measured" : text(values[r][c]) + (relative ? " %" : " nats per token")}`,
  });
}
