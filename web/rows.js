// Apply Reward LoRAs shows its rows as they are needed: those with a file, and one more. A row that is out of sight keeps
// what was set in it; without this script all rows are in sight.

import { app } from "../../scripts/app.js";
import { isLinked, widgetOf } from "./parts.js";

const PARTS = ["lora", "on", "weight"];
const NO_FILE = "none";
const heights = new WeakMap(); // what each node's rows needed when they were last shown

function rowsOf(node) {
  const rows = [];
  for (let i = 1; widgetOf(node, `lora_${i}`); i++) rows.push(PARTS.map((part) => widgetOf(node, `${part}_${i}`)));
  return rows;
}

function show(node) {
  const rows = rowsOf(node);
  const last = rows.findLastIndex(([file]) => file.value !== NO_FILE || isLinked(node, file.name));
  for (const [i, row] of rows.entries()) {
    for (const widget of row) {
      widget.hidden = i > last + 1;
      widget.options.hidden = widget.hidden; // as Nodes 2.0 reads it
    }
  }
  const tight = node.size[1] <= heights.get(node) + 2; // a node that was drawn larger keeps its size
  const high = node.computeSize()[1];
  heights.set(node, high);
  node.setSize([node.size[0], tight ? high : Math.max(node.size[1], high)]);
  node.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "DiffusionBlend.Rows",
  nodeCreated(node) {
    if (node.comfyClass !== "DiffusionBlendApplyLoRAs") return;
    try {
      for (const [file] of rowsOf(node)) {
        const before = file.callback;
        file.callback = function (...values) {
          const result = before?.apply(this, values);
          show(node);
          return result;
        };
      }
      const configured = node.onConfigure;
      node.onConfigure = function (...values) {
        configured?.apply(this, values);
        show(node);
      };
      heights.set(node, node.computeSize()[1]);
      show(node);
    } catch (error) {
      console.warn("Diffusion Blend: all rows of Apply Reward LoRAs are shown.", error);
    }
  },
});
