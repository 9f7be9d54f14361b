// Start: draw what is there, and listen.

const data = await unpack("data");

function showMethod() {
  if (byId("feature-method")) byId("feature-method").value = picked("method");
  for (const part of document.querySelectorAll("[data-method]")) part.hidden = part.dataset.method !== (picked("method") ?? "0");
}

function watch(id, draw) {
  byId(id)?.addEventListener("change", draw);
}

function switchTheme() {
  const root = document.documentElement;
  const dark = getComputedStyle(root).colorScheme.includes("dark") && (root.style.colorScheme || matchMedia("(prefers-color-scheme: dark)").matches);
  root.style.colorScheme = dark ? "light" : "dark";
}

function followSections() {
  const links = new Map([...document.querySelectorAll("nav a[href^='#']")].map((link) => [link.hash.slice(1), link]));
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const link = links.get(target.id);
      if (!isIntersecting) link?.removeAttribute("aria-current");
      else if (link) {
        link.setAttribute("aria-current", "true");
        const row = link.parentElement;
        row.scrollTo({ left: link.offsetLeft - row.clientWidth / 2 + link.clientWidth / 2 });
      }
    }
  }, { rootMargin: "-25% 0px -70%" });
  for (const section of document.querySelectorAll("main > section")) observer.observe(section);
}

if (data.methods.length) {
  whenNear(byId("where"), drawWhere);
  showMethod();
  showLabel();
  onChoice("method", () => { showMethod(); drawWhere(); clearSearch(); showLabel(); });
  watch("feature-method", (event) => document.querySelector(`input[name="method"][value="${event.target.value}"]`).click());
  onChoice("label", () => { clearSearch(); showLabel(); });
  byId("feature-list").addEventListener("click", (event) => {
    const button = event.target.closest("button.of");
    if (button) chooseLabel(button.dataset.label);
  });
}
if (byId("confusion-heat")) {
  whenNear(byId("confusion"), drawConfusion);
  watch("confusion-head", drawConfusion);
  watch("confusion-length", drawConfusion);
}
if (data.errors) {
  drawErrors();
  watch("error-length", drawErrors);
  watch("error-label", drawErrors);
  onChoice("error-kind", drawErrors);
}
if (data.entropy) whenNear(byId("entropy"), drawEntropy);
if (data.overlap) {
  whenNear(byId("overlap"), drawOverlap);
  onChoice("overlap", drawOverlap);
}
if (data.sets) {
  whenNear(byId("sets-heat"), drawSets);
  onChoice("overlap", drawSets);
  watch("sets-method", drawSets);
}
if (data.steering) {
  drawSteering();
  onChoice("measure", drawSteering);
  watch("frontier-label", drawFrontier);
  new ResizeObserver(drawFrontier).observe(byId("frontier"));
}
if (data.samples) {
  fillSampleFilters();
  drawSamples();
  watch("sample-label", drawSamples);
  watch("sample-method", drawSamples);
}
if (byId("matrix-heat")) {
  whenNear(byId("perplexity"), drawMatrix);
  watch("matrix-intervention", drawMatrix);
  watch("matrix-measure", drawMatrix);
}
byId("search").addEventListener("input", search);
byId("search").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && query) byId("hits").querySelector("a")?.click();
  if (event.key === "Escape") clearSearch();
});
byId("theme").addEventListener("click", switchTheme);
followSections();
document.body.dataset.ready = "";
