// What the editor's scripts of this pack share. Each adds a part to one kind of node, beside its ordinary widgets and
// text. A part saves nothing, so that a graph is the same with and without it; where it cannot be added, one warning
// says so and the node is as it was.

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

/** An empty part of `height()` pixels on the node: { root, fill(...elements) }. */
function addPart(node, name, height) {
  const root = element("div", { class: `diffusion-blend diffusion-blend-${name}` });
  root.addEventListener("pointerdown", (event) => event.stopPropagation()); // else the node is dragged
  const options = { serialize: false, getMinHeight: height, getMaxHeight: height, getValue: () => "" };
  const widget = node.addDOMWidget(`${name}_controls`, `diffusion_blend_${name}`, root, options);
  widget.serialize = false; // this one keeps it out of the workflow, the option keeps it out of the prompt
  const fill = (...elements) => {
    root.replaceChildren(...elements);
    root.style.height = `${height()}px`;
    const [wide, high] = node.computeSize();
    node.setSize([Math.max(node.size[0], wide), Math.max(node.size[1], high)]);
  };
  return { root, fill };
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

/**
 * Add a part to every node of a kind.
 *
 * kind: the node's id.  title: its name.  name: the part's.  height(state): of the part, in pixels; `state` is an object
 * of the node's own.  attach(node, part, state): returns refresh(), which is called again and again.
 */
export function addToNodes({ kind, title, name, style, height, attach }) {
  let complained = false;
  const complain = (error) => {
    if (!complained) console.warn(`Diffusion Blend: no controls on ${title}; it works as ever.`, error);
    complained = true;
  };
  app.registerExtension({
    name: `DiffusionBlend.${title.replaceAll(" ", "")}`,
    setup() {
      document.head.append(element("style", {}, STYLE + style));
    },
    nodeCreated(node) {
      if (node.comfyClass !== kind) return;
      try {
        const state = {};
        const part = addPart(node, name, () => height(state));
        const turn = follow(node, name, part.root, attach(node, part, state));
        // Values change by typing, loading, undo and links, in two editors: looking at them is what sees all of these.
        const timer = setInterval(() => {
          try {
            if (!turn()) clearInterval(timer);
          } catch (error) {
            clearInterval(timer);
            complain(error);
          }
        }, 150);
      } catch (error) {
        complain(error);
      }
    },
  });
}

/** Calls show(data) with what the node's run sent to the editor (nodes/showing.py), whenever it has run. */
export function onResult(node, show) {
  const own = node.onExecuted;
  node.onExecuted = function (output, ...rest) {
    own?.call(this, output, ...rest);
    const data = output?.diffusion_blend?.at(-1);
    if (data) show(data);
  };
}
