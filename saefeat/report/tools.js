// Elements, numbers, and the page's data. Text of the corpus only ever becomes text nodes.

const byId = (id) => document.getElementById(id);
const picked = (name) => document.querySelector(`input[name="${name}"]:checked`)?.value;

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}
const el = (name, attributes = {}, ...children) => build(document.createElement(name), attributes, children);
const svg = (name, attributes = {}, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

const integer = (n) => (n ?? 0).toLocaleString("en");
const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(digits)} %`);
function figure(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const written = size && size < 10 ** -digits ? value.toExponential(1)
    : size >= 1000 ? integer(Math.round(value)) : value.toFixed(size >= 100 ? 1 : digits);
  return written.replace("-", "−");
}

// Not Math.max(...values): there may be more values than a call takes.
const greatest = (values, least) => values.reduce((a, b) => Math.max(a, b), least);

async function unpack(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function onChoice(name, act) {
  for (const input of document.querySelectorAll(`input[name="${name}"]`)) input.addEventListener("change", act);
}

/** Draw when the section first comes near the view, and once only, unless asked again. */
function whenNear(node, draw) {
  if (!node) return;
  const observer = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    draw();
  }, { rootMargin: "1200px 0px" });
  observer.observe(node);
}
