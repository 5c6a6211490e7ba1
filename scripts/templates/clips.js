const { classes, clips } = JSON.parse(document.getElementById("data").textContent);
// Five colours that colour-blind eyes tell apart, in three shapes.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"];
const SHAPES = ["M0-1.5A1.5 1.5 0 1 1 0 1.5A1.5 1.5 0 1 1 0-1.5Z", "M-1.4-1.4H1.4V1.4H-1.4Z", "M0-1.8L1.8 1.4H-1.8Z"];
const place = genre => classes.indexOf(genre);
const colour = genre => COLOURS[place(genre) % 5], shape = genre => SHAPES[Math.floor(place(genre) / 5) % 3];
const get = id => document.getElementById(id);
const isRight = clip => clip.genre === clip.guess;
const mistakes = clips.filter(clip => !isRight(clip)).sort((a, b) => (a.genre + a.guess).localeCompare(b.genre + b.guess));

function make(tag, attributes = {}, ...children) {
  const svg = ["path", "svg", "text"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const title = (genre, guess) => genre === guess ? `${genre}, recognised` : `${genre}, taken for ${guess}`;
const mark = (genre, attributes) => make("path", { d: shape(genre), fill: colour(genre), ...attributes });

function card(clip) {
  const figure = make("figure", { class: "clip" });
  const strip = make("div", { class: "strip" }), cursor = make("i");
  if (clip.picture) strip.append(make("img", { src: clip.picture, alt: `Mel spectrogram of clip ${clip.id}` }));
  figure.append(make("figcaption", {}, make("b", {}, clip.id), `: ${title(clip.genre, clip.guess)}`), strip);
  if (clip.sound) {
    const audio = make("audio", { controls: "", preload: "metadata", src: clip.sound, "aria-label": `Clip ${clip.id}` });
    const follow = () => {
      cursor.style.left = `${100 * audio.currentTime / (audio.duration || 1)}%`;
      if (!audio.paused) requestAnimationFrame(follow);
    };
    audio.onplay = audio.onseeked = follow;
    strip.append(cursor);
    strip.onclick = event => {
      audio.currentTime = audio.duration * event.offsetX / strip.clientWidth || 0;
      audio.play();
    };
    figure.append(audio);
  }
  const shares = make("div", { class: "shares" });
  const order = classes.map((genre, i) => [genre, clip.shares[i]]).sort((a, b) => b[1] - a[1]);
  order.filter(([genre, share], i) => i < 3 || genre === clip.genre).forEach(([genre, share]) => {
    const bar = make("i");
    bar.style.cssText = `width: ${100 * share}%; --tint: ${colour(genre)}`;
    shares.append(make("span", genre === clip.genre ? { class: "true" } : {}, genre), bar, make("span", {}, share.toFixed(2)));
  });
  figure.append(shares);
  return figure;
}

let current = null;
function choose(heading, chosen, scroll = true) {
  current = chosen;
  get("chosen").textContent = heading;
  get("list").replaceChildren(...chosen.map(card));
  get("map").classList.add("some");
  clips.forEach((clip, i) => points[i].classList.toggle("on", chosen.includes(clip)));
  const cells = new Set(chosen.map(clip => `${clip.genre}|${clip.guess}`));
  document.querySelectorAll("#matrix button").forEach(button => button.setAttribute("aria-pressed", cells.has(button.dataset.cell) && cells.size === 1));
  if (scroll && matchMedia("(max-width: 62rem)").matches) get("chosen").scrollIntoView({ behavior: "smooth" });
}
const chooseOne = (clip, scroll) => choose(`Clip ${clip.id}`, [clip], scroll);
function step(by) {
  if (!mistakes.length) return;
  const now = current.length === 1 ? mistakes.indexOf(current[0]) : mistakes.indexOf(current[0]) - by;
  chooseOne(mistakes[(now + by + mistakes.length) % mistakes.length], false);
}

// The matrix: rows are the true genres.
const cellOf = (genre, guess) => clips.filter(clip => clip.genre === genre && clip.guess === guess);
get("matrix").append(make("thead", {}, make("tr", {}, make("th", {}, "true ↓ taken for →"), ...classes.map(genre => make("th", { scope: "col" }, genre)))));
const body = make("tbody");
let worst = null;
classes.forEach(genre => {
  const row = make("tr", {}, make("th", { scope: "row" }, genre));
  const total = clips.filter(clip => clip.genre === genre).length;
  classes.forEach(guess => {
    const inside = cellOf(genre, guess), cell = make("td");
    if (inside.length) {
      const button = make("button", { type: "button", class: genre === guess ? "right" : "wrong", "aria-label": `${inside.length} ${title(genre, guess)}`, "data-cell": `${genre}|${guess}` }, `${inside.length}`);
      button.style.setProperty("--share", `${15 + 85 * inside.length / total}%`);
      button.onclick = () => choose(title(genre, guess), inside);
      cell.append(button);
      if (genre !== guess && (!worst || inside.length > worst.length)) worst = inside;
    }
    row.append(cell);
  });
  body.append(row);
});
get("matrix").append(body);

// The map.
const points = clips.map(clip => {
  const point = mark(clip.genre, { transform: `translate(${100 * clip.place[0]} ${72 - 72 * clip.place[1]})`, class: isRight(clip) ? "" : "wrong" });
  point.onclick = () => { chooseOne(clip); document.querySelector("#list audio")?.play(); };
  return point;
});
get("map").append(...points);
const labels = [];
classes.forEach(genre => {
  const own = clips.filter(clip => clip.genre === genre);
  const middle = axis => own.map(clip => clip.place[axis]).sort((a, b) => a - b)[Math.floor(own.length / 2)];
  if (!own.length) return;
  labels.push({ genre, x: Math.min(90, Math.max(8, 100 * middle(0))), y: 69.5 - 72 * middle(1) });  // above its point
  const button = make("button", { type: "button" }, make("svg", { viewBox: "-2 -2 4 4" }, mark(genre)), genre);
  button.onclick = () => choose(`All of ${genre}`, own, false);
  get("legend").append(button);
});
labels.sort((a, b) => a.y - b.y).forEach((label, i) => {
  // A name that would lie on one above it moves down.
  labels.slice(0, i).forEach(other => { if (Math.abs(label.x - other.x) < 16) label.y = Math.max(label.y, other.y + 3.6); });
  get("map").append(make("text", { x: label.x, y: label.y }, label.genre));
});
get("map").onkeydown = event => {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (by) { event.preventDefault(); step(by); }
};
get("next").onclick = () => step(1);
get("back").onclick = () => step(-1);
const start = worst || clips;
choose(worst ? title(start[0].genre, start[0].guess) : "All clips", start, false);
