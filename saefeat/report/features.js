// Cards of features: of the chosen label, or found by the search.

const FEW = 6, PAGE = 12;
let showing = [], shown = 0;

const featureName = (unit) => `${unit.dictionary}:${unit.unit}`;

/** Every feature of the page with the words that the search looks at, one entry for a unit of a method. */
const catalogue = (() => {
  let made = null;
  return () => (made ??= data.methods.flatMap((method, m) => method.units.flatMap((units, l) =>
    units.map((unit) => ({ unit, method: m, label: method.labels[l],
      words: { label: plain(method.labels[l]), id: plain(featureName(unit)), tokens: (unit.tokens ?? []).map(plain),
        text: plain((unit.passages ?? []).map((p) => p.spans.map((s) => s[0]).join("")).join("\n")) } })))));
})();

function showLabel() {
  const m = Number(picked("method") ?? 0), method = data.methods[m];
  const label = data.labels[Number(picked("label") ?? 0)];
  const at = method.labels.indexOf(label);
  const units = at < 0 ? [] : method.units[at];
  const total = at < 0 ? 0 : method.totals[at];
  byId("features-title").replaceChildren(el("bdi", {}, label), " ",
    el("small", {}, method.name + (units.length ? `, first ${units.length} of ${integer(total)}` : "")));
  const none = `${method.name} chose no unit for this label.`;
  showCards(units.map((unit) => ({ unit, method: m, label })), none, false);
}

function showFound(found, query) {
  byId("features-title").replaceChildren("“", el("bdi", {}, query), "” ", el("small", {}, `in ${count(found.length, "feature")}`));
  showCards(found, "No feature of this page has that in its name, label, tokens or passages.", true);
}

function showCards(list, none, labelled) {
  showing = list;
  shown = 0;
  byId("feature-list").replaceChildren();
  byId("features-none").hidden = list.length > 0;
  byId("features-none").textContent = none;
  moreCards(labelled);
  byId("features-more").onclick = () => moreCards(labelled);
}

function moreCards(labelled) {
  const next = showing.slice(shown, shown + PAGE);
  byId("feature-list").append(...next.map((entry) => card(entry, labelled)));
  shown += next.length;
  byId("features-more").hidden = shown >= showing.length;
}

function card({ unit, method, label }, labelled) {
  const facts = [["entropy", unit.entropy ?? (data.methods[method].score === "entropy" ? unit.score : null), figure],
    ["score", data.methods[method].score === "entropy" ? null : unit.score, figure],
    ["fires on", unit.probability, percent], ["mean firing", unit.mean_firing, figure], ["greatest", unit.max, figure]];
  return el("li", { class: "card" },
    el("div", { class: "name" }, el("span", { class: "rank", title: "rank" }, unit.rank), el("b", {}, featureName(unit)),
      labelled ? el("button", { type: "button", class: "of", "data-label": label }, el("bdi", {}, label)) : null,
      labelled && data.methods.length > 1 ? el("small", {}, data.methods[method].name) : null),
    el("dl", {}, ...facts.filter((fact) => fact[1] !== null && fact[1] !== undefined)
      .map(([name, value, write]) => el("div", {}, el("dt", {}, name), el("dd", {}, write(value))))),
    unit.others.length ? alsoOf(unit.others) : null,
    unit.p || unit.histogram ? el("div", { class: "charts" }, unit.p ? probabilities(unit, label) : null,
      unit.histogram ? activationPlot(unit.histogram) : null) : null,
    unit.tokens?.length ? el("p", { class: "tokens" }, el("span", { class: "cap" }, "promotes"),
      ...unit.tokens.map((token) => el("bdi", { class: "token" }, token))) : null,
    ...(unit.passages ?? []).flatMap(passage));
}

function alsoOf(others) {
  const names = others.slice(0, 8).flatMap((other, i) => [i ? ", " : "", el("bdi", {}, other)]);
  return el("p", { class: "others" }, "also of ", ...names, others.length > 8 ? ` and ${others.length - 8} more` : "");
}

/** Bars of the greatest probabilities; the others behind a disclosure. */
function probabilities({ p, left_out: leftOut }, label) {
  const order = [...p.keys()].sort((a, b) => p[b][1] - p[a][1] || a - b);
  const most = Math.max(1e-9, ...p.map((pair) => pair[1]));
  const bar = (i) => el("li", { class: p[i][0] === label ? "mine" : null }, el("bdi", { title: p[i][0] }, p[i][0]),
    el("span", { class: "track" }, el("i", { style: `--v:${(p[i][1] / most).toFixed(3)}` })),
    el("span", { class: "value" }, percent(p[i][1])));
  const first = order.slice(0, FEW), others = order.slice(FEW);
  return el("div", { class: "chart" }, el("p", { class: "cap" }, "probability by label"),
    el("ol", { class: "bars" }, ...first.map(bar)),
    others.length ? el("details", { class: "others" }, el("summary", {}, `${others.length} more, at most ${percent(p[others[0]][1])}`),
      el("ol", { class: "bars" }, ...others.map(bar))) : null,
    leftOut !== null && leftOut !== undefined ? el("p", { class: "cap" }, `the other labels at most ${percent(leftOut)}`) : null);
}

function passage({ label, value, direction, spans }) {
  return [
    el("p", { class: "cap" }, "fires", value !== null ? ` with ${figure(value, 2)}` : "", label ? " in " : "",
      label ? el("bdi", {}, label) : null),
    el("p", { class: "passage", dir: direction }, ...spans.map(([text, shade, peak]) =>
      (shade ? el("mark", { class: peak ? "peak" : null, style: `--a:${shade}%` }, text) : text))),
  ];
}

function chooseLabel(label) {
  const input = document.querySelector(`input[name="label"][value="${data.labels.indexOf(label)}"]`);
  if (!input) return;
  input.checked = true;
  clearSearch();
  showLabel();
  byId("features").scrollIntoView();
}
