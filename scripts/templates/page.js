// Code is copied, contents follow the reader. The pages read well without it.
const all = selector => [...document.querySelectorAll(selector)];
all("div.sourceCode, .code pre").filter(block => !block.parentElement.closest(".sourceCode")).forEach(block => {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "copy", textContent: "Copy" });
  const text = block.textContent;
  button.onclick = () => navigator.clipboard.writeText(text.trimEnd()).then(() => { button.textContent = "Copied"; });
  const holder = Object.assign(document.createElement("div"), { className: "holds-copy" });
  block.replaceWith(holder);
  holder.append(block, button);
});
// What scrolls sideways can be reached by keyboard; nothing else is a tab stop.
all("pre, .scroll, math").forEach(block => { if (block.scrollWidth > block.clientWidth + 1) block.tabIndex = 0; });
// A phone shows results first: code opens at a touch.
if (matchMedia("(max-width: 40rem)").matches) all("details.code").forEach(block => { block.open = false; });
const contents = document.querySelector(".contents");
if (contents) {
  if (matchMedia("(max-width: 62rem)").matches) contents.open = false;
  const links = new Map(all(".contents a").map(link => [decodeURIComponent(link.hash.slice(1)), link]));
  const watcher = new IntersectionObserver(entries => entries.filter(entry => entry.isIntersecting).forEach(entry => {
    links.forEach(link => link.classList.remove("now"));
    links.get(entry.target.id)?.classList.add("now");
  }), { rootMargin: "-10% 0px -75% 0px" });
  links.forEach((link, id) => { const heading = document.getElementById(id); if (heading) watcher.observe(heading); });
}
document.querySelector(".bar [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
