// One search over features, samples and errors.

let query = "";

const plain = (text) => text.normalize("NFKC").toLowerCase();
const count = (n, name) => `${integer(n)} ${name}${n === 1 ? "" : "s"}`;

/** Features that have the query in label, name, promoted tokens or passages, in this order; each unit once. */
function featuresFound() {
  const place = ({ words }) => (words.label === query ? 0 : words.id.includes(query) ? 1 : words.label.includes(query) ? 2
    : words.tokens.some((token) => token.includes(query)) ? 3 : words.text.includes(query) ? 4 : 5);
  const seen = new Set();
  return catalogue().map((entry) => [place(entry), entry]).filter(([at]) => at < 5).sort((a, b) => a[0] - b[0])
    .map(([, entry]) => entry).filter((entry) => {
      const key = `${entry.method}/${entry.words.id}`;
      return !seen.has(key) && seen.add(key);
    });
}

function search() {
  const typed = byId("search").value.trim();
  query = plain(typed);
  document.body.classList.toggle("searching", Boolean(query));
  const parts = [];
  if (byId("feature-list")) {
    const found = query ? featuresFound() : [];
    if (query) showFound(found, typed);
    else showLabel();
    parts.push(["features", count(found.length, "feature")]);
  }
  if (data.samples) {
    drawSamples();
    parts.push(["samples", count(samplesFound().length, "sample")]);
  }
  if (data.errors) {
    drawErrors();
    parts.push(["errors", count(errorsFound().length, "error")]);
  }
  byId("hits").hidden = !query;
  byId("hits").replaceChildren(...parts.map(([id, words]) => el("a", { href: `#${id}` }, words)));
}

function clearSearch() {
  if (!query) return;
  byId("search").value = "";
  search();
}
