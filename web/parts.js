// What the editor's scripts of this pack share. Each adds a part to nodes, below their ordinary widgets. A part saves
// nothing, so that a graph is the same with and without it; where it cannot be added, one warning says so and the node is
// as it was.

import { app } from "../../scripts/app.js";

const DRAWN = ["svg", "polygon", "text", "circle", "title"];
const STYLE = `
.diffusion-blend { box-sizing: border-box; width: 100%; padding: 0 10px; font: 12px sans-serif; overflow: hidden;
  color: var(--input-text, #ddd); }
.diffusion-blend input[type=range] { min-width: 0; width: 100%; margin: 0; accent-color: var(--p-primary-color, #64a0ff); }`;

export function element(tag, attributes = {}, ...children) {
  const space = DRAWN.includes(tag) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const made = document.createElementNS(space, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A slider from 0 to `max` that calls edit(number). */
export function slider(label, max, step, edit) {
  const input = element("input", { type: "range", min: 0, max, step, "aria-label": label });
  input.addEventListener("input", () => edit(Number(input.value)));
  return input;
}

export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** Whether a widget's value comes from a link, so that there is nothing to edit. */
export const isLinked = (node, name) => node.inputs.some(({ widget, link }) => widget?.name === name && link != null);

/** Give a widget a value, as typing it does. */
export function setValue(node, widget, value) {
  widget.value = value;
  widget.callback?.(value);
  node.setDirtyCanvas(true, true);
}

/** An empty part of `height()` pixels on the node: { root, fill(...elements), fit() }. */
function addPart(node, name, height) {
  const root = element("div", { class: `diffusion-blend diffusion-blend-${name}` });
  root.style.flex = "none"; // Nodes 2.0 would stretch it over all that it holds
  root.addEventListener("pointerdown", (event) => event.stopPropagation()); // else the node is dragged
  const options = { serialize: false, hideInPanel: true, getMinHeight: height, getMaxHeight: height, getValue: () => "" };
  const widget = node.addDOMWidget(`${name}_controls`, `diffusion_blend_${name}`, root, options);
  widget.serialize = false; // this one keeps it out of the workflow, the option keeps it out of the prompt
  let needed = node.computeSize()[1];
  const fit = () => {
    root.style.height = `${height()}px`;
    const tight = node.size[1] <= needed + 2; // a node that was drawn larger keeps its size
    const [wide, high] = node.computeSize();
    needed = high;
    node.setSize([Math.max(node.size[0], wide), tight ? high : Math.max(node.size[1], high)]);
    node.setDirtyCanvas(true, true);
  };
  const fill = (...elements) => {
    root.replaceChildren(...elements);
    fit();
  };
  return { root, fill, fit };
}

/** Calls refresh() while the node is in the graph. Returns false once it has gone, and its element with it. */
function follow(node, name, root, refresh) {
  let added = false;
  return () => {
    if (node.graph?.getNodeById(node.id) === node) {
      added = true;
      refresh();
      return true;
    }
    if (root.isConnected) {
      // Nodes 2.0 goes on showing the element of a node that undo or another workflow has put a new one for.
      const successor = widgetOf(app.canvas?.graph?.getNodeById(node.id) ?? {}, `${name}_controls`);
      if (successor?.element && successor.element !== root) root.replaceWith(successor.element);
    }
    return !added || root.isConnected;
  };
}

// Values change by typing, loading, undo and links, in two editors: looking at them is what sees all of these.
const turns = new Set();
setInterval(() => turns.forEach((turn) => turn()), 150);

/**
 * Add a part to every node of a kind.
 *
 * kind: the node's id, or a function that says whether a node gets the part.  title: the node's name.  name: the part's.
 * height(state): of the part, in pixels; `state` is an object of the node's own.  attach(node, part, state): returns
 * refresh(), which is called again and again.
 */
export function addToNodes({ kind, title, name, style, height, attach }) {
  const wanted = typeof kind === "function" ? kind : (node) => node.comfyClass === kind;
  let complained = false;
  const complain = (error) => {
    if (!complained) console.warn(`Diffusion Blend: no ${name} on ${title}; the graph works as ever.`, error);
    complained = true;
  };
  app.registerExtension({
    name: `DiffusionBlend.${title.replaceAll(" ", "")}`,
    setup() {
      document.head.append(element("style", {}, STYLE + style));
    },
    nodeCreated(node) {
      if (!wanted(node)) return;
      try {
        const state = {};
        const part = addPart(node, name, () => height(state));
        const look = follow(node, name, part.root, attach(node, part, state));
        const turn = () => {
          try {
            if (!look()) turns.delete(turn);
          } catch (error) {
            turns.delete(turn);
            complain(error);
          }
        };
        turns.add(turn);
      } catch (error) {
        complain(error);
      }
    },
  });
}

/** What the node's last run sent to the editor (nodes/output.py): { text, diffusion_blend }, or undefined. */
export const outputOf = (node) => app.nodeOutputs?.[locatorOf(node)];

/** The data of a node's last run for its script; undefined before a run. */
export const resultOf = (node) => outputOf(node)?.diffusion_blend?.at(-1);

// As the editor names nodes: by number in the workflow itself, with the subgraph's id before it in a subgraph.
const locatorOf = (node) => (node.graph?.isRootGraph === false ? `${node.graph.id}:${node.id}` : String(node.id));
