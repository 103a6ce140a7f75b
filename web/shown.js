// What a node's last run says, as text on every node of the pack: also why it failed. The editor keeps what runs send for each open workflow;
// here it is also kept over a reload of the page.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addToNodes, element, outputOf } from "./parts.js";

// First come the parts that are used; the text stands below them.
const OTHERS = ["blend_weights", "duel", "kl_interpolate", "reward_scorer", "stochastic_ls"];
await Promise.allSettled(OTHERS.map((name) => import(`./${name}.js`)));

const [LINE, MOST] = [16, 240]; // pixels; longer texts are scrolled
const STORE = "DiffusionBlend.outputs";
const STYLE = `
.diffusion-blend-shown { overflow-y: auto; }
.diffusion-blend-shown p { margin: 0; padding: 2px 0; line-height: ${LINE}px; white-space: pre-wrap;
  overflow-wrap: anywhere; user-select: text; cursor: text; }
.diffusion-blend-shown [role=alert] { color: var(--error-text, #ff6b6b); }`;

const isOurs = (node) => /^DiffusionBlend[A-Z]/.test(node?.comfyClass ?? "");

/** Whether a script draws all that the text says, as the Reward Scorer's table does. */
const isDrawn = (node) => node.widgets.some(({ element: root }) => root?.dataset?.tells && root.childElementCount > 0);

/** The texts of a node that ran several times in one run, each line once. */
const linesOf = (texts) => [...new Set(texts.join("\n").split("\n"))].join("\n");

/** Pixels that the paragraph needs; by its lines where it is not on the screen. */
function heightOf(paragraph, text) {
  return Math.min(paragraph.offsetHeight || LINE * text.split("\n").length + 4, MOST);
}

const failed = new Map(); // sentences of failed runs, by node

/** Why ComfyUI refused the node before a run. */
function refusalOf(node) {
  for (const [id, { errors = [] }] of Object.entries(app.lastNodeErrors ?? {})) {
    if (nodeOf(id) !== node) continue;
    for (const { type, details = "", extra_info: extra } of errors) {
      if (extra?.exception_type === "BlendError") return extra.exception_message;
      if (type === "custom_validation_failed") return details.replace(`${extra?.input_name} - `, "");
    }
  }
}

function attach(node, part, state) {
  const paragraph = element("p", {});
  let seen = "";
  return () => {
    const sentence = refusalOf(node) ?? failed.get(node);
    const texts = isDrawn(node) ? [] : (outputOf(node)?.text ?? []);
    const text = sentence ?? (texts.length > 1 ? linesOf(texts) : texts.join(""));
    paragraph.setAttribute("role", sentence ? "alert" : "note");
    if (text !== paragraph.textContent) {
      paragraph.textContent = text;
      part.root.replaceChildren(...(text ? [paragraph] : []));
    }
    const height = text ? heightOf(paragraph, text) : 0;
    if (JSON.stringify([text, height]) === seen) return;
    seen = JSON.stringify([text, height]);
    state.height = height;
    part.fit();
  };
}

addToNodes({
  kind: isOurs,
  title: "Texts",
  name: "shown",
  style: STYLE,
  height: ({ height }) => height ?? 0,
  attach,
});

/** The node that an event of a run is about: `node_id` has the ids of the subgraphs before it. */
function nodeOf(executionId) {
  let graph = app.graph.rootGraph ?? app.graph;
  const ids = String(executionId).split(":");
  for (const id of ids.slice(0, -1)) graph = graph?.getNodeById(id)?.subgraph;
  return graph?.getNodeById(ids.at(-1));
}

app.registerExtension({
  name: "DiffusionBlend.Errors",
  setup() {
    api.addEventListener("execution_start", () => failed.clear());
    api.addEventListener("promptQueueing", () => failed.clear());
    api.addEventListener("execution_error", ({ detail }) => {
      const node = nodeOf(detail.node_id);
      if (detail.exception_type === "BlendError" && isOurs(node)) failed.set(node, detail.exception_message.trim());
    });
  },
});

// Over a reload. Only what this page has not loaded or run itself is taken from before it.

const known = new Set(); // workflows of this page, by id

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(STORE)) ?? {};
  } catch {
    return {};
  }
}

function keep(locator, output) {
  const id = app.graph.rootGraph?.id ?? app.graph.id;
  known.add(id);
  const { [id]: own, ...others } = stored();
  const recent = Object.entries(others).slice(-20);
  try {
    sessionStorage.setItem(STORE, JSON.stringify({ ...Object.fromEntries(recent), [id]: { ...own, [locator]: output } }));
  } catch (error) {
    console.debug("Diffusion Blend: texts are not kept over a reload.", error);
  }
}

app.registerExtension({
  name: "DiffusionBlend.Reload",
  setup() {
    api.addEventListener("executed", () => {
      for (const [locator, output] of Object.entries(app.nodeOutputs ?? {}))
        if (output?.text) keep(locator, { text: output.text, diffusion_blend: output.diffusion_blend });
    });
  },
  afterConfigureGraph() {
    const id = app.graph.rootGraph?.id ?? app.graph.id;
    if (known.has(id)) return;
    known.add(id);
    for (const [locator, output] of Object.entries(stored()[id] ?? {})) app.nodeOutputs[locator] ??= output;
  },
});
