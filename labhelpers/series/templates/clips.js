const { classes, clips } = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777", "#882255", "#44AA99", "#AA4499"];
const colour = genre => COLOURS[classes.indexOf(genre) % COLOURS.length];

function make(tag, attributes = {}, ...children) {
  const svg = ["circle", "title"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function describe(clip) {
  return clip.genre === clip.predicted ? `${clip.genre}, recognised` : `${clip.genre}, taken for ${clip.predicted}`;
}

function show(title, chosen) {
  const heading = document.getElementById("chosen");
  heading.textContent = title;
  if (matchMedia("(max-width: 64rem)").matches) heading.scrollIntoView({ behavior: "smooth" });
  const list = document.getElementById("list");
  list.replaceChildren(...chosen.map(clip => {
    const card = make("figure", { class: "clip" });
    if (clip.picture) card.append(make("img", { src: clip.picture, alt: `Mel spectrogram of clip ${clip.id}` }));
    card.append(make("figcaption", {}, `${clip.id}: ${describe(clip)}`));
    if (clip.sound) card.append(make("audio", { controls: "", preload: "none", src: clip.sound, "aria-label": `Clip ${clip.id}` }));
    return card;
  }));
}

// The matrix: rows are the true genres.
const matrix = document.getElementById("matrix");
const head = make("tr", {}, make("th", { scope: "col" }, "true ↓ taken for →"));
classes.forEach(genre => head.append(make("th", { scope: "col" }, genre)));
matrix.append(make("thead", {}, head));
const body = make("tbody");
classes.forEach(genre => {
  const row = make("tr", {}, make("th", { scope: "row" }, genre));
  const total = clips.filter(clip => clip.genre === genre).length;
  classes.forEach(guess => {
    const inside = clips.filter(clip => clip.genre === genre && clip.predicted === guess);
    const cell = make("td");
    if (inside.length) {
      const share = Math.round(100 * inside.length / total);
      const button = make("button", { type: "button", "aria-label": `${inside.length} ${genre} taken for ${guess}` }, `${inside.length}`);
      button.style.setProperty("--share", `${15 + 0.7 * share}%`);
      button.className = genre === guess ? "right" : "wrong";
      button.onclick = () => show(genre === guess ? `${genre}, recognised` : `${genre} taken for ${guess}`, inside);
      cell.append(button);
    }
    row.append(cell);
  });
  body.append(row);
});
matrix.append(body);

// The map.
classes.forEach(genre => {
  const swatch = make("span", { class: "swatch" });
  swatch.style.background = colour(genre);
  document.getElementById("legend").append(make("span", { class: "key" }, swatch, genre), " ");
});
const places = document.getElementById("places");
clips.forEach(clip => {
  const point = make("circle", { cx: 100 * clip.x, cy: 72 - 72 * clip.y, r: 1.4, fill: colour(clip.genre), tabindex: 0,
    role: "button", "aria-label": `${clip.id}: ${describe(clip)}` }, make("title", {}, `${clip.id}: ${describe(clip)}`));
  if (clip.genre !== clip.predicted) point.setAttribute("class", "wrong");
  point.onclick = () => { show(`Clip ${clip.id}`, [clip]); document.querySelector("#list audio")?.play(); };
  point.onkeydown = event => { if (["Enter", " "].includes(event.key)) { event.preventDefault(); point.onclick(); } };
  places.append(point);
});
