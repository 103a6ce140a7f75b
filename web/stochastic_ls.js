// Stochastic LS Sampler: after a run, a strip per image, one coloured box per step: the reward which that step used.

import { addToNodes, element, resultOf } from "./parts.js";
import { word } from "./words.js";

const ROW = 16;
const MOST_ROWS = 6; // the rest is scrolled to
const COLOURS = ["#9a9a9a", "#4f9dff", "#e0912f", "#41b883", "#d76ad8", "#e25f5f", "#c9b93a", "#6f7bf7", "#37b7c3"];
const ALL = "repeating-linear-gradient(45deg, #fff 0 2px, #777 2px 4px)";
const STYLE = `
.diffusion-blend-choices { overflow: auto; }
.diffusion-blend-choices p { display: flex; flex-wrap: wrap; gap: 2px 10px; margin: 0 0 4px; line-height: 16px; }
.diffusion-blend-choices p span { white-space: nowrap; }
.diffusion-blend-choices i { display: inline-block; width: 10px; height: 10px; margin-right: 4px; border-radius: 2px; }
.diffusion-blend-choices section { display: flex; height: ${ROW - 4}px; margin-bottom: 4px; border-radius: 3px;
  overflow: hidden; }
.diffusion-blend-choices section i { flex: 1; width: auto; height: 100%; margin: 0; border-radius: 0;
  box-shadow: inset -1px 0 rgb(0 0 0 / 35%); }`;

const colourOf = (variant) => (variant === null ? ALL : COLOURS[variant % COLOURS.length]);
const box = (variant, title = "") => element("i", { title, style: `background: ${colourOf(variant)}` });

/** names: what variant 0 (the base), 1, 2 ... are called.  images: the variant of each step, null for all at once. */
function strips({ names, images }) {
  const called = (variant) => (variant === null ? word("all") : variant === 0 ? word("base") : names[variant]);
  const counts = new Map([...names.keys(), null].map((variant) => [variant, 0]));
  for (const variant of images.flat()) counts.set(variant, counts.get(variant) + 1);
  const used = [...counts].filter(([, count]) => count > 0);
  const entry = ([variant, count]) => element("span", {}, box(variant), `${called(variant)} ${count}`);
  const strip = (steps, i) => {
    const image = word("image {n}", i + 1);
    const label = `${image}: ${steps.map(called).join(", ")}`;
    const boxes = steps.map((variant, step) => box(variant, `${image}, ${word("step {n}", step + 1)}: ${called(variant)}`));
    return element("section", { role: "img", "aria-label": label }, ...boxes);
  };
  return [element("p", {}, ...used.map(entry)), ...images.map(strip)];
}

function attach(node, part, state) {
  return () => {
    const choices = resultOf(node)?.choices;
    if (JSON.stringify(choices) === state.seen) return;
    Object.assign(state, { seen: JSON.stringify(choices), images: choices?.images.length ?? 0 });
    part.fill(...(choices ? strips(choices) : []));
  };
}

addToNodes({
  kind: "DiffusionBlendStochasticLS",
  title: "Stochastic LS Sampler",
  name: "choices",
  style: STYLE,
  height: ({ images }) => (images ? 24 + ROW * Math.min(images, MOST_ROWS) : 0),
  attach,
});
