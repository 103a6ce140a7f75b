// Blend Weights: a slider for two rewards, a point in a triangle for three, linked sliders for more. It edits the text of
// the `weights` widget and saves nothing itself, so that a graph is the same with and without it.

import { addToNodes, element, isLinked, setValue, slider, widgetOf } from "./parts.js";
import { word } from "./words.js";

const SLOT = /^loras\.lora_\d+$/;
const HEIGHTS = { 2: 50, 3: 170 };
const [WIDTH, HEIGHT] = [300, 160]; // of the picture that holds the triangle
const CORNERS = [[150, 26], [60, 132], [240, 132]];
const OFF = [2, 4]; // modes of nodes: never, bypass
const KEYS = { ArrowUp: [0, -3], ArrowDown: [0, 3], ArrowLeft: [-3, 0], ArrowRight: [3, 0] };

const STYLE = `
.diffusion-blend-weights label { display: flex; align-items: center; gap: 8px; height: 24px; }
.diffusion-blend-weights div { display: flex; justify-content: space-between; height: 22px; align-items: center; }
.diffusion-blend-weights span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.diffusion-blend-weights label span { width: 45%; flex: none; }
.diffusion-blend-weights svg { display: block; width: 100%; height: 165px; touch-action: none; }
.diffusion-blend-weights polygon { fill: var(--comfy-input-bg, #222); stroke: var(--descrip-text, #999); }
.diffusion-blend-weights text { fill: currentColor; font-size: 12px; }
.diffusion-blend-weights circle { fill: var(--p-primary-color, #64a0ff); stroke: currentColor; stroke-width: 1.5;
  cursor: grab; }`;

const DECIMAL_COMMA = /(?<=\d),(?=\d)/;

/** The numbers in text such as `0.6, 0.4`, `60% 40%` or `0,6; 0,4`, as the node reads them; null for other words. */
function parse(text) {
  let parts = text.trim().split(/[;\s]+/);
  if (parts.length > 1 && !text.includes(".")) parts = parts.map((part) => part.replace(DECIMAL_COMMA, "."));
  parts = parts.flatMap((part) => part.split(",")).filter(Boolean);
  const numbers = parts.map((part) => Number(part.replace(/%$/, "")) / (part.endsWith("%") ? 100 : 1));
  return numbers.every(Number.isFinite) ? numbers : null;
}

/** Whether numbers are shares of a whole: none below 0, with a sum. */
const areShares = (numbers) => numbers.every((number) => number >= 0) && numbers.some((number) => number > 0);

/** `count` shares of sum 1: of the numbers where they fit, else all equal. */
function sharesOf(numbers, count) {
  if (numbers?.length !== count || !areShares(numbers)) return Array(count).fill(1 / count);
  const sum = numbers.reduce((a, b) => a + b, 0);
  return numbers.map((number) => number / sum);
}

/** Text of the shares times `total`, in hundredths that sum to it: what rounding leaves goes to the largest remainders. */
function format(shares, total) {
  const exact = shares.map((share) => share * total * 100);
  const units = exact.map(Math.floor);
  const order = exact.map((value, i) => [value - units[i], i]).sort((a, b) => b[0] - a[0]);
  const spare = Math.round(total * 100) - units.reduce((a, b) => a + b, 0);
  for (const [, i] of order.slice(0, Math.max(spare, 0))) units[i] += 1;
  return units.map((unit) => String(unit / 100)).join(", ");
}

/** The shares with share i at `value`, the others keeping their ratios (also where they all come to nearly 0). */
function linked(shares, i, value) {
  const own = Math.min(value, 1 - 1e-9);
  const rest = shares.reduce((sum, share, j) => (j === i ? sum : sum + share), 0);
  return shares.map((share, j) => {
    if (j === i) return own;
    return (1 - own) * (rest > 0 ? share / rest : 1 / (shares.length - 1));
  });
}

/** Barycentric coordinates of a point in the triangle; outside of it, of a point on its edge. */
function barycentric([x, y]) {
  const [[ax, ay], [bx, by], [cx, cy]] = CORNERS;
  const area = (by - cy) * (ax - cx) + (cx - bx) * (ay - cy);
  const a = ((by - cy) * (x - cx) + (cx - bx) * (y - cy)) / area;
  const b = ((cy - ay) * (x - cx) + (ax - cx) * (y - cy)) / area;
  return sharesOf([a, b, 1 - a - b].map((share) => Math.max(share, 0)), 3);
}

const pointOf = (shares) => [0, 1].map((axis) => shares.reduce((sum, share, i) => sum + share * CORNERS[i][axis], 0));

/** The slots that something is connected to, in their order: { name, off }; off: it is muted or bypassed. */
function slotsOf(node) {
  const slots = [...(node.inputs ?? []).entries()].filter(([, { name, link }]) => SLOT.test(name) && link != null);
  return slots.map(([slot], i) => {
    const from = node.getInputNode(slot);
    const values = Object.fromEntries((from?.widgets ?? []).map(({ name, value }) => [name, value]));
    const file = String(values.lora_name ?? "").split(/[\\/]/).pop().replace(/\.\w+$/, "");
    const name = String(values.label ?? "").trim() || file || word("reward {n}", i + 1);
    return { name, off: OFF.includes(from?.mode) };
  });
}

/**
 * What the rewards are called: the label of a Load Reward LoRA, or its file; a number where something else comes in. How
 * many a stack brings is known when it runs: here as many as make `count`, the numbers in the text.
 */
function rewardNames(node, count) {
  const names = slotsOf(node).map(({ name, off }) => (off ? `${name} (${word("off")})` : name));
  const stack = node.inputs?.some(({ name, link }) => name === "lora_stack" && link != null);
  while (stack && names.length < count) names.push(word("reward {n}", names.length + 1));
  return names;
}

/** The text that is run: without the numbers of LoRAs that are off, which ComfyUI leaves out. */
function withoutThoseOff(node, text) {
  const [, auto, written] = /^(\s*auto\b[\s:,]*)?(.*)$/is.exec(String(text));
  const [numbers, slots] = [parse(written), slotsOf(node)];
  if (!numbers || numbers.length < slots.length || !slots.some(({ off }) => off)) return text;
  return (auto ?? "") + numbers.filter((_, i) => !slots[i]?.off).join(", ");
}

const short = (name) => (name.length > 16 ? `${name.slice(0, 15)}…` : name);

// Each control is { root, show(shares, written) }: the shares, and as the text has them, rounded. It calls edit(shares).

function twoEnds(names, edit) {
  const ends = names.map((name) => element("span", { title: name }));
  const input = slider(`${names[0]} – ${names[1]}`, 1, 0.01, (value) => edit([1 - value, value]));
  const show = (shares, written) => {
    input.value = shares[1];
    ends.forEach((end, i) => (end.textContent = `${names[i]} ${written[i].toFixed(2)}`));
  };
  return { root: element("section", {}, element("div", {}, ...ends), input), show };
}

function sliders(names, edit) {
  let current = [];
  const inputs = names.map((name, i) => slider(name, 1, 0.01, (value) => edit(linked(current, i, value))));
  const labels = names.map((name) => element("span", { title: name }));
  const show = (shares, written) => {
    current = shares;
    inputs.forEach((input, i) => (input.value = shares[i]));
    labels.forEach((label, i) => (label.textContent = `${written[i].toFixed(2)} ${names[i]}`));
  };
  return { root: element("section", {}, ...inputs.map((input, i) => element("label", {}, input, labels[i]))), show };
}

function triangle(names, edit) {
  let current = [];
  const places = [[150, 14, "middle"], [4, 152, "start"], [296, 152, "end"]];
  const labels = places.map(([x, y, anchor]) => element("text", { x, y, "text-anchor": anchor }));
  const point = element("circle", { r: 7, tabindex: 0, role: "slider", "aria-label": names.join(", ") });
  const area = element("polygon", { points: CORNERS.join(" ") });
  const root = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}` }, area, ...labels, point);
  const place = (event) => {
    const box = root.getBoundingClientRect();
    const scale = Math.min(box.width / WIDTH, box.height / HEIGHT);
    const left = box.left + (box.width - scale * WIDTH) / 2;
    const top = box.top + (box.height - scale * HEIGHT) / 2;
    edit(barycentric([(event.clientX - left) / scale, (event.clientY - top) / scale]));
  };
  root.addEventListener("mousedown", (event) => event.preventDefault()); // else the focus leaves the point again
  root.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    root.setPointerCapture(event.pointerId);
    point.focus();
    place(event);
  });
  root.addEventListener("pointermove", (event) => root.hasPointerCapture(event.pointerId) && place(event));
  point.addEventListener("keydown", (event) => {
    if (!(event.key in KEYS)) return;
    event.preventDefault();
    edit(barycentric(pointOf(current).map((value, axis) => value + KEYS[event.key][axis])));
  });
  const show = (shares, written) => {
    current = shares;
    const [x, y] = pointOf(shares);
    point.setAttribute("cx", x);
    point.setAttribute("cy", y);
    point.setAttribute("aria-valuetext", names.map((name, i) => `${name} ${written[i].toFixed(2)}`).join(", "));
    labels.forEach((label, i) => {
      label.replaceChildren(`${short(names[i])} ${written[i].toFixed(2)}`, element("title", {}, names[i]));
    });
  };
  return { root, show };
}

const heightOf = (count) => (count < 2 ? 0 : HEIGHTS[count] ?? 24 * count + 4);

function attach(node, part, state) {
  const weights = widgetOf(node, "weights");
  const normalise = widgetOf(node, "normalise");
  let [seen, control] = ["", null];
  const run = weights.serializeValue;
  weights.serializeValue = async (...sent) => {
    const text = run ? await run.apply(weights, sent) : weights.value;
    return withoutThoseOff(node, text);
  };
  state.names = [];

  const rewards = () => (isLinked(node, "weights") ? [] : rewardNames(node, parse(weights.value)?.length ?? 0));
  const now = () => JSON.stringify([weights.value, rewards()]);
  const written = () => sharesOf(parse(weights.value), state.names.length);
  const show = (shares) => {
    control.show(shares, written());
    const numbers = parse(weights.value); // none at all: all equal
    const fits = [0, state.names.length].includes(numbers?.length) && numbers.every((number) => number >= 0);
    part.root.style.opacity = fits ? "" : 0.5;
  };
  const edit = (shares) => {
    const sum = (parse(weights.value) ?? []).reduce((a, b) => a + b, 0);
    setValue(node, weights, format(shares, normalise.value || sum <= 0 ? 1 : sum));
    seen = now();
    show(shares);
  };
  const rebuild = () => {
    state.names = rewards();
    const count = state.names.length;
    control = count < 2 ? null : ([twoEnds, triangle][count - 2] ?? sliders)(state.names, edit);
    part.fill(...(control ? [control.root] : []));
  };

  return () => {
    if (now() === seen) return;
    seen = now();
    if (JSON.stringify(rewards()) !== JSON.stringify(state.names)) rebuild();
    if (control) show(written());
  };
}

addToNodes({
  kind: "DiffusionBlendBlendWeights",
  title: "Blend Weights",
  name: "weights",
  style: STYLE,
  height: ({ names }) => heightOf(names?.length ?? 0),
  attach,
});
