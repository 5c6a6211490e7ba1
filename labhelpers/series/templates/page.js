// Figures enlarge, code opens, headings can be linked to. The pages read well without it.
const box = document.getElementById("lightbox");
document.querySelectorAll("button.zoom").forEach(button => {
  button.onclick = () => {
    const image = button.querySelector("img");
    box.firstElementChild.src = image.src;
    box.firstElementChild.alt = image.alt;
    box.showModal();
  };
});
box.onclick = () => box.close();

const toggle = document.getElementById("toggle");
if (toggle) {
  const show = open => {
    document.querySelectorAll("details.code").forEach(block => { block.open = open; });
    toggle.setAttribute("aria-pressed", open);
    toggle.textContent = open ? "Hide all code" : "Show all code";
  };
  toggle.onclick = () => {
    const open = toggle.getAttribute("aria-pressed") === "false";
    try { localStorage.setItem("labhelpers-code", open); } catch { /* not kept from files, in some */ }
    show(open);
  };
  try { show(localStorage.getItem("labhelpers-code") === "true"); } catch { show(false); }
}

document.querySelectorAll("article :is(h2, h3)[id]").forEach(heading => {
  const link = document.createElement("a");
  link.href = `#${heading.id}`;
  link.className = "anchor";
  link.textContent = "#";
  link.setAttribute("aria-label", `Link to “${heading.textContent}”`);
  heading.append(link);
});
