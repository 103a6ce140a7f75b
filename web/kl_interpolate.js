// KL Interpolate: a slider with the places that mean something: the base model, as trained, and beyond. It edits the
// `alignment` widget.

import { addToNodes, element, isLinked, setValue, slider, widgetOf } from "./parts.js";
import { word } from "./words.js";

const HEIGHT = 48;
const MAX = 3; // of the slider: beyond, and below 0, the number itself is typed
const MARKS = { base: 0, "as trained": 1 };
const STYLE = `
.diffusion-blend-alignment section { position: relative; height: ${HEIGHT - 4}px; --thumb: 16px; }
.diffusion-blend-alignment input[type=range] { display: block; height: 18px; }
.diffusion-blend-alignment hr { position: absolute; top: 20px; height: 3px; margin: 0; border: 0; }
.diffusion-blend-alignment button { position: absolute; top: 25px; padding: 1px 3px; border: 0; background: none;
  color: inherit; font: inherit; cursor: pointer; white-space: nowrap; opacity: 0.75; border-radius: 4px; }
.diffusion-blend-alignment button:hover, .diffusion-blend-alignment button[aria-pressed=true] { opacity: 1; }
.diffusion-blend-alignment button[aria-pressed=true] { font-weight: bold; }
.diffusion-blend-alignment .within { background: var(--p-primary-color, #64a0ff); }
.diffusion-blend-alignment .beyond { background: #e0912f; }`;

/** Where the middle of the slider's thumb is at a value. */
const placeOf = (value, max) => `calc(var(--thumb) / 2 + (100% - var(--thumb)) * ${value / max})`;

function zone(name, from, to, max) {
  const left = placeOf(from, max);
  return element("hr", { class: name, style: `left: ${left}; width: calc((100% - var(--thumb)) * ${(to - from) / max})` });
}

function mark(name, shift, left, edit, value) {
  const button = element("button", { type: "button", style: `left: ${left}; transform: translateX(${shift})` }, word(name));
  button.addEventListener("click", () => edit(value));
  return button;
}

function dial(max, edit) {
  const input = slider("alignment", max, 0.05, edit);
  const beyond = Math.min(1.5, max);
  const buttons = [
    mark("base", "-8px", placeOf(MARKS.base, max), edit, MARKS.base),
    mark("as trained", "-50%", placeOf(MARKS["as trained"], max), edit, MARKS["as trained"]),
    mark("beyond", "-50%", placeOf((1 + max) / 2, max), edit, beyond),
  ];
  const show = (value) => {
    input.value = value;
    const pressed = [value === MARKS.base, value === MARKS["as trained"], value > MARKS["as trained"]];
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", pressed[i]));
  };
  const root = element("section", {}, input, zone("within", 0, 1, max), zone("beyond", 1, max, max), ...buttons);
  return { root, show };
}

function attach(node, part, state) {
  const alignment = widgetOf(node, "alignment");
  const edit = (value) => setValue(node, alignment, value);
  const control = dial(MAX, edit);
  return () => {
    const shown = !isLinked(node, "alignment");
    if (shown !== state.shown) {
      state.shown = shown;
      part.fill(...(shown ? [control.root] : []));
    }
    if (alignment.value === state.value) return;
    state.value = alignment.value;
    control.show(state.value);
  };
}

addToNodes({
  kind: "DiffusionBlendKLInterpolate",
  title: "KL Interpolate",
  name: "alignment",
  style: STYLE,
  height: ({ shown }) => (shown ? HEIGHT : 0),
  attach,
});
